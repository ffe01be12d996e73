"""
Fingerprints by which near-duplicate texts are known, without keeping any text.

A fingerprint is a SimHash (Charikar, STOC 2002) of 64 bits over the text's runs of five characters,
so that it serves languages without blanks between words. Texts of which some nine tenths of the
runs are the same differ in about nine bits; texts that have nothing to do with each other in 32,
give or take four.

Rule 1: a fingerprint is keyed by random numbers of this process, and never leaves it: nobody can
        try guesses of a text against one.
Rule 2: time and memory are bounded, whatever the text: of a long one the beginning counts.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RUN = 5  # characters
MAX_CHARACTERS = 8192
ALIKE_BITS = 10
KEPT = 1024  # fingerprints of one consumer; the oldest give way
KEY_NUMBERS = RUN + 1

_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # of splitmix64
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


class Fingerprints:
    """Makes fingerprints under one key, of `KEY_NUMBERS` random 64-bit numbers."""

    def __init__(self, key: Sequence[int]) -> None:
        self._key = np.array(key[:RUN], np.uint64) | np.uint64(1)
        self._start = np.uint64(key[RUN])

    def of(self, text: str) -> int:
        """Return the fingerprint of *text*; case, width and the length of blanks do not count."""
        plain = " ".join(
            unicodedata.normalize("NFKC", text[:MAX_CHARACTERS]).casefold().split()
        ).ljust(RUN)
        points = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), np.uint32)
        runs = np.lib.stride_tricks.sliding_window_view(points.astype(np.uint64), RUN)
        hashes = np.unique(_mixed((runs * self._key).sum(axis=1, dtype=np.uint64) + self._start))
        bits = np.unpackbits(hashes.astype("<u8").view(np.uint8).reshape(-1, 8), axis=1)
        set_bits = bits.sum(axis=0, dtype=np.int64) * 2 > len(hashes)
        return int.from_bytes(np.packbits(set_bits).tobytes(), "little")


class Recent:
    """The last `KEPT` fingerprints of one consumer."""

    def __init__(self) -> None:
        self._prints = np.zeros(16, np.uint64)
        self._noted = 0

    def note(self, fingerprint: int) -> bool:
        """Keep a fingerprint, and say whether it is alike to one that was kept."""
        kept = min(self._noted, KEPT)
        new = np.uint64(fingerprint)
        near = np.bitwise_count(self._prints[:kept] ^ new) <= ALIKE_BITS
        if kept == len(self._prints) < KEPT:
            self._prints = np.concatenate([self._prints, np.zeros(kept, np.uint64)])
        self._prints[self._noted % KEPT] = new
        self._noted += 1
        return bool(near.any())


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread each number over all of its bits."""
    values = (values ^ (values >> _SHIFTS[0])) * _MIX[0]
    values = (values ^ (values >> _SHIFTS[1])) * _MIX[1]
    return values ^ (values >> _SHIFTS[2])
