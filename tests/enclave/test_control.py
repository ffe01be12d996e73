"""Stop, block, partition, shutdown, and the custodian's return."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.config import Limits
from aigovtool.wire.control import Report, SessionEnded, ShuttingDown

from . import models
from .conftest import INFER, RunningEnclave, running_enclave
from .custodian import FakeCustodian

SLOW = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]}


@contextlib.asynccontextmanager
async def slow_enclave(key: SigningKey, folder: Path, **more) -> AsyncIterator[RunningEnclave]:
    """An enclave whose model computes for a long time."""
    model = models.sealed(folder, key, models.slow())
    async with (
        FakeCustodian(key, model, budget=10) as custodian,
        running_enclave(custodian, **more) as running,
    ):
        yield running


async def until_served(enclave: RunningEnclave) -> None:
    """Ask until there is an answer, as a patient client does."""
    async with asyncio.timeout(30):
        while (await enclave.infer())[0] != 200:
            pass


async def in_flight(enclave: RunningEnclave, count: int) -> list[asyncio.Task]:
    """Send slow queries, and wait until all are charged."""
    tasks = [asyncio.create_task(enclave.infer(body=SLOW)) for _ in range(count)]
    left = 10 - count
    async with asyncio.timeout(30):
        alice = enclave.custodian.alice
        while (await enclave.get("/v1/budget", alice))[1]["remaining"] != left:
            pass
    return tasks


async def test_a_stop_cancels_what_is_in_flight_wipes_and_proves(
    key: SigningKey, tmp_path: Path
) -> None:
    async with slow_enclave(key, tmp_path) as enclave:
        custodian = enclave.custodian
        tasks = await in_flight(enclave, 3)
        await custodian.set_state("stopped", "audit")
        async with asyncio.timeout(30):
            answers = [await task for task in tasks]
        for status, answer, headers in answers:
            assert (status, answer["kind"]) == (503, "loan.not_active")
            assert "audit" in answer["error"]
            assert headers["Aigovtool-Receipt"]  # it was charged, and says so
            assert headers["Aigovtool-Refund"]  # and that was taken back
        await custodian.until(lambda: len(custodian.proofs) == 1)
        (proof,) = custodian.proofs
        assert (proof.cancelled, proof.receipts) == (3, 6)
        assert custodian.spent == 0
        assert sum(one.refunded.get("stopped", 0) for one in custodian.settlements) == 3
        assert custodian.leased == 0
        status, answer, headers = await enclave.infer(body=SLOW)
        assert (status, answer["kind"]) == (503, "loan.not_active")
        assert "Retry-After" in headers
        assert (await enclave.get("/v2/health/ready"))[0] == 503
        assert (await enclave.get("/v2/health/live"))[0] == 200
        _, view, _ = await enclave.get("/v1/budget", custodian.alice)
        assert (view["state"], view["remaining"]) == ("stopped", 0)


async def test_a_stop_wakes_who_waits(enclave: RunningEnclave) -> None:
    custodian = enclave.custodian
    custodian.granted = custodian.left = 0
    waiting = asyncio.create_task(enclave.infer(Prefer="wait=60"))
    await custodian.until(lambda: len(custodian.wanted) == 1)
    await custodian.set_state("stopped")
    assert (await waiting)[0] == 503


async def test_a_stopped_loan_that_is_active_again_is_served_again(
    enclave: RunningEnclave,
) -> None:
    custodian = enclave.custodian
    await enclave.infer()
    await custodian.set_state("stopped")
    await custodian.until(lambda: len(custodian.proofs) == 1)
    enclave.ready.clear()
    custodian.state = "active"
    async with asyncio.timeout(30):
        await enclave.ready.wait()
    assert (await enclave.infer())[0] == 200
    assert len(custodian.sessions) == 2
    assert enclave.readies[1].left == 9


async def test_a_closed_loan_is_never_asked_for_again(enclave: RunningEnclave) -> None:
    custodian = enclave.custodian
    await custodian.set_state("closed", "the end")
    await custodian.until(lambda: len(custodian.proofs) == 1)
    status, answer, _ = await enclave.infer()
    assert (status, answer["kind"]) == (503, "loan.not_active")
    _, view, _ = await enclave.get("/v1/budget", custodian.alice)
    assert (view["state"], view["remaining"]) == ("closed", 0)
    assert not custodian.nonces
    assert not enclave.task.done()


async def test_blocking_a_consumer_cancels_only_its_queries(
    key: SigningKey, tmp_path: Path
) -> None:
    async with slow_enclave(key, tmp_path) as enclave:
        custodian = enclave.custodian
        bob = custodian.add_consumer("bob")
        await custodian.set_roster()
        (hers,) = await in_flight(enclave, 1)
        his = asyncio.create_task(enclave.infer(body=SLOW, consumer=bob))
        while (await enclave.get("/v1/budget", custodian.alice))[1]["remaining"] != 8:
            pass
        bob.blocked = True
        await custodian.set_roster()
        assert (await his)[0] == 403
        assert not hers.done()
        await custodian.set_state("stopped")
        assert (await hers)[0] == 503


async def test_partitioned_it_serves_from_its_lease_and_not_one_after(
    enclave: RunningEnclave,
) -> None:
    custodian = enclave.custodian
    custodian.lease_duration_s = 1.0
    assert (await enclave.infer())[0] == 200  # the lease holds one more
    await custodian.cut()
    assert (await enclave.infer())[0] == 200
    statuses = [(await enclave.infer())[0] for _ in range(5)]
    assert statuses == [503] * 5
    _, answer, headers = await enclave.infer()
    assert answer["reasons"][0]["code"] == "custodian.unreachable"
    assert "Retry-After" in headers
    custodian.accepts = True
    await until_served(enclave)


async def test_partitioned_past_its_lease_not_one_is_served(enclave: RunningEnclave) -> None:
    custodian = enclave.custodian
    assert (await enclave.infer())[0] == 200
    await custodian.cut()
    while (await enclave.get("/v1/budget", custodian.alice))[1]["state"] != "unreachable":
        pass
    _, view, _ = await enclave.get("/v1/budget", custodian.alice)
    assert view["remaining"] == view["lease_remaining"] == 1  # and not the nine of the loan
    enclave.clock.ahead_s += 5.0
    assert (await enclave.get("/v1/budget", custodian.alice))[1]["remaining"] == 0
    assert [(await enclave.infer())[0] for _ in range(3)] == [503] * 3
    enclave.clock.ahead_s -= 5.0  # nor when the clock is turned back
    assert [(await enclave.infer())[0] for _ in range(3)] == [503] * 3
    custodian.accepts = True
    await custodian.until(lambda: len(custodian.settlements) == 1)
    assert custodian.spent == 1


async def test_an_answer_that_is_lost_is_given_again_and_counts_once(
    enclave: RunningEnclave,
) -> None:
    custodian = enclave.custodian

    async def cut_once(_: Report) -> None:
        custodian.before_answer = None
        for socket in list(custodian.sockets.values()):
            assert socket._req is not None
            assert socket._req.transport is not None
            socket._req.transport.abort()  # decided and recorded, but never sent

    custodian.before_answer = cut_once
    await until_served(enclave)
    numbers = [one.number for one in custodian.requests if isinstance(one, Report)]
    assert numbers[:2] == [1, 1]
    enclave.stop.set()
    await enclave.task
    assert custodian.spent == 1
    custodian.check()


async def test_the_custodian_shuts_down(enclave: RunningEnclave) -> None:
    custodian = enclave.custodian
    await enclave.infer()
    await custodian.push(ShuttingDown(settle_within_s=2.0))
    await custodian.until(lambda: custodian.leased == 0)
    assert custodian.spent == 1
    status, answer, _ = await enclave.infer()
    assert (status, answer["reasons"][0]["code"]) == (503, "custodian.unreachable")
    await custodian.cut()
    custodian.accepts = True
    await until_served(enclave)


async def test_a_session_that_is_not_known_any_more_enrols_anew(enclave: RunningEnclave) -> None:
    custodian = enclave.custodian
    enclave.ready.clear()
    for session in custodian.sessions.values():
        session.ended = True
    await custodian.push(SessionEnded(reason="the ledger was restored"))
    async with asyncio.timeout(30):
        await enclave.ready.wait()
    assert (await enclave.infer())[0] == 200
    assert len(custodian.sessions) == 2


async def test_after_long_silence_it_wipes_settles_late_and_enrols_anew(
    custodian: FakeCustodian,
) -> None:
    custodian.wipe_after_s = 0.4
    async with running_enclave(custodian) as enclave:
        await enclave.infer()
        enclave.ready.clear()
        await custodian.cut()
        async with asyncio.timeout(30):
            while (await enclave.get("/v2/health/ready"))[0] == 200:
                pass
        assert (await enclave.infer())[1]["reasons"][0]["code"] == "enclave.enrolling"
        custodian.accepts = True
        await custodian.until(lambda: len(custodian.proofs) == 1)
        assert "no contact" in custodian.proofs[0].reason
        assert custodian.spent == 1  # the old session settled what it had served
        async with asyncio.timeout(30):
            await enclave.ready.wait()
        assert (await enclave.infer())[0] == 200


async def test_told_to_end_it_finishes_settles_proves_and_exits(
    custodian: FakeCustodian,
) -> None:
    async with running_enclave(custodian) as enclave:
        await asyncio.gather(*(enclave.infer() for _ in range(4)))
        enclave.stop.set()
        await enclave.task
    assert (custodian.spent, custodian.leased) == (4, 0)
    assert [proof.receipts for proof in custodian.proofs] == [4]


async def test_told_to_end_it_cancels_what_takes_too_long(key: SigningKey, tmp_path: Path) -> None:
    async with slow_enclave(key, tmp_path) as enclave:
        tasks = await in_flight(enclave, 2)
        enclave.stop.set()
        async with asyncio.timeout(30):
            assert [(await task)[0] for task in tasks] == [503, 503]
            await enclave.task
        assert enclave.custodian.proofs[0].cancelled == 2


async def test_told_to_end_without_a_custodian_it_ends_all_the_same(
    custodian: FakeCustodian,
) -> None:
    async with running_enclave(custodian) as enclave:
        await enclave.infer()
        await custodian.cut()
        enclave.stop.set()
        async with asyncio.timeout(30):
            await enclave.task
    assert custodian.proofs == []


async def test_a_query_that_takes_too_long_is_ended_and_charged(
    key: SigningKey, tmp_path: Path
) -> None:
    async with slow_enclave(key, tmp_path, limits=Limits(query_time_s=0.2)) as enclave:
        status, answer, headers = await enclave.infer(body=SLOW)
        assert (status, answer["reasons"][0]["code"]) == (503, "query.time")
        assert (headers["Aigovtool-Remaining"], bool(headers["Aigovtool-Receipt"])) == ("9", True)


async def test_leases_are_renewed_in_use_and_let_go_when_idle(custodian: FakeCustodian) -> None:
    custodian.granted = custodian.left = 1_000_000
    custodian.max_lease = 1_000_000
    custodian.lease_duration_s = 0.4
    async with running_enclave(custodian) as enclave:
        statuses: collections.Counter[int] = collections.Counter()
        end = asyncio.get_running_loop().time() + 1.5
        while asyncio.get_running_loop().time() < end:
            statuses[(await enclave.infer())[0]] += 1
        assert set(statuses) == {200}
        await custodian.until(lambda: custodian.leased == 0)
        reports = len(custodian.requests)
        await asyncio.sleep(0.6)
        assert len(custodian.requests) == reports  # idle: nothing is said
    assert custodian.spent == statuses[200]


async def test_nothing_of_a_query_reaches_the_custodian_or_a_log(
    enclave: RunningEnclave, caplog: pytest.LogCaptureFixture
) -> None:
    """I5: a canary in tensors, names, ids and broken bodies."""
    caplog.set_level("DEBUG")
    canary = "7313.13731"
    await enclave.infer(value=float(canary))
    await enclave.infer(body=b'{"inputs": "' + canary.encode() + b'"}')
    await enclave.infer(
        body={
            "id": canary,
            "inputs": [{"name": canary, "datatype": "FP32", "shape": [1], "data": [canary]}],
        }
    )
    async with enclave.http.post(f"{INFER}/{canary}?{canary}") as answer:
        assert answer.status == 404
    enclave.stop.set()
    await enclave.task
    assert not any(canary in said for said in enclave.custodian.raw)
    ours = [record for record in caplog.records if record.name.startswith("aigovtool")]
    assert ours
    assert not any(canary in record.getMessage() for record in ours)
