"""
The numbers of large JSON requests, read by a SIMD parser straight into arrays.

They are cut out of the text, which leaves a small message for `codec.decode`, and are parsed by
simdjson in pieces that stay in the processor's cache.

Rule 1: what comes of it is what the plain way (`tensors.from_json`) makes of the same bytes. Where
        that is not certain, `DoubtError` says so, and the plain way is taken for the whole message:
        it alone refuses, in its own words.

Doubtful is all that is rare: null, a boolean or text among the numbers, one that does not fit its
type, an array that is nested otherwise than its shape, rows too short for pieces, and numbers that
belong to no tensor.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import simdjson

from aigovtool.wire.tensors import DTYPES, Array

LEAST_BYTES = 8 << 10  # of an array; below, the plain way is as quick
LEAST_ROW = 16  # elements
PIECE_BYTES = 64 << 10

_KEY = b'"data"'
_OPENING = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*(?=\[)")
_NESTED = re.compile(rb"\[[ \t\r\n]*\[")
_BLANK = b" \t\r\n"
_MARK = b"[-0e-"  # and a number and a bracket: in place of the numbers that were cut out
_WIDE: dict[str, tuple[Literal["d", "i", "u"], type[np.generic]]] = {
    "FP": ("d", np.float64),
    "IN": ("i", np.int64),
    "UI": ("u", np.uint64),
}
_here = threading.local()


class DoubtError(Exception):
    """Let the message be read the plain way (Rule 1)."""


class Numbers:
    """
    A message without its long arrays of numbers, and these.

    Args:
        text: JSON.

    `rest` is the message; where it has a cut array it has a mark instead.

    Raises:
        DoubtError: there are none, or it is not certain where they end.
    """

    def __init__(self, text: memoryview) -> None:
        self._text = bytes(text)
        self._cuts: dict[bytes, tuple[int, int]] = {}
        pieces, kept_to, at = [], 0, 0
        while (key := self._text.find(_KEY, at)) >= 0:
            at = key + len(_KEY)
            if (opening := _OPENING.match(self._text, at)) is None:
                continue
            start, at = opening.end(), self._end(opening.end())
            if at - start >= LEAST_BYTES:
                mark = _MARK + b"%d]" % len(self._cuts)
                self._cuts[mark] = (start, at)
                pieces += [self._text[kept_to:start], mark]
                kept_to = at
        self.rest = b"".join((*pieces, self._text[kept_to:]))
        if not self._cuts or self.rest.count(_MARK) != len(self._cuts):
            raise DoubtError

    def take(self, data: msgspec.Raw, datatype: str, shape: Sequence[int]) -> Array | None:
        """
        Return the array in whose place *data* is, None when it is not a mark; each only once.

        Raises:
            DoubtError: it is not certain what the numbers are.
        """
        cut = self._cuts.pop(bytes(data), None)
        if cut is None:
            return None
        kind, count = _WIDE.get(datatype[:2]), math.prod(shape)
        # a number and a comma take two bytes: nothing is allocated for a count that cannot be
        if kind is None or datatype not in DTYPES or not 0 < count <= (cut[1] - cut[0]) // 2:
            raise DoubtError
        wide = np.empty(count, kind[1])
        filled = 0
        for piece in self._pieces(cut, shape):
            found = _parsed(piece, *kind)
            if not 0 < found.size <= count - filled:
                raise DoubtError
            wide[filled : filled + found.size] = found
            filled += found.size
        if filled != count:
            raise DoubtError
        return _narrowed(wide, DTYPES[datatype]).reshape(shape)

    def check_all_taken(self) -> None:
        """Raise DoubtError when an array that was cut out belongs to no tensor."""
        if self._cuts:
            raise DoubtError

    def _end(self, start: int) -> int:
        """Return where the array that begins at *start* ends."""
        depth, at = 1, start + 1
        while True:
            close = self._text.find(b"]", at)
            if close < 0:
                raise DoubtError
            if self._text.find(b"[", at, close) >= 0:  # which is quicker than to count them
                depth += self._text.count(b"[", at, close)
            depth -= 1
            if depth == 0:
                return close + 1
            if at == start + 1 and self._text.count(b",", start, close) < LEAST_ROW - 1:
                raise DoubtError
            at = close + 1

    def _pieces(self, cut: tuple[int, int], shape: Sequence[int]) -> Iterator[bytes]:
        """Yield the array in pieces that are arrays of numbers, or something else altogether."""
        start, end = cut
        if _NESTED.match(self._text, start):
            yield from self._rows(start, end, shape)
            return
        if self._text.find(b"[", start + 1, end) >= 0:  # simdjson would flatten it
            raise DoubtError
        at, last = start + 1, end - 1
        while last - at > PIECE_BYTES:
            comma = self._text.rfind(b",", at, at + PIECE_BYTES)
            if comma < 0:
                raise DoubtError
            yield b"[" + self._text[at:comma] + b"]"
            at = comma + 1
        yield b"[" + self._text[at:end]

    def _rows(self, start: int, end: int, shape: Sequence[int]) -> Iterator[bytes]:
        """Yield the innermost arrays of one that is nested as *shape* says."""
        if shape[-1] < LEAST_ROW or end - start < shape[-1]:
            raise DoubtError
        # after how many rows each level but the innermost is closed and opened again
        spans = [math.prod(shape[level:-1]) for level in range(1, len(shape) - 1)]
        before, gap = start, b"[" * len(shape)
        for row in range(1, math.prod(shape[:-1]) + 1):
            comma = before if row == 1 else self._text.find(b",", before, end)
            close = self._text.find(b"]", max(before, comma), end)
            opening = self._text.rfind(b"[", before, close)
            if opening < 0 or self._text[before : opening + 1].translate(None, _BLANK) != gap:
                raise DoubtError
            row_text = self._text[opening : close + 1]
            if row_text.count(b",") != shape[-1] - 1:
                raise DoubtError
            yield row_text
            levels = 1 + sum(row % span == 0 for span in spans)
            before, gap = close, b"]" * levels + b"," + b"[" * levels
        if self._text[before:end].translate(None, _BLANK) != b"]" * len(shape):
            raise DoubtError


def _parsed(text: bytes, kind: Literal["d", "i", "u"], dtype: type[np.generic]) -> Array:
    # a parser keeps its memory, some 20 times the longest text; a new one would fault it in anew
    if not hasattr(_here, "parser"):
        _here.parser = simdjson.Parser()
    try:
        array = _here.parser.parse(text)
        if not isinstance(array, simdjson.Array):
            raise DoubtError
        return np.frombuffer(array.as_buffer(of_type=kind), dtype)
    except (ValueError, TypeError, RuntimeError):
        raise DoubtError from None


def _narrowed(wide: Array, dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "f":
        try:
            with np.errstate(over="raise"):
                return wide.astype(dtype, copy=False)
        except FloatingPointError:
            raise DoubtError from None
    bounds = np.iinfo(dtype)
    if wide.min() < bounds.min or wide.max() > bounds.max:
        raise DoubtError
    return wide.astype(dtype, copy=False)
