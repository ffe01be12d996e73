"""The event loop is lent for a few computations at a time, and to each consumer in turn."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from aigovtool.enclave import rounds
from aigovtool.enclave.batching import Outputs
from aigovtool.enclave.flights import Cut, FlightCutError, Flights
from aigovtool.enclave.rounds import Rounds
from aigovtool.errors import LoanNotActiveError, UnavailableError
from aigovtool.ids import ConsumerId
from aigovtool.telemetry.metrics import Times
from aigovtool.wire.tensors import Array

from .conftest import query, running_enclave
from .custodian import FakeCustodian
from .test_turn import request, together

ALICE, BOB = ConsumerId("con_alice"), ConsumerId("con_bob")


class Clock:
    """Counts the rounds of the loop."""

    def __init__(self) -> None:
        self.round = 0
        self._loop = asyncio.get_running_loop()
        self._tick()

    def _tick(self) -> None:
        self.round += 1
        self._handle = self._loop.call_soon(self._tick)

    def stop(self) -> None:
        self._handle.cancel()


async def in_rounds(seen: Rounds, consumers: list[ConsumerId]) -> list[tuple[int, ConsumerId]]:
    """Return in which round each query was computed, in their order."""
    clock, computed = Clock(), []

    async def compute(consumer: ConsumerId) -> None:
        if (place := seen.place(consumer)) is not None:
            await place
        computed.append((clock.round, consumer))

    await asyncio.gather(*map(compute, consumers))
    clock.stop()
    return computed


@pytest.mark.parametrize(("took_s", "each"), [(1.0, 1), (0.006, 1), (0.005, 2), (1e-9, 32)])
async def test_no_more_begin_in_a_round_than_take_a_moment(took_s: float, each: int) -> None:
    seen = Rounds()
    seen.took(took_s)
    computed = await in_rounds(seen, [ALICE] * 100)
    assert len(computed) == 100
    assert max(Counter(number for number, _ in computed).values()) == each
    assert len(seen) == 0


async def test_one_with_many_queries_does_not_keep_the_others_waiting() -> None:
    computed = await in_rounds(Rounds(), [ALICE] * 50 + [BOB] * 3)
    order = [consumer for _, consumer in computed]
    assert order[:7] == [ALICE, ALICE, BOB, ALICE, BOB, ALICE, BOB]
    assert order[7:] == [ALICE] * 46


async def test_who_leaves_takes_nobodys_place() -> None:
    seen = Rounds()
    assert seen.place(ALICE) is None
    places = [seen.place(ALICE) for _ in range(5)]
    for place in places[:4]:
        assert place is not None
        place.cancel()
    assert len(seen) == 5
    for _ in range(2):
        await asyncio.sleep(0)
    assert places[4] is not None
    assert places[4].done()
    assert len(seen) == 0


class Counted:
    """A run that counts what it computes."""

    def __init__(self) -> None:
        self.computed = 0

    def execute(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Outputs:
        self.computed += 1
        return {}

    def terminate(self) -> None:
        raise AssertionError("nothing runs that could be told to end")


def launched(seen: Flights, run: Counted, consumer: ConsumerId) -> asyncio.Task[Outputs]:
    async def fly() -> Outputs:
        with seen.launch(consumer, run, {}, [], 1, here=True) as flight:
            return await flight.landed()

    return asyncio.create_task(fly())


@pytest.fixture
def flights() -> Iterator[Flights]:
    with ThreadPoolExecutor(1) as pool:
        yield Flights(pool, limit=4, time_s=60.0, times=Times())


async def waiting(seen: Flights, run: Counted, *who: ConsumerId) -> list[asyncio.Task[Outputs]]:
    """Launch queries while no round comes."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Rounds, "_round", lambda _: None)
        assert seen.rounds.place(ALICE) is None  # the one that there is
        tasks = [launched(seen, run, one) for one in who]
        await asyncio.sleep(0)
    assert len(seen.rounds) == len(seen) == len(who)
    return tasks


@pytest.mark.parametrize("granted", [False, True], ids=["waits", "its turn has just come"])
async def test_a_stop_ends_who_waits_for_its_turn_and_nothing_is_computed(
    flights: Flights, granted: bool
) -> None:
    run = Counted()
    tasks = await waiting(flights, run, ALICE, ALICE, BOB)
    if granted:
        flights.rounds.took(1e-6)
        flights.rounds._round()
    assert flights.cancel(lambda: LoanNotActiveError("stopped")) == 3
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    for one in ended:
        assert isinstance(one, FlightCutError)
        assert (one.cut, one.begun) == (Cut.STOPPED, False)
    assert run.computed == 0
    await flights.answered()
    assert len(flights) == 0


async def test_who_is_given_up_while_it_waits_holds_up_nobody(flights: Flights) -> None:
    run = Counted()
    first, *others = await waiting(flights, run, ALICE, ALICE, BOB)
    first.cancel()
    flights.rounds._round()
    await asyncio.gather(*others)
    assert first.cancelled()
    assert run.computed == 2
    assert len(flights) == len(flights.rounds) == 0


async def test_who_waits_for_a_turn_takes_room_of_its_share(flights: Flights) -> None:
    tasks = await waiting(flights, Counted(), ALICE, ALICE, ALICE)
    with pytest.raises(UnavailableError, match="too many"):
        flights.check_room(ALICE)
    flights.check_room(BOB)
    flights.rounds._round()
    await asyncio.gather(*tasks)
    flights.check_room(ALICE)


async def test_large_queries_at_one_time_leave_the_loop_to_others_in_between(
    custodian: FakeCustodian, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "ROUND_S", 0.0)  # one a round, however quick
    computed: list[int] = []
    execute = Flights._execute

    def noted(*args: Any) -> Outputs:
        computed.append(clock.round)
        return execute(*args)

    monkeypatch.setattr(Flights, "_execute", noted)
    async with running_enclave(custodian) as enclave:
        clock = Clock()
        asked = [
            # with a key they go by the application, as those whose body comes in pieces
            request(query([[number, 1]]), custodian.alice, more=f"Idempotency-Key: {number}\r\n")
            for number in range(8)
        ]
        answers = await together(enclave, asked, warm=False)
        clock.stop()
        assert [one.data for one in answers] == [[2.0 * number, 2.0] for number in range(8)]
        assert len(computed) == len(set(computed)) == 8
