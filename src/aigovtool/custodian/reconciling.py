"""
Reconciliation: a ledger that was put back from a copy is made safe to serve again.

What the lost part of the ledger had leased may have been used. So:

1. Grants that were lost come back as far as the mark, or what was used, shows them.
2. Settlements that enclaves handed in are applied; leases that the ledger does not know are entered
   with them. Leases that only receipts show are entered as forfeited.
3. Every lease that is open is forfeited, and whatever is unsettled is written off: what a late
   settlement would return may have been leased again before, in the part that was lost.
4. What is left is at most what the mark says was left. Without a mark that vouches, nothing is. The
   difference is charged as one forfeited lease, with a name, that an operator may refund.
5. Sessions end, and active loans are stopped until an operator resumes them: a stop, a block or a
   new ticket may have been lost.
6. A new life of the ledger begins, and with it the hold ends, all in the transaction of 1 to 5.

So everything served before is charged, whatever was lost: ``served <= granted - left`` (I1).
"""

from __future__ import annotations

from datetime import timedelta

from aigovtool.custodian import evidence as showing
from aigovtool.custodian import rollback
from aigovtool.custodian.ageing import Step
from aigovtool.custodian.evidence import Evidence, LeaseEvidence, Shown, Signer
from aigovtool.custodian.ledger import Entry, Ledger, loan_of
from aigovtool.custodian.lifecycle import LoanState, SessionState
from aigovtool.custodian.mark import Marked, Vouched
from aigovtool.custodian.records import (
    Consumer,
    GrantKind,
    GrantRow,
    LeaseRow,
    LeaseState,
    Loan,
    Session,
    Standing,
)
from aigovtool.custodian.sessions import end_session
from aigovtool.custodian.settling import Books
from aigovtool.errors import ConflictError, MalformedError
from aigovtool.ids import ConsumerId, LeaseId, LoanId, SessionId, new_id
from aigovtool.wire.codec import Message
from aigovtool.wire.control import LoanChanged
from aigovtool.wire.enrolment import Keys

WHY = "the ledger was put back from an older copy, and reconciled"
_RECOVERED = "reconciled: made after the copy, as {} shows"


class ReconciledAccount(Message, frozen=True, kw_only=True):
    """
    One account, of a loan or of a consumer with a budget of its own.

    Args:
        account: id of the loan or consumer.
        ledger_granted, ledger_left: what the copy said.
        mark_granted, mark_left: what the mark says, None when it does not vouch.
        shown: credits that leases which the copy did not know are shown to have used.
        granted_again: credits that had been granted after the copy.
        open_charged: credits of leases that were open in the copy and are now forfeited.
        charged: credits that may have been used, charged as the lease `charged_as`.
        left: what can be leased from now on.
        state: of a loan, from now on; of a consumer, whether it is blocked in the copy.
    """

    account: str
    name: str
    ledger_granted: int
    ledger_left: int
    mark_granted: int | None
    mark_left: int | None
    shown: int
    granted_again: int
    open_charged: int
    charged: int
    charged_as: str | None
    left: int
    state: str


class Reconciled(Message, frozen=True, kw_only=True):
    """
    What a reconciliation does, or did.

    Args:
        applied: it was done; else nothing was changed.
        held: the code of why the ledger was held.
        vouched: the mark says what was left.
        receipts_refused: receipts that are no evidence.
        lost: accounts that the mark knows and the copy does not.
    """

    applied: bool
    held: str
    reason: str
    vouched: bool
    handed_in: int
    receipts_refused: int
    sessions_ended: int
    lost: tuple[str, ...]
    accounts: tuple[ReconciledAccount, ...]


class _OnlyLookedError(Exception):
    """Leaves the transaction of a reconciliation that is only looked at."""

    def __init__(self, outcome: Reconciled) -> None:
        self.outcome = outcome


class Reconciling:
    """Shows what a reconciliation would do, and does it."""

    def __init__(self, *, ledger: Ledger, custodian_key: bytes) -> None:
        self._ledger = ledger
        self._custodian_key = custodian_key

    def run(self, shown: Shown, *, apply: bool, actor: str, reason: str = "") -> Reconciled:
        """
        Reconcile a held ledger, or only say what that would do.

        Raises:
            ConflictError: the ledger is not held.
            MalformedError: it is to be done, and no reason was given.
        """
        held = self._ledger.held
        if held is None:
            raise ConflictError("the ledger is not held", code="ledger.not_held")
        if apply and not reason.strip():
            raise MalformedError("a reconciliation needs a reason", mend="add --reason TEXT")
        marked = self._marked()
        try:
            with self._ledger.reconciling() as entry:
                evidence = showing.gather(entry.tx, shown, custodian_key=self._custodian_key)
                past = entry.tx.incarnations()[:-2]  # the last began just now, for what comes
                if marked is not None and not rollback.vouches(entry.tx, marked, held, past):
                    marked = None
                work = _Work(
                    entry,
                    marked,
                    evidence,
                    actor=actor,
                    custodian_key=self._custodian_key,
                )
                accounts = [one for loan in entry.tx.loans() for one in work.loan(loan)]
                known = {one.account for one in accounts}
                outcome = Reconciled(
                    applied=apply,
                    held=held.code,
                    reason=held.reason,
                    vouched=marked is not None,
                    handed_in=len(entry.tx.handed_in()),
                    receipts_refused=evidence.refused,
                    sessions_ended=work.ended,
                    lost=() if marked is None else tuple(sorted(set(marked.accounts) - known)),
                    accounts=tuple(accounts),
                )
                if not apply:
                    raise _OnlyLookedError(outcome)
                entry.tx.forget_handed_in()
                entry.event(
                    "ledger.reconciled",
                    actor=actor,
                    reason=reason,
                    code=held.code,
                    vouched=outcome.vouched,
                    charged=sum(one.charged for one in accounts),
                    lost=outcome.lost,
                )
        except _OnlyLookedError as looked:
            return looked.outcome
        return outcome

    def _marked(self) -> Marked | None:
        try:
            return self._ledger.mark.read()
        except MalformedError:
            return None


class _Work:
    """One reconciliation, loan by loan."""

    def __init__(
        self,
        entry: Entry,
        marked: Marked | None,
        evidence: Evidence,
        *,
        actor: str,
        custodian_key: bytes,
    ) -> None:
        self._entry = entry
        self._custodian_key = custodian_key
        self._marked = marked
        self._evidence = evidence
        self._actor = actor
        self.ended = 0

    def loan(self, loan: Loan) -> list[ReconciledAccount]:
        """Reconcile one loan and the consumers in it."""
        entry, tx = self._entry, self._entry.tx
        books = Books(entry, loan)
        consumers = [one for one in tx.consumers_of_loan(loan.loan) if one.budgeted]
        again = self._grant_again(books, loan, consumers)
        shown = self._apply(books, loan)
        open_charged = 0
        for row in tx.unsettled_leases_of_loan(loan.loan):
            if row.state is LeaseState.OPEN:
                books.forfeit(row, actor=self._actor)
                open_charged += row.credits
        tx.write_off_leases(loan.loan, entry.now)
        charge, charged = self._charge(books, loan, consumers)
        books.write()
        for session in tx.unended_sessions_of_loan(loan.loan):
            end_session(entry, session, WHY)
            self.ended += 1
        state = loan.state
        if state is LoanState.ACTIVE:
            state = LoanState.STOPPED
            tx.set_loan_state(loan.loan, state, WHY)
            entry.event("loan.stopped", actor=self._actor, loan=loan.loan, reason=WHY)
            entry.push(loan.loan, LoanChanged(state=state, reason=WHY))
        entry.event(
            "ledger.loan_reconciled",
            actor=self._actor,
            loan=loan.loan,
            lease=charge,
            granted=loan.account.granted,
            granted_again=again,
            shown=shown,
            open_charged=open_charged,
            charged=charged[loan.loan],
            left=books.account.left,
            reason=WHY,
        )
        lines = [
            self._line(
                loan, books.account.left, charged[loan.loan], charge, state=state.value,
                shown=shown, again=again, open_charged=open_charged,
            )
        ]  # fmt: skip
        for consumer in consumers:
            now = books.consumer(consumer.consumer).account
            lines.append(
                self._line(
                    consumer, now.left, charged[consumer.consumer], charge,
                    state="blocked" if consumer.blocked else "not blocked",
                    again=max(0, now.granted - consumer.account.granted),
                )
            )  # fmt: skip
        return lines

    def _line(
        self,
        of: Loan | Consumer,
        left: int,
        charged: int,
        charge: LeaseId | None,
        *,
        state: str,
        shown: int = 0,
        again: int = 0,
        open_charged: int = 0,
    ) -> ReconciledAccount:
        account = of.loan if isinstance(of, Loan) else of.consumer
        vouched = self._vouched(account)
        return ReconciledAccount(
            account=account,
            name=of.name,
            ledger_granted=of.account.granted,
            ledger_left=of.account.left,
            mark_granted=None if vouched is None else vouched.granted,
            mark_left=None if vouched is None else vouched.left,
            shown=shown,
            granted_again=again,
            open_charged=open_charged,
            charged=charged,
            charged_as=charge if charged else None,
            left=left,
            state=state,
        )

    def _vouched(self, account: LoanId | ConsumerId) -> Vouched | None:
        return None if self._marked is None else self._marked.accounts.get(account)

    # --- 1. grants ---------------------------------------------------------------------------

    def _grant_again(self, books: Books, loan: Loan, consumers: list[Consumer]) -> int:
        vouched = self._vouched(loan.loan)
        again = 0 if vouched is None else max(0, vouched.granted - loan.account.granted)
        if again:
            self._grant(books, loan, None, again, "the mark")
        for consumer in consumers:
            now = books.consumer(consumer.consumer).account  # in its period
            vouched = self._vouched(consumer.consumer)
            if vouched is not None and vouched.granted > now.granted:
                self._grant(
                    books, loan, consumer.consumer, vouched.granted - now.granted, "the mark"
                )
        return again

    def _grant(
        self, books: Books, loan: Loan, consumer: ConsumerId | None, credits: int, by: str
    ) -> None:
        if consumer is None:
            books.grant(credits)
        else:
            books.grant_to(consumer, credits)
        self._entry.tx.insert_grant(
            GrantRow(
                loan=loan.loan,
                consumer=consumer,
                credits=credits,
                kind=GrantKind.GRANT,
                reason=_RECOVERED.format(by),
                actor=self._actor,
                created=self._entry.now,
            )
        )
        self._entry.event(
            "credits.granted",
            actor=self._actor,
            loan=loan.loan,
            consumer=consumer,
            credits=credits,
            reason=_RECOVERED.format(by),
        )

    # --- 2. evidence -------------------------------------------------------------------------

    def _apply(self, books: Books, loan: Loan) -> int:
        """Apply the evidence about *loan*; return what unknown leases are shown to have used."""
        shown = 0
        for lease, evidence in self._evidence.leases.items():
            if evidence.signer.loan != loan.loan:
                continue
            row = self._entry.tx.lease(lease)
            if row is None:
                shown += evidence.used
                self._enter(books, loan, lease, evidence)
            elif row.session == evidence.signer.session:
                self._settle(books, evidence)
        return shown

    def _settle(self, books: Books, evidence: LeaseEvidence) -> None:
        opened = showing.settled_by(evidence.settlements)
        session = self._entry.tx.session(evidence.signer.session)
        if opened is None or session is None:
            return  # receipts alone: the lease is forfeited whole, which is no less
        try:
            books.settle(opened, session, actor=self._actor)
        except ConflictError as error:
            self._entry.event(
                "settlement.equivocation",
                actor=session.session,
                loan=session.loan,
                session=session.session,
                lease=opened.settlement.lease,
                used=opened.settlement.used,
                reason=str(error),
            )

    def _enter(self, books: Books, loan: Loan, lease: LeaseId, evidence: LeaseEvidence) -> None:
        """Enter a lease that the ledger lost, as far as it is shown to have been used."""
        entry, used = self._entry, evidence.used
        if not used:
            return
        session = self._session(evidence.signer)
        opened = showing.settled_by(evidence.settlements)
        caps: dict[ConsumerId, int] = {}
        for consumer_id, credits in (opened.settlement.by_consumer if opened else {}).items():
            consumer = entry.tx.consumer(consumer_id)
            if consumer is None or consumer.loan != loan.loan:
                opened = None  # made after the copy: charged to the loan, and to no consumer
                break
            if consumer.budgeted:
                caps[consumer_id] = credits
        if opened is None or opened.settlement.used != used:
            opened, caps = None, {}
        if used > books.account.left:
            self._grant(books, loan, None, used - books.account.left, "its use")
        for consumer_id, cap in caps.items():
            left = books.consumer(consumer_id).account.left
            if cap > left:
                self._grant(books, loan, consumer_id, cap - left, "its use")
        row = self._lease(loan, lease, session, used, caps)
        books.lease(row)
        self._say_recovered(row, receipts=len(evidence.costs), settled=opened is not None)
        if opened is not None:
            books.settle(opened, session, actor=self._actor)
        else:
            books.forfeit(row, actor=self._actor)

    def _say_recovered(self, row: LeaseRow, *, receipts: int, settled: bool) -> None:
        self._entry.event(
            "lease.recovered",
            actor=self._actor,
            loan=row.loan,
            session=row.session,
            lease=row.lease,
            credits=row.credits,
            receipts=receipts,
            settled=settled,
        )

    def _lease(
        self,
        loan: Loan,
        lease: LeaseId,
        session: Session,
        credits: int,
        caps: dict[ConsumerId, int],
    ) -> LeaseRow:
        number = 1 + max(self._entry.tx.last_lease_number(session.session), session.last_report)
        return LeaseRow(
            lease=lease,
            session=session.session,
            loan=loan.loan,
            number=number,
            credits=credits,
            duration_s=0.0,
            granted=self._entry.now,
            expires=self._entry.now + timedelta(),
            caps=caps,
        )

    def _session(self, signer: Signer) -> Session:
        """Return the ledger's row of a session, made from the custodian's statement if lost."""
        entry = self._entry
        known = entry.tx.session(signer.session)
        return known or self._open(signer, measurement="lost with the ledger's newer part")

    def _open(self, signer: Signer, *, measurement: str) -> Session:
        entry = self._entry
        session = Session(
            session=signer.session,
            loan=signer.loan,
            model=loan_of(entry.tx, signer.loan).model,
            state=SessionState.ENDED,
            keys=signer.keys,
            tee="none",
            measurement=measurement,
            software="",
            opened=entry.now,
            disconnected=entry.now,
            ended=entry.now,
            end_reason=WHY,
            last_report=0,
            report_sha256=b"",
            decision=b"",
        )
        entry.tx.insert_session(session)
        entry.tx.insert_standing(
            Standing(
                session=session.session,
                appraised=entry.now,
                tcb_status=None,
                grace=None,
                step=Step.FULL,
            )
        )
        return session

    # --- 4. what cannot be shown unused --------------------------------------------------------

    def _charge(
        self, books: Books, loan: Loan, consumers: list[Consumer]
    ) -> tuple[LeaseId | None, dict[str, int]]:
        """Charge whatever may have been leased and is not accounted for."""
        excess: dict[str, int] = {loan.loan: self._excess(loan.loan, books.account.left)}
        caps: dict[ConsumerId, int] = {}
        for consumer in consumers:
            left = books.consumer(consumer.consumer).account.left
            excess[consumer.consumer] = cap = self._excess(consumer.consumer, left)
            if cap:
                caps[consumer.consumer] = cap
        if not excess[loan.loan]:
            for consumer_id, cap in caps.items():
                books.charge(consumer_id, cap)
            return None, excess
        session = self._open(
            Signer(
                loan=loan.loan,
                session=SessionId(new_id("session")),
                keys=_nobody(self._custodian_key),
            ),
            measurement="none: what was leased after the copy, to whom is not known",
        )
        row = self._lease(loan, LeaseId(new_id("lease")), session, excess[loan.loan], caps)
        books.lease(row)
        self._say_recovered(row, receipts=0, settled=False)
        books.forfeit(row, actor=self._actor)
        self._entry.tx.write_off_leases(loan.loan, self._entry.now)
        return row.lease, excess

    def _excess(self, account: LoanId | ConsumerId, left: int) -> int:
        vouched = self._vouched(account)
        return left - (0 if vouched is None else min(left, vouched.left))


def _nobody(custodian_key: bytes) -> Keys:
    """Keys of a session that nobody runs: whoever would speak for it needs the custodian's own."""
    return Keys(tls_spki_sha256=bytes(32), signing_key=custodian_key, hpke_key=b"")
