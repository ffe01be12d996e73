"""What is charged, to whom, and what happens when nothing is left."""

from __future__ import annotations

import asyncio
import collections

import pytest

from aigovtool.enclave.config import Limits
from aigovtool.ids import sha256
from aigovtool.proof.receipt_signature import open_receipt
from aigovtool.wire.codec import decode
from aigovtool.wire.control import MoreDecided
from aigovtool.wire.receipt import Receipt, from_header

from .conftest import RunningEnclave, running_enclave
from .custodian import FakeCustodian


async def until_settled(custodian: FakeCustodian) -> None:
    await custodian.until(lambda: custodian.leased == 0)
    custodian.check()


async def test_an_idle_enclave_holds_no_lease(enclave: RunningEnclave) -> None:
    await enclave.get("/v1/budget", enclave.custodian.alice)
    assert enclave.custodian.requests == []


async def test_exactly_the_budget_is_served(enclave: RunningEnclave) -> None:
    statuses = [(await enclave.infer())[0] for _ in range(12)]
    assert statuses == [200] * 10 + [429] * 2
    assert enclave.custodian.left == 0


async def test_exhausted_says_when_to_come_back(enclave: RunningEnclave) -> None:
    for _ in range(10):
        await enclave.infer()
    status, answer, headers = await enclave.infer()
    assert status == 429
    assert int(headers["Retry-After"]) >= 1
    assert headers["Aigovtool-Remaining"] == "0"
    assert answer["kind"] == "budget.exhausted"
    assert enclave.custodian.wanted == []  # who does not wait does not trouble a person


async def test_a_thousand_at_once_against_a_hundred_credits(custodian: FakeCustodian) -> None:
    custodian.granted = custodian.left = 100
    async with running_enclave(custodian) as enclave:
        statuses = collections.Counter(
            status for status, _, _ in await asyncio.gather(*(enclave.infer() for _ in range(1000)))
        )
        assert statuses == {200: 100, 429: 900}
        enclave.stop.set()
        await enclave.task
    assert (custodian.spent, custodian.left, custodian.leased) == (100, 0, 0)


async def test_the_last_credits_come_back_and_are_used(custodian: FakeCustodian) -> None:
    custodian.lease_duration_s = 0.2
    async with running_enclave(custodian) as enclave:
        assert (await enclave.infer())[0] == 200
        await custodian.until(lambda: len(custodian.settlements) == 1)
        statuses = [(await enclave.infer())[0] for _ in range(10)]
        assert statuses == [200] * 9 + [429]
        await until_settled(custodian)
    assert custodian.spent == 10


async def test_a_waiting_query_is_woken_by_the_push(enclave: RunningEnclave) -> None:
    custodian = enclave.custodian
    custodian.granted = custodian.left = 0
    waiting = [
        asyncio.create_task(enclave.infer(Prefer="wait=20", Aigovtool_Reason="urgent case"))
        for _ in range(3)
    ]
    await custodian.until(lambda: len(custodian.wanted) == 1)
    assert custodian.wanted[0].reason == "urgent case"
    assert not any(task.done() for task in waiting)
    assert (await enclave.get("/v1/budget", custodian.alice))[1]["waiting"] == 3
    assert (await enclave.infer())[0] == 429  # whoever does not wait is told at once
    await custodian.grant(3)
    async with asyncio.timeout(30):
        assert [(await task)[0] for task in waiting] == [200] * 3
    assert len(custodian.wanted) == 1


async def test_waiting_ends_in_time(custodian: FakeCustodian) -> None:
    custodian.granted = custodian.left = 0
    async with running_enclave(custodian, limits=Limits(max_patience_s=0.3, lease_wait_s=0.2)) as e:
        async with asyncio.timeout(30):
            status, _, headers = await e.infer(Prefer="respond-async, wait=100")
        assert (status, "Retry-After" in headers) == (429, True)


async def test_waiters_are_served_in_the_order_in_which_they_came(enclave: RunningEnclave) -> None:
    custodian = enclave.custodian
    custodian.granted = custodian.left = 0
    order: list[int] = []

    async def wait(number: int) -> None:
        if (await enclave.infer(Prefer="wait=20"))[0] == 200:
            order.append(number)

    tasks = []
    for number in range(5):
        tasks.append(asyncio.create_task(wait(number)))
        while (await enclave.get("/v1/budget", custodian.alice))[1]["waiting"] <= number:
            pass
    for number in range(5):
        await custodian.grant(1)
        async with asyncio.timeout(30):
            await tasks[number]
    assert order == [0, 1, 2, 3, 4]


async def test_a_denial_ends_the_wait_with_the_persons_reason(enclave: RunningEnclave) -> None:
    custodian = enclave.custodian
    custodian.granted = custodian.left = 0
    waiting = asyncio.create_task(enclave.infer(Prefer="wait=20"))
    await custodian.until(lambda: len(custodian.wanted) == 1)
    await custodian.push(
        MoreDecided(consumer=custodian.alice.id, approved=False, credits=0, reason="not this week")
    )
    status, answer, _ = await waiting
    assert status == 429
    assert "not this week" in answer["error"]


async def test_a_client_that_hangs_up_while_waiting_is_not_charged(
    enclave: RunningEnclave,
) -> None:
    custodian = enclave.custodian
    custodian.granted = custodian.left = 0
    waiting = asyncio.create_task(enclave.infer(Prefer="wait=20"))
    await custodian.until(lambda: len(custodian.wanted) == 1)
    waiting.cancel()
    await asyncio.wait({waiting})
    async with asyncio.timeout(30):
        while (await enclave.get("/v1/budget", custodian.alice))[1]["waiting"]:
            pass
    await custodian.grant(1)
    assert (await enclave.infer())[0] == 200
    assert (await enclave.infer())[0] == 429


async def test_a_consumer_with_a_budget_of_its_own_gets_that_and_no_more(
    enclave: RunningEnclave,
) -> None:
    custodian = enclave.custodian
    bob = custodian.add_consumer("bob", budget=2)
    await custodian.set_roster()
    statuses = [(await enclave.infer(consumer=bob))[0] for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert (await enclave.infer())[0] == 200
    view = (await enclave.get("/v1/budget", bob))[1]
    assert (view["own_budget"], view["remaining"]) == (True, 0)


async def test_credits_leased_for_others_are_dealt_anew(enclave: RunningEnclave) -> None:
    """All that is left lies in our own lease, and none of it is for Bob, who has a budget."""
    custodian = enclave.custodian
    custodian.granted = custodian.left = 2
    assert (await enclave.infer())[0] == 200
    assert custodian.left == 0
    bob = custodian.add_consumer("bob", budget=5)
    await custodian.set_roster()
    assert (await enclave.infer(consumer=bob))[0] == 200
    assert (await enclave.infer(consumer=bob))[0] == 429


async def test_duration_zero_authorises_every_query(custodian: FakeCustodian) -> None:
    custodian.lease_duration_s = 0
    async with running_enclave(custodian) as enclave:
        statuses = await asyncio.gather(*(enclave.infer() for _ in range(12)))
        assert collections.Counter(status for status, _, _ in statuses) == {200: 10, 429: 2}
        await until_settled(custodian)
    assert custodian.spent == 10


async def test_a_lease_that_expired_while_the_process_stood_still_serves_nothing(
    enclave: RunningEnclave,
) -> None:
    """SIGSTOP, a suspend, a migration: afterwards the clock has jumped."""
    custodian = enclave.custodian
    assert (await enclave.infer())[0] == 200
    assert custodian.leased == 2
    answer_now = asyncio.Event()

    async def wait(_: object) -> None:
        await answer_now.wait()

    custodian.before_answer = wait
    enclave.clock.ahead_s += 5.0
    waiting = asyncio.create_task(enclave.infer())
    await custodian.until(lambda: len(custodian.requests) == 2)
    assert (await enclave.get("/v1/budget", custodian.alice))[1]["lease_remaining"] == 0
    assert not waiting.done()
    answer_now.set()
    assert (await waiting)[0] == 200
    assert custodian.settlements[0].used == 1


async def test_a_retry_with_its_key_is_charged_once(enclave: RunningEnclave) -> None:
    first = await enclave.infer(Idempotency_Key="one")
    again = await enclave.infer(Idempotency_Key="one")
    assert again[0] == 200
    assert again[1] == first[1]
    assert again[2]["Aigovtool-Receipt"] == first[2]["Aigovtool-Receipt"]
    other = await enclave.infer(Idempotency_Key="one", value=3.0)
    assert (other[0], other[1]["kind"]) == (422, "idempotency.other")
    bob = enclave.custodian.add_consumer("bob")
    await enclave.custodian.set_roster()
    theirs = await enclave.infer(Idempotency_Key="one", consumer=bob)
    assert theirs[2]["Aigovtool-Receipt"] != first[2]["Aigovtool-Receipt"]
    assert theirs[2]["Aigovtool-Remaining"] == "8"


async def test_retries_at_once_are_charged_once(enclave: RunningEnclave) -> None:
    answers = await asyncio.gather(*(enclave.infer(Idempotency_Key="k") for _ in range(20)))
    assert {status for status, _, _ in answers} == {200}
    assert len({headers["Aigovtool-Receipt"] for _, _, headers in answers}) == 1
    assert (await enclave.infer())[2]["Aigovtool-Remaining"] == "8"


async def test_an_uncharged_refusal_is_not_remembered(enclave: RunningEnclave) -> None:
    enclave.custodian.granted = enclave.custodian.left = 0
    assert (await enclave.infer(Idempotency_Key="k"))[0] == 429
    await enclave.custodian.grant(1)
    assert (await enclave.infer(Idempotency_Key="k"))[0] == 200


async def test_the_receipts_chain_verifies(enclave: RunningEnclave) -> None:
    custodian = enclave.custodian
    answers = await asyncio.gather(*(enclave.infer() for _ in range(10)))
    (session,) = custodian.sessions.values()
    receipts = []
    for _, _, headers in answers:
        signed = from_header(headers["Aigovtool-Receipt"])
        receipt = open_receipt(signed, public_key=session.keys.signing_key)
        receipts.append((receipt, signed.payload))
    receipts.sort(key=lambda pair: pair[0].number)
    previous = bytes(32)
    for number, (receipt, payload) in enumerate(receipts, start=1):
        assert (receipt.number, receipt.previous, receipt.cost) == (number, previous, 1)
        assert (receipt.own_number, receipt.own_previous) == (number, previous)
        assert receipt.balance_before - receipt.balance_after == 1
        assert receipt.session == session.id
        assert receipt.model_digest == custodian.model.verified.digest
        previous = sha256(payload)
    enclave.stop.set()
    await enclave.task
    assert max(one.receipts for one in custodian.settlements) == 10
    assert custodian.settlements[-1].receipt_chain == previous


async def test_each_consumer_has_a_chain_of_its_own_inside_the_sessions(
    enclave: RunningEnclave,
) -> None:
    custodian = enclave.custodian
    bob = custodian.add_consumer("bob")
    await custodian.set_roster()
    seen: list[tuple[Receipt, bytes]] = []
    for consumer in (None, bob, None, None, bob):
        _, _, headers = await enclave.infer(consumer=consumer)
        payload = from_header(headers["Aigovtool-Receipt"]).payload
        seen.append((decode(payload, Receipt), sha256(payload)))
    assert [receipt.number for receipt, _ in seen] == [1, 2, 3, 4, 5]
    assert [receipt.own_number for receipt, _ in seen] == [1, 1, 2, 3, 2]
    nothing, digests = bytes(32), [digest for _, digest in seen]
    assert [receipt.own_previous for receipt, _ in seen] == [
        nothing, nothing, digests[0], digests[2], digests[1]
    ]  # fmt: skip


@pytest.mark.parametrize("max_queue", [1])
async def test_a_full_queue_refuses_before_the_charge(
    custodian: FakeCustodian, max_queue: int
) -> None:
    limits = Limits(max_queue=max_queue)
    async with running_enclave(custodian, limits=limits, compute_threads=1) as enclave:
        answers = await asyncio.gather(*(enclave.infer() for _ in range(10)))
        served = [headers for status, _, headers in answers if status == 200]
        refused = [headers for status, _, headers in answers if status == 503]
        assert len(served) + len(refused) == 10
        assert all("Aigovtool-Receipt" not in headers for headers in refused)
        enclave.stop.set()
        await enclave.task
    assert custodian.spent == len(served)
