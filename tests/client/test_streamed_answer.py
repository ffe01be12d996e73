"""A streamed answer on its way through: what passes at once, and what is held for its bill."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigovtool.channel.http1 import Response
from aigovtool.client.settling import StreamedAnswer
from aigovtool.errors import VerificationError
from tests.client.test_events import split

WORDS = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n: alive\n\ndata: {"choices":[]}\n\n'
BILL = (
    b'data: {"choices":[],"aigovtool":{"receipts":["x"],"remaining":3,'
    b'"usage":{"prompt_tokens":4,"completion_tokens":5}}}\n\n'
)
DONE = b"data: [DONE]\n\n"


class Arriving:
    """A body that comes in pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    async def chunks(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


def read(pieces: list[bytes]) -> tuple[bytes, StreamedAnswer]:
    """Return what passed at once, and the answer at its end."""
    streamed = StreamedAnswer(cast(Response, Arriving(pieces)))

    async def passing() -> bytes:
        return b"".join([event.raw async for event in streamed.events()])

    return asyncio.run(passing()), streamed


@given(st.lists(st.integers(0, len(WORDS + BILL + DONE))), st.booleans())
def test_however_it_is_split(at: list[int], done: bool) -> None:
    end = BILL + DONE * done  # a stream that was cut has none
    passed, streamed = read(split(WORDS + end, at))
    assert passed == WORDS
    assert b"".join(event.raw for event in streamed.held) == end
    assert streamed.charged is not None
    assert streamed.charged.aigovtool is not None
    assert streamed.charged.aigovtool.remaining == 3


@given(st.integers(0, len(WORDS + DONE)))
def test_an_end_without_a_bill_is_held(at: int) -> None:
    passed, streamed = read(split(WORDS + DONE, [at]))
    assert passed == WORDS
    assert [event.data for event in streamed.held] == [b"[DONE]"]
    assert streamed.charged is None


@pytest.mark.parametrize("more", [WORDS, BILL, DONE + DONE, DONE + WORDS, DONE + BILL])
def test_nothing_follows_the_end(more: bytes) -> None:
    with pytest.raises(VerificationError, match="after its end"):
        read([WORDS + BILL + more])


def test_what_is_torn_is_not_passed_on() -> None:
    passed, streamed = read([WORDS + BILL[:-1]])
    assert passed == WORDS
    assert streamed.charged is None
