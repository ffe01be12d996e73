"""A query of a language model is counted, whatever becomes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aigovtool.clock import SystemClock
from aigovtool.enclave.api.drawing import drawing, newest_text
from aigovtool.enclave.extraction import Watch
from aigovtool.errors import BadPromptError, LimitedError
from aigovtool.ids import ConsumerId
from aigovtool.wire.extraction import ExtractionLimits
from aigovtool.wire.openai.requests import TextRequest, read_chat, read_completion

ANNA = ConsumerId("consumer_a")
CLOCK = SystemClock()


def chat(*said: Any, **more: Any) -> TextRequest:
    messages = [{"role": "user", "content": one} for one in said]
    return read_chat(json.dumps({"model": "m", "messages": messages} | more).encode())


def watch(**limits: int) -> Watch:
    made = Watch()
    made.set_limits(ExtractionLimits(**limits))
    return made


def test_what_was_not_given_comes_back_also_when_it_fails() -> None:
    one = watch(output_tokens_per_day=100)
    with drawing(one, ANNA, chat("a"), 60, CLOCK) as drawn:
        drawn.given = 10
        with drawing(one, ANNA, chat("b"), 60, CLOCK) as beside:
            assert (drawn.most, beside.most) == (60, 40)
            with pytest.raises(LimitedError), drawing(one, ANNA, chat("c"), 1, CLOCK):
                raise AssertionError("nothing is left to be admitted")
    with pytest.raises(ZeroDivisionError):
        _fail_after(5, one)
    with drawing(one, ANNA, chat("e"), 200, CLOCK) as drawn:
        assert drawn.most == 85


def _fail_after(tokens: int, one: Watch) -> None:
    with drawing(one, ANNA, chat("d"), 60, CLOCK) as drawn:
        drawn.given = tokens
        raise ZeroDivisionError


def test_without_a_cap_an_answer_is_as_long_as_it_may_be() -> None:
    with drawing(watch(), ANNA, chat("a"), 10**9, CLOCK) as drawn:
        assert drawn.most == 10**9


def test_too_many_log_probabilities_are_refused_and_count_for_nothing() -> None:
    one = watch(top_logprobs=2, queries_per_day=1)
    asked = chat("a", logprobs=True, top_logprobs=3)
    with pytest.raises(BadPromptError), drawing(one, ANNA, asked, 1, CLOCK):
        raise AssertionError("it is admitted")
    assert not one.alarms
    with drawing(one, ANNA, chat("a", logprobs=True, top_logprobs=2), 1, CLOCK):
        assert [alarm.kind for alarm in one.alarms] == ["queries"]


@pytest.mark.parametrize(
    ("asked", "newest"),
    [
        (chat("first", "second"), "second"),
        (chat([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]), "one\ntwo"),
        (read_completion(b'{"model": "m", "prompt": "go on"}'), "go on"),
    ],
)
def test_of_a_conversation_the_last_message_is_compared(asked: TextRequest, newest: str) -> None:
    assert newest_text(asked) == newest


def test_a_conversation_that_grows_is_not_alike_to_itself() -> None:
    one = watch(alike_per_day=1)
    said = ["Where is the library of Alexandria?", "And who burned it down, as far as is known?"]
    for turns in (said[:1], said):
        with drawing(one, ANNA, chat(*turns), 1, CLOCK):
            assert not one.alarms
    with drawing(one, ANNA, chat(*said), 1, CLOCK):
        assert [alarm.kind for alarm in one.alarms] == ["alike"]
