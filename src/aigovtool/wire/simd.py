"""
The numbers of JSON requests, read by a SIMD parser straight into arrays.

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

import contextvars
import math
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import simdjson

from aigovtool.wire.tensors import DTYPES, Array

LEAST_BYTES = 64  # of an array; a shorter one is not worth the search
LEAST_ROW = 16  # elements
PIECE_BYTES = 64 << 10

_KEY = b'"data"'
_OPENING = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*(?=\[)")
_NESTED = re.compile(rb"\[[ \t\r\n]*\[")
_BLANK = b" \t\r\n"
MARK = b"[-0e-"  # and a number and a bracket: in place of the numbers that were cut out
_WIDE: dict[str, tuple[Literal["d", "i", "u"], type[np.generic]]] = {
    "FP": ("d", np.float64),
    "IN": ("i", np.int64),
    "UI": ("u", np.uint64),
}


class _Here(threading.local):
    """
    What a thread keeps: a parser, whose memory (some 20 times the longest text) would be faulted in
    anew, and a context in which numpy raises where a number does not fit (`np.errstate` costs more
    than to convert a short array).
    """

    def __init__(self) -> None:
        self.parser = simdjson.Parser()
        self.strict = contextvars.Context()
        self.strict.run(np.seterr, over="raise")


_here = _Here()


class DoubtError(Exception):
    """Let the message be read the plain way (Rule 1)."""


class _Cut(NamedTuple):
    """An array in the text; `flat` when it has no other array in it."""

    start: int
    end: int
    flat: bool


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
        self._cuts: dict[bytes, _Cut] = {}
        pieces, kept_to, at = [], 0, 0
        while (key := self._text.find(_KEY, at)) >= 0:
            at = key + len(_KEY)
            if (opening := _OPENING.match(self._text, at)) is None:
                continue
            cut = self._cut_at(opening.end())
            at = cut.end
            if at - cut.start >= LEAST_BYTES:
                mark = MARK + b"%d]" % len(self._cuts)
                self._cuts[mark] = cut
                pieces += [self._text[kept_to : cut.start], mark]
                kept_to = at
        self.rest = b"".join((*pieces, self._text[kept_to:]))
        if not self._cuts or self.rest.count(MARK) != len(self._cuts):
            raise DoubtError

    def take(self, data: bytes, datatype: str, shape: Sequence[int]) -> Array | None:
        """
        Return the array in whose place *data* is, None when it is not a mark; each only once.

        Raises:
            DoubtError: it is not certain what the numbers are.
        """
        return self.take_marked(data, datatype, shape) if data in self._cuts else None

    def take_marked(self, mark: bytes, datatype: str, shape: Sequence[int]) -> Array:
        """Do so of what must be a mark that was not taken yet; raises DoubtError."""
        cut = self._cuts.pop(mark, None)
        kind, count = _WIDE.get(datatype[:2]), math.prod(shape)
        # a number and a comma take two bytes: nothing is allocated for a count that cannot be
        if (
            cut is None
            or kind is None
            or datatype not in DTYPES
            or not 0 < count <= (cut.end - cut.start) // 2
        ):
            raise DoubtError
        return _narrowed(self._wide(cut, shape, count, *kind), DTYPES[datatype]).reshape(shape)

    def _wide(
        self,
        cut: _Cut,
        shape: Sequence[int],
        count: int,
        kind: Literal["d", "i", "u"],
        dtype: type[np.generic],
    ) -> Array:
        whole: Array | None = None
        filled = 0
        for piece in self._pieces(cut, shape):
            found = _parsed(piece, kind, dtype)
            if found.size == count and not filled:
                whole, filled = found, count
                continue
            if not 0 < found.size <= count - filled:
                raise DoubtError
            whole = np.empty(count, dtype) if whole is None else whole
            whole[filled : filled + found.size] = found
            filled += found.size
        if whole is None or filled != count:
            raise DoubtError
        return whole

    def check_all_taken(self) -> None:
        """Raise DoubtError when an array that was cut out belongs to no tensor."""
        if self._cuts:
            raise DoubtError

    def _cut_at(self, start: int) -> _Cut:
        """Return the array that begins at *start*."""
        depth, at, flat = 1, start + 1, True
        while True:
            close = self._text.find(b"]", at)
            if close < 0:
                raise DoubtError
            if self._text.find(b"[", at, close) >= 0:  # which is quicker than to count them
                depth += self._text.count(b"[", at, close)
                flat = False
            depth -= 1
            if depth == 0:
                return _Cut(start, close + 1, flat)
            if at == start + 1 and self._text.count(b",", start, close) < LEAST_ROW - 1:
                raise DoubtError
            at = close + 1

    def _pieces(self, cut: _Cut, shape: Sequence[int]) -> Iterator[bytes]:
        """Yield the array in pieces that are arrays of numbers, or something else altogether."""
        start, end, flat = cut
        if not flat:
            if not _NESTED.match(self._text, start):  # simdjson would flatten it
                raise DoubtError
            yield from self._rows(start, end, shape)
            return
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
            narrow: Array = _here.strict.run(wide.astype, dtype, copy=False)
            return narrow
        except FloatingPointError:
            raise DoubtError from None
    bounds = np.iinfo(dtype)
    if wide.min() < bounds.min or wide.max() > bounds.max:
        raise DoubtError
    return wide.astype(dtype, copy=False)
