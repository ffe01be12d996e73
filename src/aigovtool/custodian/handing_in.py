"""
What enclaves show the custodian of its own ledger, and what they hand in while it is held.

Rule 1: the custodian's own signature on a head that its ledger does not have holds the ledger. Only
        its key makes one, so nobody else can bring that about.
Rule 2: while the ledger is held, a session is believed by the custodian's statement of its keys,
        since the ledger may not know it. It may hand in settlements; it gets nothing.
Rule 3: what is handed in is kept as it came, and applied by a reconciliation.
"""

from __future__ import annotations

import dataclasses

from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import verify_signature
from aigovtool.custodian import rollback
from aigovtool.custodian.ledger import Ledger, loan_of
from aigovtool.custodian.records import HandedIn
from aigovtool.custodian.sessions import terms_of
from aigovtool.custodian.settling import OpenedSettlement, open_settlements
from aigovtool.errors import MalformedError, UnavailableError, VerificationError
from aigovtool.ids import LoanId
from aigovtool.wire.codec import Signed, open_signed
from aigovtool.wire.control import HELD, Hello, Report, ReportAnswer, Welcome
from aigovtool.wire.enrolment import LedgerHead, SessionStatement


class HandingIn:
    """Reads what the custodian once signed, and takes settlements while the ledger is held."""

    def __init__(self, *, ledger: Ledger, custodian_key: bytes) -> None:
        self._ledger = ledger
        self._custodian_key = custodian_key

    def shown(self, signed: Signed) -> SessionStatement:
        """
        Read a statement of ours; should it know more than the ledger, the ledger is held from here.

        Raises:
            VerificationError, MalformedError: not ours.
        """
        statement = open_signed(
            signed, SessionStatement, public_key=self._custodian_key, label=Label.SESSION_STATEMENT
        )
        with self._ledger.read() as tx:
            lost = rollback.lost_since(tx, statement.head)
        if lost is not None:
            if self._newer_than_the_mark(statement.head):
                lost = dataclasses.replace(lost, code=rollback.BY_STATEMENT)
            self._ledger.hold(lost)
        return statement

    def _newer_than_the_mark(self, head: LedgerHead) -> bool:
        """Whether the mark cannot vouch for what was left: it does not know of *head* either."""
        try:
            marked = self._ledger.mark.read()
        except MalformedError:
            return True
        return (
            marked is None
            or marked.head.incarnation != head.incarnation
            or marked.head.event < head.event
        )

    def identify(self, hello: Hello, nonce: bytes, loan: LoanId) -> SessionStatement:
        """
        Check who is here, by the statement that it shows.

        Raises:
            VerificationError: not signed by that session's key, or of another loan.
        """
        statement = self.shown(hello.statement)
        if (statement.session, statement.loan) != (hello.session, loan):
            raise VerificationError(
                "the statement is of another session",
                code="control.statement",
                expected=f"{loan} {hello.session}",
                came=f"{statement.loan} {statement.session}",
            )
        verify_signature(
            statement.keys.signing_key,
            Label.CONTROL_HELLO,
            nonce + hello.session.encode(),
            hello.signature,
        )
        return statement

    def welcome(self, loan_id: LoanId) -> Welcome:
        """Say that the ledger is held; raises UnavailableError when it no longer is."""
        held = self._ledger.held
        if held is None:
            raise UnavailableError("the ledger is not held any more: connect again")
        with self._ledger.read() as tx:
            loan = loan_of(tx, loan_id)
        return Welcome(
            state=HELD,
            state_reason=held.reason,
            terms=terms_of(loan, self._ledger.clock.now()),
            roster=(),
            left=0,
            model_digest=loan.model,
        )

    def take(self, whose: SessionStatement, signed: Signed, report: Report) -> ReportAnswer:
        """
        Keep the settlements of *report*, and lease nothing.

        Args:
            whose: as `identify` returned it; *signed* is the same as it came.

        Raises:
            VerificationError, MalformedError: a settlement that is not this session's.
            UnavailableError: it may have been kept or not; or the ledger is not held any more.
        """
        opened = open_settlements(report.settlements, whose)
        for each in opened:
            self._keep(whose, signed, each)
        return ReportAnswer(
            number=report.number,
            settled=tuple(each.settlement.lease for each in opened),
            lease=None,
            left=0,
            leased_elsewhere=0,
            consumer_left={},
            statement=signed,
        )

    def _keep(self, whose: SessionStatement, statement: Signed, opened: OpenedSettlement) -> None:
        lease, signed = opened.settlement.lease, opened.signed
        with self._ledger.write(while_held=True) as entry:
            if self._ledger.held is None:
                raise UnavailableError("the ledger is not held any more: connect again")
            known = entry.tx.settlement_payload(lease)
            if (before := entry.tx.handed_in_of_lease(lease)) is not None:
                known = before.settlement.payload
            if known is None:
                entry.tx.insert_handed_in(
                    HandedIn(
                        lease=lease,
                        session=whose.session,
                        loan=whose.loan,
                        settlement=signed,
                        statement=statement,
                        received=entry.now,
                    )
                )
            if known != signed.payload:
                entry.event(
                    "settlement.handed_in" if known is None else "settlement.equivocation",
                    actor=whose.session,
                    loan=whose.loan,
                    session=whose.session,
                    lease=lease,
                    used=opened.settlement.used,
                )
