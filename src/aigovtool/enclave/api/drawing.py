"""
What a query draws out of a language model: admitted before it is charged, counted when it is over.

Rule 1: from the question how much is left of a day to its reservation there is no wait, so no other
        query comes between.
Rule 2: an answer may be as long as what is left of the day; it is not refused for being asked to be
        longer, and ends with the ``finish_reason`` of a limit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aigovtool.clock import Clock
from aigovtool.enclave.extraction import Watch
from aigovtool.ids import ConsumerId
from aigovtool.wire.openai.requests import TextRequest


@dataclass(slots=True)
class Drawing:
    """
    What one answer may have of the day.

    Args:
        most: tokens that it may have.
        given: tokens that it had, said by whoever gives it, before it is over.
    """

    most: int
    given: int = 0


@contextlib.contextmanager
def drawing(
    watch: Watch, consumer: ConsumerId, asked: TextRequest, most: int, clock: Clock
) -> Iterator[Drawing]:
    """
    Admit a query whose answer may have *most* tokens, and count what it was given.

    Raises:
        LimitedError: the consumer's tokens of the day are used up.
        BadPromptError: more log probabilities are asked for than the loan gives.
    """
    watch.check_logprobs(asked.logprobs)
    now = clock.now()
    left = watch.admit(consumer, newest_text(asked), now)
    drawn = Drawing(most if left is None else min(most, left))
    reserved = watch.reserve(consumer, drawn.most, now)
    try:
        yield drawn
    finally:
        watch.produced(reserved, drawn.given, clock.now())


def newest_text(asked: TextRequest) -> str:
    """Return what is new in a request: the last message of a conversation, or all of a prompt."""
    messages = asked.body.get("messages")
    if not messages:
        return asked.text
    content = messages[-1].get("content") or ""
    return content if isinstance(content, str) else "\n".join(map(_text_of, content))


def _text_of(part: Mapping[str, Any]) -> str:
    text = part.get("text", "")
    return text if isinstance(text, str) else ""
