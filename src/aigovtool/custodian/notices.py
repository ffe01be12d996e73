"""
Telling the borrower of grants, and keeping its counter-signatures.

Rule 1: a grant is told within a second to every enclave of its loan that is connected here, and
        after a connection, until one has counter-signed it.
Rule 2: a notice is made anew from the ledger whenever it is told; it is the same each time.
Rule 3: while the ledger is held nothing is told: an older copy may lack grants, or have others.
Rule 4: the first counter-signature stays. It is an event, and so it is in the log.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey
from aigovtool.custodian.ledger import Ledger, Publisher, session_of
from aigovtool.custodian.pushes import Push
from aigovtool.custodian.records import GrantSeenRow, ToldGrant
from aigovtool.errors import NotFoundError, VerificationError
from aigovtool.ids import LoanId, SessionId, sha256
from aigovtool.wire.codec import Signed, open_signed, sign
from aigovtool.wire.control import GrantMade
from aigovtool.wire.grants import GrantNotice, GrantSeen

MAX_NOTICES = 100  # at one time, less than a connection may have waiting; more after the next


def notice_of(grant: ToldGrant, key: SigningKey) -> Signed:
    """Return the notice of a grant, signed by the custodian's *key*."""
    notice = GrantNotice(
        loan=grant.loan,
        number=grant.number,
        place=grant.place,
        credits=grant.credits,
        consumer=grant.consumer,
        kind=grant.kind.value,
        granted=grant.granted,
        made=grant.created,
    )
    return sign(notice, key, Label.GRANT_NOTICE)


class Notices:
    """Signs what was granted, and keeps who saw it."""

    def __init__(self, *, ledger: Ledger, key: SigningKey, publisher: Publisher) -> None:
        self._ledger = ledger
        self._key = key
        self._publisher = publisher
        self._sweeping = threading.Lock()
        with ledger.read() as tx:  # what is older is told to whoever connects
            self._told = tx.last_grant()

    def notice(self, grant: ToldGrant) -> Signed:
        """Return the notice of a grant."""
        return notice_of(grant, self._key)

    def sweep(self) -> None:
        """Tell the enclaves that are connected here of grants that are new, made by whomever."""
        if self._ledger.held is not None:
            return
        with self._sweeping:
            with self._ledger.read() as tx:
                new = tx.grants_after(self._told, MAX_NOTICES)
            for grant in new:
                self._publisher.publish(
                    Push(loan=grant.loan, message=GrantMade(notice=self.notice(grant)))
                )
                self._told = grant.number

    def connected(self, loan: LoanId, session: SessionId) -> None:
        """Tell a session that has connected of what nobody has counter-signed yet."""
        if self._ledger.held is not None:
            return
        with self._ledger.read() as tx:
            unseen = tx.unseen_grants(loan, MAX_NOTICES)
        for grant in unseen:
            self._publisher.publish(
                Push(loan=loan, message=GrantMade(notice=self.notice(grant)), only=session)
            )

    def of_loan(self, loan: LoanId, limit: int) -> Sequence[tuple[Signed, GrantSeenRow | None]]:
        """Return the notices of a loan, the newest first, each with its counter-signature."""
        with self._ledger.read() as tx:
            return [
                (self.notice(grant), tx.grant_seen(grant.number))
                for grant in tx.told_grants(loan, limit)
            ]

    def seen(self, session_id: SessionId, signed: Signed) -> None:
        """
        Keep a counter-signature, unless the grant has one or the ledger is held.

        Raises:
            NotFoundError: there is no such grant of the session's loan.
            VerificationError: not signed by the session, or not under the notice of that grant.
        """
        if self._ledger.held is not None:
            return
        with self._ledger.write() as entry:
            session = session_of(entry.tx, session_id)
            seen = open_signed(
                signed, GrantSeen, public_key=session.keys.signing_key, label=Label.GRANT_SEEN
            )
            grant = entry.tx.told_grant(seen.number)
            if grant is None or grant.loan != session.loan:
                raise NotFoundError(f"the loan has no grant {seen.number}")
            expected = sha256(self.notice(grant).payload)
            if (seen.loan, seen.session, seen.notice_sha256) != (
                session.loan,
                session_id,
                expected,
            ):
                raise VerificationError(
                    "a counter-signature under another notice of a grant",
                    code="grant.seen",
                    expected=expected.hex(),
                    came=seen.notice_sha256.hex(),
                )
            if entry.tx.grant_seen(seen.number) is not None:
                return
            entry.tx.insert_grant_seen(
                GrantSeenRow(
                    number=seen.number,
                    session=session_id,
                    payload=signed.payload,
                    signature=signed.signature,
                    received=entry.now,
                )
            )
            entry.event(
                "grant.seen",
                actor=session_id,
                loan=session.loan,
                session=session_id,
                consumer=grant.consumer,
                number=grant.number,
                place=grant.place,
                credits=grant.credits,
                granted=grant.granted,
                notice_sha256=expected.hex(),
                signature=signed.signature.hex(),
            )
