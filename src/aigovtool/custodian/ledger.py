"""
Decide, record, act: how every decision of the custodian is made.

Rule 1: a decision is one `write` block. What it changes and the event that says so commit together.
Rule 2: what it wants told to enclaves is told after the commit, before the next decision begins, so
        that pushes arrive in the order of the ledger.
Rule 3: time is read once, when the decision begins.
Rule 4: before anything of a decision leaves, the mark outside the ledger knows of it (`mark`).
Rule 5: while the ledger is held nothing is decided but what takes away (`while_held`).
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

import msgspec

from aigovtool.clock import Clock
from aigovtool.custodian import rollback
from aigovtool.custodian.lifecycle import LoanState, state_at
from aigovtool.custodian.mark import INCARNATION_BYTES, Mark
from aigovtool.custodian.pushes import Push, announcement
from aigovtool.custodian.records import (
    Consumer,
    Event,
    Hold,
    LeaseRow,
    Life,
    Loan,
    Session,
    Standing,
)
from aigovtool.custodian.store.base import Listener, Reading, Store, Writing
from aigovtool.custodian.webhooks import BUDGET_LOW, TOLD, body_of
from aigovtool.errors import (
    AIGovToolError,
    ConflictError,
    NotFoundError,
    PromiseBrokenError,
    Reason,
)
from aigovtool.ids import ConsumerId, LeaseId, LoanId, SessionId, new_id
from aigovtool.telemetry.logs import event
from aigovtool.wire.control import HELD, FromCustodian, LoanChanged, RosterChanged
from aigovtool.wire.enrolment import LedgerHead, RosterEntry

_SECOND = timedelta(seconds=1)
_MOVES_CREDITS = frozenset(
    {
        "budget.low_mark",
        "credits.granted",
        "credits.refunded",
        "lease.granted",
        "lease.settled",
        "lease.settled_late",
    }
)
_EVERYDAY = frozenset({"lease.granted", "lease.settled"})  # many a second

_log = logging.getLogger(__name__)


class Publisher(Protocol):
    """Takes pushes from any thread; never waits and never fails."""

    def publish(self, push: Push) -> None: ...

    def changed(self) -> None:
        """Something was committed; whoever watches may look."""
        ...


@dataclass(frozen=True, slots=True)
class Noted:
    """An event that was committed, as it is logged: without its detail, which holds reasons."""

    kind: str
    loan: LoanId | None
    session: SessionId | None
    consumer: ConsumerId | None
    lease: LeaseId | None

    def ids(self) -> dict[str, str | None]:
        """Return what it is about."""
        return {
            "loan": self.loan,
            "session": self.session,
            "consumer": self.consumer,
            "lease": self.lease,
        }

    def log(self) -> None:
        """Log it under its own name."""
        level = logging.DEBUG if self.kind in _EVERYDAY else logging.INFO
        if _log.isEnabledFor(level):
            ids = self.ids()
            about = [f"{name} {value}" for name, value in ids.items() if value is not None]
            words = f"{self.kind}: {' '.join(about)}" if about else self.kind
            _log.log(level, "%s", words, extra=event(self.kind, **ids))


class Entry:
    """
    One decision being made: the ledger's rows, the time, its events and pushes.

    `last` is the newest event of it, None when there is none; `noted` are all.
    """

    __slots__ = ("last", "noted", "now", "pushes", "tx")

    def __init__(self, tx: Writing, now: datetime) -> None:
        self.tx = tx
        self.now = now
        self.pushes: list[Push] = []
        self.noted: list[Noted] = []  # its events
        self.last: Event | None = None

    def event(
        self,
        kind: str,
        *,
        actor: str,
        loan: LoanId | None = None,
        session: SessionId | None = None,
        consumer: ConsumerId | None = None,
        lease: LeaseId | None = None,
        **detail: Any,
    ) -> None:
        """Append an event; *detail* is written as JSON and holds no secret."""
        noted = Noted(kind, loan, session, consumer, lease)
        self.noted.append(noted)
        if kind in TOLD:
            body = body_of(kind, self.now, noted.ids(), detail)
            self.tx.queue_deliveries(new_id("msg"), kind, body, self.now)
        encoded = msgspec.json.encode(detail)
        number = self.tx.insert_event(
            time=self.now,
            kind=kind,
            actor=actor,
            loan=loan,
            session=session,
            consumer=consumer,
            lease=lease,
            detail=encoded,
        )
        self.last = Event(
            number=number,
            time=self.now,
            kind=kind,
            actor=actor,
            loan=loan,
            session=session,
            consumer=consumer,
            lease=lease,
            detail=encoded,
        )

    def finish(self) -> None:
        """Say, before it is durable, of which loans this decision made the budget low."""
        for loan in {one.loan for one in self.noted if one.kind in _MOVES_CREDITS}:
            mark = None if loan is None else self.tx.low_mark(loan)
            if loan is None or mark is None:
                continue
            credits, was_low = mark
            left = loan_of(self.tx, loan).account.left
            if (left < credits) is was_low:
                continue
            self.tx.set_low_mark(loan, credits, low=not was_low)
            if not was_low:
                self.event(BUDGET_LOW, actor="custodian", loan=loan, left=left, below=credits)

    def push(
        self,
        loan: LoanId,
        message: FromCustodian,
        *,
        only: SessionId | None = None,
        but: SessionId | None = None,
        ends: bool = False,
    ) -> None:
        """Tell enclaves of *loan*, once this decision is durable."""
        self.pushes.append(Push(loan=loan, message=message, only=only, but=but, ends=ends))

    def push_roster(self, loan: LoanId) -> None:
        """Tell the enclaves of *loan* who its consumers now are."""
        self.push(loan, RosterChanged(roster=roster_of(self.tx, loan, self.now)))


class Together:
    """Several decisions that become durable in one commit, each whole or not at all."""

    __slots__ = ("_clock", "last", "noted", "pushes", "tx")

    def __init__(self, tx: Writing, clock: Clock) -> None:
        self.tx = tx
        self._clock = clock
        self.noted: list[Noted] = []
        self.pushes: list[Push] = []
        self.last: Event | None = None

    @contextlib.contextmanager
    def decide(self) -> Iterator[Entry]:
        """Lend an `Entry` for one of them; when the block raises, it was never made."""
        entry = Entry(self.tx, self._clock.now())
        touched = dict(self.tx.touched)
        try:
            with self.tx.savepoint():
                yield entry
                entry.finish()
        except BaseException:
            self.tx.touched.clear()
            self.tx.touched.update(touched)
            raise
        self.noted += entry.noted
        self.pushes += entry.pushes
        self.last = entry.last or self.last


class Ledger:
    """
    The store, the clock, who is told, and the mark.

    Making one judges whether this ledger is an older copy of itself (`rollback`).
    """

    def __init__(self, *, store: Store, clock: Clock, publisher: Publisher, mark: Mark) -> None:
        self._store = store
        self._publisher = publisher
        self._mark = mark
        self._deciding = threading.Lock()
        self._hold: Hold | None = None
        self.clock = clock
        self.written: Counter[str] = Counter()  # events that were committed here, by kind
        with store.write() as tx:
            if tx.life().incarnation is None:
                tx.begin_incarnation(new_incarnation(), clock.now())
        with store.read() as tx:
            self._head = rollback.head_of(tx)
            self._hold = tx.life().hold
            _, found = rollback.judge_mark(tx, mark)
        if self._hold is None and found is not None:
            self._hold_for(found)
        if self._hold is None:
            self._mark_anew()

    @property
    def head(self) -> LedgerHead:
        """How far the ledger is, at least; it is durable."""
        return self._head

    @property
    def held(self) -> Hold | None:
        """Why nothing is leased, released or granted, if so."""
        return self._hold

    @property
    def mark(self) -> Mark:
        """What remembers, outside the ledger, how far it is."""
        return self._mark

    def join(self, listener: Listener) -> None:
        """Serve this ledger beside whoever else does; until the store is closed."""
        self._store.join(listener)

    @property
    def replica(self) -> int | None:
        """The number of this process among several; None when it is alone, or parted."""
        return self._store.replica

    @property
    def shared(self) -> bool:
        """Whether several processes may serve this ledger."""
        return self._store.shared

    def read(self) -> AbstractContextManager[Reading]:
        """Lend a consistent view as of now."""
        return self._store.read()

    @contextlib.contextmanager
    def write(self, *, while_held: bool = False) -> Iterator[Entry]:
        """
        Lend an `Entry` for one decision, which is durable when the block has ended.

        Args:
            while_held: the decision only takes away, or only notes; a held ledger takes it too.

        Raises:
            UnavailableError: the ledger is held; or the mark cannot be written, and the decision
                was kept.
        """
        with self._deciding:
            if not while_held:
                self.check_not_held()
            with self._store.write() as tx:
                life = _life(tx, while_held=while_held)
                entry = Entry(tx, self.clock.now())
                yield entry
                entry.finish()
                announced = _announce(tx, entry.pushes)
            self._kept(entry, life, announced=announced)

    @contextlib.contextmanager
    def write_together(self) -> Iterator[Together]:
        """
        Lend a `Together`; its decisions become durable as the block ends, all of them.

        Raises:
            UnavailableError: as `write`.
        """
        with self._deciding:
            self.check_not_held()
            with self._store.write() as tx:
                life = _life(tx, while_held=False)
                together = Together(tx, self.clock)
                yield together
                announced = _announce(tx, together.pushes)
            self._kept(together, life, announced=announced)

    def check_not_held(self) -> None:
        """Raise UnavailableError when the ledger is held."""
        if self._hold is not None:
            raise rollback.held_error(self._hold)

    def hold(self, reason: Reason) -> None:
        """Lease, release and grant nothing more, until an operator has reconciled the ledger."""
        with self._deciding:
            # that a mark is not the newest either counts for more than what was found before
            worse = reason.code in rollback.DISPROVES_MARK
            if self._hold is None or (worse and self._hold.code not in rollback.DISPROVES_MARK):
                self._hold_for(reason)

    def refresh(self) -> None:
        """Follow what another replica found out, or an operator mended beside it."""
        with self._deciding:
            with self._store.read() as tx:
                life = tx.life()
            # only a reconciliation begins a life: without one the hold itself was lost
            reconciled = life.hold is None and life.incarnation != self._head.incarnation
            if self._hold is None:
                self._hold = life.hold
            elif reconciled and self._hold.code.startswith(rollback.LOST):
                self._mark_anew()
                self._hold = None

    @contextlib.contextmanager
    def reconciling(self) -> Iterator[Entry]:
        """
        Lend an `Entry` for a reconciliation; at the block's end a new life begins, not held.

        Should the process die before the mark is written, the next start writes it: the life that
        the old mark is of has ended, and that is in the ledger.
        """
        with self._deciding:
            with self._store.write() as tx:
                entry = Entry(tx, self.clock.now())
                tx.begin_incarnation(new_incarnation(), entry.now)
                tx.lift_hold()
                yield entry
                announced = _announce(tx, entry.pushes)
            self._mark_anew()
            self._hold = None
            self._tell([] if announced else entry.pushes, entry.noted)

    def _kept(self, decided: Entry | Together, life: Life, *, announced: bool) -> None:
        """What was decided is durable: let the mark know, then tell."""
        try:
            if decided.last is not None and life.incarnation is not None:
                self._move_head(decided.last, life.incarnation)
            if self._hold is None:
                self._mark.advance(self._head, decided.tx.touched)
        finally:
            # a stop is told whatever else fails; what gives needs a lease, and so the mark
            self._tell([] if announced else decided.pushes, decided.noted)

    def _tell(self, pushes: list[Push], noted: list[Noted]) -> None:
        for one in noted:
            self.written[one.kind] += 1
            one.log()
        for push in pushes:
            self._publisher.publish(push)
        self._publisher.changed()

    def _move_head(self, last: Event, incarnation: bytes) -> None:
        if last.number <= self._head.event and incarnation == self._head.incarnation:
            self._hold_for(
                Reason(
                    code="rollback.running",
                    message="this ledger was put back to an older copy while it was served",
                    expected=f"an event after {self._head.event}",
                    came=f"event {last.number}",
                )
            )
            self.check_not_held()
        self._head = LedgerHead(
            incarnation=incarnation, event=last.number, digest=rollback.digest_of(last)
        )

    def _hold_for(self, reason: Reason) -> None:
        hold = Hold(code=reason.code, reason=str(reason), since=self.clock.now())
        self._hold = hold  # first: whatever fails after this, nothing is leased
        _log.error("the ledger is held: %s", reason)
        if not reason.code.startswith(rollback.LOST):
            return  # the mark is missing, not the ledger's past: its return mends it
        told = LoanChanged(state=HELD, reason=hold.reason)
        try:
            with self._store.write() as tx:
                rollback.note_hold(tx, hold, after=self._head.event)
                pushes = [Push(loan=loan.loan, message=told, ends=True) for loan in tx.loans()]
                announced = _announce(tx, pushes)
        except AIGovToolError as error:
            _log.error("that the ledger is held could not be written: %s", error)
            return
        self._tell([] if announced else pushes, [])

    def _mark_anew(self) -> None:
        with self._store.read() as tx:
            self._head = rollback.head_of(tx)
            self._mark.begin(self._head, rollback.accounts_of(tx))


def _announce(tx: Writing, pushes: list[Push]) -> bool:
    """Announce *pushes* with what they follow from; False when we have to tell them ourselves."""
    return tx.announce([announcement(push) for push in pushes])


def _life(tx: Reading, *, while_held: bool) -> Life:
    """Return the ledger's life; raises UnavailableError when another replica found it lost."""
    life = tx.life()
    if life.hold is not None and not while_held:
        raise rollback.held_error(life.hold)
    return life


def new_incarnation() -> bytes:
    """Return 16 fresh random bytes."""
    return secrets.token_bytes(INCARNATION_BYTES)


def loan_of(tx: Reading, loan: LoanId) -> Loan:
    """Return the loan; raises NotFoundError."""
    found = tx.loan(loan)
    if found is None:
        raise NotFoundError(f"there is no loan {loan!r}", mend="aigovtool custodian loan list")
    return found


def consumer_of(tx: Reading, consumer: ConsumerId) -> Consumer:
    """Return the consumer; raises NotFoundError."""
    found = tx.consumer(consumer)
    if found is None:
        raise NotFoundError(
            f"there is no consumer {consumer!r}", mend="aigovtool custodian consumer list"
        )
    return found


def session_of(tx: Reading, session: SessionId) -> Session:
    """Return the session; raises NotFoundError."""
    found = tx.session(session)
    if found is None:
        raise NotFoundError(
            f"there is no session {session!r}", mend="aigovtool custodian session list"
        )
    return found


def standing_of(tx: Reading, session: SessionId) -> Standing:
    """Return how a session that exists stands."""
    found = tx.standing(session)
    if found is None:
        raise PromiseBrokenError("a session without a standing", came=session)
    return found


def lease_of(tx: Reading, lease: LeaseId) -> LeaseRow:
    """Return the lease; raises NotFoundError."""
    found = tx.lease(lease)
    if found is None:
        raise NotFoundError(f"there is no lease {lease!r}", mend="aigovtool custodian lease list")
    return found


def only_loan(tx: Reading) -> LoanId:
    """
    Return the loan that is meant when none is named: the only one that is not closed.

    Raises:
        NotFoundError: there is none.
        ConflictError: there are several.
    """
    open_loans = [loan for loan in tx.loans() if loan.state is not LoanState.CLOSED]
    if not open_loans:
        raise NotFoundError("there is no loan", mend="aigovtool custodian loan create")
    if len(open_loans) > 1:
        raise ConflictError(
            "there are several loans; name one",
            code="loan.several",
            expected="one of " + ", ".join(loan.loan for loan in open_loans[:8]),
            mend="add --loan LOAN",
        )
    return open_loans[0].loan


def is_active(loan: Loan, now: datetime) -> bool:
    """Whether keys and leases may be given under *loan* now."""
    return state_at(loan.state, loan.terms.expires, now) is LoanState.ACTIVE


def roster_of(tx: Reading, loan: LoanId, now: datetime) -> tuple[RosterEntry, ...]:
    """Return the consumers of *loan* as its enclaves may know them."""
    return tuple(
        RosterEntry(
            consumer=consumer.consumer,
            api_key_sha256=consumer.key_sha256,
            blocked=consumer.blocked,
            budgeted=consumer.budgeted,
            left=consumer.account.left if consumer.budgeted else None,
            limits=consumer.limits,
            expires_in_s=None if consumer.expires is None else (consumer.expires - now) / _SECOND,
        )
        for consumer in tx.consumers_of_loan(loan)
    )
