"""
A cursor over untrusted bytes: every read is bounded, and nothing may be left over.

For the layouts that are lists of fields rather than offsets (TPM 2.0, SPDM). The vendors' fixed
structures are read by offset in their own modules.
"""

from __future__ import annotations

from typing import Literal

from aigovtool.errors import MalformedError


class Reader:
    """
    Read *data* from its beginning to its end.

    Args:
        data: the whole structure.
        what: names it in messages, such as ``TPMS_ATTEST``.
        code: code of the errors raised.
        byteorder: of its integers.
    """

    __slots__ = ("_at", "_byteorder", "_code", "_data", "_what")

    def __init__(
        self, data: bytes, *, what: str, code: str, byteorder: Literal["big", "little"]
    ) -> None:
        self._data = data
        self._what = what
        self._code = code
        self._byteorder: Literal["big", "little"] = byteorder
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes not yet read."""
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        """Return the next *size* bytes; raises MalformedError when fewer are left."""
        if size > self.left:
            raise self.malformed(
                "is cut short", expected=f"{size} bytes at offset {self._at}", came=str(self.left)
            )
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def uint(self, size: int) -> int:
        """Return the next *size* bytes as an unsigned integer."""
        return int.from_bytes(self.take(size), self._byteorder)

    def sized(self, size_bytes: int) -> bytes:
        """Return a field that has its length before it, as an integer of *size_bytes* bytes."""
        return self.take(self.uint(size_bytes))

    def end(self) -> None:
        """Raise MalformedError when anything is left."""
        if self.left:
            raise self.malformed("has bytes after its end", came=f"{self.left} bytes")

    def malformed(
        self, problem: str, *, expected: str | None = None, came: str | None = None
    ) -> MalformedError:
        """Make (not raise) the error that names the structure."""
        return MalformedError(
            f"{self._what} {problem}", code=self._code, expected=expected, came=came
        )
