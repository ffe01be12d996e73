"""
The ledger's events as files for auditors: one JSON object a line, or CSV.

Rule 1: the order is the ledger's, and the end is where the ledger ended when the export began, so
        that the same export of the same span is the same bytes.
Rule 2: only a page is in memory at a time.
Rule 3: a cell of CSV that a spreadsheet would compute is text (https://owasp.org, CSV injection).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

import msgspec

from aigovtool.custodian.api.views import EventView

FORMATS = ("jsonl", "csv")
COLUMNS = (
    "number",
    "time",
    "kind",
    "actor",
    "loan",
    "session",
    "consumer",
    "lease",
    "detail",
)
PAGE = 1000
_COMPUTED = ("=", "+", "-", "@", "\t", "\r")

Page = Callable[[int, int], list[EventView]]


def events_of(
    page: Page, *, last: int, since: datetime | None, until: datetime | None
) -> Iterator[EventView]:
    """
    Yield the events up to number *last*, from *since* on and before *until*.

    Args:
        page: gives so many events after a number, the oldest first.
    """
    after = 0
    while found := page(after, PAGE):
        for event in found:
            if event.number > last:
                return
            # a clock that was set back leaves later numbers with earlier times: each is looked at
            if (since is None or event.time >= since) and (until is None or event.time < until):
                yield event
        after = found[-1].number


def lines(events: Iterable[EventView], form: str) -> Iterator[bytes]:
    """Yield the export line by line, each with its line end, in one of `FORMATS`."""
    if form == "csv":
        yield _row(COLUMNS)
    for event in events:
        yield msgspec.json.encode(event) + b"\n" if form == "jsonl" else _row(_cells(event))


def _cells(event: EventView) -> Iterator[str]:
    for name in COLUMNS:
        value = getattr(event, name)
        if isinstance(value, datetime):
            yield value.isoformat()
        elif isinstance(value, dict):
            yield msgspec.json.encode(value).decode()
        else:
            yield neutral("" if value is None else str(value))


def neutral(cell: str) -> str:
    """Return *cell* as a spreadsheet takes it for text."""
    return "'" + cell if cell.startswith(_COMPUTED) else cell


def _row(cells: Iterable[str]) -> bytes:
    line = io.StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue().encode()
