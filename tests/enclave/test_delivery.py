"""Answers of a language model as they are made: paid piece by piece, and ended at any moment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from aigovtool.clock import SystemClock
from aigovtool.enclave.delivery import Delivery
from aigovtool.enclave.flights import Cut, FlightCutError, Flights
from aigovtool.enclave.refunds import Fate
from aigovtool.enclave.renewal import Renewal
from aigovtool.enclave.runtime.base import Prompt
from aigovtool.enclave.till import Tab, Till
from aigovtool.errors import BadPromptError, LoanNotActiveError
from aigovtool.telemetry.metrics import Times

from .talkers import Gate, Talker
from .test_renewal import ALICE, Ledger, make, talk

INPUT, PRICE = 3, 2
CLOCK = SystemClock()


class Scene:
    """A session whose custodian answers when it is let to."""

    def __init__(self, model: Talker, *, budget: int, duration_s: float = 3600.0) -> None:
        self.model = model
        self.ledger = Ledger(budget, duration_s=duration_s)
        self.renewal: Renewal
        self.till: Till
        self.renewal, self.till = make(self.ledger)
        self.renewal.welcomed(self.ledger.welcome(), self.now_s)
        self.pool = ThreadPoolExecutor(1)
        self.flights = Flights(self.pool, limit=64, time_s=60.0, times=Times())
        self.given = 0

    @property
    def now_s(self) -> float:
        return CLOCK.monotonic_s()

    async def pay(self, max_output: int) -> Tab:
        paying = asyncio.create_task(
            self.renewal.acquire(
                ALICE,
                INPUT + PRICE * max_output,
                held=PRICE * max_output,
                now_s=self.now_s,
                lease_wait_s=30,
                patience_s=30,
                reason="",
            )
        )
        await asyncio.sleep(0)
        talk(self.renewal, self.ledger, self.now_s)
        tab = await paying
        assert isinstance(tab, Tab)
        return tab

    async def say(self, tab: Tab, max_output: int) -> AsyncIterator[str]:
        generation = Delivery(tab, price=PRICE, till=self.till, renewal=self.renewal, clock=CLOCK)
        fate = Fate.CUT
        try:
            pieces = generation.pieces(
                self.model,
                Prompt("chat", {}, INPUT, max_output),
                consumer=ALICE,
                flights=self.flights,
                time_s=60.0,
            )
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    self.given += 1
                    yield piece.chunk["choices"][0]["delta"]["content"]
            fate = Fate.ANSWERED
        finally:
            self.renewal.finish(tab, fate, self.now_s)

    def settle(self) -> None:
        self.renewal.give_back()
        talk(self.renewal, self.ledger, self.now_s)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def slow(gate: Gate) -> Iterator[Talker]:
    model = Talker(step=gate.step, wake=gate.wake)
    yield model
    model.close()


async def collected(words: AsyncIterator[str]) -> list[str]:
    return [word async for word in words]


async def test_an_answer_is_charged_for_its_input_and_every_token_of_it() -> None:
    scene = Scene(Talker(), budget=100)
    tab = await scene.pay(5)
    assert "".join(await collected(scene.say(tab, 5))) == "one two three four five"
    scene.settle()
    assert scene.ledger.spent == INPUT + 5 * PRICE


async def test_a_client_that_stops_reading_pays_for_what_it_was_given(
    slow: Talker, gate: Gate
) -> None:
    scene = Scene(slow, budget=100)
    words = scene.say(await scene.pay(10), 10)
    gate.let(2)
    assert [await anext(words), await anext(words)] == ["one", " two"]
    await words.aclose()  # type: ignore[attr-defined]
    await scene.flights.idle()
    scene.settle()
    assert scene.ledger.spent == INPUT + 2 * PRICE


async def test_a_stop_ends_an_answer_between_two_tokens(slow: Talker, gate: Gate) -> None:
    scene = Scene(slow, budget=100)
    words = scene.say(await scene.pay(10), 10)
    gate.let(2)
    await anext(words)
    await anext(words)
    third = asyncio.create_task(anext(words))
    await asyncio.sleep(0)
    scene.flights.cancel(lambda: LoanNotActiveError("stopped"))
    with pytest.raises(FlightCutError) as cut:
        await third
    assert cut.value.cut is Cut.STOPPED
    await scene.flights.idle()
    scene.settle()
    assert scene.ledger.spent == INPUT + 2 * PRICE


async def test_a_stop_ends_an_answer_that_was_computed_and_is_still_read() -> None:
    scene = Scene(Talker(), budget=100)
    words = scene.say(await scene.pay(10), 10)
    await anext(words)
    await scene.flights.idle()  # all of it is computed
    assert scene.model.produced == 10
    scene.flights.cancel(lambda: LoanNotActiveError("stopped"))
    with pytest.raises(FlightCutError):
        await anext(words)
    scene.settle()
    assert scene.ledger.spent == INPUT + PRICE


async def test_what_is_computed_and_still_read_is_not_answered_yet() -> None:
    scene = Scene(Talker(), budget=100)
    words = scene.say(await scene.pay(3), 3)
    await anext(words)
    answered = asyncio.create_task(scene.flights.answered())
    await scene.flights.idle()
    await asyncio.sleep(0)
    assert not answered.done()
    assert await collected(words) == [" two", " three"]
    await answered


async def test_a_stop_before_the_first_token_ends_what_waits_for_a_slot(gate: Gate) -> None:
    model = Talker(slots=1, step=gate.step, wake=gate.wake)
    scene = Scene(model, budget=100)
    first = asyncio.create_task(anext(scene.say(await scene.pay(10), 10)))
    second = asyncio.create_task(anext(scene.say(await scene.pay(10), 10)))
    await asyncio.sleep(0)
    scene.flights.cancel(lambda: LoanNotActiveError("stopped"))
    for task in (first, second):
        with pytest.raises(FlightCutError):
            await task
    await scene.flights.idle()
    assert model.produced == 0
    model.close()


async def test_nothing_is_given_while_no_lease_holds_it_and_it_goes_on_with_the_next(
    slow: Talker, gate: Gate
) -> None:
    scene = Scene(slow, budget=100)
    tab = await scene.pay(10)
    words = scene.say(tab, 10)
    gate.let(1)
    await anext(words)
    scene.renewal.give_back()  # as a lease at half its time
    gate.let(9)
    second = asyncio.create_task(anext(words))
    await scene.flights.idle()
    assert not second.done()
    assert scene.given == 1
    talk(scene.renewal, scene.ledger, scene.now_s)
    assert await second == " two"
    assert len(await collected(words)) == 8
    scene.settle()
    assert scene.ledger.spent == INPUT + 10 * PRICE


async def test_when_the_custodian_is_silent_it_ends_with_its_lease() -> None:
    gate = Gate()
    model = Talker(step=gate.step, wake=gate.wake)
    scene = Scene(model, budget=100, duration_s=0.4)
    words = scene.say(await scene.pay(10), 10)
    scene.renewal.lost()
    gate.let(1)
    begin_s = scene.now_s
    await anext(words)
    with pytest.raises(FlightCutError) as cut:
        await anext(words)  # no token comes, and none is needed for it to end
    assert cut.value.cut is Cut.LAPSED
    assert scene.now_s - begin_s < 5
    await scene.flights.idle()
    model.close()


async def test_a_model_that_fails_in_the_midst_says_so_and_what_was_given_is_paid(
    slow: Talker, gate: Gate
) -> None:
    slow.fails_at = 2
    scene = Scene(slow, budget=100)
    words = scene.say(await scene.pay(10), 10)
    gate.let(3)
    assert [await anext(words), await anext(words)] == ["one", " two"]
    with pytest.raises(BadPromptError):
        await anext(words)
    scene.settle()
    assert scene.ledger.spent == INPUT + 2 * PRICE


async def test_however_many_race_for_a_small_budget_no_more_is_produced_than_it_pays_for() -> None:
    model = Talker(slots=4)
    scene = Scene(model, budget=100)

    async def one() -> int:
        try:
            return len(await collected(scene.say(await scene.pay(8), 8)))
        except Exception:  # noqa: BLE001 - too little is left
            return 0

    asked = [asyncio.create_task(one()) for _ in range(32)]
    while not all(task.done() for task in asked):
        talk(scene.renewal, scene.ledger, scene.now_s)
        if scene.ledger.left < INPUT + 8 * PRICE and not scene.till.tabs:
            for task in asked:
                task.cancel()
        await asyncio.sleep(0.001)
    given = sum(task.result() for task in asked if not task.cancelled())
    scene.settle()
    served = given // 8
    assert served == 100 // (INPUT + 8 * PRICE)
    assert model.produced == given
    assert scene.ledger.spent == served * (INPUT + 8 * PRICE) <= 100
    model.close()
