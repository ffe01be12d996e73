"""Queries that go on: held in a lease, drawn on, moved to the next, charged for what was drawn."""

from __future__ import annotations

import asyncio
import math
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aigovtool.enclave.meter import MOVES_WITHIN_S, Hold, Meter, Refusal
from aigovtool.enclave.refunds import Fate
from aigovtool.enclave.renewal import Renewal
from aigovtool.enclave.till import Tab, Till
from aigovtool.errors import BudgetExhaustedError, PromiseBrokenError, UnavailableError
from aigovtool.ids import ConsumerId, LeaseId
from aigovtool.wire.codec import decode
from aigovtool.wire.control import Lease
from aigovtool.wire.receipt import Receipt

from .test_renewal import ALICE, BOB, Ledger, make, talk


def lease(name: str, credits: int, *, duration_s: float = 5.0, **caps: int) -> Lease:
    capped = {ConsumerId(who): cap for who, cap in caps.items()}
    return Lease(lease=LeaseId(name), credits=credits, caps=capped, duration_s=duration_s)


def holding(meter: Meter, cost: int, held: int, now_s: float = 0.0) -> Hold:
    taken = meter.charge_and_hold(ALICE, cost, held, now_s)
    assert not isinstance(taken, Refusal)
    return taken[1]


def receipts(tab: Tab) -> list[Receipt]:
    return [decode(payload, Receipt) for payload in (tab.receipt, *tab.drawn)]


# --- the meter ------------------------------------------------------------------------------------


def test_what_is_held_is_nobody_elses_and_comes_back_when_it_is_released() -> None:
    meter = Meter()
    meter.open(lease("one", 10), 0.0)
    hold = holding(meter, 2, 7)
    assert meter.left == meter.credits(0.0) == meter.usable(BOB, 0.0) == 1
    assert meter.charge(BOB, 2, 0.0) is Refusal.USED_UP
    assert meter.draw(hold, 3, 1.0)
    booked = meter.book(hold)
    assert booked is not None
    assert (booked.cost, booked.before, booked.after) == (3, 8, 5)
    meter.release(hold)
    meter.release(hold)
    assert meter.left == 5
    use = meter.close(LeaseId("one"))
    assert (use.used, use.unused, use.by_consumer) == (5, 5, {ALICE: 5})


def test_a_worst_case_that_no_lease_can_hold_takes_nothing() -> None:
    meter = Meter()
    meter.open(lease("one", 10), 0.0)
    assert meter.charge_and_hold(ALICE, 2, 9, 0.0) is Refusal.USED_UP
    assert meter.left == 10
    assert meter.recent == {}


def test_a_capped_consumer_holds_no_more_than_its_cap() -> None:
    meter = Meter()
    meter.set_capped({ALICE})
    meter.open(lease("one", 10, con_alice=5), 0.0)
    assert meter.charge_and_hold(ALICE, 2, 4, 0.0) is Refusal.CAPPED
    hold = holding(meter, 2, 3)
    assert meter.usable(ALICE, 0.0) == 0
    assert meter.draw(hold, 1, 0.0)
    meter.book(hold)
    meter.release(hold)
    assert meter.close(LeaseId("one")).unused_caps == {ALICE: 2}


def test_nothing_is_drawn_after_the_lease_expired_or_beyond_what_was_held() -> None:
    meter = Meter()
    meter.open(lease("one", 10), 0.0)
    hold = holding(meter, 1, 5)
    with pytest.raises(PromiseBrokenError):
        meter.draw(hold, 6, 0.0)
    assert meter.draw(hold, 1, 4.9)
    assert not meter.draw(hold, 1, 5.0)
    assert not meter.draw(hold, 1, 0.0)  # not even if the clock jumps back
    assert (hold.left, hold.drawn) == (4, 1)


def test_a_lease_is_not_closed_over_what_was_drawn_and_has_no_receipt() -> None:
    meter = Meter()
    meter.open(lease("one", 10), 0.0)
    hold = holding(meter, 1, 5)
    meter.draw(hold, 1, 0.0)
    with pytest.raises(PromiseBrokenError):
        meter.close(LeaseId("one"))
    with pytest.raises(PromiseBrokenError):
        meter.release(hold)
    assert meter.opened() == [LeaseId("one")]


def test_a_hold_between_leases_is_taken_in_whole_or_not_at_all() -> None:
    meter = Meter()
    meter.open(lease("one", 10), 0.0)
    hold = holding(meter, 1, 6)
    assert meter.close(LeaseId("one")).unused == 9
    assert not meter.draw(hold, 1, 0.0)
    meter.open(lease("two", 5), 1.0)
    assert not meter.rehome(hold, 1.0)
    assert meter.left == 5
    meter.open(lease("three", 6), 1.0)
    assert meter.rehome(hold, 1.0)
    assert meter.draw(hold, 6, 1.0)


def test_the_lease_that_ends_last_holds_and_the_one_that_ends_first_pays() -> None:
    meter = Meter()
    meter.open(lease("old", 10), 0.0)
    meter.open(lease("new", 10), 3.0)
    hold = holding(meter, 1, 4, 4.0)
    assert hold.lease == LeaseId("new")
    paid = meter.charge(BOB, 1, 4.0)
    assert not isinstance(paid, Refusal)
    assert paid.lease == LeaseId("old")
    meter.close(LeaseId("new"))
    meter.open(lease("newest", 10), 4.0)
    assert meter.rehome(hold, 4.0)
    assert hold.lease == LeaseId("newest")


# --- the conversation -----------------------------------------------------------------------------


async def begin(
    renewal: Renewal, cost: int, held: int, now_s: float, *, patience_s: float = 0
) -> asyncio.Task[Tab]:
    task = asyncio.create_task(
        renewal.acquire(
            ALICE,
            cost + held,
            held=held,
            now_s=now_s,
            lease_wait_s=60,
            patience_s=patience_s,
            reason="",
        )
    )
    await asyncio.sleep(0)
    return task


async def started(ledger: Ledger, *, cost: int = 10, held: int = 90) -> tuple[Renewal, Till, Tab]:
    renewal, till = make(ledger)
    renewal.welcomed(ledger.welcome(), 0.0)
    task = await begin(renewal, cost, held, 0.0)
    talk(renewal, ledger, 0.0)
    tab = await task
    assert isinstance(tab, Tab)
    return renewal, till, tab


async def test_the_last_credits_of_a_budget_last_for_a_long_answer() -> None:
    ledger = Ledger(100)
    renewal, till, tab = await started(ledger)
    moved = []
    tab.changed = lambda: moved.append(tab.hold.lease)
    now_s = 0.0
    for _ in range(90):  # one credit every half second, with leases of 5 s
        now_s += 0.5
        talk(renewal, ledger, now_s)
        assert renewal.lapse(tab, now_s) is None
        assert till.draw(tab, 1, now_s)
        assert ledger.left == 0
    renewal.finish(tab, Fate.ANSWERED, now_s)
    talk(renewal, ledger, now_s + 5)
    assert (ledger.spent, ledger.left) == (100, 0)
    costs = [one.cost for one in receipts(tab)]
    assert (sum(costs), costs[0]) == (100, 10)
    assert len({one.lease for one in receipts(tab)[1:]}) == len(costs) - 1 == len(moved) + 1
    assert [one.own_number for one in receipts(tab)] == list(range(1, len(costs) + 1))


async def test_an_answer_that_is_shorter_than_its_worst_case_frees_the_rest_at_once() -> None:
    ledger = Ledger(100)
    renewal, till, tab = await started(ledger)
    waiting = await begin(renewal, 5, 45, 0.1, patience_s=60)
    assert not waiting.done()
    assert till.draw(tab, 20, 0.2)
    renewal.finish(tab, Fate.ANSWERED, 0.3)
    await asyncio.sleep(0)
    other = await waiting
    assert other.charge.before == 70
    renewal.finish(other, Fate.ANSWERED, 0.4)
    talk(renewal, ledger, 5.0)
    assert (ledger.spent, ledger.left) == (35, 65)


async def test_nothing_is_served_between_two_leases_and_what_was_is_settled() -> None:
    ledger = Ledger(1000)
    renewal, till, tab = await started(ledger)
    assert till.draw(tab, 7, 1.0)
    report = renewal.due(2.5)
    assert report is not None
    assert report.want is not None
    assert (report.want.held, report.want.at_least) == ({ALICE: 83}, 83)
    assert not till.draw(tab, 1, 2.6)
    assert renewal.lapse(tab, 2.6) is None  # the answer may come
    renewal.answered(ledger.answer(report), 2.7)
    assert ledger.spent == 17
    assert till.draw(tab, 1, 2.7)


async def test_without_the_custodian_an_answer_ends_when_its_lease_does() -> None:
    ledger = Ledger(1000)
    renewal, till, tab = await started(ledger)
    renewal.lost()
    assert till.draw(tab, 1, 4.9)
    assert renewal.lapse(tab, 4.9) is None
    assert not till.draw(tab, 1, 5.0)
    assert isinstance(renewal.lapse(tab, 5.0), UnavailableError)


async def test_without_an_answer_to_its_report_too() -> None:
    ledger = Ledger(1000)
    renewal, till, tab = await started(ledger)
    assert renewal.due(2.5) is not None  # and nothing comes
    assert renewal.lapse(tab, 4.9) is None
    assert isinstance(renewal.lapse(tab, 5.0), UnavailableError)
    assert not till.draw(tab, 1, 5.0)


async def used_once() -> tuple[Ledger, Renewal, Till]:
    """Return a session whose lease was used, and holds nothing."""
    ledger = Ledger(1000)
    renewal, till, tab = await started(ledger)
    renewal.finish(tab, Fate.ANSWERED, 0.0)
    return ledger, renewal, till


@pytest.mark.parametrize("left_s", [1.9, 0.5, 0.001])
async def test_what_begins_shortly_before_its_lease_ends_is_moved_at_once(left_s: float) -> None:
    ledger, renewal, till = await used_once()
    woken = []
    renewal._wake = lambda: woken.append(True)
    now_s = 5.0 - left_s
    tab = renewal.pay(ALICE, 20, 10, now_s)
    assert isinstance(tab, Tab)
    assert woken  # who writes may have gone to sleep until that lease ends
    report = renewal.due(now_s)
    assert report is not None
    assert report.want is not None
    assert report.want.held == {ALICE: 10}
    assert renewal.lapse(tab, 5.0) is None  # the answer may come
    assert not till.draw(tab, 1, 5.0)  # and nothing is given until it does
    renewal.answered(ledger.answer(report), 5.2)
    assert till.draw(tab, 10, 5.2)
    renewal.finish(tab, Fate.ANSWERED, 5.2)
    talk(renewal, ledger, 15.0)
    assert (ledger.spent, ledger.left) == (30, 970)


async def test_nor_is_the_answer_awaited_for_long() -> None:
    _, renewal, till = await used_once()
    tab = renewal.pay(ALICE, 20, 10, 4.9)
    assert isinstance(tab, Tab)
    assert renewal.due(4.9) is not None  # and nothing comes
    assert renewal.lapse(tab, 4.9 + MOVES_WITHIN_S - 0.01) is None
    assert isinstance(renewal.lapse(tab, 4.9 + MOVES_WITHIN_S), UnavailableError)
    assert not till.draw(tab, 1, 5.0)


async def test_a_custodian_that_gives_less_than_was_held_ends_it_and_says_so() -> None:
    ledger = Ledger(100)
    renewal, till, tab = await started(ledger)
    told = asyncio.Event()
    tab.changed = told.set
    report = renewal.due(2.5)
    assert report is not None
    ledger.left = -50  # withdrawn while it was leased, as a consumer's own budget can be
    renewal.answered(ledger.answer(report), 2.5)
    assert told.is_set()
    assert isinstance(renewal.lapse(tab, 2.5), BudgetExhaustedError)
    assert not till.draw(tab, 1, 2.5)


async def test_a_custodian_that_shuts_down_ends_it_at_once() -> None:
    ledger = Ledger(1000)
    renewal, till, tab = await started(ledger)
    assert till.draw(tab, 3, 1.0)
    renewal.suspend()
    assert isinstance(renewal.lapse(tab, 1.0), UnavailableError)
    assert not till.draw(tab, 1, 1.0)
    talk(renewal, ledger, 1.0)
    assert (ledger.spent, ledger.left) == (13, 987)


async def test_a_session_that_retires_asks_on_for_what_goes_on_and_for_nothing_else() -> None:
    ledger = Ledger(1000)
    renewal, till, tab = await started(ledger)
    leaving = asyncio.create_task(renewal.retire(wait_s=60))
    await asyncio.sleep(0)
    report = renewal.due(1.0)
    assert report is not None
    assert report.want is not None
    assert report.want.credits == 90
    renewal.answered(ledger.answer(report), 1.0)
    await leaving
    assert till.draw(tab, 90, 1.0)
    renewal.finish(tab, Fate.ANSWERED, 1.0)
    talk(renewal, ledger, 6.0)
    assert (ledger.spent, ledger.left) == (100, 900)


async def test_authorised_one_by_one_it_goes_on_until_it_is_over_or_the_custodian_is_lost() -> None:
    ledger = Ledger(1000, duration_s=0.0)
    renewal, till, tab = await started(ledger)
    assert math.isinf(tab.until_s)
    assert till.draw(tab, 10, 3600.0)
    assert talk(renewal, ledger, 3600.0) == 0
    renewal.lost()
    assert isinstance(renewal.lapse(tab, 3600.0), UnavailableError)
    renewal.finish(tab, Fate.CUT, 3600.0)
    renewal.welcomed(ledger.welcome(), 3601.0)
    talk(renewal, ledger, 3601.0)
    assert (ledger.spent, ledger.left) == (20, 980)


async def test_authorised_one_by_one_it_goes_on_when_its_lease_is_given_back() -> None:
    ledger = Ledger(1000, duration_s=0.0)
    renewal, till, tab = await started(ledger)
    assert till.draw(tab, 10, 1.0)
    renewal.give_back()
    talk(renewal, ledger, 1.0)
    assert renewal.lapse(tab, 1.0) is None
    assert till.draw(tab, 80, 3600.0)
    assert talk(renewal, ledger, 3600.0) == 0
    renewal.finish(tab, Fate.ANSWERED, 3600.0)
    talk(renewal, ledger, 3600.0)
    assert (ledger.spent, ledger.left) == (100, 900)
    assert [one.cost for one in receipts(tab)] == [10, 10, 80]


async def test_what_was_held_in_several_leases_moves_although_none_can_hold_it_all() -> None:
    ledger = Ledger(1000, largest=100)
    renewal, till, one = await started(ledger)
    task = await begin(renewal, 10, 90, 0.0)
    talk(renewal, ledger, 0.0)
    other = await task
    assert isinstance(other, Tab)
    renewal.give_back()
    assert talk(renewal, ledger, 1.0) == 2
    for tab in (one, other):
        assert renewal.lapse(tab, 1.0) is None
        assert till.draw(tab, 90, 1.0)
        renewal.finish(tab, Fate.ANSWERED, 1.0)
    talk(renewal, ledger, 6.0)
    assert (ledger.spent, ledger.left) == (200, 800)


async def test_it_counts_as_use_from_when_it_is_paid() -> None:
    _, till, _ = await started(Ledger(100))
    assert till.used_s == 0.0


async def test_new_queries_are_served_while_others_go_on() -> None:
    ledger = Ledger(10_000)
    renewal, till, tab = await started(ledger)
    now_s = 0.0
    for _ in range(40):
        now_s += 0.5
        other = await begin(renewal, 1, 9, now_s)
        talk(renewal, ledger, now_s)
        paid = await other
        assert till.draw(paid, 4, now_s)
        renewal.finish(paid, Fate.ANSWERED, now_s)
        assert till.draw(tab, 1, now_s)
    renewal.finish(tab, Fate.ANSWERED, now_s)
    talk(renewal, ledger, now_s + 20)
    assert ledger.spent == 10 + 40 + 40 * 5
    assert ledger.left + ledger.spent == 10_000


class Streams(RuleBasedStateMachine):
    """
    Any number of answers of any length, over a line that loses messages, and a clock that runs:
    never more is served than was granted, and all that was is settled, once, with receipts.
    """

    BUDGET = 500

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.ledger = Ledger(self.BUDGET)
        self.now_s = 0.0
        self.tabs: list[Tab] = []
        self.waiting: list[asyncio.Task[Tab]] = []
        self.all: list[Tab] = []
        self.served = 0
        self.renewal, self.till = self.loop.run_until_complete(self._make())

    async def _make(self) -> tuple[Renewal, Till]:
        renewal, till = make(self.ledger)
        renewal.welcomed(self.ledger.welcome(), self.now_s)
        return renewal, till

    def teardown(self) -> None:
        for task in self.waiting:
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.collect()
        for tab in list(self.tabs):
            self.renewal.finish(tab, Fate.CUT, self.now_s)
        self.renewal.lost()
        self.renewal.welcomed(self.ledger.welcome(), self.now_s)
        self.renewal.give_back()
        if (unanswered := self.renewal.unanswered) is not None:
            self.renewal.answered(self.ledger.answer(unanswered), self.now_s)
            self.renewal.give_back()
        for _ in range(20):
            talk(self.renewal, self.ledger, self.now_s)
            self.now_s += 2.0
        assert self.ledger.spent == self.served
        assert self.ledger.left == self.BUDGET - self.served
        costs: Counter[LeaseId] = Counter()
        for tab in self.all:
            for one in receipts(tab):
                one.check_sum()
                costs[one.lease] += one.cost
        assert sum(costs.values()) == self.served
        self.loop.close()

    def collect(self) -> None:
        for task in list(self.waiting):
            if task.done():
                self.waiting.remove(task)
                if not task.cancelled() and task.exception() is None:
                    tab = task.result()
                    self.served += tab.charge.cost
                    self.tabs.append(tab)
                    self.all.append(tab)

    @rule(cost=st.integers(1, 20), held=st.integers(1, 120))
    def ask(self, cost: int, held: int) -> None:
        self.waiting.append(
            self.loop.run_until_complete(
                begin(self.renewal, cost, held, self.now_s, patience_s=3600)
            )
        )

    @rule(after_s=st.sampled_from([0.01, 0.5, 2.4, 6.0]))
    def pass_time(self, after_s: float) -> None:
        self.now_s += after_s

    @rule(answered=st.booleans(), lost=st.booleans())
    def converse(self, answered: bool, lost: bool) -> None:
        report = self.renewal.due(self.now_s) or self.renewal.unanswered
        if report is not None:
            answer = self.ledger.answer(report)
            if answered:
                self.renewal.answered(answer, self.now_s)
            elif lost:
                self.renewal.lost()
                self.renewal.welcomed(self.ledger.welcome(), self.now_s)
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.run_until_complete(asyncio.sleep(0))
        self.collect()

    @precondition(lambda self: self.tabs)
    @rule(data=st.data())
    def draw(self, data: st.DataObject) -> None:
        tab = data.draw(st.sampled_from(self.tabs))
        credits = data.draw(st.integers(0, tab.hold.left))
        if self.renewal.lapse(tab, self.now_s) is None and self.till.draw(tab, credits, self.now_s):
            self.served += credits

    @precondition(lambda self: self.tabs)
    @rule(data=st.data(), fate=st.sampled_from([Fate.ANSWERED, Fate.CUT, Fate.CLIENT_GONE]))
    def end(self, data: st.DataObject, fate: Fate) -> None:
        tab = data.draw(st.sampled_from(self.tabs))
        self.tabs.remove(tab)
        self.renewal.finish(tab, fate, self.now_s)
        self.loop.run_until_complete(asyncio.sleep(0))
        self.collect()

    @invariant()
    def never_more_than_the_budget(self) -> None:
        held = sum(tab.hold.left for tab in self.tabs if tab.hold.lease is not None)
        assert self.served + held <= self.BUDGET
        leased = sum(one.credits for one in self.ledger.leases.values())
        assert self.ledger.left + leased + self.ledger.spent == self.BUDGET


TestStreams = Streams.TestCase
TestStreams.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
