"""
Sealed bodies by HTTP: one range at a time, resumable (RFC 9110, sections 13.1.5 and 14).

The entity tag is the body's SHA-256, which is strong: If-Range compares it byte by byte.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from aigovtool.custodian.api.http import off_loop
from aigovtool.errors import UnavailableError

PIECE_BYTES = 1 << 20
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})\Z")


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes from `start` up to, not including, `end`."""

    start: int
    end: int


def parse_range(text: str | None, size: int) -> Span | None:
    """
    Return what a Range header asks of *size* bytes; None for all of them.

    Several ranges, other units and nonsense are ignored, as section 14.2 allows.

    Raises:
        ValueError: one range that holds no byte of the body: 416.
    """
    match = _RANGE.match(text) if text else None
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":  # the last so many
        length = min(int(match[2]), size)
        span = Span(size - length, size)
    else:
        start = int(match[1])
        end = int(match[2]) + 1 if match[2] else size
        if match[2] and end <= start:
            return None
        span = Span(start, min(end, size))
    if span.start >= span.end:
        raise ValueError("no byte of the body")
    return span


async def send_body(request: Request, path: Path, *, sha256: bytes, pool: Executor) -> Response:
    """
    Answer with a file or the range of it that was asked for.

    Raises:
        UnavailableError: the file is not there or cannot be read.
    """
    etag = f'"{sha256.hex()}"'
    try:
        file, size = await off_loop(pool, lambda: _open(path))
    except OSError as error:
        raise UnavailableError(
            "the sealed model cannot be read here", code="model.body", came=error.strerror
        ) from None
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "private"}
    wanted = request.headers.get("range")
    if request.headers.get("if-range", etag) != etag:
        wanted = None
    try:
        span = parse_range(wanted, size)
    except ValueError:
        file.close()
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
    status, part = 200, Span(0, size)
    if span is not None:
        status, part = 206, span
        headers["Content-Range"] = f"bytes {part.start}-{part.end - 1}/{size}"
    headers["Content-Length"] = str(part.end - part.start)
    if request.method == "HEAD":
        file.close()
        return Response(status_code=status, headers=headers)
    return StreamingResponse(
        _pieces(file, part, pool), status, headers, media_type="application/octet-stream"
    )


def _open(path: Path) -> tuple[BinaryIO, int]:
    file = path.open("rb")
    return file, os.fstat(file.fileno()).st_size


async def _pieces(file: BinaryIO, part: Span, pool: Executor) -> AsyncIterator[bytes]:
    with file:
        file.seek(part.start)
        left = part.end - part.start
        while left > 0:
            size = min(PIECE_BYTES, left)
            piece = await off_loop(pool, functools.partial(file.read, size))
            if not piece:
                return  # cut off: the server then ends the connection, which the client sees
            left -= len(piece)
            yield piece
