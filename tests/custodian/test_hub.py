"""Who is told of freed credits, and when: in turn, so that no enclave is left out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from aigovtool.custodian import hub as hub_module
from aigovtool.custodian.hub import Connection, Hub
from aigovtool.custodian.pushes import Push
from aigovtool.ids import LoanId, SessionId
from aigovtool.wire.control import CreditsFreed, LoanChanged

LOAN = LoanId("loan_1")
TURN_S = 0.02
PATIENCE_S = 30.0
Turns = list[tuple[str, float]]


@pytest.fixture(autouse=True)
def quick_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "TURN_S", TURN_S)
    monkeypatch.setattr(hub_module, "LAST_TURN_S", 4 * TURN_S)


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    """Who was told, and with what delay, whatever time the machine took for it."""
    seen: Turns = []
    monkeypatch.setattr(Connection, "send", lambda one, _: seen.append((one.session, 0.0)))
    monkeypatch.setattr(
        Connection, "send_in", lambda one, delay_s, _: seen.append((one.session, delay_s))
    )
    return seen


@contextlib.asynccontextmanager
async def connected(count: int) -> AsyncIterator[tuple[Hub, list[Connection]]]:
    async with contextlib.AsyncExitStack() as stack:
        hub = Hub()
        hub.start()
        hub.joined()
        made = [
            await stack.enter_async_context(hub.connection(SessionId(f"session_{number}"), LOAN))
            for number in range(count)
        ]
        yield hub, made


async def told(connection: Connection) -> object:
    async with asyncio.timeout(PATIENCE_S):
        return await connection.outgoing.get()


async def free(hub: Hub, left: int, *, but: SessionId | None = None) -> None:
    hub.publish(Push(loan=LOAN, message=CreditsFreed(left=left), but=but))
    done = asyncio.Event()
    asyncio.get_running_loop().call_soon(done.set)  # after what `publish` left to the loop
    await done.wait()


async def test_one_credit_wakes_one_enclave_at_a_time_in_the_order_of_who_went_without(
    turns: Turns,
) -> None:
    async with connected(3) as (hub, (a, b, c)):
        for one in (c, a, b):
            hub.heard(one, without=True)
        await free(hub, 1)
    assert dict(turns) == {c.session: 0.0, a.session: TURN_S, b.session: 2 * TURN_S}
    assert len(turns) == 3


async def test_who_got_a_lease_goes_to_the_end(turns: Turns) -> None:
    async with connected(2) as (hub, made):
        for one in made:
            hub.heard(one, without=True)
        order = []
        for _ in range(4):
            turns.clear()
            await free(hub, 1)
            (first,) = [one for one in made if (one.session, 0.0) in turns]
            order.append(made.index(first))
            hub.heard(first, without=False)  # it got the credit
            hub.heard(first, without=True)  # and asks for the next
    assert order == [0, 1, 0, 1]


async def test_who_lets_its_turn_pass_goes_to_the_end(turns: Turns) -> None:
    async with connected(3) as (hub, made):
        for one in made:
            hub.heard(one, without=True)
        order = []
        for _ in range(6):
            turns.clear()
            await free(hub, 1)
            order += [made.index(one) for one in made if (one.session, 0.0) in turns]
    assert order == [0, 1, 2, 0, 1, 2]


async def test_who_asked_again_in_vain_keeps_its_place(turns: Turns) -> None:
    async with connected(2) as (hub, (a, b)):
        for one in (a, b, b, a):
            hub.heard(one, without=True)
        await free(hub, 1)
    assert turns == [(a.session, 0.0), (b.session, TURN_S)]


async def test_as_many_as_there_are_credits_are_told_at_once_and_all_before_long(
    turns: Turns,
) -> None:
    async with connected(20) as (hub, all_of_them):
        for one in all_of_them:
            hub.heard(one, without=True)
        await free(hub, 2)
    delays = [delay_s for _, delay_s in turns]
    assert delays[:6] == [0, 0, TURN_S, TURN_S, 2 * TURN_S, 2 * TURN_S]
    assert delays[8:] == [4 * TURN_S] * 12


async def test_who_waits_for_nothing_and_what_is_no_credit_are_told_at_once(turns: Turns) -> None:
    async with connected(3) as (hub, (a, b, idle)):
        for one in (a, b):
            hub.heard(one, without=True)
        await free(hub, 1)
        assert (idle.session, 0.0) in turns
        turns.clear()
        hub.publish(Push(loan=LOAN, message=LoanChanged(state="stopped", reason="")))
        await free(hub, 0, but=b.session)
    assert turns[:3] == [(one.session, 0.0) for one in (a, b, idle)]


async def test_several_pushes_before_its_turn_are_told_once_and_with_the_newest_number() -> None:
    async with connected(1) as (_, (a,)):
        for left in (1, 2, 3):
            a.send_in(TURN_S, CreditsFreed(left=left))
        a.send_in(0.0, CreditsFreed(left=4))
        assert await told(a) == CreditsFreed(left=4)
        a.send_in(0.0, CreditsFreed(left=5))
        assert await told(a) == CreditsFreed(left=5)
        assert a.outgoing.empty()


async def test_a_turn_of_a_connection_that_has_ended_is_nobodys(turns: Turns) -> None:
    async with connected(1) as (hub, (a,)):
        async with hub.connection(SessionId("session_b"), LOAN) as b:
            hub.heard(b, without=True)
            hub.heard(a, without=True)
        await free(hub, 1)
    assert turns == [(a.session, 0.0)]


async def test_a_connection_that_ends_before_its_turn_is_sent_nothing() -> None:
    async with connected(1) as (_, (a,)):
        a.send_in(0.0, CreditsFreed(left=1))
        a.gone.set()
        later = asyncio.Event()
        asyncio.get_running_loop().call_later(TURN_S, later.set)  # timers go off in their order
        await later.wait()
        assert a.outgoing.empty()
