"""
What enclaves say of how much consumers draw out of a language model: numbers, and nothing else.

Rule 1: what a process says of a consumer's day takes the place of what it said before, so that a
        repetition changes nothing; it is forgotten the day after the next.
Rule 2: an alarm is an event, and so it is in the log and told to webhooks.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from aigovtool.custodian.ledger import Entry, Ledger, consumer_of
from aigovtool.custodian.lifecycle import SessionState
from aigovtool.errors import MalformedError
from aigovtool.ids import ConsumerId, LoanId, SessionId
from aigovtool.wire.control import ExtractionSeen, OutputElsewhere, OutputSeen
from aigovtool.wire.extraction import MAX_COUNT

ALARM = "extraction.alarm"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WATCH = re.compile(r"[0-9a-f]{32}\Z")


class Extraction:
    """Keeps what consumers were given today, and notes alarms."""

    def __init__(self, *, ledger: Ledger) -> None:
        self._ledger = ledger

    def alarm(self, loan: LoanId, session: SessionId, seen: ExtractionSeen) -> None:
        """Note an alarm; raises MalformedError for one about nobody of the loan, or no number."""
        with self._ledger.write() as entry:
            _check(entry, loan, seen.consumer, seen.count)
            entry.event(
                ALARM,
                actor=session,
                loan=loan,
                session=session,
                consumer=seen.consumer,
                what=seen.kind,
                count=seen.count,
                day=seen.day,
            )

    def outputs(self, loan: LoanId, seen: OutputSeen) -> OutputElsewhere:
        """
        Keep what a process gave, and return what others did; nothing of another day than today,
        or the one before or after: clocks differ by minutes.

        Raises:
            MalformedError: it names somebody else's consumer, or what is no number of tokens.
        """
        if not _WATCH.match(seen.watch):
            raise MalformedError(
                "not the name of an enclave's process",
                expected="32 hex digits",
                code="output.watch",
            )
        with self._ledger.write() as entry:
            today = (entry.now - _EPOCH) // timedelta(days=1)
            sharers = entry.tx.count_sessions(loan).get(SessionState.LIVE, 0)
            if abs(seen.day - today) > 1:
                return OutputElsewhere(day=seen.day, tokens={}, sharers=sharers)
            for consumer, tokens in seen.tokens.items():
                _check(entry, loan, consumer, tokens)
                entry.tx.set_outputs(loan, consumer, day=seen.day, watch=seen.watch, tokens=tokens)
            entry.tx.forget_outputs(loan, before=today - 1)
            found = entry.tx.outputs_elsewhere(loan, day=seen.day, watch=seen.watch)
        told = found if seen.all else {one: found.get(one, 0) for one in seen.tokens}
        return OutputElsewhere(day=seen.day, tokens=dict(told), sharers=sharers)


def _check(entry: Entry, loan: LoanId, consumer: ConsumerId, count: int) -> None:
    if consumer_of(entry.tx, consumer).loan != loan or not 0 <= count <= MAX_COUNT:
        raise MalformedError(
            "what was seen is not of a consumer of the loan, or no number",
            code="extraction.form",
            expected=f"0 to {MAX_COUNT}",
            came=str(count),
        )
