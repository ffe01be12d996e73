"""
What sessions signed, held against what a statement says of them.

1. Each settlement is signed by its session's key, about this loan, session and lease, and fits it.
2. A session's settlements are a chain, from the one before the span on: none is left out.
3. Its receipts fit its use: a charge is of at least one credit, and so is a refund, so a session
   cannot have issued more receipts than its leases account for. The count is in each settlement.
   A lease that is not settled accounts for any number: a charge and its refund leave no trace.
4. A proof that it stopped is signed by it, and counts no fewer receipts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from aigovtool.crypto.labels import Label
from aigovtool.errors import VerificationError
from aigovtool.ids import LeaseId, LoanId, SessionId, sha256
from aigovtool.proof.findings import Findings
from aigovtool.proof.sums import SKEW
from aigovtool.wire.codec import Signed, open_signed
from aigovtool.wire.control import NO_SETTLEMENT_BEFORE, Settlement, StopProof
from aigovtool.wire.statement import LeaseLine, SessionLine, Statement


def check_settlements(statement: Statement, findings: Findings) -> dict[LeaseId, Settlement]:
    """Check what sessions signed, and return the settlements that are genuine, by lease."""
    sessions = {line.session: line for line in statement.sessions}
    genuine: dict[LeaseId, Settlement] = {}
    for line in statement.leases:
        session = sessions.get(line.session)
        if session is None or line.settlement is None:
            continue
        with findings.noted("settlement.forged", line.lease):
            said = _open(line.settlement.signed, statement.loan, session)
            if _fits(said, line, findings):
                genuine[line.lease] = said
    for session in statement.sessions:
        leases = [line for line in statement.leases if line.session == session.session]
        _check_session(session, leases, genuine, statement, findings)
    return genuine


def _open(signed: Signed, loan: LoanId, session: SessionLine) -> Settlement:
    said = open_signed(
        signed, Settlement, public_key=session.keys.signing_key, label=Label.SETTLEMENT
    )
    _check_about(said.loan, said.session, loan, session.session)
    return said


def _check_about(
    loan: LoanId, session: SessionId, expected_loan: LoanId, expected_session: SessionId
) -> None:
    if (loan, session) != (expected_loan, expected_session):
        raise VerificationError(
            "it is about another loan or session",
            expected=f"{expected_loan} {expected_session}",
            came=f"{loan} {session}",
        )


def _fits(said: Settlement, line: LeaseLine, findings: Findings) -> bool:
    if said.lease != line.lease:
        findings.add(
            "settlement.lease", line.lease, "its settlement is of another lease", came=said.lease
        )
        return False
    uses = said.by_consumer.values()
    parts = (*uses, *said.refunded.values())
    if not 0 <= said.used <= line.credits or min(parts, default=1) < 1 or sum(uses) != said.used:
        findings.add(
            "settlement.size",
            line.lease,
            "its settlement does not fit it, or its parts do not add up",
            expected=f"at most {line.credits}",
            came=f"{said.used} in {list(uses)}",
        )
        return False
    return True


def _check_session(
    session: SessionLine,
    leases: Sequence[LeaseLine],
    genuine: Mapping[LeaseId, Settlement],
    statement: Statement,
    findings: Findings,
) -> None:
    number, digest, receipts, chain = 0, NO_SETTLEMENT_BEFORE, 0, bytes(32)
    if session.before is not None:
        with findings.noted("settlement.forged", f"{session.session}, before the span"):
            before = _open(session.before, statement.loan, session)
            number, digest = before.number, sha256(session.before.payload)
            receipts, chain = before.receipts, before.receipt_chain
        if session.opened >= statement.begin:
            findings.add(
                "settlement.chain", session.session, "it settled before the span that it began in"
            )
    first_receipts = receipts
    settled = [
        (genuine[line.lease], line.settlement)
        for line in leases
        if line.lease in genuine and line.settlement is not None
    ]
    settled.sort(key=lambda pair: pair[0].number)
    last: datetime | None = None
    for said, came in settled:
        subject = f"settlement {said.number} of {session.session} ({said.lease})"
        if (said.number, said.previous) != (number + 1, digest):
            findings.add(
                "settlement.chain",
                subject,
                "the settlement before it is not here",
                expected=f"number {number + 1} after {digest.hex()}",
                came=f"number {said.number} after {said.previous.hex()}",
            )
        if said.receipts < receipts or (said.receipts == receipts and said.receipt_chain != chain):
            findings.add(
                "settlement.fork",
                subject,
                "its receipts do not go on from the settlement before it",
                expected=f"{receipts} receipts up to {chain.hex()}, or more",
                came=f"{said.receipts} up to {said.receipt_chain.hex()}",
            )
        if last is not None and came.received < last - SKEW:
            findings.add(
                "statement.time", subject, "it came before the one before it",
                expected=f"from {last}", came=came.received,
            )  # fmt: skip
        last = came.received
        number, digest = said.number, sha256(came.signed.payload)
        receipts, chain = max(receipts, said.receipts), said.receipt_chain
    receipts = max(receipts, _check_stop(session, receipts, chain, statement, findings))
    accounted = _accounted(leases, genuine)
    if accounted is not None and receipts - first_receipts > accounted:
        findings.add(
            "settlement.uncounted",
            session.session,
            "it issued more receipts than its leases account for: some use is left out",
            expected=f"at most {accounted} receipts in the span",
            came=receipts - first_receipts,
        )


def _accounted(leases: Iterable[LeaseLine], genuine: Mapping[LeaseId, Settlement]) -> int | None:
    """Return the most receipts that a session can have issued, None if that is not bounded."""
    most = 0
    for line in leases:
        if line.lease not in genuine:
            return None
        said = genuine[line.lease]
        most += said.used + 2 * sum(said.refunded.values())  # each refund and its charge
    return most


def _check_stop(
    session: SessionLine, receipts: int, chain: bytes, statement: Statement, findings: Findings
) -> int:
    """Check a proof that the session stopped; return how many receipts it counts."""
    if session.stop_proof is None:
        return 0
    with findings.noted("stop.forged", session.session):
        said = open_signed(
            session.stop_proof.signed,
            StopProof,
            public_key=session.keys.signing_key,
            label=Label.STOP_PROOF,
        )
        _check_about(said.loan, said.session, statement.loan, session.session)
        if said.receipts < receipts or (said.receipts == receipts and said.receipt_chain != chain):
            findings.add(
                "stop.fork",
                session.session,
                "its proof that it stopped does not go on from its settlements",
                expected=f"{receipts} receipts up to {chain.hex()}, or more",
                came=f"{said.receipts} up to {said.receipt_chain.hex()}",
            )
        return said.receipts
    return 0
