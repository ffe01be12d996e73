"""
HTTP/1.1 over TLS to one peer, and as little of it as an enclave needs.

A general client does what must not happen here: it follows redirects, keeps cookies, asks proxies,
decompresses without a limit, and repeats a request on its own. It also costs 0.1 ms a call, as much
as all else that the client does. Parsing is httptools' (llhttp); the rules here are few:

Rule 1: the TLS handshake decides. With another key than the pinned one it fails, and of a request
        not one byte has been sent (`PeerChanged`).
Rule 2: one request at a time on a connection; nothing is repeated. Whether a request may have
        reached the peer is told by the error: `ConnectionLostError` says that it may have.
Rule 3: bodies stream both ways with bounded memory, and heads are bounded.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import cast

import httptools

from aigovtool.channel.address import Address
from aigovtool.errors import (
    AIGovToolError,
    MalformedError,
    PromiseBrokenError,
    TooLargeError,
    UnavailableError,
)

CONNECT_TIMEOUT_S = 10.0
MAX_HEAD_BYTES = 64 << 10  # and of chunk framing between two bytes of a body
HIGH_WATER_BYTES = 1 << 20  # received and not yet taken; above it reading pauses
# A query that waits for credits is silent for minutes: tell a dead peer from a patient one, and
# keep address translation from forgetting the connection.
KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),  # seconds
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),  # seconds
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
WRITE_AT_ONCE_BYTES = 256 << 10  # larger bodies are sent piece by piece, as fast as the peer reads

Headers = tuple[tuple[bytes, bytes], ...]


class PeerChanged(Exception):
    """Another key answered than the pinned one; nothing was sent. Never leaves `channel`."""


class ConnectionLostError(UnavailableError):
    """The connection broke after the request was sent: it may have been served, or not."""

    code = "channel.lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """
    Args:
        target: path and query as on the wire, such as ``/v2/models/digits/infer``.
        headers: without Host, Content-Length and Transfer-Encoding, which are made here.
        body: chunks, or a stream of them.
        length: bytes in a stream, None when not known.
    """

    method: bytes
    target: bytes
    headers: Headers = ()
    body: tuple[bytes | memoryview, ...] | AsyncIterator[bytes | memoryview] = ()
    length: int | None = None


class Response:
    """
    An answer while it comes in: `status` and `headers` are there, the body is taken by `read` or
    `chunks`, once. The methods ``on_…`` are httptools' callbacks.
    """

    __slots__ = (
        "_buffer", "_buffered", "_error", "_loop", "_parser", "_transport", "_waiter",
        "body_bytes", "complete", "headers", "keep_alive", "started", "status",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
        self._loop = loop
        self._transport = transport
        self._parser = httptools.HttpResponseParser(self)
        self._buffer: deque[bytes] = deque()
        self._buffered = 0
        self._waiter: asyncio.Future[None] | None = None
        self._error: AIGovToolError | None = None
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.started = False
        self.complete = False
        self.keep_alive = False
        self.body_bytes = 0

    def header(self, name: bytes) -> bytes | None:
        """Return the value of the header *name* (lower case), or None."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    async def read(self, *, max_bytes: int) -> bytes:
        """
        Return the whole body.

        Raises:
            TooLargeError: it is longer than *max_bytes*; the rest is not read.
            ConnectionLostError: it was cut off.
            MalformedError: it is not HTTP.
        """
        pieces = []
        left = max_bytes
        while True:  # as `chunks`, without a generator: most answers are one piece
            while self._buffer:
                pieces.append(self._pop())
                left -= len(pieces[-1])
                if left < 0:
                    raise TooLargeError(
                        "the answer is too large", expected=f"at most {max_bytes} bytes"
                    )
            if self.complete:
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)
            await self.wait()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Give the body as it comes; raises as `read`, but for its size."""
        while True:
            while self._buffer:
                yield self._pop()
            if self.complete:
                return
            await self.wait()

    def _pop(self) -> bytes:
        piece = self._buffer.popleft()
        self._buffered -= len(piece)
        if self._buffered < HIGH_WATER_BYTES and not self.complete:
            self._transport.resume_reading()
        return piece

    async def wait(self) -> None:
        """Wait until something has come; raises what went wrong."""
        if self._error is None:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._error is not None:
            raise self._error

    def feed(self, data: bytes) -> None:
        """Take bytes from the wire; raises MalformedError."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise MalformedError("the peer wants another protocol") from None
        except httptools.HttpParserError:
            raise MalformedError("the peer does not answer in HTTP") from None

    def fail(self, error: AIGovToolError) -> None:
        """End the answer with *error*, which its reader gets."""
        if not self.complete and self._error is None:
            self._error = error
            self._wake()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.started:  # trailers come later, and nobody here reads them
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self.started = self.status >= 200
        if self.started:
            self._wake()

    def on_body(self, body: bytes) -> None:
        self._buffer.append(body)
        self._buffered += len(body)
        self.body_bytes += len(body)
        if self._buffered >= HIGH_WATER_BYTES:
            self._transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        if not self.started:  # an interim answer, RFC 9110 section 15.2; the real one follows
            self.headers.clear()
            return
        self.complete = True
        self.keep_alive = self._parser.should_keep_alive()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Connection(asyncio.Protocol):
    """One TLS connection; `open_connection` makes it."""

    def __init__(self, address: Address) -> None:
        self._loop = asyncio.get_running_loop()
        self._host = str(address).encode("ascii")
        self._transport: asyncio.Transport | None = None
        self._response: Response | None = None
        self._sender: asyncio.Task[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._framing_bytes = 0
        self.idle_since_s = 0.0

    # --- asyncio.Protocol -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        for level, option, value in KEEPALIVE:
            transport.get_extra_info("socket").setsockopt(level, option, value)

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None or response.complete:
            self.abort()  # nobody asked: what follows could be taken for the next answer
            return
        body_bytes = response.body_bytes
        try:
            response.feed(data)
        except MalformedError as error:
            self._break(error)
            return
        if response.body_bytes > body_bytes:
            self._framing_bytes = 0
            return
        self._framing_bytes += len(data)
        if self._framing_bytes > MAX_HEAD_BYTES and not response.complete:
            self._break(
                TooLargeError(
                    "the head of the answer is too large",
                    expected=f"at most {MAX_HEAD_BYTES} bytes",
                )
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.resume_writing()
        if self._response is not None:
            self._response.fail(
                ConnectionLostError(
                    "the connection broke before the answer was complete",
                    came=type(exc).__name__ if exc else "end of stream",
                )
            )

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # --- one request, one answer ------------------------------------------------------------

    @property
    def reusable(self) -> bool:
        """Whether the last exchange ended in full, in both directions, and the peer keeps on."""
        response = self._response
        return (
            self._transport is not None
            and not self._transport.is_closing()
            and (self._sender is None or self._sender.done())
            and (response is None or (response.complete and response.keep_alive))
        )

    @property
    def silent(self) -> bool:
        """
        Whether nothing waits to be read: on an idle connection that would be its end, which the
        event loop has not seen yet, and a request sent into it would be lost.
        """
        assert self._transport is not None
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not poll.poll(0)

    def peer_certificate(self) -> bytes | None:
        """Return the peer's certificate as DER."""
        assert self._transport is not None
        certificate = self._transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
        assert certificate is None or isinstance(certificate, bytes)
        return certificate

    async def ask(self, request: Request) -> Response:
        """
        Send *request* and wait for the head of its answer.

        The answer may come before all is sent (a 413): then sending goes on until `close`.

        Raises:
            ConnectionLostError, MalformedError, TooLargeError: see the module's rules.
            AIGovToolError: what the body's stream raised.
        """
        if self._transport is None:
            raise ConnectionLostError("the connection is closed")
        self._framing_bytes = 0
        self._response = response = Response(self._loop, self._transport)
        self._send(request)
        while not response.started:
            await response.wait()
        return response

    async def close(self) -> None:
        """Close without waiting for the peer, and end the sending."""
        self.abort()
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait((self._sender,))

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _break(self, error: AIGovToolError) -> None:
        if self._response is not None:
            self._response.fail(error)
        self.abort()

    def _send(self, request: Request) -> None:
        assert self._transport is not None
        stream: AsyncIterator[bytes | memoryview]
        length: int | None
        if isinstance(request.body, tuple):
            length = sum(len(chunk) for chunk in request.body)
            head = _head(request, self._host, length)
            if length <= WRITE_AT_ONCE_BYTES:
                self._transport.write(b"".join((head, *request.body)))
                return
            stream = _pieces(request.body)
        else:
            length, stream = request.length, request.body
            head = _head(request, self._host, length)
        self._transport.write(head)
        self._sender = self._loop.create_task(self._send_stream(stream, chunked=length is None))

    async def _send_stream(
        self, stream: AsyncIterator[bytes | memoryview], *, chunked: bool
    ) -> None:
        whole = False
        try:
            async for piece in stream:
                if self._writable is not None:
                    await self._writable
                if self._transport is None:
                    return
                if not chunked:
                    self._transport.write(piece)
                elif piece:  # an empty chunk would end the body
                    self._transport.write(b"".join((b"%x\r\n" % len(piece), piece, b"\r\n")))
            if chunked and self._transport is not None:
                self._transport.write(b"0\r\n\r\n")
            whole = True
        except AIGovToolError as error:
            self._break(error)
        finally:
            if not whole:  # a body that ends early must not look like a whole one
                self.abort()


async def open_connection(address: Address, context: ssl.SSLContext) -> Connection:
    """
    Connect and do the TLS handshake.

    Raises:
        PeerChanged: the peer's certificate is not the one that *context* pins.
        UnavailableError: nobody answers there, in time and in TLS.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, connection = await loop.create_connection(
                lambda: Connection(address),
                address.host,
                address.port,
                ssl=context,
            )
    except ssl.SSLCertVerificationError:
        raise PeerChanged from None
    except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError too
        raise UnavailableError(
            f"cannot connect to an enclave at {address}",
            came=_why(error),
            mend="check the address, and that the enclave is running",
        ) from None
    return connection


def _why(error: OSError | TimeoutError) -> str:
    """Say what went wrong in the system's words; asyncio's own quote addresses."""
    if isinstance(error, TimeoutError):
        return f"no answer within {CONNECT_TIMEOUT_S:g} s"
    if isinstance(error, ssl.SSLError | socket.gaierror) or error.errno is None:
        return error.strerror or type(error).__name__
    return os.strerror(error.errno)


def _head(request: Request, host: bytes, length: int | None) -> bytes:
    """Write the head; what could break its lines never gets here, and is caught if it does."""
    lines = [b"%b %b HTTP/1.1" % (request.method, request.target), b"host: " + host]
    lines += [b"%b: %b" % header for header in request.headers]
    if length is None:
        lines.append(b"transfer-encoding: chunked")
    elif length or request.method != b"GET":
        lines.append(b"content-length: %d" % length)
    head = b"\r\n".join(lines)
    breaks = len(lines) - 1
    if (
        head.count(b"\r") != breaks
        or head.count(b"\n") != breaks
        or b"\0" in head
        or b" " in request.target
    ):
        raise PromiseBrokenError("a request head with a line break in a value")
    return head + b"\r\n\r\n"


async def _pieces(body: tuple[bytes | memoryview, ...]) -> AsyncIterator[bytes | memoryview]:
    for chunk in body:
        view = memoryview(chunk)
        for start in range(0, len(view), WRITE_AT_ONCE_BYTES):
            yield view[start : start + WRITE_AT_ONCE_BYTES]
