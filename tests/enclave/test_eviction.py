"""Idle models make room for others where their loans allow it, and come back when asked."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave import eviction, supervisor
from aigovtool.enclave.eviction import KEEP_S, Evictions, least_recently_used
from aigovtool.enclave.lifecycle import MOVES, State
from aigovtool.enclave.model_room import ModelRoom, NoRoomError
from aigovtool.ids import LoanId

from . import models
from .conftest import RunningEnclave, query, running_enclave
from .custodian import Consumer, FakeCustodian
from .test_model_room import bytes_of

LIMIT_S = 30
NOW_S = 1000.0
Lending = Callable[..., contextlib.AbstractAsyncContextManager[Any]]

# --- who goes ------------------------------------------------------------------------------------


@dataclass(eq=False)
class Someone:
    """A resident of so many bytes."""

    size: int
    rests_since_s: float | None
    loan: Any = None
    manifest: Any = None

    def evict(self) -> None: ...

    async def gone(self) -> None: ...


residents = st.lists(
    st.builds(
        Someone,
        st.integers(1, 50),
        st.one_of(st.none(), st.floats(NOW_S - 5 * KEEP_S, NOW_S, allow_nan=False)),
    ),
    max_size=12,
)


@given(residents, st.integers(1, 300))
def test_only_who_may_go_goes_the_longest_unused_first_and_none_in_vain(
    there: list[Someone], lacking: int
) -> None:
    going = least_recently_used(
        there,
        lacking,
        bytes_of=lambda one: one.size,
        now_s=NOW_S,
    )
    rested = {
        id(one): one.rests_since_s
        for one in there
        if one.rests_since_s is not None and NOW_S - one.rests_since_s >= KEEP_S
    }
    if going is None:
        assert sum(one.size for one in there if id(one) in rested) < lacking
        return
    freed = sum(one.size for one in going)
    assert freed >= lacking
    assert all(id(one) in rested for one in going)
    assert all(freed - one.size < lacking for one in going)
    # the last one was needed though all that was used before it might have gone
    last_s = max(rested[id(one)] for one in going)
    assert sum(one.size for one in there if rested.get(id(one), NOW_S) < last_s) < lacking


def test_nobody_goes_for_what_fits() -> None:
    idle = [Someone(5, 0.0)]
    assert least_recently_used(idle, 0, bytes_of=lambda _: 5, now_s=NOW_S) == []


class Tenant:
    """A resident whose model is wiped a step after it is told to go, if it ever is."""

    rests_since_s: float | None = 0.0

    def __init__(self, number: int, size: int, house: House) -> None:
        self.loan: Any = number
        self.manifest: Any = SimpleNamespace(plaintext_size=size)
        self._house = house
        self._gone = asyncio.Event()

    def evict(self) -> None:
        assert self.rests_since_s is not None
        self.rests_since_s = None
        asyncio.get_running_loop().call_soon(self.leave)

    def leave(self) -> None:
        self._house.room.give_back(self.manifest)
        del self._house.evictions.residents[self]
        self._gone.set()

    async def gone(self) -> None:
        await self._gone.wait()


class House:
    """Room for 100 bytes, and who has it."""

    def __init__(self) -> None:
        self.room = ModelRoom(100, packed_bytes=0)
        self.evictions = Evictions(self.room, lambda: NOW_S)

    async def move_in(self, tenant: Tenant) -> None:
        await self.evictions.take(tenant.manifest, of=tenant.loan)
        self.evictions.residents[tenant] = None

    def check(self) -> None:
        there = list(self.evictions.residents)
        assert self.room.taken_bytes <= 100
        assert sum(one.manifest.plaintext_size for one in there) <= self.room.taken_bytes


@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 110), st.booleans()), min_size=1, max_size=4), max_size=8
    )
)
def test_models_that_come_at_one_time_never_take_more_than_there_is(
    crowds: list[list[tuple[int, bool]]],
) -> None:
    async def come() -> None:
        house, number = House(), itertools.count()
        for crowd in crowds:
            coming = [Tenant(next(number), size, house) for size, _ in crowd]
            for tenant, (_, may_go) in zip(coming, crowd, strict=True):
                if not may_go:
                    tenant.rests_since_s = None
            stays = sum(
                one.manifest.plaintext_size
                for one in house.evictions.residents
                if one.rests_since_s is None
            )
            tasks = [asyncio.create_task(house.move_in(one)) for one in coming]
            while not all(task.done() for task in tasks):
                house.check()
                await asyncio.sleep(0)
            house.check()
            errors = [task.exception() for task in tasks]
            assert all(error is None or isinstance(error, NoRoomError) for error in errors)
            fits = stays + coming[0].manifest.plaintext_size <= 100
            assert (errors[0] is None) is fits  # who comes first gets what may be had

    asyncio.run(come())


def test_an_evicted_loan_is_not_served_before_it_is_enrolled_again() -> None:
    assert MOVES[State.EVICTED] == {State.ENROLLING, State.DRAINING, State.CLOSED}
    assert [one for one, to in MOVES.items() if State.EVICTED in to] == [State.SERVING]


# --- in an enclave -------------------------------------------------------------------------------


@pytest.fixture
def lending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lending:
    """`loans` where nothing waits for long, and no model stays for having been used."""
    monkeypatch.setattr(supervisor, "REFUSED_FIRST_S", 0.05)
    monkeypatch.setattr(supervisor, "REFUSED_LONGEST_S", 0.2)
    monkeypatch.setattr(supervisor, "LOOK_FOR_ROOM_S", 0.01)
    monkeypatch.setattr(eviction, "KEEP_S", 0.0)
    return functools.partial(loans, tmp_path)


@pytest.fixture
def fullest(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The most bytes that models took at one time, as they are taken."""
    seen, take = [0], ModelRoom.take

    def counted(room: ModelRoom, model: Any) -> None:
        take(room, model)
        seen[0] = max(seen[0], room.taken_bytes)

    monkeypatch.setattr(ModelRoom, "take", counted)
    return seen


@contextlib.asynccontextmanager
async def loans(
    tmp_path: Path, names: str, *, room_for: int, evictable: str | None = None
) -> AsyncIterator[tuple[list[FakeCustodian], RunningEnclave]]:
    """An enclave with loans of one doubling model each, named by letters, and room for some."""
    async with contextlib.AsyncExitStack() as stack:
        lent = []
        for name in names:
            folder, key = tmp_path / name, SigningKey.generate()
            folder.mkdir()
            model = models.sealed(folder, key, models.doubling(), name=f"tiny-{name}")
            custodian = FakeCustodian(key, model, budget=100, loan=LoanId(f"loan_{name}"))
            custodian.evictable = name in (names if evictable is None else evictable)
            lent.append(await stack.enter_async_context(custodian))
        room = room_for * bytes_of(lent[0].model)
        yield (
            lent,
            await stack.enter_async_context(
                running_enclave(lent[0], beside=lent[1:], max_model_bytes=room)
            ),
        )


async def ask(
    enclave: RunningEnclave, custodian: FakeCustodian, consumer: Consumer | None = None
) -> tuple[int, dict, Any]:
    name = custodian.model.verified.manifest.name
    async with enclave.http.post(
        f"/v2/models/{name}/infer",
        json=query([[1.0, 2.0]]),
        headers=(consumer or custodian.alice).authorization,
    ) as answer:
        return answer.status, await answer.json(content_type=None), answer.headers


async def until_served(enclave: RunningEnclave, custodian: FakeCustodian) -> list[str]:
    """Ask until there is an answer; return how queries were refused before."""
    refused = []
    async with asyncio.timeout(LIMIT_S):
        while True:
            status, told, headers = await ask(enclave, custodian)
            if status == 200:
                return refused
            assert (status, bool(headers["Retry-After"])) == (503, True)
            refused.append(code_of(told))


def code_of(told: dict) -> str:
    return told["reasons"][0]["code"]


def times_evicted(custodian: FakeCustodian) -> int:
    return sum("made room" in proof.reason for proof in custodian.proofs)


async def first_evicted(enclave: RunningEnclave, lent: Sequence[FakeCustodian]) -> FakeCustodian:
    """Return whose model went when the last one was loaded, which was in vain until one served."""
    async with asyncio.timeout(LIMIT_S):
        while not (went := [one for one in lent if times_evicted(one)]):
            await enclave.get("/v2/health/live")
    return went[0]


async def test_two_loans_take_turns_in_the_room_for_one(
    lending: Lending, fullest: list[int]
) -> None:
    async with lending("ab", room_for=1) as (lent, enclave):
        await first_evicted(enclave, lent)
        refusals = [await until_served(enclave, one) for one in lent * 3]
        assert {kind for kinds in refusals for kind in kinds} == {"enclave.evicted"}
        for one in lent:
            assert one.spent + one.leased <= 100
    assert fullest[0] == bytes_of(lent[0].model)
    for one in lent:
        assert one.spent == 3
        assert one.leased == 0  # every session gave back what it held, and proved that it wiped
        assert len(one.proofs) == len(one.sessions)
        assert times_evicted(one) >= 2
        one.check()


async def test_the_longest_unused_goes_and_the_others_stay(lending: Lending) -> None:
    async with lending("abc", room_for=2) as (lent, enclave):
        await first_evicted(enclave, lent)
        for one in lent:
            await until_served(enclave, one)
        first, second, third = lent  # used in this order: two and three are in memory
        before = [len(one.sessions) for one in lent]
        assert (await ask(enclave, second))[0] == 200
        assert (await ask(enclave, third))[0] == 200
        assert (await ask(enclave, second))[0] == 200
        assert await until_served(enclave, first)  # which evicts the third, used before the second
        assert (await ask(enclave, second))[0] == 200
        assert [len(one.sessions) for one in lent] == [before[0] + 1, *before[1:]]
        assert len(third.proofs) == len(third.sessions)
        assert len(second.proofs) == len(second.sessions) - 1


async def test_a_loan_that_does_not_allow_it_is_never_evicted(lending: Lending) -> None:
    async with lending("ab", room_for=1, evictable="") as (lent, enclave):
        async with asyncio.timeout(LIMIT_S):
            while not (refused := [one for one in lent if len(one.proofs) > 1]):
                await enclave.get("/v2/health/live")
        (without,) = refused
        (kept,) = (one for one in lent if one is not without)
        assert (await ask(enclave, kept))[0] == 200
        assert (await ask(enclave, without))[0] == 503
        assert not kept.proofs


async def test_a_model_that_was_just_used_stays(
    lending: Lending, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lending("ab", room_for=1) as (lent, enclave):
        first = await first_evicted(enclave, lent)
        (served,) = (one for one in lent if one is not first)
        await until_served(enclave, served)
        monkeypatch.setattr(eviction, "KEEP_S", 1000.0)
        for _ in range(20):
            assert code_of((await ask(enclave, first))[1]) == "enclave.evicted"
        assert (await ask(enclave, served))[0] == 200
        enclave.clock.ahead_s += 999.0
        assert (await ask(enclave, first))[0] == 503
        assert not times_evicted(served)
        enclave.clock.ahead_s += 10.0
        assert "enclave.evicted" in await until_served(enclave, first)


async def test_a_stranger_does_not_bring_a_model_back(lending: Lending) -> None:
    async with lending("ab", room_for=1) as (lent, enclave):
        evicted = await first_evicted(enclave, lent)
        (served,) = (one for one in lent if one is not evicted)
        await until_served(enclave, served)
        sessions = len(evicted.sessions)
        stranger = Consumer(evicted.alice.id, "nobody's")
        for _ in range(20):
            assert (await ask(enclave, evicted, stranger))[0] in (401, 503)
            assert (await ask(enclave, served))[0] == 200
        assert len(evicted.sessions) == sessions


async def test_who_judges_first_brings_a_model_back_without_a_key(lending: Lending) -> None:
    async with lending("ab", room_for=1) as (lent, enclave):
        evicted = await first_evicted(enclave, lent)
        statuses = []
        async with asyncio.timeout(LIMIT_S):
            while 200 not in statuses:
                async with enclave.http.get(
                    f"/.well-known/attestation?nonce={secrets.token_hex(32)}",
                    headers={"Aigovtool-Loan": evicted.loan},
                ) as answer:
                    statuses.append(answer.status)
        assert statuses[0] == 503
        assert await until_served(enclave, evicted) == []


async def test_a_model_comes_back_by_itself_when_there_is_room(lending: Lending) -> None:
    async with lending("ab", room_for=1) as (lent, enclave):
        evicted = await first_evicted(enclave, lent)
        (served,) = (one for one in lent if one is not evicted)
        await until_served(enclave, served)
        await served.set_state("stopped")
        ready = f"/v2/models/{evicted.model.verified.manifest.name}/ready"
        async with asyncio.timeout(LIMIT_S):
            while (await enclave.get(ready, evicted.alice))[0] != 200:
                pass


async def test_a_loan_that_was_stopped_while_it_was_evicted_stays_stopped(lending: Lending) -> None:
    async with lending("ab", room_for=1) as (lent, enclave):
        evicted = await first_evicted(enclave, lent)
        evicted.state, evicted.state_reason = "stopped", "enough"
        async with asyncio.timeout(LIMIT_S):
            while (told := await ask(enclave, evicted))[1]["kind"] != "loan.not_active":
                assert told[0] == 503


async def test_the_proof_of_an_eviction_is_given_when_the_custodian_is_back(
    lending: Lending,
) -> None:
    async with lending("ab", room_for=1) as (lent, enclave):
        evicted = await first_evicted(enclave, lent)
        (served,) = (one for one in lent if one is not evicted)
        await until_served(enclave, served)

        async def cut(_: object) -> None:
            await served.cut()

        served.before_answer = cut  # at its last settlement
        assert "enclave.evicted" in await until_served(enclave, evicted)
        assert not times_evicted(served)
        served.before_answer, served.accepts = None, True
        await served.until(lambda: times_evicted(served) == 1)
        served.check()
