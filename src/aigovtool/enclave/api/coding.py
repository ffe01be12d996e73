"""
Compressed queries and answers: Content-Encoding ``gzip`` and ``deflate`` (RFC 9110, 8.4.1).

Rule 1: what comes out of a compressed body has the limits of one that came plain: its size, and
        the room of all bodies, taken piece by piece before the next piece is made.
Rule 2: a body is one stream with nothing after it. Thousands of empty gzip members in a row would
        cost time and give nothing.
Rule 3: an answer is compressed only for a client that names one coding and no other, as
        tritonclient does when it is told to. HTTP libraries list all that they know unasked, and
        the length of a compressed answer tells those who see the connection something of what is
        in it: that is the consumer's choice and nobody else's. Errors are never compressed:
        tritonclient does not decompress them.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator, Mapping
from typing import Final

from aigovtool.enclave.api.http import Body, BodyRoom, Reply, Request
from aigovtool.errors import MalformedError, TooLargeError

PIECE_BYTES: Final = 512 << 10  # made at one time, and the most that is made on the event loop
LEVEL: Final = 1  # the fastest: answers are numbers, of which better levels make little less

_GZIP, _DEFLATE = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS  # deflate is zlib's format (RFC 9110)
_WINDOW = {b"gzip": _GZIP, b"x-gzip": _GZIP, b"deflate": _DEFLATE}
_ENCODING = b"content-encoding"
_ACCEPT = b"accept-encoding"
_IDENTITY = b"identity"
_OK = 200


def wants_none(headers: Mapping[bytes, bytes]) -> bool:
    """Whether neither the body nor the answer of a request is to be compressed."""
    return _ENCODING not in headers and _accepted(headers) not in _WINDOW


async def plain_body(
    request: Request, body: Body, *, max_bytes: int, room: BodyRoom, of: str
) -> Body:
    """
    Return the *body* of *request*, of consumer *of*, as it was before it was compressed.

    Raises:
        MalformedError: another coding, or not such a stream.
        TooLargeError: more than *max_bytes* come out.
        UnavailableError: there is no room for what comes out.
    """
    coding = request.headers.get(_ENCODING, _IDENTITY).strip().lower()
    if coding == _IDENTITY:
        return body
    window = _WINDOW.get(coding)
    if window is None:
        raise MalformedError(
            "the body has a Content-Encoding that is not served",
            code="malformed.coding",
            expected="gzip, deflate or none",
        )
    coming = _inflated(body, window)
    pieces: list[bytes] = []
    size = 0
    piece = next(coming, None)
    while piece is not None:
        room.take(len(piece), of)
        request.body_bytes += len(piece)
        size += len(piece)
        if size > max_bytes:
            raise TooLargeError(
                "the body is too large when it is decompressed",
                expected=f"at most {max_bytes} bytes",
                came=f"{size} bytes or more",
            )
        pieces.append(piece)
        piece = await asyncio.to_thread(next, coming, None)
    return b"".join(pieces)


async def coded_reply(request: Request, reply: Reply) -> Reply:
    """Return *reply*, compressed if *request* asks for that and nothing else (Rule 3)."""
    coding = _accepted(request.headers)
    window = _WINDOW.get(coding)
    if window is None or reply.status != _OK:
        return reply
    chunks = reply.chunks
    small = sum(map(len, chunks)) <= PIECE_BYTES
    body = (
        _deflated(chunks, window) if small else await asyncio.to_thread(_deflated, chunks, window)
    )
    return Reply(reply.status, (*reply.headers, (_ENCODING, coding)), (body,))


def _accepted(headers: Mapping[bytes, bytes]) -> bytes:
    return headers.get(_ACCEPT, b"").strip().lower()


def _inflated(body: Body, window: int) -> Iterator[bytes]:
    """Yield what comes out of *body* in pieces of at most `PIECE_BYTES`; raises MalformedError."""
    stream = zlib.decompressobj(window)
    view = memoryview(body)
    try:
        for start in range(0, len(view), PIECE_BYTES):
            # a slice at a time: zlib copies what it has not read yet for every piece it gives
            rest: bytes | memoryview = view[start : start + PIECE_BYTES]
            while rest and not stream.eof:
                if piece := stream.decompress(rest, PIECE_BYTES):
                    yield piece
                rest = stream.unconsumed_tail
            if stream.eof:
                if stream.unused_data or start + PIECE_BYTES < len(view):
                    raise _broken("has bytes after its end")
                return
        while piece := stream.decompress(b"", PIECE_BYTES):  # what the last slice still owes
            yield piece
    except zlib.error:
        raise _broken("is no such stream") from None
    if not stream.eof:
        raise _broken("is not whole")


def _deflated(chunks: tuple[bytes | memoryview, ...], window: int) -> bytes:
    stream = zlib.compressobj(LEVEL, zlib.DEFLATED, window)
    return b"".join([*(stream.compress(chunk) for chunk in chunks), stream.flush()])


def _broken(problem: str) -> MalformedError:
    return MalformedError(f"the compressed body {problem}", code="malformed.coding")
