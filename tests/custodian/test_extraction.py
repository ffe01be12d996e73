"""What enclaves say of their consumers' days, in the ledger."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from aigovtool.custodian.extraction import Extraction
from aigovtool.custodian.webhooks import TOLD
from aigovtool.errors import AIGovToolError, MalformedError
from aigovtool.ids import ConsumerId
from aigovtool.wire.control import ExtractionSeen, OutputSeen
from tests.custodian.ledgers import Bench

ONE, OTHER = "1" * 32, "2" * 32


def today(bench: Bench) -> int:
    return (bench.clock.now() - datetime(1970, 1, 1, tzinfo=UTC)).days


def seen(bench: Bench, watch: str, tokens: dict[ConsumerId, int], **more: int | bool) -> OutputSeen:
    told = {"day": today(bench), "all": False} | more
    return OutputSeen(watch=watch, tokens=tokens, **told)  # type: ignore[arg-type]


def test_a_restarted_enclave_is_told_what_the_day_has_had(ledger: Bench) -> None:
    loan = ledger.lend(10).loan
    anna, bert = ledger.consumer(loan), ledger.consumer(loan)
    ledger.enclave(loan)
    extraction = Extraction(ledger=ledger.ledger)
    extraction.outputs(loan, seen(ledger, ONE, {anna: 30, bert: 7}))
    extraction.outputs(loan, seen(ledger, ONE, {anna: 25}))
    extraction.outputs(loan, seen(ledger, ONE, {anna: 25}))
    ledger.reopen()
    extraction = Extraction(ledger=ledger.ledger)
    told = extraction.outputs(loan, seen(ledger, OTHER, {}, all=True))
    assert (told.tokens, told.sharers, told.day) == ({anna: 25, bert: 7}, 1, today(ledger))
    assert extraction.outputs(loan, seen(ledger, OTHER, {anna: 5})).tokens == {anna: 25}
    assert extraction.outputs(loan, seen(ledger, ONE, {anna: 26})).tokens == {anna: 5}
    assert extraction.outputs(loan, seen(ledger, ONE, {bert: 7})).tokens == {bert: 0}


def test_other_days_and_loans_are_kept_apart_and_forgotten(ledger: Bench) -> None:
    loan, elsewhere = ledger.lend(10).loan, ledger.lend(10).loan
    anna, stranger = ledger.consumer(loan), ledger.consumer(elsewhere)
    extraction = Extraction(ledger=ledger.ledger)
    extraction.outputs(loan, seen(ledger, ONE, {anna: 30}))
    extraction.outputs(elsewhere, seen(ledger, ONE, {stranger: 9}))
    assert extraction.outputs(loan, seen(ledger, OTHER, {}, all=True)).tokens == {anna: 30}
    tomorrow = extraction.outputs(loan, seen(ledger, OTHER, {}, all=True, day=today(ledger) + 1))
    assert tomorrow.tokens == {}
    ledger.clock.forward(2 * 86_400)
    extraction.outputs(loan, seen(ledger, OTHER, {}))
    assert [row for row in ledger.dump()["outputs"] if anna in row] == []
    assert [row for row in ledger.dump()["outputs"] if stranger in row] != []


def test_a_clock_that_is_days_off_writes_nothing(ledger: Bench) -> None:
    loan = ledger.lend(10).loan
    anna = ledger.consumer(loan)
    extraction = Extraction(ledger=ledger.ledger)
    for day in (-2, 2, 10**9):
        told = extraction.outputs(loan, seen(ledger, ONE, {anna: 30}, day=today(ledger) + day))
        assert told.tokens == {}
    assert ledger.dump()["outputs"] == []


def test_what_is_not_the_loans_or_no_number_is_refused(ledger: Bench) -> None:
    loan, elsewhere = ledger.lend(10).loan, ledger.lend(10).loan
    anna, stranger = ledger.consumer(loan), ledger.consumer(elsewhere)
    session = ledger.enclave(loan).session
    extraction = Extraction(ledger=ledger.ledger)
    before = ledger.dump()
    for tokens in ({stranger: 1}, {anna: -1}, {anna: 1, ConsumerId("consumer_none"): 1}):
        with pytest.raises(AIGovToolError):
            extraction.outputs(loan, seen(ledger, ONE, tokens))
    with pytest.raises(MalformedError):
        extraction.outputs(loan, seen(ledger, "x", {anna: 1}))
    for consumer, count in ((stranger, 1), (anna, -1)):
        alarm = ExtractionSeen(consumer=consumer, day=1, kind="alike", count=count)
        with pytest.raises(MalformedError):
            extraction.alarm(loan, session, alarm)
    assert ledger.dump() == before


def test_an_alarm_is_an_event_that_webhooks_are_told(ledger: Bench) -> None:
    loan = ledger.lend(10).loan
    anna = ledger.consumer(loan)
    session = ledger.enclave(loan).session
    alarm = ExtractionSeen(consumer=anna, day=today(ledger), kind="alike", count=12)
    Extraction(ledger=ledger.ledger).alarm(loan, session, alarm)
    with ledger.ledger.read() as tx:
        event = tx.last_events(loan, 1)[0]
    assert (event.kind, event.actor, event.consumer) == ("extraction.alarm", session, anna)
    assert json.loads(event.detail) == {"what": "alike", "count": 12, "day": today(ledger)}
    assert event.kind in TOLD
