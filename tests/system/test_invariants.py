"""
I1, I2 and I3 as one state machine: the custodian's real services on a real database, the
enclave's real meter and conversation, and a network, processes and a clock that do their worst.

What is checked after every step: never more served than granted, for the loan and for a consumer's
own budget; accounts that add up; no query paid by a lease past its time; and for every lease that
was settled, exactly the use that was charged to it.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from aigovtool.custodian import statements
from aigovtool.custodian.records import LeaseState
from aigovtool.custodian.sessions import terms_of
from aigovtool.enclave.meter import Meter
from aigovtool.enclave.receipts import Receipts
from aigovtool.enclave.renewal import Renewal
from aigovtool.enclave.till import Paid, Till
from aigovtool.enclave.waiting import WaitingQueue
from aigovtool.errors import AIGovToolError, NotFoundError
from aigovtool.ids import ConsumerId, LeaseId
from aigovtool.wire.codec import decode, encode
from aigovtool.wire.control import Report, ReportAnswer
from tests.custodian.ledgers import Bench, FakeEnclave, OnPostgres

BUDGET = 30
OWN_BUDGET = 8
LEASE_S = 5.0
MAX_ENCLAVES = 3
MAX_WAITING = 4
FATES = ["answered", "lost", "answer lost", "twice", "answer late"]  # of a report
MOST_GRANTED = 60  # an account that only grows would never be used up


@dataclass(eq=False)
class Side:
    """One enclave as it runs: real renewal and meter, and what is on the wire around it."""

    identity: FakeEnclave
    renewal: Renewal
    till: Till
    on_the_wire: list[ReportAnswer] = field(default_factory=list)
    queries: list[asyncio.Task[Paid]] = field(default_factory=list)


class Lending(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        # rows are ordered by identifier where nothing else orders them: a run must be repeatable
        self.identifiers = mock.patch(
            "aigovtool.ids.secrets.token_hex",
            lambda size: dice.randbytes(size).hex(),
        )
        dice = random.Random(0)
        self.identifiers.start()
        self.bench = self.open_bench(Path(self.folder.name))
        self.loop = asyncio.new_event_loop()
        self.loan = self.bench.lend(
            BUDGET, lease_duration_s=LEASE_S, max_enclaves=MAX_ENCLAVES
        ).loan
        self.anyone = self.bench.consumer(self.loan)
        self.own = self.bench.consumer(self.loan, budget=OWN_BUDGET)
        self.sides: list[Side] = []
        self.served: Counter[ConsumerId] = Counter()
        self.charged: Counter[LeaseId] = Counter()
        self.first_sent: dict[tuple[str, int], float] = {}
        self.lost_lives = 0

    def open_bench(self, folder: Path) -> Bench:
        return Bench(folder)

    def teardown(self) -> None:
        for side in self.sides:
            for query in side.queries:
                query.cancel()
        self._turn()
        self.loop.close()
        self.bench.close()
        self.identifiers.stop()
        self.folder.cleanup()

    # --- the enclaves --------------------------------------------------------------------------

    @initialize()
    def first_enclave(self) -> None:
        self.enclave_starts()

    @precondition(lambda self: len(self.sides) < MAX_ENCLAVES)
    @rule()
    def enclave_starts(self) -> None:
        try:
            identity = self.bench.enclave(self.loan, connect=False)
        except AIGovToolError:
            return  # sessions of the dead take up the loan's places until they lapse
        loan = self.bench.loan(self.loan)
        with self.bench.ledger.read() as tx:
            session = tx.session(identity.session)
        assert session is not None
        receipts = Receipts(
            loan=self.loan,
            session=identity.session,
            model_digest=bytes(32),
            key=identity.key,
            clock=self.bench.clock,
        )
        till = Till(Meter(), receipts)
        renewal = Renewal(
            loan=self.loan,
            session=identity.session,
            key=identity.key,
            custodian_key=self.bench.key.public_key,
            till=till,
            queue=WaitingQueue(MAX_WAITING),
            terms=terms_of(loan, self.bench.clock.now()),
            statement=statements.state(
                session,
                loan,
                lease=None,
                left=0,
                head=self.bench.ledger.head,
                now=self._now(),
                key=self.bench.key,
            ),
            wake=lambda: None,
            now_s=self._now_s(),
        )
        side = Side(identity, renewal, till)
        self.sides.append(side)
        self._connect(side)

    @precondition(lambda self: self.sides)
    @rule(data=st.data(), own=st.booleans(), count=st.integers(1, 6))
    def consumer_asks(self, data: st.DataObject, own: bool, count: int) -> None:
        self._ask(data.draw(st.sampled_from(self.sides)), self.own if own else self.anyone, count)

    @precondition(lambda self: self.sides)
    @rule(data=st.data(), fate=st.sampled_from(FATES))
    def enclave_reports(self, data: st.DataObject, fate: str) -> None:
        self._report(data.draw(st.sampled_from(self.sides)), fate)

    @precondition(lambda self: self.sides)
    @rule(
        data=st.data(),
        asked=st.lists(st.tuples(st.booleans(), st.integers(1, 6)), min_size=1, max_size=4),
        seconds=st.sampled_from([0.1, 1.0, 3.0, 6.0]),
        last=st.sampled_from(FATES),
    )
    def a_while_of_ordinary_use(
        self, data: st.DataObject, asked: list[tuple[bool, int]], seconds: float, last: str
    ) -> None:
        """Ask, lease, ask, let time pass, settle: what single steps would seldom line up to."""
        side = data.draw(st.sampled_from(self.sides))
        for own, count in asked:
            self._ask(side, self.own if own else self.anyone, count)
            self._report(side, "answered")
        self.bench.clock.forward(seconds)
        self._report(side, last)

    @precondition(lambda self: any(side.on_the_wire for side in self.sides))
    @rule(data=st.data())
    def late_answer_arrives(self, data: st.DataObject) -> None:
        side = data.draw(st.sampled_from([side for side in self.sides if side.on_the_wire]))
        index = data.draw(st.integers(0, len(side.on_the_wire) - 1))
        answer = side.on_the_wire[index]  # it stays, and may arrive again
        self._hear(side, answer)

    @precondition(lambda self: any(not side.renewal.connected for side in self.sides))
    @rule(data=st.data())
    def enclave_reconnects(self, data: st.DataObject) -> None:
        lost = [side for side in self.sides if not side.renewal.connected]
        side = data.draw(st.sampled_from(lost))
        self._connect(side)

    @precondition(lambda self: self.sides)
    @rule(data=st.data())
    def enclave_is_killed(self, data: st.DataObject) -> None:
        side = data.draw(st.sampled_from(self.sides))
        self._drop(side)
        self.bench.sessions.disconnect(side.identity.session)
        self.lost_lives += 1

    # --- the custodian and the world -------------------------------------------------------------

    @rule()
    def custodian_is_killed_and_restarts(self) -> None:
        self.bench.reopen()
        for side in self.sides:
            side.renewal.lost()

    @rule(seconds=st.sampled_from([0.5, 2.0, 3.0, 6.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.bench.clock.forward(seconds)

    @rule()
    def custodian_sweeps(self) -> None:
        self.bench.sessions.sweep()

    @precondition(lambda self: self.bench.loan(self.loan).account.granted < MOST_GRANTED)
    @rule(credits=st.integers(1, 5), own=st.booleans())
    def custodian_grants(self, credits: int, own: bool) -> None:
        consumer = self.own if own else None
        self.bench.grants.grant(self.loan, credits, actor="test", consumer=consumer)
        for side in self.sides:
            if side.renewal.connected:
                side.renewal.freed(self.bench.loan(self.loan).account.left)

    @rule()
    def operator_refunds_what_was_forfeited(self) -> None:
        with self.bench.ledger.read() as tx:
            rows = tx.leases_of_loan(self.loan, 1000)
        for row in rows:
            if row.state is LeaseState.FORFEITED and row.refunded is None:
                self.bench.grants.refund(row.lease, actor="test", reason="seen on video")
                return

    # --- what is always true ---------------------------------------------------------------------

    @invariant()
    def never_more_served_than_granted(self) -> None:
        loan = self.bench.loan(self.loan).account
        assert self.served.total() <= loan.granted
        with self.bench.ledger.read() as tx:
            own = tx.consumer(self.own)
        assert own is not None
        assert self.served[self.own] <= own.account.granted

    @invariant()
    def settled_exactly_once_or_charged_whole(self) -> None:
        with self.bench.ledger.read() as tx:
            rows = tx.leases_of_loan(self.loan, 1000)
            account = self.bench.loan(self.loan).account
        parts = Counter(dict.fromkeys(LeaseState, 0))
        for row in rows:
            if row.state is LeaseState.SETTLED:
                assert row.used == self.charged[row.lease]
                parts[row.state] += row.used
            else:
                assert self.charged[row.lease] <= row.credits
                parts[row.state] += row.credits
        assert parts[LeaseState.OPEN] == account.leased
        assert parts[LeaseState.SETTLED] == account.spent
        refunded = sum(row.credits for row in rows if row.refunded is not None)
        assert parts[LeaseState.FORFEITED] <= account.forfeited
        assert account.forfeited <= parts[LeaseState.FORFEITED] + refunded

    # --- the parts ---------------------------------------------------------------------------

    def _now_s(self) -> float:
        return self.bench.clock.monotonic_s()

    def _now(self) -> datetime:
        return self.bench.clock.now()

    def _serve(self, side: Side, consumer: ConsumerId, paid: Paid) -> None:
        self.served[consumer] += paid.charge.cost
        self.charged[paid.charge.lease] += paid.charge.cost
        with self.bench.ledger.read() as tx:
            row = tx.lease(paid.charge.lease)
        assert row is not None
        sent_s = self.first_sent[side.identity.session, row.number]
        assert self._now_s() < sent_s + LEASE_S, "served past the lease's time (I2)"

    def _ask(self, side: Side, consumer: ConsumerId, count: int) -> None:
        for _ in range(count):
            paid = side.till.pay(consumer, 1, self._now_s())
            if isinstance(paid, Paid):
                self._serve(side, consumer, paid)
            elif len(side.queries) < MAX_WAITING:
                self._wait(side, consumer)

    def _report(self, side: Side, fate: str) -> None:
        report = side.renewal.due(self._now_s())
        if report is not None:
            self.first_sent[side.identity.session, report.number] = self._now_s()
            self._send(side, report, fate)

    def _wait(self, side: Side, consumer: ConsumerId) -> None:
        async def query() -> Paid:
            paid = await side.renewal.acquire(
                consumer,
                1,
                now_s=self._now_s(),
                lease_wait_s=3600,
                patience_s=3600,
                reason="",
            )
            self._serve(side, consumer, paid)
            return paid

        side.queries.append(self.loop.create_task(query()))
        self._turn()

    def _turn(self) -> None:
        """Let tasks that can go on do so."""

        async def turn() -> None:
            for _ in range(5):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turn())
        for side in self.sides:
            for query in [query for query in side.queries if query.done()]:
                side.queries.remove(query)
                if not query.cancelled():
                    error = query.exception()
                    assert error is None or isinstance(error, AIGovToolError), error

    def _connect(self, side: Side) -> None:
        try:
            welcome, settle_only = self.bench.sessions.connect(side.identity.session)
        except NotFoundError:
            self._drop(side)  # the session is over: a real enclave wipes and enrols anew
            return
        if settle_only:
            self._give_back(side)
            return
        side.renewal.set_roster(welcome.roster)
        side.renewal.welcomed(welcome, 0.0)
        unanswered = side.renewal.unanswered
        if unanswered is not None:
            self._send(side, unanswered, "answered")

    def _give_back(self, side: Side) -> None:
        """What is left to a session without a place: settle, and go."""
        side.renewal.connected = True
        side.renewal.give_back()
        unanswered = side.renewal.unanswered
        if unanswered is not None:
            self._send(side, unanswered, "answered")
            side.renewal.give_back()
        self._report(side, "answered")
        self._drop(side)

    def _drop(self, side: Side) -> None:
        for query in side.queries:
            query.cancel()
        self._turn()
        self.sides.remove(side)

    def _send(self, side: Side, report: Report, fate: str) -> None:
        report = decode(encode(report), Report)
        if fate == "lost":
            side.renewal.lost()
            return
        answer = self.bench.leasing.report(side.identity.session, report)
        if fate == "twice":
            again = self.bench.leasing.report(side.identity.session, report)
            assert (again.lease, again.settled) == (answer.lease, answer.settled)
        if fate == "answer lost":
            side.renewal.lost()
        elif fate == "answer late":
            side.on_the_wire.append(answer)
        else:
            self._hear(side, answer)

    def _hear(self, side: Side, answer: ReportAnswer) -> None:
        side.renewal.answered(decode(encode(answer), ReportAnswer), self._now_s())
        self._turn()


Lending.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLending = Lending.TestCase


class LendingOnPostgres(OnPostgres, Lending):
    """The same on PostgreSQL; fewer runs, since each makes a database."""


LendingOnPostgres.TestCase.settings = settings(Lending.TestCase.settings, max_examples=12)
TestLendingOnPostgres = LendingOnPostgres.TestCase
