"""Who waits is served in fair order, is told its place, and cannot crowd the others out."""

from __future__ import annotations

import asyncio
import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigovtool.enclave.config import Limits
from aigovtool.enclave.decisions import TOLD_S, Decisions
from aigovtool.enclave.meter import Charge, Refusal
from aigovtool.enclave.till import Paid
from aigovtool.enclave.waiting import Place, Waiter, WaitingQueue
from aigovtool.errors import UnavailableError
from aigovtool.ids import ConsumerId, LeaseId
from aigovtool.wire.control import MoreDecided

from .conftest import RunningEnclave, running_enclave
from .custodian import Consumer, FakeCustodian

ALICE, BOB, CAROL = (ConsumerId(f"con_{name}") for name in ("alice", "bob", "carol"))


class Purse:
    """Pays while there is something, and remembers whom."""

    def __init__(self, credits: int = 0) -> None:
        self.credits = credits
        self.served: list[ConsumerId] = []

    def __call__(self, one: Waiter) -> Paid | Refusal:
        consumer, cost = one.consumer, one.cost
        if cost > self.credits:
            return Refusal.USED_UP
        before, self.credits = self.credits, self.credits - cost
        self.served.append(consumer)
        return Paid(Charge(LeaseId("one"), cost, before, self.credits), consumer, b"", 1)


def waiter(consumer: ConsumerId, cost: int = 1) -> Waiter:
    return Waiter(consumer=consumer, cost=cost, patient=True)


def fill(queue: WaitingQueue, consumer: ConsumerId, count: int, cost: int = 1) -> list[Waiter]:
    made = [waiter(consumer, cost) for _ in range(count)]
    for one in made:
        queue.add(one)
    return made


async def test_a_thousand_waiters_do_not_starve_one() -> None:
    queue, purse = WaitingQueue(2000), Purse(2)
    fill(queue, ALICE, 1000)
    (bob,) = fill(queue, BOB, 1)
    assert queue.place(bob) == Place(2, 1001)
    queue.serve(purse)
    assert purse.served == [ALICE, BOB]
    assert bob.paid.done()


async def test_n_credits_wake_n_waiters_and_no_more() -> None:
    queue, purse = WaitingQueue(100), Purse(3)
    waiters = fill(queue, ALICE, 10)
    queue.serve(purse)
    assert [one.paid.done() for one in waiters] == [True] * 3 + [False] * 7
    assert (len(queue), queue.place(waiters[3]), queue.place(waiters[0])) == (7, Place(1, 7), None)


async def test_consumers_take_turns_and_each_is_served_in_its_own_order() -> None:
    queue, purse = WaitingQueue(100), Purse()
    alices, bobs = fill(queue, ALICE, 4), fill(queue, BOB, 4)
    for done in range(1, 9):
        purse.credits = 1
        queue.serve(purse)
        assert [one.paid.done() for one in alices].count(True) == (done + 1) // 2
        assert [one.paid.done() for one in bobs].count(True) == done // 2
        for own in (alices, bobs):
            flags = [one.paid.done() for one in own]
            assert flags == sorted(flags, reverse=True)


async def test_a_batch_counts_for_as_many_turns_as_it_costs() -> None:
    queue, purse = WaitingQueue(200), Purse(110)
    fill(queue, ALICE, 10, cost=10)
    fill(queue, BOB, 100)
    queue.serve(purse)
    spent = collections.Counter(purse.served)
    assert abs(10 * spent[ALICE] - spent[BOB]) <= 10


async def test_who_was_served_and_comes_again_does_not_go_first() -> None:
    queue, purse = WaitingQueue(100), Purse()
    fill(queue, ALICE, 1, cost=5)
    fill(queue, BOB, 5)
    purse.credits = 5
    queue.serve(purse)
    assert purse.served == [ALICE]
    fill(queue, ALICE, 1)
    purse.credits = 5
    queue.serve(purse)
    assert purse.served == [ALICE, BOB, BOB, BOB, BOB, BOB]


async def test_what_cannot_be_paid_holds_up_nobody() -> None:
    queue, purse = WaitingQueue(100), Purse(3)
    (batch,) = fill(queue, ALICE, 1, cost=50)
    fill(queue, BOB, 3)
    queue.serve(purse)
    assert purse.served == [BOB] * 3
    assert queue.place(batch) == Place(1, 1)


async def test_who_leaves_costs_the_others_of_its_consumer_nothing() -> None:
    queue, purse = WaitingQueue(100), Purse(1)
    gone = fill(queue, ALICE, 50)
    (bob,) = fill(queue, BOB, 1)
    for one in gone:
        queue.leave(one)
        queue.leave(one)
    (late,) = fill(queue, ALICE, 1)
    assert (queue.place(bob), queue.place(late)) == (Place(1, 2), Place(2, 2))
    queue.serve(purse)
    assert purse.served == [BOB]


async def test_one_consumer_cannot_fill_the_queue() -> None:
    queue = WaitingQueue(10, 6)
    fill(queue, ALICE, 6)
    with pytest.raises(UnavailableError):
        queue.add(waiter(ALICE))
    fill(queue, BOB, 4)
    with pytest.raises(UnavailableError):
        queue.add(waiter(CAROL))
    assert len(queue) == 10


@given(st.lists(st.tuples(st.sampled_from([ALICE, BOB, CAROL]), st.integers(1, 5)), max_size=40))
async def test_no_waiting_consumer_falls_behind_by_more_than_a_query(
    wishes: list[tuple[ConsumerId, int]],
) -> None:
    queue, purse = WaitingQueue(100), Purse()
    for consumer, cost in wishes:
        fill(queue, consumer, 1, cost)
    largest = max((cost for _, cost in wishes), default=0)
    served: collections.Counter[ConsumerId] = collections.Counter()
    while len(queue):
        before = {one for one in (ALICE, BOB, CAROL) if queue.of(one)}
        head = next(iter(queue))
        assert [queue.place(one) for one in queue] == [
            Place(place, len(queue)) for place in range(1, len(queue) + 1)
        ]
        purse.credits = head.cost
        queue.serve(purse)
        served[head.consumer] += head.cost
        assert not any(queue.place(head) for _ in (0,))
        for one in before:
            for other in before:
                assert served[one] - served[other] <= 2 * largest
    assert sum(served.values()) == sum(cost for _, cost in wishes)


# --- decisions -----------------------------------------------------------------------------------


def decided(*, approved: bool = False, asked: str = "urgent", age_s: float = 0.0) -> MoreDecided:
    return MoreDecided(
        consumer=ALICE, approved=approved, credits=0, reason="no", asked=asked, age_s=age_s
    )


def test_a_denial_is_told_for_its_time_and_other_words_ask_anew() -> None:
    decisions = Decisions()
    decisions.heard(decided(), 100.0)
    assert decisions.denial(ALICE, "urgent", 100.0 + TOLD_S - 1) is not None
    assert decisions.denial(ALICE, None, 101.0) is not None
    assert decisions.denial(ALICE, "very urgent", 101.0) is None
    assert decisions.denial(BOB, None, 101.0) is None
    assert decisions.denial(ALICE, None, 100.0 + TOLD_S) is None


def test_an_older_decision_does_not_replace_a_newer_one() -> None:
    decisions = Decisions()
    decisions.heard(decided(approved=True), 100.0)
    decisions.heard(decided(age_s=50.0), 101.0)
    assert decisions.denial(ALICE, None, 102.0) is None


def test_a_decision_ages_while_it_is_told() -> None:
    decisions = Decisions()
    decisions.heard(decided(age_s=50.0), 100.0)
    told = decisions.last(ALICE, 130.0)
    assert told is not None
    assert told.age_s == pytest.approx(80.0)


# --- the server -----------------------------------------------------------------------------------


async def waiting_of(enclave: RunningEnclave, consumer: Consumer) -> dict:
    return (await enclave.get("/v1/waiting", consumer))[1]


async def test_a_consumer_sees_the_places_of_its_own_queries_only(enclave: RunningEnclave) -> None:
    custodian = enclave.custodian
    bob = custodian.add_consumer("bob")
    await custodian.set_roster()
    custodian.granted = custodian.left = 0
    tasks = []
    for number, consumer in enumerate([custodian.alice, custodian.alice, bob], start=1):
        tasks.append(
            asyncio.create_task(
                enclave.infer(consumer=consumer, Prefer="wait=20", Idempotency_Key=f"key{number}")
            )
        )
        async with asyncio.timeout(30):
            while (await waiting_of(enclave, custodian.alice))["waiting"] < number:
                pass
    alice = await waiting_of(enclave, custodian.alice)
    assert alice["queries"] == [
        {"key": "key1", "cost": 1, "place": 1},
        {"key": "key2", "cost": 1, "place": 3},
    ]
    assert (alice["asked"], alice["decided"]) == (True, None)
    theirs = await waiting_of(enclave, bob)
    assert theirs["queries"] == [{"key": "key3", "cost": 1, "place": 2}]
    assert (await enclave.get("/v1/waiting"))[0] == 401
    await custodian.grant(2)
    async with asyncio.timeout(30):
        assert [(await tasks[0])[0], (await tasks[2])[0]] == [200, 200]
    assert not tasks[1].done()
    await custodian.grant(1)
    async with asyncio.timeout(30):
        assert (await tasks[1])[0] == 200


async def test_who_waited_in_vain_is_told_its_place(custodian: FakeCustodian) -> None:
    custodian.granted = custodian.left = 0
    limits = Limits(max_patience_s=0.3, lease_wait_s=0.2)
    async with running_enclave(custodian, limits=limits) as enclave:
        status, answer, headers = await enclave.infer(Prefer="wait=100")
    assert (status, headers["Aigovtool-Place"]) == (429, "1;of=1")
    assert "place 1 of 1" in answer["error"]


async def test_those_refused_together_do_not_come_back_together(enclave: RunningEnclave) -> None:
    enclave.custodian.granted = enclave.custodian.left = 0
    answers = await asyncio.gather(*(enclave.infer() for _ in range(40)))
    times = collections.Counter(int(headers["Retry-After"]) for _, _, headers in answers)
    assert len(times) == 10
    assert max(times.values()) <= 6


async def test_a_denial_is_told_to_who_asks_again_until_it_has_other_words(
    enclave: RunningEnclave,
) -> None:
    custodian = enclave.custodian
    custodian.granted = custodian.left = 0
    ask = {"Prefer": "wait=20", "Aigovtool_Reason": "urgent"}
    waiting = asyncio.create_task(enclave.infer(**ask))
    await custodian.until(lambda: len(custodian.wanted) == 1)
    told = MoreDecided(
        consumer=custodian.alice.id, approved=False, credits=0, reason="in May", asked="urgent"
    )
    await custodian.push(told)
    assert (await waiting)[1]["kind"] == "budget.denied"
    for headers in (ask, {}):
        status, answer, _ = await enclave.infer(**headers)
        assert (status, answer["kind"]) == (429, "budget.denied")
        assert "in May" in answer["error"]
    assert (await waiting_of(enclave, custodian.alice))["decided"]["reason"] == "in May"
    again = asyncio.create_task(enclave.infer(Prefer="wait=20", Aigovtool_Reason="a new case"))
    await custodian.until(lambda: len(custodian.wanted) == 2)
    await custodian.grant(1)
    assert (await again)[0] == 200


async def reconnect(custodian: FakeCustodian) -> None:
    """Cut the control connection, and let the enclave come back."""
    await custodian.cut()
    custodian.accepts = True
    await custodian.until(lambda: bool(custodian.sockets))


async def test_a_denial_made_while_the_connection_was_away_ends_the_wait(
    enclave: RunningEnclave,
) -> None:
    """It comes with the welcome; the same words are not asked again in its stead."""
    custodian = enclave.custodian
    custodian.granted = custodian.left = 0
    ask = {"Prefer": "wait=60", "Aigovtool_Reason": "urgent"}
    waiting = asyncio.create_task(enclave.infer(**ask))
    await custodian.until(lambda: len(custodian.wanted) == 1)
    custodian.decided = (
        MoreDecided(
            consumer=custodian.alice.id,
            approved=False,
            credits=0,
            reason="in May",
            asked="urgent",
            age_s=3.0,
        ),
    )
    await reconnect(custodian)
    async with asyncio.timeout(30):
        status, answer, _ = await waiting
    assert (status, answer["kind"]) == (429, "budget.denied")
    assert "in May" in answer["error"]
    other = asyncio.create_task(enclave.infer(**ask | {"Aigovtool_Reason": "very urgent"}))
    await custodian.until(lambda: any(one.reason == "very urgent" for one in custodian.wanted))
    assert [one.reason for one in custodian.wanted if one.waiting] == ["urgent", "very urgent"]
    other.cancel()
    await asyncio.wait({other})


async def test_an_approval_made_while_the_connection_was_away_is_told(
    enclave: RunningEnclave,
) -> None:
    custodian = enclave.custodian
    custodian.granted = custodian.left = 0
    waiting = asyncio.create_task(enclave.infer(Prefer="wait=60"))
    await custodian.until(lambda: len(custodian.wanted) == 1)
    custodian.granted = custodian.left = 1
    custodian.decided = (
        MoreDecided(
            consumer=custodian.alice.id, approved=True, credits=1, reason="for once", age_s=3.0
        ),
    )
    await reconnect(custodian)
    async with asyncio.timeout(30):
        assert (await waiting)[0] == 200
    told = (await waiting_of(enclave, custodian.alice))["decided"]
    assert (told["approved"], told["reason"]) == (True, "for once")
    assert told["age_s"] >= 3.0


async def test_whoever_decides_is_told_how_many_wait_by_now(enclave: RunningEnclave) -> None:
    custodian = enclave.custodian
    custodian.granted = custodian.left = 0
    first, second = (asyncio.create_task(enclave.infer(Prefer="wait=60")) for _ in range(2))
    await custodian.until(lambda: any(one.waiting == 2 for one in custodian.wanted))
    second.cancel()
    await custodian.until(lambda: custodian.wanted[-1].waiting == 1)
    first.cancel()
    await custodian.until(lambda: custodian.wanted[-1].waiting == 0)
    assert custodian.wanted[-1].credits == 0
    assert max(one.waited_s for one in custodian.wanted) > 0
    await asyncio.wait({first, second})
