"""
What was signed of grants when they were made, held against what a statement says of them.

1. The notice of each grant is the custodian's, about this loan and this very grant.
2. Notices are numbered without a gap, and each adds to the one before it: a grant that was left out
   shows, unless it is the last.
3. A counter-signature is by a session of the statement, whose evidence is judged with the others,
   and under just this notice. What the borrower's own enclave signed the borrower cannot deny.

A statement of a program that put no notices in it has none at all, and nothing to be checked here.
"""

from __future__ import annotations

from aigovtool.crypto.labels import Label
from aigovtool.errors import VerificationError
from aigovtool.ids import SessionId, sha256
from aigovtool.proof.findings import Findings
from aigovtool.wire.codec import Signed, decode, open_signed
from aigovtool.wire.grants import GrantNotice, GrantSeen
from aigovtool.wire.statement import GrantLine, Received, SessionLine, Statement


def check_grants(statement: Statement, findings: Findings) -> int:
    """Check the notices of a statement's grants; return how many are counter-signed."""
    if not any(line.notice or line.seen for line in statement.grants):
        return 0
    sessions = {line.session: line for line in statement.sessions}
    before: GrantNotice | None = None
    counter_signed = 0
    for number, line in enumerate(statement.grants, start=1):
        subject = f"grant {number}"
        notice = None
        with findings.noted("grant.forged", subject):
            notice = _notice(line, statement)
            _check_follows(before, notice, subject, findings)
        if line.seen is not None:
            with findings.noted("grant.seen", subject):
                _check_seen(line.seen, line.notice, notice, statement, sessions)
                counter_signed += 1
        before = notice
    return counter_signed


def _notice(line: GrantLine, statement: Statement) -> GrantNotice:
    if line.notice is None:
        raise VerificationError("its notice is not in the statement")
    said = open_signed(
        line.notice, GrantNotice, public_key=statement.custodian_key, label=Label.GRANT_NOTICE
    )
    expected = (statement.loan, line.credits, line.consumer, line.kind, line.time)
    came = (said.loan, said.credits, said.consumer, said.kind, said.made)
    if came != expected:
        raise VerificationError(
            "its notice is of another grant", expected=str(expected), came=str(came)
        )
    return said


def _check_follows(
    before: GrantNotice | None, notice: GrantNotice, subject: str, findings: Findings
) -> None:
    if before is None:
        return
    granted = before.granted + (notice.credits if notice.consumer is None else 0)
    if (notice.place, notice.granted) != (before.place + 1, granted):
        findings.add(
            "grant.gap",
            subject,
            "its notice does not follow the one before it: a grant was left out, or put in",
            expected=f"place {before.place + 1}, {granted} credits granted",
            came=f"place {notice.place}, {notice.granted} credits granted",
        )


def _check_seen(
    seen: Received,
    signed: Signed | None,
    notice: GrantNotice | None,
    statement: Statement,
    sessions: dict[SessionId, SessionLine],
) -> None:
    if signed is None or notice is None:
        raise VerificationError("a counter-signature without a genuine notice")
    session = sessions.get(decode(seen.signed.payload, GrantSeen).session)
    if session is None:
        raise VerificationError("the session that counter-signed it is not in the statement")
    said = open_signed(
        seen.signed, GrantSeen, public_key=session.keys.signing_key, label=Label.GRANT_SEEN
    )
    expected = (statement.loan, notice.number, sha256(signed.payload))
    if (said.loan, said.number, said.notice_sha256) != expected:
        raise VerificationError(
            "the counter-signature is under another notice",
            expected=sha256(signed.payload).hex(),
            came=said.notice_sha256.hex(),
        )
    if not notice.made <= seen.received < statement.end:
        raise VerificationError(
            "it was counter-signed before it was made, or after the span", came=str(seen.received)
        )
