"""
The enclave's HTTP connections: small queries go straight to `turn`, all else to ASGI.

Rule 1: a query goes straight only when its head and body come in one piece, are a plain POST of
        HTTP/1.1 with a Content-Length, and nothing is under way on the connection. It costs no
        task, no scope and no event then; parsing, limits and time limits are those of `guarded`.
Rule 2: until it is answered it stands in uvicorn's place for a request that is under way (`cycle`),
        so that what is pipelined behind it waits.
Rule 3: it can be passed on to the ASGI application at any time before it is answered.
Rule 4: clients say one head over and over. What comes between two requests, begins with the very
        bytes of the head before it and has as many more as that had, is a request with that head,
        and is not parsed again.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from aigovtool.channel.guarded import guarded_protocol
from aigovtool.clock import Clock
from aigovtool.enclave.api.http import DIVERT, Reply
from aigovtool.enclave.api.infer import AUTHORIZATION
from aigovtool.enclave.api.reception import Reception
from aigovtool.enclave.api.turn import Head, Turns

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_DIRECT_BYTES = 64 << 10  # of a body; more than one TLS record rarely comes in one piece
MAX_KEPT_HEAD_BYTES = 8 << 10  # of each connection

_INFER = b"/infer"
_MODELS = b"/v2/models/"
_UNUSUAL = re.compile(rb"[^!$&-;=@-Z_a-z~]")  # what a path holds as it is (RFC 3986), without "%"
_TRANSFER_ENCODING = b"transfer-encoding"
_LENGTH = b"content-length"
_HEAD_END = b"\r\n\r\n"
_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode())
    for status in HTTPStatus
}


class _NobodyWaits:
    """In the place of a cycle's event, which uvicorn sets when the connection is lost."""

    def set(self) -> None:
        """Nothing waits for more of this query."""


_NOBODY_WAITS: Any = _NobodyWaits()


class Direct:
    """A query that goes straight; to uvicorn it is the cycle that is under way (Rule 2)."""

    __slots__ = (
        "_protocol",
        "body",
        "disconnected",
        "head",
        "is_complete",
        "keep_alive",
        "message_event",
        "response_complete",
        "scope",
        "since_s",
        "turns",
    )

    def __init__(
        self,
        protocol: Any,  # a DirectProtocol
        turns: Turns,
        head: Head,
        scope: Any,
        since_s: float,
    ) -> None:
        self._protocol = protocol
        self.scope = scope  # as uvicorn begins it, and shared by requests with this head
        self.turns = turns
        self.head = head
        self.body = b""
        self.is_complete = False
        self.since_s = since_s
        self.keep_alive = True
        self.disconnected = False
        self.response_complete = False
        self.message_event = _NOBODY_WAITS

    def answer(self, reply: Reply) -> None:
        """Send the answer; it is not sent to whoever left."""
        self.response_complete = True
        protocol = self._protocol
        if self.disconnected or protocol.transport.is_closing():
            return
        head = [_STATUS_LINES[reply.status]]
        for name, value in (*protocol.server_state.default_headers, *reply.headers):
            head += (name, b": ", value, b"\r\n")
        if not self.keep_alive:
            head.append(b"connection: close\r\n")
        length = sum(map(len, reply.chunks))
        protocol.transport.write(
            b"".join((*head, b"content-length: %d\r\n\r\n" % length, *reply.chunks))
        )
        if not self.keep_alive:
            protocol.transport.close()
        protocol.is_answered()

    def pass_on(self) -> None:
        """Let the ASGI application answer, as uvicorn would have from the beginning."""
        protocol = self._protocol
        if self.disconnected or protocol.transport.is_closing():
            return
        path = self.head.path
        cycle = RequestResponseCycle(
            scope=self.scope
            | {
                "method": "POST",
                "path": path.decode("ascii"),
                "raw_path": path,
                "query_string": b"",
            },
            transport=protocol.transport,
            flow=protocol.flow,
            logger=protocol.logger,
            access_logger=protocol.access_logger,
            access_log=protocol.access_log,
            default_headers=protocol.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=self.keep_alive,
            on_response=protocol.on_response_complete,
        )
        cycle.body += self.body
        cycle.more_body = not self.is_complete
        cycle.message_event.set()
        if protocol.cycle is self:
            protocol.cycle = cycle
        self.response_complete = True  # as far as it is ours
        protocol._start_asgi_task(cycle, protocol.app)

    def give_up(self) -> None:
        """End the connection, unless the query was answered or passed on."""
        if not self.response_complete:
            self._protocol.transport.abort()


@dataclass(frozen=True, slots=True)
class _Said:
    """
    A head that came on a connection (Rule 4).

    Args:
        raw: its bytes.
        size: with the body that followed.
    """

    raw: bytes
    size: int
    head: Head
    scope: Any

    @classmethod
    def with_(cls, data: bytes, cycle: Any) -> _Said | None:
        """
        Return the head with which *data* begins, None unless it is of a query that went straight,
        and that is all of *data*.
        """
        head, end, body = data.partition(_HEAD_END)
        if not isinstance(cycle, Direct) or body != cycle.body or len(head) > MAX_KEPT_HEAD_BYTES:
            return None
        return cls(head + end, len(data), cycle.head, cycle.scope)

    def begins(self, data: bytes) -> bool:
        """Whether *data* is a request with this head."""
        return len(data) == self.size and data.startswith(self.raw)


def direct_protocol(
    reception: Reception, *, max_connections: int, clock: Clock
) -> type[HttpToolsProtocol]:
    """Return the protocol for a server that holds at most *max_connections* at one time."""
    guarded: Any = guarded_protocol(max_connections=max_connections)

    class DirectProtocol(guarded):  # type: ignore[misc]
        _direct: Direct | None = None  # whose body is still to come
        _take: Callable[[bytes], bool] | None = None  # what the application gave to `divert`
        _said: _Said | None = None  # the head of the request that was parsed last
        _between = True  # two messages
        _idle_since_s = 0.0

        def data_received(self, data: bytes) -> None:
            said = self._said
            if said is not None and said.begins(data) and self._goes_on(said, data):
                return
            self._said = None
            fresh, before = self._between, self.cycle
            super().data_received(data)
            if (direct := self._direct) is not None:  # not all of it came in this piece
                self._direct = None
                direct.pass_on()
            elif fresh and self._between and self.cycle is not before:  # one request, whole
                self._said = _Said.with_(data, self.cycle)

        def _goes_on(self, said: _Said, data: bytes) -> bool:
            """Serve a request with the head before it, if it can go straight."""
            turns = reception.of_key(said.head.headers.get(AUTHORIZATION)).turns
            if not (turns.open and self._is_idle()) or self.transport.is_closing():
                return False
            self.cycle = direct = Direct(self, turns, said.head, said.scope, clock.monotonic_s())
            direct.body = data[len(said.raw) :]
            direct.is_complete = True
            turns.add(direct)
            return True

        def is_answered(self) -> None:
            """A query that went straight is over: as `on_response_complete` for others."""
            if self.pipeline or self.timeout_keep_alive_task is None:
                self.on_response_complete()
            else:  # the timer goes on, and is seen to when it is over
                self.server_state.total_requests += 1
                self._idle_since_s = self.loop.time()

        def timeout_keep_alive_handler(self) -> None:
            under_way = self.cycle is not None and not self.cycle.response_complete
            since_s = self.loop.time() if under_way else self._idle_since_s
            left_s = since_s + self.timeout_keep_alive - self.loop.time()
            if left_s <= 0:
                super().timeout_keep_alive_handler()
            else:
                self.timeout_keep_alive_task = self.loop.call_later(
                    left_s, self.timeout_keep_alive_handler
                )

        def on_message_begin(self) -> None:
            self._between = False
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            headers = dict(self.headers)
            turns = reception.of_key(headers.get(AUTHORIZATION)).turns
            if not (turns.open and self._is_idle() and self._is_plain(headers)):
                self.scope[DIVERT] = self.divert
                super().on_headers_complete()
                return
            self.headers_are_here()
            head = Head(self.url, headers)
            direct = Direct(self, turns, head, self.scope, clock.monotonic_s())
            self._direct = self.cycle = direct

        def on_body(self, body: bytes) -> None:
            if self._direct is not None:
                self._direct.body += body
            elif self._take is None or not self._take(body):
                self._take = None  # what follows comes after this one
                super().on_body(body)

        def on_message_complete(self) -> None:
            self._between = True
            if (direct := self._direct) is None:
                self._take = None
                super().on_message_complete()
                return
            self._direct = None
            direct.is_complete = True
            direct.turns.add(direct)

        def divert(self, take: Callable[[bytes], bool] | None) -> None:
            self._take = take

        def _is_idle(self) -> bool:
            return (
                self.cycle is None or self.cycle.response_complete
            ) and not self.flow.write_paused

        def _is_plain(self, headers: Mapping[bytes, bytes]) -> bool:
            url, length = self.url, headers.get(_LENGTH, b"")
            return (
                url.endswith(_INFER)
                and url.startswith(_MODELS)
                and not _UNUSUAL.search(url)
                and length.isdigit()
                and int(length) <= MAX_DIRECT_BYTES
                and _TRANSFER_ENCODING not in headers
                and not self.expect_100_continue
                and self.parser.get_method() == b"POST"
                and self.parser.get_http_version() == "1.1"
                and self.parser.should_keep_alive()
                and not self.parser.should_upgrade()
            )

    return DirectProtocol
