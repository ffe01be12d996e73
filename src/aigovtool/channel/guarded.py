"""
uvicorn's HTTP connection, guarded: what both servers ask of a connection before it is a request.

Rule 1: a request's head is finished within a time and a size, or the connection is closed. uvicorn
        itself bounds neither, so one caller without any key could fill the memory.
Rule 2: connections are bounded in number, and broken HTTP is answered with problem details.
Rule 3: an answer is taken at a pace, or the connection is closed: nobody makes a server keep it.
Rule 4: a request to speak another protocol on is refused, unless the server speaks it: what comes
        after it is no body, which would be waited for in vain.
Rule 5: what follows a chunked body is no header (RFC 9110 section 6.5.1): it is counted, and
        forgotten.
"""

from __future__ import annotations

import asyncio

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from aigovtool.errors import MalformedError, UnavailableError
from aigovtool.wire.problem import CONTENT_TYPE, Problem, problem_of

HEAD_TIME_S = 15.0
MAX_HEAD_BYTES = 64 << 10
STALL_TIME_S = 30.0  # for whoever reads an answer, besides the time that its bytes need
SLOWEST_BYTES_PER_S = 16 << 10


def guarded_protocol(*, max_connections: int) -> type[HttpToolsProtocol]:
    """Return the protocol for a server that holds at most *max_connections* at one time."""

    class GuardedProtocol(HttpToolsProtocol):
        _head_bytes = 0
        _head_timer: asyncio.TimerHandle | None = None
        _stall_timer: asyncio.TimerHandle | None = None
        _refusal = MalformedError("not an HTTP request", code="http")
        _in_head = True
        _passed_on = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                self._refuse(
                    problem_of(UnavailableError("too many connections", code="connections"))
                )
                return
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_is_here()
            self._is_read()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            waiting = self.transport.get_write_buffer_size()
            time_s = STALL_TIME_S + waiting / SLOWEST_BYTES_PER_S
            self._stall_timer = self.loop.call_later(time_s, self._abort)

        def resume_writing(self) -> None:
            self._is_read()
            super().resume_writing()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            if self._passed_on:
                return
            # uvicorn stops its idle timer for anything that comes, a lone line end too; most heads
            # come in one piece, and need no timer
            if self._in_head or self.cycle is None or self.cycle.response_complete:
                self._await_head()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._head_bytes, self._in_head = 0, True

        def on_url(self, url: bytes) -> None:
            self._count(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._count(len(name) + len(value))
            if self._in_head:
                super().on_header(name, value)

        def headers_are_here(self) -> None:
            self._in_head = False
            self._head_is_here()

        def on_headers_complete(self) -> None:
            self.headers_are_here()
            if self.parser.should_upgrade() and not self._should_upgrade():
                self._refusal = MalformedError(
                    "this server does not change to another protocol",
                    code="http.upgrade",
                    mend="send the request without an Upgrade header",
                )
                raise ValueError("upgrade")  # the parser turns it into a 400
            super().on_headers_complete()

        def handle_websocket_upgrade(self) -> None:
            self._passed_on = True  # to another protocol, whose affair it is from now on
            super().handle_websocket_upgrade()

        def send_400_response(self, msg: str) -> None:
            self._refuse(problem_of(self._refusal))

        def _count(self, size: int) -> None:
            self._head_bytes += size
            if self._head_bytes > MAX_HEAD_BYTES:
                raise ValueError("request head too large")  # the parser turns it into a 400

        def _await_head(self) -> None:
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(HEAD_TIME_S, self._close)

        def _head_is_here(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _is_read(self) -> None:
            if self._stall_timer is not None:
                self._stall_timer.cancel()
                self._stall_timer = None

        def _abort(self) -> None:
            self.transport.abort()  # to close would wait for what is not read to be read

        def _close(self) -> None:
            self.transport.close()

        def _refuse(self, problem: Problem) -> None:
            body = msgspec.json.encode(problem)
            self.transport.write(
                b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n%s"
                % (problem.status, problem.title.encode(), CONTENT_TYPE.encode(), len(body), body)
            )
            self.transport.close()

    return GuardedProtocol
