"""The servers' HTTP connection against callers who have no key: bounded, and others are served."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from aigovtool.channel import guarded
from aigovtool.channel.guarded import MAX_HEAD_BYTES, guarded_protocol

HEAD_TIME_S = 0.3
LIVE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Said:
    """An application that keeps what it was given and answers 200."""

    def __init__(self) -> None:
        self.headers: list[dict[bytes, bytes]] = []

    async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        self.headers.append(dict(scope["headers"]))
        while (await receive()).get("more_body"):
            pass
        head = {"status": 200, "headers": [(b"content-length", b"0")]}
        await send({"type": "http.response.start", **head})
        await send({"type": "http.response.body", "body": b""})


class Quiet(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield


@contextlib.asynccontextmanager
async def serving(
    *, max_connections: int = 10, app: Any = None, ws: Any = "none"
) -> AsyncIterator[tuple[int, Said]]:
    app = app or Said()
    listener = socket.create_server(("127.0.0.1", 0))
    server = Quiet(
        uvicorn.Config(
            app,
            http=guarded_protocol(max_connections=max_connections),
            ws=ws,
            lifespan="off",
            log_config=None,
        )
    )
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1], app
    finally:
        server.should_exit = True
        await task


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded, "HEAD_TIME_S", HEAD_TIME_S)


async def say(port: int, words: bytes) -> bytes:
    """Send *words* and return all that comes until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(30):
            with contextlib.suppress(ConnectionError):
                writer.write(words)
                await writer.drain()
            with contextlib.suppress(ConnectionError):
                return await reader.read()
            return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    "words",
    [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nA: b", LIVE + b"GET /"],
    ids=["silent", "half a line", "half a head", "half a second"],
)
async def test_a_head_that_is_never_finished_is_not_waited_for(words: bytes) -> None:
    async with serving() as (port, app):
        came = await say(port, words)
        assert came.count(b"HTTP/1.1 200") == words.count(LIVE)
        assert len(app.headers) == words.count(LIVE)


async def test_a_line_end_after_an_answer_does_not_hold_the_connection() -> None:
    async with serving() as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(30):
            writer.write(LIVE)
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"\r\n")
            assert await reader.read() == b""
        writer.close()


async def test_a_head_without_end_is_refused_and_not_kept() -> None:
    async with serving() as (port, app):
        line = b"x: " + b"a" * 1000 + b"\r\n"
        count = 2 * MAX_HEAD_BYTES // len(line)
        came = await say(port, b"GET / HTTP/1.1\r\n" + line * count)
        assert came == b"" or came.startswith(b"HTTP/1.1 400")
        assert app.headers == []


async def test_trailers_are_no_headers_and_are_bounded() -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    key = b"0\r\nAuthorization: Bearer of-a-trailer\r\n"
    async with serving() as (port, app):
        assert (await say(port, head + key + b"\r\n")).startswith(b"HTTP/1.1 200")
        assert b"authorization" not in app.headers[0]
        await say(port, head + key + (b"x: " + b"a" * 1000 + b"\r\n") * 200 + b"\r\n")
        assert all(b"x" not in headers for headers in app.headers)


async def test_two_ways_to_state_a_length_are_refused() -> None:
    attacks = (
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"Content-Length: -1\r\n\r\n",
        b"Content-Length: 99999999999999999999999\r\n\r\n",
    )
    async with serving() as (port, _):
        for attack in attacks:
            came = await say(port, b"POST / HTTP/1.1\r\nHost: x\r\n" + attack + LIVE)
            assert came.startswith(b"HTTP/1.1 400"), attack
            assert came.count(b"HTTP/1.1") == 1, attack


async def test_more_connections_than_may_be_are_told_so() -> None:
    async with serving(max_connections=1) as (port, _):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        assert (await say(port, LIVE)).startswith(b"HTTP/1.1 503")
        writer.close()
        await writer.wait_closed()
        last = LIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        assert (await say(port, last)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_a_server_without_websockets_refuses_to_change_to_them(method: bytes) -> None:
    """With a body: it would be taken for what follows the change, and waited for in vain."""
    async with serving() as (port, app):
        upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nhi"
        came = await say(port, method + b" / HTTP/1.1\r\nHost: x\r\n" + upgrade)
        assert came.startswith(b"HTTP/1.1 400")
        assert b'"code":"http.upgrade"' in came
        assert app.headers == []


async def test_a_connection_that_has_changed_to_websockets_is_not_timed_as_a_head() -> None:
    """The control connection of an enclave was cut so, every 15 s."""

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})

    async with (
        serving(app=echo, ws=WebSocketsSansIOProtocol) as (port, _),
        aiohttp.ClientSession() as http,
        http.ws_connect(f"http://127.0.0.1:{port}/") as line,
        asyncio.timeout(30),
    ):
        await asyncio.sleep(3 * HEAD_TIME_S)
        await line.send_str("still here")
        assert (await line.receive_str()) == "still here"


async def test_who_does_not_read_an_answer_loses_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guarded, "STALL_TIME_S", 0.2)
    monkeypatch.setattr(guarded, "SLOWEST_BYTES_PER_S", 1 << 30)
    ended = asyncio.Event()

    async def large(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while (await asyncio.wait_for(receive_of(receive), None)) is None:
                piece = {"type": "http.response.body", "body": b"x" * (1 << 20), "more_body": True}
                await send(piece)
        finally:
            ended.set()

    async def receive_of(receive):  # type: ignore[no-untyped-def]
        """None as long as the client is there."""
        try:
            async with asyncio.timeout(0):
                message = await receive()
        except TimeoutError:
            return None
        return message if message["type"] == "http.disconnect" else None

    async with serving(app=large) as (port, _):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(LIVE)
        async with asyncio.timeout(30):
            await ended.wait()
        writer.close()
