"""
Server-sent events, told apart while their bytes pass (WHATWG HTML, section 9.2).

Rule 1: an event is given whole and as it came, so that what is passed on is byte for byte the same,
        and ends where an event ends.
Rule 2: however the bytes are split on their way, the events are the same.
Rule 3: one event at a time is held, of at most `MAX_EVENT_BYTES`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from aigovtool.errors import TooLargeError

MAX_EVENT_BYTES = 4 << 20  # the last of a long answer holds a receipt for each of its leases
DONE = b"[DONE]"  # the data of OpenAI's last event

# a line ends in CRLF, LF or CR, and CRLF is never taken for two
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LONGEST_BLANK_LINE = 4  # bytes


@dataclass(frozen=True, slots=True)
class Event:
    """
    Args:
        raw: as it came, with the blank line that ends it.
        data: of its ``data`` lines, joined; empty for a comment.
    """

    raw: bytes
    data: bytes


class EventReader:
    """Bytes in, events out."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._searched = 0

    def feed(self, piece: bytes) -> Iterator[Event]:
        """
        Give the events that are complete with *piece*.

        Raises:
            TooLargeError: one is longer than `MAX_EVENT_BYTES`.
        """
        self._held += piece
        while (end := _BLANK_LINE.search(self._held, self._searched)) is not None:
            _check_size(end.end())
            raw = bytes(self._held[: end.end()])
            del self._held[: end.end()]
            self._searched = 0
            yield Event(raw=raw, data=_data_of(raw))
        _check_size(len(self._held))
        self._searched = max(0, len(self._held) - _LONGEST_BLANK_LINE)


def event_of(data: bytes) -> bytes:
    """Write an event that holds *data*, a line of it."""
    return b"data: %b\n\n" % data


def _data_of(raw: bytes) -> bytes:
    lines = (line.partition(b":") for line in _LINE_END.split(raw))
    return b"\n".join(value.removeprefix(b" ") for name, _, value in lines if name == b"data")


def _check_size(size: int) -> None:
    if size > MAX_EVENT_BYTES:
        raise TooLargeError(
            "an event of the answer is too large", expected=f"at most {MAX_EVENT_BYTES} bytes"
        )
