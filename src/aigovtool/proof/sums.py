"""
Whether a statement adds up: from its lines alone, believing none of its totals.

1. Both balances add up, and the lines lead from the first to the second.
2. Every refund is of a lease that was forfeited, of just its credits, and once; every lease that
   says that it was refunded has one.
3. What consumers used is what the settlements of the span say.
4. Everything has its time: in the span, and not before what it rests on.
5. A lease that was recovered was so by a reconciliation that is told, at that very time.

In which part of the balance a lease's credits are at any time (`_parts_at`) is as
`custodian.budget` has it. Times are of several machines, whose clocks differ a little (`SKEW`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta

from aigovtool.ids import ConsumerId, LeaseId, SessionId
from aigovtool.proof.findings import Findings
from aigovtool.wire.control import Settlement
from aigovtool.wire.statement import Balance, LeaseLine, Statement

REFUND = "refund"
RECONCILED = "ledger.loan_reconciled"
SKEW = timedelta(seconds=5)  # between replicas of a custodian; a backdating of more is named
_PARTS = ("leased", "spent", "forfeited")


def check_sums(
    statement: Statement, settlements: Mapping[LeaseId, Settlement], findings: Findings
) -> None:
    """
    Check a statement whose custodian's signature holds.

    Args:
        settlements: those of its leases that could be read, by lease.
    """
    _check_balance("opening", statement.opening, findings)
    _check_balance("closing", statement.closing, findings)
    _check_grants(statement, findings)
    _check_moves(statement, settlements, findings)
    _check_refunds(statement, findings)
    _check_use(statement, settlements, findings)
    _check_times(statement, findings)
    _check_recovered(statement, findings)


def _check_balance(name: str, balance: Balance, findings: Findings) -> None:
    parts = (balance.left, balance.leased, balance.spent, balance.forfeited)
    if min(parts) < 0 or sum(parts) != balance.granted:
        findings.add(
            "statement.sum",
            f"{name} balance",
            "it does not add up",
            expected=f"granted {balance.granted}",
            came=" + ".join(map(str, parts)),
        )


def _check_grants(statement: Statement, findings: Findings) -> None:
    made = sum(line.credits for line in statement.grants if line.consumer is None)
    if min((line.credits for line in statement.grants), default=1) < 1:
        findings.add("statement.sum", "grants", "a grant of less than one credit")
    _expect(
        findings,
        "grants",
        "the grants do not lead from the opening to the closing balance",
        statement.opening.granted + made,
        statement.closing.granted,
    )


def _check_moves(
    statement: Statement, settlements: Mapping[LeaseId, Settlement], findings: Findings
) -> None:
    opened: Counter[str] = Counter()
    closed: Counter[str] = Counter()
    for line in statement.leases:
        used = settlements[line.lease].used if line.lease in settlements else 0
        opened.update(_parts_at(line, used, statement.begin))
        closed.update(_parts_at(line, used, statement.end))
    opening, closing = statement.opening, statement.closing
    # every lease that is unsettled at either end is listed; of the others only those that moved
    _expect(
        findings, "opening balance", "its leases are not those listed", opened["leased"],
        opening.leased,
    )  # fmt: skip
    for part in _PARTS:
        _expect(
            findings,
            f"{part} credits",
            "the leases do not lead from the opening to the closing balance",
            getattr(opening, part) + closed[part] - opened[part],
            getattr(closing, part),
        )


def _parts_at(line: LeaseLine, used: int, at: datetime) -> dict[str, int]:
    """Return in which parts of the balance a lease's credits were just before *at*."""
    if line.granted >= at:
        return {}
    settled = line.settlement is not None and line.settlement.received < at
    forfeited = line.forfeited is not None and line.forfeited < at
    if not settled:
        return {"forfeited" if forfeited else "leased": line.credits}
    if forfeited and (line.refunded is not None or line.written_off is not None):
        # its unused credits were granted again, or written off, before they could come back
        return {"spent": used, "forfeited": line.credits - used}
    return {"spent": used}


def _check_refunds(statement: Statement, findings: Findings) -> None:
    refunds: Counter[LeaseId] = Counter()
    leases = {line.lease: line for line in statement.leases}
    for grant in statement.grants:
        if grant.kind != REFUND:
            if grant.lease is not None:
                findings.add("statement.refund", grant.lease, "a grant that is no refund names it")
            continue
        line = leases.get(grant.lease) if grant.lease is not None else None
        if line is None or line.forfeited is None or line.refunded != grant.time:
            findings.add(
                "statement.refund",
                str(grant.lease),
                "credits were refunded for a lease that was not forfeited, or not refunded then",
            )
            continue
        refunds[line.lease] += 1
        _expect(
            findings, line.lease, "the refund is not of its credits", line.credits, grant.credits,
            code="statement.refund",
        )  # fmt: skip
    for line in statement.leases:
        in_span = line.refunded is not None and line.refunded >= statement.begin
        if refunds[line.lease] != in_span:
            findings.add(
                "statement.refund",
                line.lease,
                "it was refunded, and the grants do not say so just once",
                expected=int(in_span),
                came=refunds[line.lease],
            )


def _check_use(
    statement: Statement, settlements: Mapping[LeaseId, Settlement], findings: Findings
) -> None:
    used: Counter[ConsumerId] = Counter()
    for line in statement.leases:
        if line.settlement is not None and line.settlement.received >= statement.begin:
            said = settlements.get(line.lease)
            used.update({} if said is None else said.by_consumer)
    for consumer in sorted({*used, *statement.used}):
        _expect(
            findings,
            consumer,
            "its use is not what the signed settlements say",
            used[consumer],
            statement.used.get(consumer, 0),
            code="statement.use",
        )


def _check_times(statement: Statement, findings: Findings) -> None:
    begin, end = statement.begin, statement.end
    if not begin < end <= statement.issued:
        findings.add(
            "statement.time",
            "the statement",
            "its span is empty, or ends after it was issued",
            came=f"{begin} to {end}, issued {statement.issued}",
        )

    def follows(subject: str, what: str, earlier: datetime, later: datetime | None) -> None:
        if later is not None and later < earlier - SKEW:
            findings.add("statement.time", subject, what, expected=f"from {earlier}", came=later)

    def in_span(subject: str, what: str, time: datetime | None) -> None:
        if time is not None and time >= end:
            findings.add(
                "statement.time",
                subject,
                f"{what} is after the span",
                expected=f"before {end}",
                came=time,
            )

    for number, grant in enumerate(statement.grants, start=1):
        follows(f"grant {number}", "it was made before the span", begin, grant.time)
        in_span(f"grant {number}", "it", grant.time)
    opened: dict[SessionId, datetime] = {}
    for session in statement.sessions:
        if session.session in opened:
            findings.add("statement.twice", session.session, "it is listed twice")
        opened[session.session] = session.opened
        follows(session.session, "it ended before it was opened", session.opened, session.ended)
    seen: set[LeaseId] = set()
    for line in statement.leases:
        if line.lease in seen:
            findings.add("statement.twice", line.lease, "it is listed twice")
        seen.add(line.lease)
        if line.session not in opened:
            findings.add(
                "statement.session", line.lease, "its session is not listed", came=line.session
            )
        else:
            follows(
                line.lease, "it was granted before its session was opened", opened[line.session],
                line.granted,
            )  # fmt: skip
        received = None if line.settlement is None else line.settlement.received
        follows(line.lease, "it was settled before it was granted", line.granted, received)
        follows(line.lease, "it was forfeited before it was over", line.expires, line.forfeited)
        if line.refunded is not None:
            follows(
                line.lease, "it was refunded before it was forfeited",
                line.forfeited or line.refunded, line.refunded,
            )  # fmt: skip
        for what, time in (
            ("its grant", line.granted),
            ("its settlement", received),
            ("its forfeit", line.forfeited),
            ("its refund", line.refunded),
            ("its writing off", line.written_off),
        ):
            in_span(line.lease, what, time)


def _check_recovered(statement: Statement, findings: Findings) -> None:
    told = {line.time for line in statement.decisions if line.kind == RECONCILED}
    for line in statement.leases:
        if line.recovered and line.granted >= statement.begin and line.granted not in told:
            findings.add(
                "statement.recovered",
                line.lease,
                "it was recovered, and no reconciliation then is told",
                expected=f"{RECONCILED} at {line.granted}",
            )


def _expect(
    findings: Findings,
    subject: str,
    message: str,
    expected: int,
    came: int,
    *,
    code: str = "statement.sum",
) -> None:
    if expected != came:
        findings.add(code, subject, message, expected=expected, came=came)
