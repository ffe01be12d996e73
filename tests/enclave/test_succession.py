"""A loan's model is replaced while it serves: nobody is refused, and nothing is paid for twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave import supervisor
from aigovtool.proof.receipt_signature import open_receipt
from aigovtool.wire.receipt import from_header

from . import models
from .conftest import RunningEnclave, query, running_enclave
from .custodian import FakeCustodian
from .models import Sealed

SLOW = query([1.0], shape=[1])


@pytest.fixture
def second(key: SigningKey, tmp_path: Path) -> Sealed:
    folder = tmp_path / "second"
    folder.mkdir()
    return models.sealed(folder, key, models.tripling(), version="2")


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "REFUSED_FIRST_S", 0.05)


@pytest.fixture
async def rich(custodian: FakeCustodian) -> AsyncIterator[RunningEnclave]:
    custodian.granted = custodian.left = 100_000
    async with running_enclave(custodian) as running:
        yield running


async def taken_over(enclave: RunningEnclave) -> None:
    """Wait until the enclave has begun to serve a second time."""
    async with asyncio.timeout(30):
        while len(enclave.readies) < 2:
            enclave.ready.clear()
            await enclave.ready.wait()


async def test_no_query_fails_while_another_model_takes_over(
    rich: RunningEnclave, second: Sealed
) -> None:
    custodian, versions, over = rich.custodian, [], asyncio.Event()

    async def ask(number: int) -> None:
        while not over.is_set():
            status, told, headers = await rich.infer(value=float(number))
            assert status == 200
            factor = {"1": 2.0, "2": 3.0}[told["model_version"]]
            assert told["outputs"][0]["data"] == [factor * number] * 2
            assert "Aigovtool-Receipt" in headers
            versions.append(told["model_version"])

    asking = [asyncio.create_task(ask(number)) for number in range(8)]
    while len(versions) < 20:
        await asyncio.wait(asking, timeout=0.01, return_when=asyncio.FIRST_COMPLETED)
    await custodian.push_replaced(second)
    await taken_over(rich)
    first_of_new = len(versions)
    while len(versions) < first_of_new + 100:
        await asyncio.wait(asking, timeout=0.01, return_when=asyncio.FIRST_COMPLETED)
    over.set()
    await asyncio.gather(*asking)
    assert versions[0] == "1"
    assert set(versions[first_of_new + 8 :]) == {"2"}  # eight were under way
    assert [ready.version for ready in rich.readies] == ["1", "2"]
    await custodian.until(lambda: len(custodian.proofs) == 1)  # the old one's, with its receipts
    assert custodian.proofs[0].cancelled == 0
    rich.stop.set()
    await rich.task
    assert custodian.spent == len(versions)
    assert sum(proof.receipts for proof in custodian.proofs) == len(versions)
    custodian.check()


async def test_all_credits_in_the_old_ones_lease_are_there_for_the_new_one(
    custodian: FakeCustodian, second: Sealed
) -> None:
    custodian.least_lease = 10  # all that there is
    async with running_enclave(custodian) as enclave:
        for _ in range(3):
            assert (await enclave.infer())[0] == 200
        assert custodian.left == 0
        asking = [asyncio.create_task(enclave.infer()) for _ in range(4)]
        await custodian.push_replaced(second)
        assert [(await one)[0] for one in asking] == [200] * 4
        await taken_over(enclave)
        assert [(await enclave.infer())[0] for _ in range(4)] == [200, 200, 200, 429]
    assert (custodian.spent, custodian.left) == (10, 0)


async def test_who_waits_for_credits_waits_on_and_is_served_by_the_new_one(
    custodian: FakeCustodian, second: Sealed
) -> None:
    custodian.granted = custodian.left = 1
    async with running_enclave(custodian) as enclave:
        assert (await enclave.infer())[0] == 200
        waiting = asyncio.create_task(enclave.infer(Prefer="wait=60"))
        await custodian.until(lambda: len(custodian.wanted) == 1)
        await custodian.push_replaced(second)
        await taken_over(enclave)
        assert not waiting.done()
        await custodian.grant(1)
        status, told, _ = await waiting
        assert (status, told["model_version"]) == (200, "2")
    assert custodian.spent == 2


async def test_what_was_charged_is_answered_by_the_model_that_it_was_charged_for(
    key: SigningKey, tmp_path: Path, second: Sealed
) -> None:
    first = models.sealed(tmp_path, key, models.slow())
    async with (
        FakeCustodian(key, first, budget=10) as custodian,
        running_enclave(custodian) as enclave,
    ):
        slow = asyncio.create_task(enclave.infer(body=SLOW))
        while (await enclave.get("/v1/budget", custodian.alice))[1]["remaining"] != 9:
            pass
        await custodian.push_replaced(second)
        await taken_over(enclave)
        assert (await enclave.infer(value=1.0))[1]["outputs"][0]["data"] == [3.0, 3.0]
        assert not slow.done()
        assert not custodian.proofs
        status, told, headers = await slow
        assert (status, told["model_version"]) == (200, "1")
        receipt = open_receipt(
            from_header(headers["Aigovtool-Receipt"]),
            public_key=next(iter(custodian.sessions.values())).keys.signing_key,
        )
        assert receipt.session == next(iter(custodian.sessions))
        assert receipt.model_digest == first.verified.digest
        await custodian.until(lambda: len(custodian.proofs) == 1)
        assert (custodian.proofs[0].receipts, custodian.proofs[0].cancelled) == (1, 0)


async def test_a_model_that_cannot_be_loaded_leaves_the_old_one_served(
    rich: RunningEnclave, second: Sealed
) -> None:
    custodian = rich.custodian
    custodian.body_override = bytes(100)
    await custodian.push_replaced(second)
    await custodian.until(lambda: len(custodian.proofs) == 2)  # two tries
    status, told, _ = await rich.infer()
    assert (status, told["model_version"]) == (200, "1")
    assert len(rich.readies) == 1
    custodian.body_override = None
    await taken_over(rich)
    assert (await rich.infer())[1]["model_version"] == "2"


async def test_a_push_that_was_missed_is_told_on_connecting(
    rich: RunningEnclave, second: Sealed
) -> None:
    custodian = rich.custodian
    assert (await rich.infer())[0] == 200
    await custodian.cut()
    custodian.replace(second)
    custodian.accepts = True
    await taken_over(rich)
    assert (await rich.infer())[1]["model_version"] == "2"


async def test_a_stop_ends_both_the_session_that_serves_and_its_successor(
    rich: RunningEnclave, second: Sealed
) -> None:
    custodian = rich.custodian
    custodian.body_gate = asyncio.Event()
    await custodian.push_replaced(second)
    await custodian.until(lambda: len(custodian.sockets) == 2)
    assert (await rich.infer())[1]["model_version"] == "1"
    await custodian.set_state("stopped")
    await custodian.until(lambda: len(custodian.proofs) == 2)
    assert (await rich.infer())[0] == 503
    custodian.body_gate.set()
    assert (await rich.infer())[0] == 503
    assert {proof.receipts for proof in custodian.proofs} == {0, 1}
    assert custodian.spent == 1


async def test_a_model_that_may_not_be_served_any_more_is_wiped_at_once(
    rich: RunningEnclave, second: Sealed
) -> None:
    custodian = rich.custodian
    custodian.retire_after_s = 0.0
    custodian.body_gate = asyncio.Event()  # the new one is not there yet
    await custodian.push_replaced(second)
    await custodian.until(lambda: bool(custodian.proofs))
    status, told, _ = await rich.infer()
    assert status == 503
    assert "replaced" in str(told) or "enrolling" in str(told) or "loading" in str(told)
    custodian.body_gate.set()
    await taken_over(rich)
    assert (await rich.infer())[1]["model_version"] == "2"


async def test_a_model_that_is_lent_again_before_it_was_replaced_stays(
    rich: RunningEnclave, second: Sealed
) -> None:
    custodian, first = rich.custodian, rich.custodian.model
    custodian.body_override = bytes(100)
    await custodian.push_replaced(second)
    await custodian.until(lambda: bool(custodian.proofs))
    await custodian.push_replaced(first)
    assert (await rich.infer())[1]["model_version"] == "1"
    tried = len(custodian.sessions)
    await custodian.until(lambda: len(custodian.proofs) == len(custodian.sessions) - 1)
    for _ in range(20):
        assert (await rich.infer())[1]["model_version"] == "1"
    assert len(custodian.sessions) <= tried + 1
    assert len(rich.readies) == 1


async def test_a_retry_gets_the_answer_of_the_model_that_was_paid(
    rich: RunningEnclave, second: Sealed
) -> None:
    custodian = rich.custodian
    _, before, _ = await rich.infer(Idempotency_Key="k")
    await custodian.push_replaced(second)
    await taken_over(rich)
    status, again, headers = await rich.infer(Idempotency_Key="k")
    assert (status, again, headers["Aigovtool-Replayed"]) == (200, before, "1")
    rich.stop.set()
    await rich.task
    assert custodian.spent == 1
