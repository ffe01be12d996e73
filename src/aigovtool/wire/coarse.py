"""Numbers with fewer digits, so that an answer says less of the model that gave it."""

from __future__ import annotations

import numpy as np

from aigovtool.wire.tensors import Array

_TINY = 1e-290  # what is less becomes 0: its power of ten has no reciprocal in FP64


def rounded(array: Array, digits: int) -> Array:
    """
    Return *array* with its floating-point numbers rounded to so many significant decimal digits.

    The datatype stays, and so do infinities, NaN and arrays of anything else.
    """
    if array.dtype.kind != "f":
        return array
    wide = array.astype(np.float64)
    size = np.abs(wide)
    usual = np.isfinite(wide) & (size >= _TINY)
    places = np.zeros_like(wide)  # after the point; negative ones are before it
    places[usual] = digits - 1 - np.floor(np.log10(size[usual]))
    # each power is a whole number: multiplied by one and divided by the other no digit is invented
    up, down = 10.0 ** np.maximum(places, 0), 10.0 ** np.maximum(-places, 0)
    with np.errstate(over="ignore"):  # what rounds beyond the largest number becomes it, below
        short = np.round(wide / down * up) / up * down
    most = np.finfo(array.dtype).max
    short = np.where(usual, np.clip(short, -most, most), np.where(np.isfinite(wide), 0.0, wide))
    return short.astype(array.dtype)
