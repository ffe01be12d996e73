"""What one consumer can draw out of a language model in a day, whatever it tries."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aigovtool.enclave.alike import KEPT, MAX_CHARACTERS, Fingerprints, Recent
from aigovtool.enclave.extraction import ANSWERED_WITHIN, REPORT_EVERY_S, Reserved, Watch
from aigovtool.errors import BadPromptError, LimitedError
from aigovtool.ids import ConsumerId
from aigovtool.wire.control import OutputElsewhere
from aigovtool.wire.extraction import ExtractionLimits

ANNA, BERT = ConsumerId("consumer_a"), ConsumerId("consumer_b")
NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
DAY = (NOON - datetime(1970, 1, 1, tzinfo=UTC)).days
KEY = [3, 5, 7, 11, 13, 17]


def watch(**limits: int) -> Watch:
    made = Watch(Fingerprints(KEY))
    made.set_limits(ExtractionLimits(**limits))
    return made


def kinds(one: Watch) -> list[tuple[str, str, int]]:
    return [(alarm.consumer, alarm.kind, alarm.count) for alarm in one.alarms]


# --- the cap on output --------------------------------------------------------------------------


def test_concurrent_streams_share_what_is_left_of_the_day() -> None:
    one = watch(output_tokens_per_day=100)
    assert one.admit(ANNA, "a", NOON) == 100
    first = one.reserve(ANNA, 70, NOON)
    assert one.admit(ANNA, "b", NOON) == 30
    with pytest.raises(LimitedError):
        one.reserve(ANNA, 31, NOON)
    one.reserve(ANNA, 30, NOON)
    with pytest.raises(LimitedError) as caught:
        one.admit(ANNA, "c", NOON)
    assert caught.value.retry_after_s == REPORT_EVERY_S  # held, and not used up
    one.produced(first, 20, NOON)
    assert one.admit(ANNA, "d", NOON) == 50
    assert one.admit(BERT, "e", NOON) == 100


def test_a_day_that_is_used_up_is_refused_until_it_ends() -> None:
    one = watch(output_tokens_per_day=100)
    one.produced(one.reserve(ANNA, 100, NOON), 100, NOON)
    with pytest.raises(LimitedError) as caught:
        one.admit(ANNA, "more", NOON)
    assert caught.value.reasons[0].code == "extraction.output"
    assert caught.value.retry_after_s == 12 * 3600
    assert kinds(one) == [(ANNA, "output", 100)]
    midnight = NOON + timedelta(hours=12)
    assert one.admit(ANNA, "more", midnight) == 100
    with pytest.raises(LimitedError):
        one.reserve(ANNA, 101, NOON)  # a clock that goes back begins nothing anew
    assert one.admit(ANNA, "more", NOON) == 100


def test_a_query_that_ends_after_midnight_counts_for_its_own_day() -> None:
    one = watch(output_tokens_per_day=100)
    late = one.reserve(ANNA, 60, NOON)
    midnight = NOON + timedelta(hours=12)
    assert one.admit(ANNA, "x", midnight) == 100
    one.produced(late, 50, midnight)
    assert one.admit(ANNA, "x", midnight) == 100


def test_what_is_told_twice_counts_once() -> None:
    one = watch(output_tokens_per_day=100)
    reserved = one.reserve(ANNA, 60, NOON)
    one.produced(reserved, 10, NOON)
    one.produced(reserved, 10, NOON)
    assert one.admit(ANNA, "x", NOON) == 90


def test_without_a_cap_nothing_is_refused_and_a_later_cap_counts_what_was() -> None:
    one = watch()
    assert one.admit(ANNA, "x", NOON) is None
    one.produced(one.reserve(ANNA, 10_000, NOON), 9_000, NOON)
    assert one.due(NOON) is None
    one.set_limits(ExtractionLimits(output_tokens_per_day=9_500))
    assert one.admit(ANNA, "x", NOON) == 500


class OneDay(RuleBasedStateMachine):
    """Never more than the cap is produced in a day, whatever the order of things."""

    CAP = 50

    @initialize()
    def begin(self) -> None:
        self.watch = watch(output_tokens_per_day=self.CAP)
        self.running: list[Reserved] = []
        self.given = {ANNA: 0, BERT: 0}

    @rule(consumer=st.sampled_from([ANNA, BERT]), wanted=st.integers(1, 60))
    def ask(self, consumer: ConsumerId, wanted: int) -> None:
        try:
            left = self.watch.admit(consumer, "text", NOON)
            assert left is not None
            self.running.append(self.watch.reserve(consumer, min(left, wanted), NOON))
        except LimitedError:
            return

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if self.running:
            one = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
            tokens = data.draw(st.integers(0, one.tokens))
            self.given[one.consumer] += tokens
            self.watch.produced(one, tokens, NOON)

    @rule(elsewhere=st.integers(0, 60), sharers=st.integers(0, 3))
    def report(self, elsewhere: int, sharers: int) -> None:
        if (sent := self.watch.due(NOON)) is not None:
            tokens = dict.fromkeys(sent.tokens, elsewhere)
            self.watch.told(OutputElsewhere(day=sent.day, tokens=tokens, sharers=sharers))

    @rule()
    def reconnect(self) -> None:
        self.watch.connected()

    @invariant()
    def never_more_than_the_cap(self) -> None:
        for consumer, tokens in self.given.items():
            held = sum(one.tokens for one in self.running if one.consumer == consumer)
            assert tokens + held <= self.CAP


TestOneDay = OneDay.TestCase


class Fleet(RuleBasedStateMachine):
    """Enclaves that report only now and then give less than twice the cap together."""

    CAP, ENCLAVES = 90, 3

    @initialize()
    def begin(self) -> None:
        self.watches = [watch(output_tokens_per_day=self.CAP) for _ in range(self.ENCLAVES)]
        self.told: dict[int, int] = {}
        self.given = 0
        for number in range(self.ENCLAVES):
            self.report(number)

    @rule(number=st.integers(0, ENCLAVES - 1), wanted=st.integers(1, 100))
    def ask(self, number: int, wanted: int) -> None:
        one = self.watches[number]
        try:
            left = one.admit(ANNA, "text", NOON)
            assert left is not None
            reserved = one.reserve(ANNA, min(left, wanted), NOON)
        except LimitedError:
            return
        one.produced(reserved, reserved.tokens, NOON)
        self.given += reserved.tokens

    @rule(number=st.integers(0, ENCLAVES - 1))
    def report(self, number: int) -> None:
        if (sent := self.watches[number].due(NOON)) is not None:
            self.told[number] = sent.tokens.get(ANNA, self.told.get(number, 0))
            others = sum(tokens for other, tokens in self.told.items() if other != number)
            self.watches[number].told(
                OutputElsewhere(day=sent.day, tokens={ANNA: others}, sharers=self.ENCLAVES)
            )

    @invariant()
    def less_than_twice_the_cap(self) -> None:
        assert self.given < 2 * self.CAP


TestFleet = Fleet.TestCase


# --- what the custodian is told -----------------------------------------------------------------


def test_reports_say_what_changed_and_what_is_held() -> None:
    one = watch(output_tokens_per_day=100)
    first = one.due(NOON)
    assert first is not None
    assert first.all
    assert first.tokens == {}
    assert one.due(NOON) is None  # until it is answered
    one.told(OutputElsewhere(day=DAY, tokens={ANNA: 30}, sharers=1))
    assert one.due(NOON) is None
    assert one.admit(ANNA, "x", NOON) == 70
    reserved = one.reserve(ANNA, 40, NOON)
    second = one.due(NOON)
    assert second is not None
    assert (second.tokens, second.all, second.watch) == ({ANNA: 40}, False, first.watch)
    one.produced(reserved, 5, NOON)
    one.told(OutputElsewhere(day=DAY, tokens={ANNA: 30}, sharers=1))
    third = one.due(NOON)
    assert third is not None
    assert third.tokens == {ANNA: 5}


def test_an_answer_that_never_comes_is_not_waited_for() -> None:
    one = watch(output_tokens_per_day=100)
    assert one.due(NOON) is not None
    assert one.due(NOON + ANSWERED_WITHIN) is not None
    one.connected()
    assert one.due(NOON + ANSWERED_WITHIN) is not None


def test_an_answer_about_yesterday_changes_nothing() -> None:
    one = watch(output_tokens_per_day=100)
    assert one.due(NOON) is not None
    tomorrow = NOON + timedelta(days=1)
    assert one.admit(ANNA, "x", tomorrow) == 100
    one.told(OutputElsewhere(day=DAY, tokens={ANNA: 100}, sharers=1))
    assert one.admit(ANNA, "x", tomorrow) == 100


def test_a_part_of_what_is_left_is_all_that_may_be_given_unheard() -> None:
    one = watch(output_tokens_per_day=100)
    assert one.due(NOON) is not None
    one.told(OutputElsewhere(day=DAY, tokens={ANNA: 40}, sharers=3))
    assert one.admit(ANNA, "x", NOON) == 20
    one.produced(one.reserve(ANNA, 20, NOON), 20, NOON)
    with pytest.raises(LimitedError) as caught:
        one.admit(ANNA, "x", NOON)
    assert caught.value.retry_after_s == REPORT_EVERY_S
    assert one.due(NOON) is not None
    one.told(OutputElsewhere(day=DAY, tokens={ANNA: 78}, sharers=3))
    assert one.admit(ANNA, "x", NOON) == 1  # rounded up


def test_alarms_are_told_once_for_each_kind_and_day() -> None:
    one = watch(queries_per_day=3, alike_per_day=2)
    for _ in range(10):
        one.admit(ANNA, "the same again and again", NOON)
    one.admit(BERT, "the same again and again", NOON)
    assert kinds(one) == [(ANNA, "queries", 3), (ANNA, "alike", 2)]
    for _ in range(3):
        one.admit(ANNA, "the same again and again", NOON + timedelta(days=1))
    assert kinds(one)[2:] == [(ANNA, "queries", 3), (ANNA, "alike", 2)]
    assert [alarm.day for alarm in one.alarms] == [DAY, DAY, DAY + 1, DAY + 1]


def test_no_text_stays_in_memory() -> None:
    one = watch(alike_per_day=2)
    one.admit(ANNA, "zanzibar " * 20, NOON)
    seen = one._seen[ANNA]
    held = [seen.recent._prints.tobytes(), repr(seen).encode(), repr(list(one.alarms)).encode()]
    assert not any(b"zanzibar" in part for part in held)


# --- log probabilities --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "asked", "fits"),
    [
        (None, 20, True), (5, None, True), (5, 0, True), (5, 5, True), (5, 6, False),
        (0, None, True), (0, 0, False), (0, 1, False),
    ],
)  # fmt: skip
def test_log_probabilities_are_given_up_to_the_limit(
    limit: int | None, asked: int | None, fits: bool
) -> None:
    one = Watch()
    one.set_limits(ExtractionLimits(top_logprobs=limit))
    if fits:
        one.check_logprobs(asked)
    else:
        with pytest.raises(BadPromptError) as caught:
            one.check_logprobs(asked)
        assert caught.value.reasons[0].code == "extraction.logprobs"


# --- fingerprints -------------------------------------------------------------------------------

PROMPT = (
    "You are a careful analyst. Read the report of the third quarter below and list the five "
    "largest risks that it names, each with one sentence on why the authors think that it matters."
)


@pytest.mark.parametrize(
    "other",
    [
        PROMPT,
        PROMPT.upper(),
        PROMPT.replace(" ", "\n  "),
        PROMPT.replace("five", "four"),
        PROMPT + " 17",
    ],
)
def test_near_duplicates_are_alike(other: str) -> None:
    prints, recent = Fingerprints(KEY), Recent()
    assert not recent.note(prints.of(PROMPT))
    assert recent.note(prints.of(other))


def test_different_prompts_are_not_alike() -> None:
    prints, recent = Fingerprints(KEY), Recent()
    texts = [
        PROMPT,
        "Write a short poem about the sea in winter, with a lighthouse and two gulls in it.",
        "def add(a, b):\n    return a + b\n# explain what this function does, line by line",
        "请把下面这段关于秋天的文字翻译成德语，并保持原文的语气和节奏。",
        "Which train do I take from Ulm to Kiel on a Sunday evening, and where do I change?",
        "",
    ]
    assert not any(recent.note(prints.of(text)) for text in texts)


def test_another_key_gives_another_fingerprint() -> None:
    assert Fingerprints(KEY).of(PROMPT) != Fingerprints([n + 100 for n in KEY]).of(PROMPT)


def test_the_oldest_fingerprints_give_way() -> None:
    recent = Recent()
    spread = [int.from_bytes(i.to_bytes(4, "big") * 2, "big") * 0x9E3779B97F4A7C15 % 2**64
              for i in range(1, KEPT + 1)]  # fmt: skip
    recent.note(0)
    assert recent.note(0)
    for number in spread:
        recent.note(number)
    assert len(recent._prints) == KEPT
    assert 0 not in recent._prints.tolist()


@settings(deadline=None)
@given(st.text(st.characters(codec=None), max_size=300))
def test_every_text_has_one_fingerprint(text: str) -> None:
    found = Fingerprints(KEY).of(text)
    assert 0 <= found < 2**64
    assert found == Fingerprints(KEY).of(text)


def test_of_a_long_text_the_beginning_counts() -> None:
    prints = Fingerprints(KEY)
    long = "word salad " * MAX_CHARACTERS
    assert prints.of(long) == prints.of(long[:MAX_CHARACTERS])
