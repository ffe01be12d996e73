"""
A statement and a consumer's receipts, held against the custodian's transparency log.

1. The log is whole: its entries come to the root that its key signed, and the custodian's key
   certified that key (`tlog.check`).
2. Every grant, lease, settlement, forfeit and refund that the log has for the loan in the span is
   in the statement, at the same time and of the same credits; and the other way round, as far as
   the log goes: what was decided after its last entry may not have been logged yet.
3. Every lease that a receipt names was logged, as that session's.

The log is the witness that a statement alone has not: other readers have seen its checkpoints, so
what was left out here had to be left out for all of them, from the beginning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from aigovtool.errors import MalformedError
from aigovtool.ids import LeaseId, LoanId
from aigovtool.proof.chains import GenuineReceipt
from aigovtool.proof.findings import Findings
from aigovtool.proof.sums import REFUND
from aigovtool.tlog.check import check_log
from aigovtool.tlog.checkpoint import Checkpoint
from aigovtool.tlog.tiles import ReadTile
from aigovtool.wire.control import Settlement
from aigovtool.wire.log import LogEntry, read_entry
from aigovtool.wire.statement import Statement

_SETTLED = {"lease.settled": "lease.settled", "lease.settled_late": "lease.settled"}
_GRANTED = {"lease.granted": "lease.granted", "lease.recovered": "lease.granted"}
_SAME = {**_SETTLED, **_GRANTED}
_COUNTED = {
    "lease.granted": "credits",
    "lease.settled": "used",
    "lease.forfeited": "credits",
    "credits.granted": "credits",
    "credits.refunded": "credits",
}
_APPROVED = "request.approved"  # makes one grant or two, whose sum is not the request's


@dataclass(frozen=True, slots=True)
class Log:
    """A log to read: its checkpoint, opened with its key, and its files."""

    checkpoint: Checkpoint
    read: ReadTile


@dataclass(frozen=True, slots=True)
class LoggedLoan:
    """
    What a log says of one loan.

    Args:
        size: entries in the log.
        until: the time of its last entry, None for an empty log.
        entries: those of the loan, the oldest first.
    """

    size: int
    until: datetime | None
    entries: tuple[LogEntry, ...]


@dataclass(frozen=True, slots=True)
class _Move:
    kind: str
    lease: str | None
    time: datetime
    credits: int

    def __str__(self) -> str:
        what = f"{self.kind} {self.lease}" if self.lease else self.kind
        return f"{what} at {self.time:%FT%T.%fZ}"


def read_log(log: Log, loan: LoanId, findings: Findings) -> LoggedLoan:
    """
    Read a log whole, check it, and return what it says of *loan*.

    Raises:
        NotFoundError, UnavailableError: of *log*, when its files cannot be had.
    """
    entries: list[LogEntry] = []
    until: datetime | None = None

    def seen(_: int, data: bytes) -> None:
        nonlocal until
        try:
            entry = read_entry(data)
        except MalformedError:
            return  # of a newer program; that it is in the log is checked all the same
        until = entry.time if until is None else max(until, entry.time)
        if entry.loan == loan:
            entries.append(entry)

    for fault in check_log(log.checkpoint, log.read, seen=seen).faults:
        findings.add(fault.code, "the log", fault.message, expected=fault.expected, came=fault.came)
    return LoggedLoan(log.checkpoint.size, until, tuple(entries))


def check_logged(
    statement: Statement,
    settlements: dict[LeaseId, Settlement],
    logged: LoggedLoan,
    findings: Findings,
) -> None:
    """Compare a statement with the log."""
    listed = Counter(_listed(statement, settlements))
    witnessed = Counter(_witnessed(logged.entries, statement.begin, statement.end))
    for move in witnessed - listed:
        findings.add(
            "log.unaccounted", str(move), "the log has it, and the statement does not",
            expected=f"{move.credits} credits", came="nothing, or other credits or time",
        )  # fmt: skip
    for move in listed - witnessed:
        if logged.until is not None and move.time < logged.until:
            findings.add(
                "log.missing", str(move), "the statement has it, and the log does not",
                came=f"{move.credits} credits",
            )  # fmt: skip


def check_receipts_logged(
    receipts: Iterable[GenuineReceipt], logged: LoggedLoan, findings: Findings
) -> None:
    """Check that the leases of receipts were logged, and settled after those receipts."""
    granted = {entry.lease: entry for entry in logged.entries if entry.kind in _GRANTED}
    settled = {entry.lease: entry for entry in logged.entries if entry.kind in _SETTLED}
    for each in receipts:
        said = each.receipt
        lease, end = granted.get(said.lease), settled.get(said.lease)
        if lease is None or lease.session != said.session:
            if logged.until is not None and said.time < logged.until:
                findings.add(
                    "receipt.unlogged", str(each), "its lease is not in the log as its session's",
                    expected=said.lease, came="nothing" if lease is None else lease.session,
                )  # fmt: skip
        elif end is not None and end.counts.get("receipts", 0) < said.number:
            findings.add(
                "receipt.unlogged", str(each), "by the log its lease was settled before it",
                expected=f"{said.number} receipts, or more", came=end.counts.get("receipts"),
            )  # fmt: skip


def _listed(statement: Statement, settlements: dict[LeaseId, Settlement]) -> Iterator[_Move]:
    for line in statement.leases:
        moves = [
            ("lease.granted", line.granted, line.credits),
            ("lease.forfeited", line.forfeited, line.credits),
        ]
        if line.settlement is not None and line.lease in settlements:
            used = settlements[line.lease].used
            moves.append(("lease.settled", line.settlement.received, used))
        for kind, time, credits in moves:
            if time is not None and statement.begin <= time < statement.end:
                yield _Move(kind, line.lease, time, credits)
    approved = set()
    for grant in statement.grants:
        if grant.kind == REFUND:
            yield _Move("credits.refunded", grant.lease, grant.time, grant.credits)
        elif grant.kind == "approval":
            approved.add(_Move(_APPROVED, None, grant.time, 0))
        else:
            yield _Move("credits.granted", None, grant.time, grant.credits)
    yield from approved


def _witnessed(entries: Sequence[LogEntry], begin: datetime, end: datetime) -> Iterator[_Move]:
    for entry in entries:
        kind = _SAME.get(entry.kind, entry.kind)
        if not begin <= entry.time < end:
            continue
        if kind == _APPROVED:
            yield _Move(kind, None, entry.time, 0)
        elif kind in _COUNTED:
            yield _Move(kind, entry.lease, entry.time, entry.counts.get(_COUNTED[kind], 0))
