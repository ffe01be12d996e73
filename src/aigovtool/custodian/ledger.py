"""
Decide, record, act: how every decision of the custodian is made.

Rule 1: a decision is one `write` block. What it changes and the event that says so commit together.
Rule 2: what it wants told to enclaves is told after the commit, before the next decision begins, so
        that pushes arrive in the order of the ledger.
Rule 3: time is read once, when the decision begins.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

import msgspec

from aigovtool.clock import Clock
from aigovtool.custodian.lifecycle import LoanState, state_at
from aigovtool.custodian.records import Consumer, LeaseRow, Loan, Session, Standing
from aigovtool.custodian.store.base import Reading, Store, Writing
from aigovtool.errors import ConflictError, NotFoundError, PromiseBrokenError
from aigovtool.ids import ConsumerId, LeaseId, LoanId, SessionId
from aigovtool.telemetry.logs import event
from aigovtool.wire.control import FromCustodian, RosterChanged
from aigovtool.wire.enrolment import RosterEntry

_SECOND = timedelta(seconds=1)
_EVERYDAY = frozenset({"lease.granted", "lease.settled"})  # many a second

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """
    A message to enclaves of *loan*: to all of them, to `only` one, or to all `but` one.

    With `ends` the session's control connection is closed after it.
    """

    loan: LoanId
    message: FromCustodian
    only: SessionId | None = None
    but: SessionId | None = None
    ends: bool = False


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

    def log(self) -> None:
        """Log it under its own name."""
        level = logging.DEBUG if self.kind in _EVERYDAY else logging.INFO
        if _log.isEnabledFor(level):
            ids = {
                "loan": self.loan,
                "session": self.session,
                "consumer": self.consumer,
                "lease": self.lease,
            }
            words = " ".join(f"{name} {value}" for name, value in ids.items() if value is not None)
            _log.log(level, "%s: %s", self.kind, words, extra=event(self.kind, **ids))


class Entry:
    """One decision being made: the ledger's rows, the time, its events and pushes."""

    __slots__ = ("noted", "now", "pushes", "tx")

    def __init__(self, tx: Writing, now: datetime) -> None:
        self.tx = tx
        self.now = now
        self.pushes: list[Push] = []
        self.noted: list[Noted] = []  # its events

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
        self.noted.append(Noted(kind, loan, session, consumer, lease))
        self.tx.insert_event(
            time=self.now,
            kind=kind,
            actor=actor,
            loan=loan,
            session=session,
            consumer=consumer,
            lease=lease,
            detail=msgspec.json.encode(detail),
        )

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

    __slots__ = ("_clock", "_tx", "noted", "pushes")

    def __init__(self, tx: Writing, clock: Clock) -> None:
        self._tx = tx
        self._clock = clock
        self.noted: list[Noted] = []
        self.pushes: list[Push] = []

    @contextlib.contextmanager
    def decide(self) -> Iterator[Entry]:
        """Lend an `Entry` for one of them; when the block raises, it was never made."""
        entry = Entry(self._tx, self._clock.now())
        with self._tx.savepoint():
            yield entry
        self.noted += entry.noted
        self.pushes += entry.pushes


class Ledger:
    """The store, the clock, and who is told."""

    def __init__(self, *, store: Store, clock: Clock, publisher: Publisher) -> None:
        self._store = store
        self._publisher = publisher
        self._deciding = threading.Lock()
        self.clock = clock
        self.written: Counter[str] = Counter()  # events that were committed here, by kind

    def read(self) -> AbstractContextManager[Reading]:
        """Lend a consistent view as of now."""
        return self._store.read()

    @contextlib.contextmanager
    def write(self) -> Iterator[Entry]:
        """Lend an `Entry` for one decision, which is durable when the block has ended."""
        with self._deciding:
            with self._store.write() as tx:
                entry = Entry(tx, self.clock.now())
                yield entry
            self._tell(entry.pushes, entry.noted)

    @contextlib.contextmanager
    def write_together(self) -> Iterator[Together]:
        """Lend a `Together`; its decisions become durable as the block ends, all of them."""
        with self._deciding:
            with self._store.write() as tx:
                together = Together(tx, self.clock)
                yield together
            self._tell(together.pushes, together.noted)

    def _tell(self, pushes: list[Push], noted: list[Noted]) -> None:
        for one in noted:
            self.written[one.kind] += 1
            one.log()
        for push in pushes:
            self._publisher.publish(push)
        self._publisher.changed()


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
