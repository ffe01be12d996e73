"""The audit export: every event in order, the same bytes again, nothing that a spreadsheet runs."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta

import pytest

from aigovtool.custodian import audit
from aigovtool.custodian.api.views import EventView
from aigovtool.custodian.audit import COLUMNS, events_of, lines, neutral

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def event(number: int, **changes: object) -> EventView:
    given = {
        "number": number,
        "time": BEGIN + timedelta(minutes=number),
        "kind": "loan.created",
        "actor": "admin",
        "loan": "loan_x",
        "session": None,
        "consumer": None,
        "lease": None,
        "detail": {"credits": number},
    }
    return EventView(**{**given, **changes})  # type: ignore[arg-type]


class Ledger:
    """Pages of events, and how many were ever asked for at once."""

    def __init__(self, count: int) -> None:
        self.events = [event(number) for number in range(1, count + 1)]
        self.most = 0

    def page(self, after: int, limit: int) -> list[EventView]:
        self.most = max(self.most, limit)
        return [one for one in self.events if one.number > after][:limit]


def test_all_of_it_in_order_a_page_at_a_time() -> None:
    ledger = Ledger(2 * audit.PAGE + 7)
    found = list(events_of(ledger.page, last=len(ledger.events), since=None, until=None))
    assert found == ledger.events
    assert ledger.most == audit.PAGE


def test_what_is_written_meanwhile_is_not_in_it() -> None:
    ledger = Ledger(10)
    found = [one.number for one in events_of(ledger.page, last=4, since=None, until=None)]
    assert found == [1, 2, 3, 4]
    assert list(events_of(Ledger(0).page, last=0, since=None, until=None)) == []


def test_a_clock_that_was_set_back_hides_nothing() -> None:
    ledger = Ledger(3)
    ledger.events[1] = event(2, time=BEGIN + timedelta(days=9))
    until = BEGIN + timedelta(days=1)
    found = events_of(ledger.page, last=3, since=BEGIN, until=until)
    assert [one.number for one in found] == [1, 3]


@pytest.mark.parametrize("cell", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "\t=1", "\r=1"])
def test_no_cell_is_computed(cell: str) -> None:
    out = b"".join(lines([event(1, actor=cell)], "csv")).decode()
    rows = list(csv.reader(io.StringIO(out, newline="")))
    assert rows[0] == list(COLUMNS)
    assert rows[1][3] == "'" + cell
    assert not any(one.startswith(("=", "+", "-", "@", "\t", "\r")) for one in rows[1])


def test_other_cells_are_as_they_are() -> None:
    assert [neutral(one) for one in ("", "loan_x", "a=b")] == ["", "loan_x", "a=b"]


def test_lines_of_json_are_the_events_of_the_api() -> None:
    evil = {"reason": 'a\nb"\u2028'}
    (line,) = lines([event(7, detail=evil)], "jsonl")
    assert line.count(b"\n") == 1
    read = json.loads(line)
    assert (read["number"], read["detail"]) == (7, evil)
