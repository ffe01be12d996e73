"""
I1 and I3 on the real store: whatever is lost, repeated, reordered, crashed or broken.

The machine plays enclaves that serve from leases, networks that lose reports and answers, disks
that fail before and after they keep, crashes of the custodian, and an operator who refunds. After
every step each account adds up and what was truly served was granted before.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from aigovtool.custodian.records import LeaseState
from aigovtool.errors import (
    ConflictError,
    LoanNotActiveError,
    NotFoundError,
    RefusedError,
    UnavailableError,
)
from aigovtool.ids import ConsumerId, LeaseId, SessionId
from aigovtool.wire.codec import Signed
from aigovtool.wire.control import Lease, Report, ReportAnswer
from tests.custodian.ledgers import Bench, FakeEnclave, OnPostgres

MAX_ENCLAVES = 3
LONG_AFTER = datetime(2100, 1, 1, tzinfo=UTC)
BREAKS = st.sampled_from([None, None, None, "lost", "kept"])


class Counting:
    """Stands for the module `secrets` where identifiers are made."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def token_hex(self, _: int) -> str:
        return f"{next(self._numbers):06d}"


@dataclass
class Held:
    """A lease in an enclave's memory."""

    lease: Lease
    until_s: float
    used: Counter[ConsumerId] = field(default_factory=Counter)


@dataclass
class Running:
    """An enclave that keeps the protocol, as ours does."""

    keys: FakeEnclave
    connected: bool = True
    sent: Report | None = None
    sent_at_s: float = 0.0
    held: dict[LeaseId, Held] = field(default_factory=dict)
    unsettled: dict[LeaseId, Signed] = field(default_factory=dict)


class Lending(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        # identifiers in the order of their making: the same steps must give the same run
        self.ids = mock.patch("aigovtool.ids.secrets", Counting())
        self.ids.start()
        self.folder = tempfile.TemporaryDirectory()
        self.bench = self.open_bench(Path(self.folder.name))
        self.enclaves: dict[SessionId, Running] = {}
        self.served = 0
        self.served_by: Counter[ConsumerId] = Counter()

    def open_bench(self, folder: Path) -> Bench:
        return Bench(folder)

    def teardown(self) -> None:
        self.ids.stop()
        self.bench.close()
        self.folder.cleanup()

    @initialize(credits=st.integers(0, 30), own=st.integers(0, 10))
    def lend(self, credits: int, own: int) -> None:
        self.loan = self.bench.lend(credits, max_enclaves=MAX_ENCLAVES, max_lease_credits=8).loan
        self.shared = self.bench.consumer(self.loan)
        self.own = self.bench.consumer(self.loan, budget=own)
        self.enrol(None)
        self.enrol(None)

    # --- what enclaves do ---

    @rule(broken=BREAKS)
    def enrol(self, broken: str | None) -> None:
        self.bench.store.next = broken
        try:
            keys = self.bench.enclave(self.loan, connect=False)
            self.bench.sessions.connect(keys.session)
        except (RefusedError, UnavailableError, LoanNotActiveError):
            return
        self.enclaves[keys.session] = Running(keys)

    def some(self, data: st.DataObject, which: list[Running]) -> Running:
        return data.draw(st.sampled_from(which))

    @precondition(lambda self: self.enclaves)
    @rule(data=st.data(), count=st.integers(1, 6))
    def serve(self, data: st.DataObject, count: int) -> None:
        enclave = self.some(data, list(self.enclaves.values()))
        consumer = data.draw(st.sampled_from([self.shared, self.own]))
        for held in enclave.held.values():
            if self.bench.clock.monotonic_s() >= held.until_s:
                continue
            cap = held.lease.caps.get(consumer, 0 if consumer == self.own else count)
            room = min(
                count, held.lease.credits - held.used.total(), max(0, cap - held.used[consumer])
            )
            if consumer == self.shared:
                room = min(count, held.lease.credits - held.used.total())
            held.used[consumer] += room
            self.served += room
            self.served_by[consumer] += room

    @precondition(lambda self: self.enclaves)
    @rule(data=st.data(), want=st.integers(0, 12), own=st.integers(0, 6), broken=BREAKS,
          fate=st.sampled_from(["whole", "whole", "report lost", "answer lost"]))  # fmt: skip
    def report(
        self, data: st.DataObject, want: int, own: int, broken: str | None, fate: str
    ) -> None:
        enclave = self.some(data, list(self.enclaves.values()))
        if not enclave.connected and not self.reconnect(enclave):
            return
        if enclave.sent is None:
            for lease, held in list(enclave.held.items()):
                if data.draw(st.booleans()) or self.bench.clock.monotonic_s() >= held.until_s:
                    del enclave.held[lease]
                    used = {who: many for who, many in held.used.items() if many}
                    enclave.unsettled[lease] = enclave.keys.settlement(lease, used)
            enclave.sent = enclave.keys.report(
                tuple(enclave.unsettled.values()),
                want=want or None,
                by_consumer={self.own: own} if own and want else None,
            )
            enclave.sent_at_s = self.bench.clock.monotonic_s()
        if fate == "report lost":
            return
        self.bench.store.next = broken
        try:
            answer = self.bench.leasing.report(enclave.keys.session, enclave.sent)
        except UnavailableError:
            return
        finally:
            self.bench.store.next = None
        if fate == "whole":
            self.take(enclave, answer)

    def take(self, enclave: Running, answer: ReportAnswer) -> None:
        enclave.sent = None
        for lease in answer.settled:
            enclave.unsettled.pop(lease, None)
        if answer.lease is not None:
            until_s = enclave.sent_at_s + answer.lease.duration_s
            enclave.held[answer.lease.lease] = Held(answer.lease, until_s)

    def reconnect(self, enclave: Running) -> bool:
        try:
            self.bench.sessions.connect(enclave.keys.session)
        except NotFoundError:
            del self.enclaves[enclave.keys.session]
            return False
        enclave.connected = True
        return True

    @precondition(lambda self: self.enclaves)
    @rule(data=st.data(), waited=st.booleans(), for_good=st.booleans())
    def fall_silent(self, data: st.DataObject, waited: bool, for_good: bool) -> None:
        enclave = self.some(data, list(self.enclaves.values()))
        self.bench.sessions.disconnect(enclave.keys.session)
        enclave.connected = False
        if for_good:
            del self.enclaves[enclave.keys.session]
        if waited:
            self.time_goes_by(36.0)

    # --- what the custodian and its operator do ---

    @rule(credits=st.integers(1, 10), own=st.booleans(), key=st.sampled_from("abc"), broken=BREAKS)
    def grant(self, credits: int, own: bool, key: str, broken: str | None) -> None:
        consumer = self.own if own else None
        self.bench.store.next = broken
        for _ in range(2):  # an operator who is in doubt repeats
            try:
                self.bench.grants.grant(
                    self.loan, credits, actor="test", consumer=consumer, key=f"{key}{credits}{own}"
                )
                return
            except UnavailableError:
                continue

    @rule(seconds=st.sampled_from([0.5, 3.0, 6.0, 31.0, 36.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.bench.clock.forward(seconds)
        self.bench.sessions.sweep()

    @rule()
    def crash(self) -> None:
        self.bench.reopen()
        for enclave in self.enclaves.values():
            enclave.connected = False

    @rule(data=st.data(), reports=st.integers(0, 2))
    def stop_and_resume(self, data: st.DataObject, reports: int) -> None:
        self.bench.loans.stop(self.loan, reason="", actor="test")
        left = self.bench.loan(self.loan).account.leased
        for _ in range(reports):
            if self.enclaves:
                self.report(data, want=5, own=5, broken=None, fate="whole")
        assert self.bench.loan(self.loan).account.leased <= left
        self.bench.loans.resume(self.loan, actor="test")

    @precondition(lambda self: self.enclaves)
    @rule(data=st.data(), want=st.integers(1, 12), times=st.integers(1, 4))
    def work(self, data: st.DataObject, want: int, times: int) -> None:
        """What happens most of the time: lease, serve, settle."""
        for _ in range(times):
            if self.enclaves:
                self.report(data, want=want, own=want // 2, broken=None, fate="whole")
            if self.enclaves:
                self.serve(data, count=want)

    @rule(data=st.data())
    def refund(self, data: st.DataObject) -> None:
        with self.bench.ledger.read() as tx:
            rows = tx.leases_of_loan(self.loan, 1000)
        lost = [row for row in rows if row.state is LeaseState.FORFEITED]
        if lost:
            lease = data.draw(st.sampled_from([row.lease for row in lost]))
            with contextlib.suppress(ConflictError):  # once is enough
                self.bench.grants.refund(lease, actor="test", reason="seen")

    # --- what must always hold ---

    @invariant()
    def served_was_granted_and_everything_adds_up(self) -> None:
        if not hasattr(self, "own"):
            return
        with self.bench.ledger.read() as tx:
            loan, leases = tx.loan(self.loan), tx.leases_of_loan(self.loan, 10_000)
            own, shared = tx.consumer(self.own), tx.consumer(self.shared)
            moves = tx.balance_at(self.loan, LONG_AFTER)
        assert loan is not None
        assert moves == loan.account  # what a statement says is what was decided
        assert own is not None
        assert shared is not None
        account = loan.account
        assert self.served <= account.granted
        assert self.served_by[self.own] <= own.account.granted
        assert account.spent <= self.served
        assert account.leased == sum(x.credits for x in leases if x.state is LeaseState.OPEN)
        assert account.spent == sum(x.used or 0 for x in leases) == own.used + shared.used
        assert own.account.leased == sum(
            x.caps.get(self.own, 0) for x in leases if x.state is LeaseState.OPEN
        )
        # what is not in the ledger yet is within leases that are charged whole
        assert self.served - account.spent <= account.leased + account.forfeited


TestLending = Lending.TestCase
TestLending.settings = settings(
    max_examples=80,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


class LendingOnPostgres(OnPostgres, Lending):
    """The same on PostgreSQL; fewer runs, since each makes a database."""


TestLendingOnPostgres = LendingOnPostgres.TestCase
TestLendingOnPostgres.settings = settings(TestLending.settings, max_examples=12)
