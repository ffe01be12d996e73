"""The custodian's signed word to consumers about a session (`SessionStatement`)."""

from __future__ import annotations

from datetime import datetime, timedelta

from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey
from aigovtool.custodian.records import Loan, Session
from aigovtool.ids import LeaseId
from aigovtool.wire.codec import Signed, sign
from aigovtool.wire.enrolment import LedgerHead, SessionStatement

STATEMENT_LIFE_S = 120.0  # an idle enclave reports, for a fresh one, well within it


def state(
    session: Session,
    loan: Loan,
    *,
    lease: LeaseId | None,
    left: int,
    head: LedgerHead,
    now: datetime,
    key: SigningKey,
) -> Signed:
    """
    Sign that *session* holds *loan*, with *lease* if any, and that *left* credits are free.

    *head* is of the ledger, and durable.
    """
    return sign(
        SessionStatement(
            loan=loan.loan,
            session=session.session,
            keys=session.keys,
            model_digest=session.model,
            lease=lease,
            left=left,
            head=head,
            issued=now,
            expires=now + timedelta(seconds=STATEMENT_LIFE_S),
        ),
        key,
        Label.SESSION_STATEMENT,
    )
