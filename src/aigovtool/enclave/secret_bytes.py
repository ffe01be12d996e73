"""
`bytes` objects that can be overwritten, for interfaces that take nothing else.

Overwriting an immutable object is only sound while nobody else can hold it: these are for objects
that were made here, are longer than one byte (Python shares shorter ones), and were never used as
a dictionary key.
"""

from __future__ import annotations

import ctypes

from aigovtool.sealing.memory import wipe

_DATA_OFFSET = bytes.__basicsize__ - 1  # CPython: a header, then the bytes, then one NUL
_SHORTEST = 2


def overwrite(data: bytes) -> None:
    """Overwrite *data*, a secret that nobody else holds, with zeroes."""
    if len(data) >= _SHORTEST:
        wipe(_view(data))


def _view(data: bytes) -> memoryview:
    return memoryview((ctypes.c_char * len(data)).from_address(id(data) + _DATA_OFFSET)).cast("B")
