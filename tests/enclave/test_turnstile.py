"""Who waits for a limit: in fair order, holding up nobody, and gone the moment it need not wait."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigovtool.clock import SystemClock
from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.api.turnstile import Turnstile
from aigovtool.errors import BlockedError, LimitedError, LoanNotActiveError, UnavailableError
from aigovtool.ids import ConsumerId
from aigovtool.wire.limits import Limits, Rate

from .conftest import RunningEnclave
from .custodian import Consumer
from .test_control import SLOW, slow_enclave
from .test_limits import ALICE, BOB, entry

CAROL = ConsumerId("con_carol")
ONE_AT_A_TIME = Limits(concurrency=1)


class Still(SystemClock):
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def monotonic_s(self) -> float:
        return self.time_s


def turnstile(
    clock: Still | None = None, *, loan: Limits | None = None, **each: Limits
) -> Turnstile:
    made = Turnstile(clock or Still(), (100, 60))
    made.limits.set_consumers([entry(ConsumerId(f"con_{who}"), limits=each[who]) for who in each])
    if loan is not None:
        made.limits.set_loan(loan)
    return made


class Queries:
    """Queries that run until they are told to end, and what became of each."""

    def __init__(self, at: Turnstile) -> None:
        self.at = at
        self.running: list[str] = []
        self.said: list[str] = []
        self._end: dict[str, asyncio.Event] = {}

    async def _run(self, name: str, consumer: ConsumerId, cost: int, patience_s: float) -> None:
        end = self._end[name] = asyncio.Event()
        try:
            await self.at.enter(consumer, cost, patience_s)
        except (LimitedError, UnavailableError, BlockedError) as error:
            self.said.append(error.reasons[0].code)
            return
        try:
            self.running.append(name)
            await end.wait()
            self.said.append("served")
        finally:
            self.running.remove(name)
            self.at.leave(consumer)

    def ask(
        self, name: str, consumer: ConsumerId = ALICE, cost: int = 1, patience_s: float = 30.0
    ) -> asyncio.Task[None]:
        return asyncio.create_task(self._run(name, consumer, cost, patience_s), name=name)

    async def end(self, name: str) -> None:
        self._end[name].set()
        await settled()


async def settled() -> None:
    """Let every task go as far as it can without time passing."""
    for _ in range(10):
        await asyncio.sleep(0)


async def over(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_two_enclaves_run_no_more_at_one_time_than_the_limit_together() -> None:
    enclaves = []
    for place in range(2):
        one = turnstile(alice=Limits(concurrency=5))
        one.limits.set_place(place, 2)
        enclaves.append(Queries(one))
    tasks = [each.ask(str(n), patience_s=0.0) for each in enclaves for n in range(10)]
    await settled()
    assert [len(each.running) for each in enclaves] == [3, 2]
    assert [Counter(each.said) for each in enclaves] == [
        {"limit.concurrency": 7}, {"limit.concurrency": 8},
    ]  # fmt: skip
    await over(*tasks)
    assert all(each.at.limits.held(ALICE, 1, 0.0) is None for each in enclaves)


async def test_whoever_waits_for_a_place_gets_it_and_one_that_is_cancelled_leaves_none() -> None:
    queries = Queries(turnstile(loan=ONE_AT_A_TIME))
    tasks = [queries.ask(str(number)) for number in range(5)]
    await settled()
    tasks[2].cancel()
    for name in "0134":
        await settled()
        assert queries.running == [name]
        await queries.end(name)
    assert queries.at.limits.held(ALICE, 1, 0.0) is None
    assert tasks[2].cancelled()


async def test_a_place_given_in_the_moment_of_leaving_is_not_lost() -> None:
    queries = Queries(turnstile(loan=ONE_AT_A_TIME))
    first, second, third = (queries.ask(name) for name in "abc")
    await settled()
    first.cancel()
    await asyncio.sleep(0)  # its place is the second's, which has not run yet
    second.cancel()
    await settled()
    assert queries.running == ["c"]
    await over(third)


async def test_a_stop_wakes_all_and_a_block_those_of_its_consumer() -> None:
    queries = Queries(turnstile(loan=ONE_AT_A_TIME))
    tasks = [queries.ask("first"), *(queries.ask(f"{who}", who) for who in (ALICE, BOB, CAROL))]
    await settled()
    queries.at.fail_all(lambda who: BlockedError("no", code="blocked") if who == BOB else None)
    await settled()
    assert queries.said == ["blocked"]
    queries.at.fail_all(lambda _: LoanNotActiveError("audit", retry_after_s=1.0))
    await settled()
    assert queries.said == ["blocked", "loan.not_active", "loan.not_active"]
    assert queries.running == ["first"]
    assert [queries.at.waiting(who) for who in (ALICE, BOB, CAROL)] == [0, 0, 0]
    await over(*tasks)


async def test_a_larger_share_wakes_who_waits_although_nothing_ran_that_could_end() -> None:
    """With one query at a time on two enclaves the second has no place, until the first leaves."""
    queries = Queries(turnstile(alice=ONE_AT_A_TIME))
    queries.at.limits.set_place(1, 2)
    task = queries.ask("only")
    await settled()
    assert queries.running == []
    queries.at.limits.set_place(0, 1)
    await settled()
    assert queries.running == ["only"]
    await over(task)


async def test_one_that_leaves_before_its_turn_gives_it_to_the_next() -> None:
    clock = Still()
    queries = Queries(turnstile(clock, loan=Limits(rate=Rate(credits=1, per_s=1))))
    tasks = [queries.ask(name) for name in "abcd"]
    await settled()
    assert queries.running == ["a"]
    tasks[1].cancel()
    await settled()
    clock.time_s = 1.0
    queries.at.limits.set_place(0, 2)  # anything that makes it look again
    await settled()
    assert queries.running == ["a", "c"]
    await over(*tasks)


async def test_a_turn_comes_by_itself() -> None:
    at = Turnstile(SystemClock(), (100, 60))
    at.limits.set_loan(Limits(rate=Rate(credits=20, per_s=1)))
    async with asyncio.timeout(20):
        for _ in range(30):
            await at.enter(ALICE, 1, 30.0)


async def test_one_consumers_slow_rate_does_not_hold_up_the_loan() -> None:
    """It waits an hour for its own turn: nobody else's turn is put off until then."""
    loan, slow = Limits(rate=Rate(credits=2, per_s=1)), Limits(rate=Rate(credits=1, per_s=3600))
    queries = Queries(turnstile(loan=loan, alice=slow))
    tasks = [queries.ask("now"), queries.ask("in an hour", patience_s=7200.0)]
    await settled()
    tasks.append(queries.ask("bob", BOB, patience_s=0.0))
    await settled()
    assert queries.running == ["now", "bob"]
    await over(*tasks)


async def test_small_queries_do_not_keep_a_batch_waiting_for_ever() -> None:
    clock = Still()
    queries = Queries(turnstile(clock, loan=Limits(rate=Rate(credits=4, per_s=4))))
    tasks = [queries.ask("first", BOB, 4), queries.ask("batch", ALICE, 4)]
    await settled()
    clock.time_s = 2.0  # there is enough for two small ones, and they come later
    tasks += [queries.ask(name, BOB) for name in ("small", "smaller")]
    await settled()
    assert queries.running == ["first"]
    clock.time_s = 4.0
    await queries.end("first")
    assert queries.running == ["batch"]
    await over(*tasks)


async def test_a_crowd_of_one_consumer_does_not_keep_another_from_its_turn() -> None:
    queries = Queries(turnstile(loan=ONE_AT_A_TIME))
    tasks = [queries.ask(str(number)) for number in range(50)]
    await settled()
    tasks.append(queries.ask("bob", BOB))
    await settled()
    await queries.end("0")
    assert queries.running == ["1"]
    await queries.end("1")
    assert queries.running == ["bob"]
    await over(*tasks)


async def test_limits_that_are_made_smaller_refuse_who_can_never_pass() -> None:
    queries = Queries(turnstile(loan=Limits(rate=Rate(credits=9, per_s=3600))))
    tasks = [queries.ask("all", cost=9), queries.ask("batch", BOB, 9, 4000.0)]
    tasks.append(queries.ask("one", CAROL, 1, 4000.0))
    await settled()
    queries.at.limits.set_loan(Limits(rate=Rate(credits=5, per_s=3600)))
    await settled()
    assert queries.said == ["limit.rate"]
    queries.at.limits.set_loan(Limits())
    await settled()
    assert queries.running == ["all", "one"]
    await over(*tasks)


async def test_a_consumer_cannot_fill_the_turnstile() -> None:
    queries = Queries(turnstile(loan=ONE_AT_A_TIME))
    tasks = [queries.ask(str(number)) for number in range(70)]
    await settled()
    assert Counter(queries.said) == {"queue.waiting": 9}
    tasks.append(queries.ask("bob", BOB))
    await settled()
    assert queries.at.waiting(BOB) == 1
    await over(*tasks)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([ALICE, BOB, CAROL]), st.integers(1, 3), st.sampled_from("aaelfs")
        ),
        max_size=40,
    )
)
async def test_whatever_happens_no_more_run_than_may_and_no_place_is_lost(
    steps: list[tuple[ConsumerId, int, str]],
) -> None:
    clock = Still()
    queries = Queries(
        turnstile(
            clock, loan=Limits(concurrency=3, rate=Rate(credits=5, per_s=1)), bob=ONE_AT_A_TIME
        )
    )
    tasks: list[asyncio.Task[None]] = []
    for number, (consumer, cost, step) in enumerate(steps):
        match step:
            case "a":
                tasks.append(queries.ask(f"{consumer}.{number}", consumer, cost))
            case "e" if queries.running:
                await queries.end(queries.running[0])
            case "l" if tasks:
                tasks.pop(number % len(tasks)).cancel()
            case "f":
                queries.at.fail_all(
                    lambda who, one=consumer: BlockedError("no") if who == one else None
                )
            case "s":
                clock.time_s += cost
        await settled()
        assert len(queries.running) <= 3
        assert sum(name.startswith(BOB) for name in queries.running) <= 1
    await over(*tasks)
    assert queries.running == []
    assert [queries.at.waiting(who) for who in (ALICE, BOB, CAROL)] == [0, 0, 0]
    clock.time_s += 10.0
    after = [queries.ask(str(number)) for number in range(3)]
    await settled()
    assert len(queries.running) == 3  # nothing that was left, failed or cancelled holds a place
    await over(*after)


# --- the server -----------------------------------------------------------------------------------


async def limited(enclave: RunningEnclave, who: Consumer) -> Consumer:
    who.limits = ONE_AT_A_TIME
    await enclave.custodian.set_roster()
    return who


async def until_waiting(enclave: RunningEnclave, who: Consumer, credits: int, limit: int) -> None:
    """Wait until so many queries wait for credits, and so many for a limit."""
    async with asyncio.timeout(30):
        while True:
            view = (await enclave.get("/v1/waiting", who))[1]
            if (len(view["queries"]), view["limited"]) == (credits, limit):
                return


async def test_a_client_that_hangs_up_frees_its_place_at_once_and_is_not_charged(
    enclave: RunningEnclave,
) -> None:
    custodian = enclave.custodian
    custodian.granted = custodian.left = 0
    alice = await limited(enclave, custodian.alice)
    tasks = []
    for number in range(3):
        tasks.append(asyncio.create_task(enclave.infer(Prefer="wait=60")))
        await until_waiting(enclave, alice, 1, number)
    tasks[1].cancel()  # it waits for its place
    await until_waiting(enclave, alice, 1, 1)
    tasks[0].cancel()  # it has its place, and waits for credits
    await until_waiting(enclave, alice, 1, 0)
    await custodian.grant(2)
    async with asyncio.timeout(30):
        assert (await tasks[2])[0] == 200
        assert (await enclave.infer())[0] == 200
    assert (await enclave.infer())[0] == 429


@pytest.mark.parametrize("end", ["stop", "block", "drain"])
async def test_who_waits_for_a_place_is_told_at_once_that_there_will_be_none(
    end: str, key: SigningKey, tmp_path: Path
) -> None:
    async with slow_enclave(key, tmp_path) as enclave:
        custodian = enclave.custodian
        alice = await limited(enclave, custodian.alice)
        running = asyncio.create_task(enclave.infer(body=SLOW, Prefer="wait=600"))
        async with asyncio.timeout(30):
            while (await enclave.get("/v1/budget", alice))[1]["remaining"] != 9:
                pass
        waiting = asyncio.create_task(enclave.infer(body=SLOW, Prefer="wait=600"))
        await until_waiting(enclave, alice, 0, 1)
        match end:
            case "stop":
                await custodian.set_state("stopped", "audit")
            case "block":
                alice.blocked = True
                await custodian.set_roster()
            case "drain":
                enclave.stop.set()
        async with asyncio.timeout(30):
            status, answer, headers = await waiting
        assert status == (403 if end == "block" else 503)
        assert "Aigovtool-Receipt" not in headers  # nothing was charged
        if end == "stop":
            assert "audit" in answer["error"]
        await asyncio.wait({running}, timeout=10)


async def test_a_wait_for_a_place_and_one_for_credits_are_one_wait(enclave: RunningEnclave) -> None:
    """`Prefer: wait=N` is N seconds in all, not N at each gate."""
    custodian = enclave.custodian
    custodian.granted = custodian.left = 0
    alice = await limited(enclave, custodian.alice)
    first = asyncio.create_task(enclave.infer(Prefer="wait=600"))
    await until_waiting(enclave, alice, 1, 0)
    second = asyncio.create_task(enclave.infer(Prefer="wait=60"))
    await until_waiting(enclave, alice, 1, 1)
    enclave.clock.ahead_s += 60.0
    first.cancel()
    async with asyncio.timeout(20):
        status, answer, _ = await second
    assert (status, answer["reasons"][0]["code"]) == (429, "budget.exhausted")
