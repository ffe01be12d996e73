"""HTTP/1.1 as the channel speaks it, against a peer that says exactly what a test wants."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigovtool.channel.address import Address
from aigovtool.channel.http1 import (
    HIGH_WATER_BYTES,
    MAX_HEAD_BYTES,
    Connection,
    ConnectionLostError,
    PeerChanged,
    Request,
    Response,
    open_connection,
)
from aigovtool.crypto.tls import make_enclave_identity, pinned_client_context, server_context
from aigovtool.errors import (
    AIGovToolError,
    MalformedError,
    PromiseBrokenError,
    TooLargeError,
    UnavailableError,
)

IDENTITY = make_enclave_identity(now=datetime.now(UTC))
GET = Request(method=b"GET", target=b"/x")
Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def talking_to(peer: Peer) -> AsyncIterator[Connection]:
    """A connection to a TLS server on loopback that does what *peer* does."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await peer(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context(IDENTITY))
    async with server:
        port = server.sockets[0].getsockname()[1]
        context = pinned_client_context(IDENTITY.certificate_pem)
        connection = await open_connection(Address(host="127.0.0.1", port=port), context)
        try:
            yield connection
        finally:
            await connection.close()


def says(*pieces: bytes) -> Peer:
    """A peer that reads a head, says the pieces one by one, and hangs up."""

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()
        await writer.wait_closed()

    return peer


LENGTH = b"HTTP/1.1 200 OK\r\nX-One: 1\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2;ext=1\r\nhe\r\n3\r\nllo\r\n0\r\nTrailer: t\r\n\r\n"
)
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + LENGTH


@pytest.mark.parametrize("answer", [LENGTH, CHUNKED, INTERIM], ids=["length", "chunked", "interim"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "byte by byte"])
async def test_answers(answer: bytes, whole: bool) -> None:
    pieces = (answer,) if whole else tuple(answer[i : i + 1] for i in range(len(answer)))
    async with talking_to(says(*pieces)) as connection:
        response = await connection.ask(GET)
        assert response.status == 200
        assert response.header(b"link") is None
        assert await response.read(max_bytes=5) == b"hello"


@pytest.mark.parametrize("answer", [LENGTH, CHUNKED], ids=["length", "chunked"])
async def test_an_answer_cut_off_anywhere_is_never_whole(answer: bytes) -> None:
    for end in range(0, len(answer) - 1, 3):
        async with talking_to(says(answer[:end])) as connection:
            with pytest.raises(ConnectionLostError):
                await (await connection.ask(GET)).read(max_bytes=100)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n\r\nuntil I hang up",
        b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nuntil I hang up",
    ],
)
async def test_an_answer_without_a_length_is_not_taken(answer: bytes) -> None:
    async with talking_to(says(answer)) as connection:
        with pytest.raises(ConnectionLostError):
            await (await connection.ask(GET)).read(max_bytes=100)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"\x16\x03\x01", MalformedError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", MalformedError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", MalformedError),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            MalformedError,
        ),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", MalformedError),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * (2 * MAX_HEAD_BYTES), TooLargeError),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 999_999,
            TooLargeError,
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n" + b"x" * 101, TooLargeError),
    ],
    ids=["TLS", "two lengths", "minus", "both", "upgrade", "head", "chunk head", "body"],
)
async def test_what_is_no_answer(answer: bytes, kind: type[AIGovToolError]) -> None:
    async with talking_to(says(answer)) as connection:
        with pytest.raises(kind):
            await (await connection.ask(GET)).read(max_bytes=100)


async def test_a_connection_is_used_again() -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in (LENGTH, CHUNKED, LENGTH):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
        await reader.read()

    async with talking_to(peer) as connection:
        for _ in range(3):
            assert await (await connection.ask(GET)).read(max_bytes=5) == b"hello"
            assert connection.reusable
            assert connection.silent


async def test_an_answer_before_it_is_asked_for_is_not_the_next_one() -> None:
    """Two answers to one request: the second must never be taken for another request's."""
    async with talking_to(says(LENGTH, LENGTH.replace(b"hello", b"EVIL!"))) as connection:
        await (await connection.ask(GET)).read(max_bytes=5)
        while connection.reusable and connection.silent:  # noqa: ASYNC110  the peer's socket decides
            await asyncio.sleep(0)


async def test_the_peer_closes_after_its_answer() -> None:
    answer = LENGTH.replace(b"X-One: 1", b"Connection: close")
    async with talking_to(says(answer)) as connection:
        assert await (await connection.ask(GET)).read(max_bytes=5) == b"hello"
        assert not connection.reusable


async def test_memory_is_bounded_while_nobody_reads() -> None:
    total = 64 << 20
    sent = 0

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        while sent < total:
            writer.write(bytes(1 << 20))
            await writer.drain()
            sent += 1 << 20
        await reader.read()

    async with talking_to(peer) as connection:
        response = await connection.ask(GET)
        before = -1
        while sent != before:  # until the peer is held up
            before = sent
            await asyncio.sleep(0.05)
        assert sent < total
        assert response._buffered < 2 * HIGH_WATER_BYTES
        got = 0
        async for piece in response.chunks():
            got += len(piece)
        assert got == total


# --- what is sent --------------------------------------------------------------------------------


async def heard(request: Request) -> bytes:
    """Return all that a peer hears of *request* until its body is there."""
    got = bytearray()

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.extend(await reader.readuntil(b"\r\n\r\n"))
        if b"content-length: " in got:
            length = int(got.split(b"content-length: ")[1].split(b"\r\n")[0])
            got.extend(await reader.readexactly(length))
        elif b"chunked" in got:
            got.extend(await reader.readuntil(b"0\r\n\r\n"))
        writer.write(LENGTH)
        await reader.read()

    async with talking_to(peer) as connection:
        response = await connection.ask(request)
        await response.read(max_bytes=5)
        assert connection.reusable
    return bytes(got)


async def test_a_body_of_chunks() -> None:
    body = (b"head", memoryview(b"tail"))
    sent = await heard(Request(method=b"POST", target=b"/y?z", headers=((b"a", b"b"),), body=body))
    head, _, rest = sent.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /y?z HTTP/1.1\r\nhost: 127.0.0.1:")
    assert head.endswith(b"\r\na: b\r\ncontent-length: 8")
    assert rest == b"headtail"


async def test_a_large_body() -> None:
    body = bytes(range(256)) * (20 << 10)  # 5 MiB
    sent = await heard(
        Request(method=b"POST", target=b"/", body=(body[:100], memoryview(body)[100:]))
    )
    assert sent.endswith(body)


@pytest.mark.parametrize("length", [6, None])
async def test_a_streamed_body(length: int | None) -> None:
    async def stream() -> AsyncIterator[bytes]:
        for piece in (b"abc", b"", b"def"):
            yield piece

    sent = await heard(Request(method=b"POST", target=b"/", body=stream(), length=length))
    assert sent.endswith(b"abcdef" if length else b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n")


async def test_a_body_that_breaks_off_never_looks_whole() -> None:
    got = bytearray()

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(1000):
            got.extend(piece)

    async def stream() -> AsyncIterator[bytes]:
        yield b"abc"
        raise UnavailableError("the source dried up")

    async with talking_to(peer) as connection:
        with pytest.raises(UnavailableError, match="dried up"):
            await connection.ask(Request(method=b"POST", target=b"/", body=stream()))
        assert not connection.reusable
    await asyncio.sleep(0.01)
    assert not got.endswith(b"0\r\n\r\n")


async def test_an_answer_before_the_body_is_sent() -> None:
    """A 413 comes while the body is still on its way: it is read, and the connection is dropped."""
    gate = asyncio.Event()

    async def stream() -> AsyncIterator[bytes]:
        yield b"abc"
        await gate.wait()

    async with talking_to(says(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")) as connection:
        response = await connection.ask(Request(method=b"POST", target=b"/", body=stream()))
        assert response.status == 413
        assert not connection.reusable


@pytest.mark.parametrize(
    "request_",
    [
        Request(method=b"GET", target=b"/ HTTP/1.1\r\nX: y\r\n"),
        Request(method=b"GET", target=b"/a b"),
        Request(method=b"GET", target=b"/", headers=((b"a", b"b\r\nX: y"),)),
        Request(method=b"GET", target=b"/", headers=((b"a", b"b\nX: y"),)),
        Request(method=b"GET", target=b"/", headers=((b"a\r", b"b"),)),
        Request(method=b"GET", target=b"/", headers=((b"a", b"\0"),)),
    ],
)
async def test_a_head_cannot_be_split(request_: Request) -> None:
    async with talking_to(says(LENGTH)) as connection:
        with pytest.raises(PromiseBrokenError):
            await connection.ask(request_)


# --- who answers ---------------------------------------------------------------------------------


async def test_another_key_gets_no_byte() -> None:
    got = bytearray()

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.extend(await reader.read(1))

    other = make_enclave_identity(now=datetime.now(UTC))
    server = await asyncio.start_server(peer, "127.0.0.1", 0, ssl=server_context(other))
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(PeerChanged):
            await open_connection(
                Address(host="127.0.0.1", port=port),
                pinned_client_context(IDENTITY.certificate_pem),
            )
    assert not got


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 400 Bad\r\n\r\n"])
async def test_a_peer_without_tls(greeting: bytes) -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        writer.close()

    server = await asyncio.start_server(peer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(UnavailableError):
            await open_connection(
                Address(host="127.0.0.1", port=port),
                pinned_client_context(IDENTITY.certificate_pem),
            )


async def test_a_peer_that_never_shakes_hands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aigovtool.channel.http1.CONNECT_TIMEOUT_S", 0.1)

    hung_up = asyncio.Event()

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.transport.abort()
        hung_up.set()

    server = await asyncio.start_server(peer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(UnavailableError):
            await open_connection(
                Address(host="127.0.0.1", port=port), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            )
        await hung_up.wait()


# --- the parser alone ----------------------------------------------------------------------------


class _Wire:
    """As much of a transport as a response needs."""

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


@settings(max_examples=60)
@given(st.binary(max_size=200), st.lists(st.integers(1, 40), max_size=10), st.booleans())
def test_any_body_in_any_pieces(body: bytes, cuts: list[int], chunked: bool) -> None:
    if chunked:
        encoded = b"".join(
            b"%x\r\n%b\r\n" % (len(body[i : i + 7]), body[i : i + 7])
            for i in range(0, len(body), 7)
        )
        wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + encoded + b"0\r\n\r\n"
    else:
        wire = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    async def feed() -> bytes:
        response = Response(asyncio.get_running_loop(), _Wire())  # type: ignore[arg-type]
        rest = wire
        for cut in cuts:
            if rest:
                response.feed(rest[:cut])
                rest = rest[cut:]
        if rest:
            response.feed(rest)
        assert response.complete
        return await response.read(max_bytes=200)

    assert asyncio.run(feed()) == body


@settings(max_examples=100)
@given(st.binary(max_size=300))
def test_no_foreign_exception_leaves_the_parser(data: bytes) -> None:
    async def feed() -> None:
        response = Response(asyncio.get_running_loop(), _Wire())  # type: ignore[arg-type]
        try:
            response.feed(data)
            response.feed(b"HTTP/1.1 " + data)
        except MalformedError:
            pass

    asyncio.run(feed())
