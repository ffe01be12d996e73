"""Server-sent events: the same ones, and the same bytes, however they are split on their way."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigovtool.client.events import MAX_EVENT_BYTES, Event, EventReader, event_of
from aigovtool.errors import TooLargeError

EVENTS = (
    (b'data: {"a":1}\n\n', b'{"a":1}'),
    (b"data:x\r\ndata: y\r\n\r\n", b"x\ny"),
    (b": a comment\n\n", b""),
    (b"event: e\rid: 1\rdata: z\r\r", b"z"),
    (b"data\ndata:  two blanks\n\n", b"\n two blanks"),
    (b"datax: no\n\n", b""),
    (b"data: [DONE]\n\n", b"[DONE]"),
)
STREAM = b"".join(raw for raw, _ in EVENTS)


def read(pieces: list[bytes]) -> list[Event]:
    reader = EventReader()
    return [event for piece in pieces for event in reader.feed(piece)]


def split(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *at})
    return [data[a:b] for a, b in pairwise(places)]


def test_whole() -> None:
    assert [(event.raw, event.data) for event in read([STREAM])] == list(EVENTS)


@given(st.lists(st.integers(0, len(STREAM))))
def test_any_split_gives_the_same(at: list[int]) -> None:
    found = read(split(STREAM, at))
    assert b"".join(event.raw for event in found) == STREAM
    assert [event.data for event in found if event.data] == [data for _, data in EVENTS if data]


@given(st.binary(max_size=200), st.lists(st.integers(0, 200)))
def test_nothing_is_added_or_lost(data: bytes, at: list[int]) -> None:
    whole = b"".join(event.raw for event in read([data]))
    assert data.startswith(whole)
    pieces = b"".join(event.raw for event in read(split(data, [min(i, len(data)) for i in at])))
    # a CRLF that was split may lie before or after the place where an event ends
    assert data.startswith(pieces)
    assert abs(len(pieces) - len(whole)) <= 1


def test_with_a_tail() -> None:
    assert [event.data for event in read([STREAM, b"data: torn"])] == [data for _, data in EVENTS]


def test_an_event_is_bounded() -> None:
    with pytest.raises(TooLargeError):
        read([b"data: ", b"x" * MAX_EVENT_BYTES])
    with pytest.raises(TooLargeError):
        read([event_of(b"x" * MAX_EVENT_BYTES)])
