"""
Grants that neither side can deny: the custodian signs what it granted, an enclave that it saw it.

Rule 1: a notice is made of the grant's row alone, so the same grant has the same bytes and, as
        Ed25519 is deterministic, the same signature whenever it is told.
Rule 2: notices of a loan are numbered by `place` without a gap, and `granted` adds up: whoever has
        one knows what was granted before it, even without the others.
Rule 3: the enclave keeps a notice before it counter-signs it.
"""

from __future__ import annotations

from aigovtool.ids import ConsumerId, LoanId, SessionId
from aigovtool.wire.codec import Message, Time


class GrantNotice(Message, frozen=True, kw_only=True):
    """
    Signed by the custodian (`Label.GRANT_NOTICE`).

    Args:
        number: of the grant in the ledger.
        place: which grant of its loan it is, from 1.
        consumer: whose own budget it is for, None for the loan's.
        kind: ``grant``, ``approval`` or ``refund``.
        granted: credits made for the loan up to this grant, itself with them.
    """

    loan: LoanId
    number: int
    place: int
    credits: int
    consumer: ConsumerId | None
    kind: str
    granted: int
    made: Time


class GrantSeen(Message, frozen=True, kw_only=True):
    """Signed by the session (`Label.GRANT_SEEN`): it has the notice with this SHA-256."""

    loan: LoanId
    session: SessionId
    number: int
    notice_sha256: bytes
