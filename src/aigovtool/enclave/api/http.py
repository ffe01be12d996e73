"""
HTTP without a framework: a request as ASGI gives it, a reply, and a body that is bounded.

Rule 1: a body is read only as far as its limit, and only for so long.
Rule 2: every error leaves as problem details; one that is our own fault says nothing but that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    MutableMapping,
)
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np

from aigovtool.errors import AIGovToolError, MalformedError, TooLargeError, UnavailableError
from aigovtool.telemetry.logs import event, place_of
from aigovtool.wire.oip import ALIGNMENT
from aigovtool.wire.problem import CONTENT_TYPE, INTERNAL, headers_of, problem_of

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]
Body = bytes | memoryview
Divert = Callable[[Callable[[bytes], bool] | None], None]

JSON_HEADER: Header = (b"content-type", b"application/json")
CLOSE: Header = (b"connection", b"close")  # what is left of a refused body is not read

DIVERT = "aigovtool.divert"
"""In a scope, where the server can do it: a function that is given what takes the pieces of the
body from now on, and says whether it did, or None for nobody. The event that comes next is then the
end of the body, or a piece that was not taken: a large body is copied once and wakes nobody."""
DIVERTED_BYTES = 64 << 10  # of a body that is diverted; a shorter one comes in an event or two

LINGER_BYTES = 4 << 20  # of a refused body that are read all the same
LINGER_S = 1.0

_log = logging.getLogger(__name__)


class ClientGoneError(Exception):
    """The client closed the connection: there is nobody to answer."""


class BodyRoom:
    """
    How many bytes of bodies may be in memory at one time, all requests together.

    Args:
        each_bytes: those of one consumer; None for as many as there may be.
    """

    __slots__ = ("_each", "_free", "_taken")

    def __init__(self, max_bytes: int, each_bytes: int | None = None) -> None:
        self._free = max_bytes
        self._each = max_bytes if each_bytes is None else each_bytes
        self._taken: dict[str, int] = {}

    def take(self, size: int, of: str = "") -> None:
        """Take room for consumer *of*; raises UnavailableError when there is not so much."""
        taken = self._taken.get(of, 0) + size
        if size > self._free or taken > self._each:
            raise UnavailableError(
                "too many large queries at one time",
                code="queue.bodies",
                came=f"{taken} bytes of yours",
                retry_after_s=1.0,
            )
        self._free -= size
        self._taken[of] = taken

    def give_back(self, size: int, of: str = "") -> None:
        """Give back what was taken."""
        self._free += size
        if left := self._taken.get(of, 0) - size:
            self._taken[of] = left
        else:
            self._taken.pop(of, None)


class Request:
    """One request. `headers` has the last of each name, in lower case."""

    __slots__ = (
        "_divert",
        "_read",
        "body_bytes",
        "headers",
        "method",
        "path",
        "peer",
        "query",
        "receive",
    )

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.headers: Mapping[bytes, bytes] = dict(scope["headers"])
        self.receive = receive
        self.peer: str = (scope["client"] or ("",))[0]  # its address
        self._divert: Divert | None = scope.get(DIVERT)
        self._read = False
        self.body_bytes = 0  # taken of a `BodyRoom`, to be given back when the request is over

    @property
    def has_unread_body(self) -> bool:
        """Whether there is, or may be, something of the body that was not read."""
        if self._read:
            return False
        return b"transfer-encoding" in self.headers or (
            self.headers.get(b"content-length", b"0") != b"0"
        )

    async def body(
        self,
        *,
        max_bytes: int,
        time_s: float,
        room: BodyRoom,
        of: str = "",
        aligned_at: int = 0,
    ) -> Body:
        """
        Read the whole body, taking `body_bytes` of *room* for consumer *of* as it comes.

        Args:
            aligned_at: the byte that begins at a multiple of `ALIGNMENT` in a long body's memory.

        Raises:
            TooLargeError: it is, or says that it is, longer than *max_bytes*; the rest is not read.
            MalformedError: its length is no number.
            UnavailableError: it did not arrive within *time_s*, or there is no room for it.
            ClientGoneError: the client left.
        """
        stated = self.headers.get(b"content-length", b"0")
        if not stated.isdigit():
            raise MalformedError("Content-Length is not a length")
        if int(stated) > max_bytes:
            raise _too_large(max_bytes, f"{int(stated)} bytes")
        gathered = _Gathered(int(stated), max_bytes, aligned_at)

        def take(piece: bytes) -> None:
            room.take(len(piece), of)
            self.body_bytes += len(piece)
            gathered.add(piece)

        def diverted(piece: bytes) -> bool:
            try:
                take(piece)
            except AIGovToolError:
                return False  # it comes as an event, and is refused where that can be told
            return True

        try:
            async with asyncio.timeout(time_s):
                while not self._read:
                    take(await self._piece())
                    if self._divert is not None and int(stated) > DIVERTED_BYTES:
                        self._divert(None if self._read else diverted)
        except TimeoutError:
            raise UnavailableError(
                f"the body did not arrive within {time_s:g} s", code="body.time"
            ) from None
        finally:
            if self._divert is not None:
                self._divert(None)
        return gathered.whole()

    async def discard(self, *, max_bytes: int, time_s: float) -> None:
        """Read on and forget, so that a client that still sends comes to read its answer."""
        with contextlib.suppress(TimeoutError, ClientGoneError):
            async with asyncio.timeout(time_s):
                while not self._read and max_bytes > 0:
                    max_bytes -= len(await self._piece())

    async def _piece(self) -> bytes:
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        self._read = not message.get("more_body", False)
        body: bytes = message["body"]
        return body


class _Gathered:
    """
    A body as it comes: one piece as it is, more in memory of the stated size, each copied once.

    That memory is the kernel's until something is written to it, so that it is no more than came.
    """

    __slots__ = ("_aligned_at", "_came", "_max", "_pieces", "_stated", "_view")

    def __init__(self, stated: int, max_bytes: int, aligned_at: int) -> None:
        self._aligned_at = aligned_at
        self._stated = stated  # 0 when nobody said
        self._max = max_bytes
        self._pieces: list[bytes] = []
        self._view: memoryview | None = None
        self._came = 0

    def add(self, piece: bytes) -> None:
        """Add what came next; raises TooLargeError when it is too much."""
        start, self._came = self._came, self._came + len(piece)
        if self._came > self._max:
            raise _too_large(self._max, f"{self._came} bytes or more")
        if self._view is None and self._stated > DIVERTED_BYTES:
            if self._came == self._stated and not start:
                self._pieces.append(piece)
                return
            memory = np.empty(self._stated + ALIGNMENT, np.uint8)
            start_at = -(memory.ctypes.data + self._aligned_at) % ALIGNMENT
            self._view = memory[start_at : start_at + self._stated].data
        if self._view is None:
            self._pieces.append(piece)
        else:
            self._view[start : self._came] = piece

    def whole(self) -> Body:
        """Return all that came."""
        if self._view is not None:
            return self._view[: self._came]
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)


class Reply(NamedTuple):
    """What to answer. The content length is added when it is sent."""

    status: int
    headers: tuple[Header, ...] = ()
    chunks: tuple[bytes | memoryview, ...] = (b"",)

    async def send(self, send: Send) -> None:
        """Send it."""
        await self._start(send)
        last = len(self.chunks) - 1
        for index, chunk in enumerate(self.chunks):
            await send({"type": "http.response.body", "body": chunk, "more_body": index < last})

    async def send_and_close(self, send: Send, request: Request) -> None:
        """
        Send it although the request's body was not read, and end the connection.

        To close at once would reset the connection under a client that still sends, which then
        never sees the answer.
        """
        await Reply(self.status, (*self.headers, CLOSE), self.chunks)._start(send)
        for chunk in self.chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if b"expect" not in request.headers:  # whoever expects a word first has not sent anything
            await request.discard(max_bytes=LINGER_BYTES, time_s=LINGER_S)
        await send({"type": "http.response.body", "body": b""})

    async def _start(self, send: Send) -> None:
        length = sum(len(chunk) for chunk in self.chunks)
        await send(
            {
                "type": "http.response.start",
                "status": self.status,
                "headers": [*self.headers, (b"content-length", b"%d" % length)],
            }
        )


@dataclass(frozen=True, slots=True)
class StreamedReply:
    """
    What to answer, part by part, as it comes; its length is not known beforehand.

    Args:
        holds: what is let go of when it was sent, or cannot be.
    """

    status: int
    headers: tuple[Header, ...]
    parts: AsyncIterator[bytes]
    holds: contextlib.AsyncExitStack

    async def send(self, send: Send) -> None:
        """Send it."""
        async with self.holds:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status,
                    "headers": list(self.headers),
                }
            )
            async for part in self.parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


def json_reply(message: object, *, status: int = 200) -> Reply:
    """Answer with a message as JSON."""
    return Reply(status, (JSON_HEADER,), (msgspec.json.encode(message),))


def problem_reply(error: AIGovToolError, headers: Iterable[Header] = ()) -> Reply:
    """Answer with an error, and with *headers* too."""
    problem = problem_of(error)
    if problem is INTERNAL:
        log_fault(error)
    extra = [(name.lower().encode(), value.encode()) for name, value in headers_of(error).items()]
    return Reply(
        problem.status,
        ((b"content-type", CONTENT_TYPE.encode()), *extra, *headers),
        (msgspec.json.encode(problem),),
    )


def fault_reply(error: Exception) -> Reply:
    """Answer to a fault of our own: the client learns nothing, the log where it happened."""
    log_fault(error)
    return Reply(
        INTERNAL.status,
        ((b"content-type", CONTENT_TYPE.encode()),),
        (msgspec.json.encode(INTERNAL),),
    )


def log_fault(error: Exception) -> None:
    """Log kind and place of a fault, and not its message, which could quote a query (I5)."""
    place = place_of((type(error), error, error.__traceback__))
    _log.error("a fault of our own: %s", place, extra=event("fault"))


def _too_large(max_bytes: int, came: str) -> TooLargeError:
    return TooLargeError("the body is too large", expected=f"at most {max_bytes} bytes", came=came)
