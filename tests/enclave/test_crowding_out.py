"""One consumer with all it can send: another one is still served."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.api.http import BodyRoom
from aigovtool.enclave.config import Limits
from aigovtool.errors import UnavailableError

from . import models
from .conftest import INFER, RunningEnclave, query, running_enclave
from .custodian import FakeCustodian

SLOW = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]}
PLACES = 8


async def charged(enclave: RunningEnclave, count: int) -> None:
    """Wait until so many of 100 credits are charged."""
    async with asyncio.timeout(30):
        alice = enclave.custodian.alice
        while (await enclave.get("/v1/budget", alice))[1]["remaining"] != 100 - count:
            pass


async def test_slow_queries_of_one_consumer_leave_places_in_flight_to_another(
    key: SigningKey, tmp_path: Path
) -> None:
    model = models.sealed(tmp_path, key, models.slow())
    async with FakeCustodian(key, model, budget=100) as custodian:
        bob = custodian.add_consumer("bob")
        limits = Limits(max_queue=PLACES)
        async with running_enclave(custodian, limits=limits, compute_threads=1) as enclave:
            crowd = [asyncio.create_task(enclave.infer(body=SLOW)) for _ in range(6)]
            await charged(enclave, 6)
            for _ in range(3):
                status, answer, headers = await enclave.infer(body=SLOW)
                assert (status, answer["reasons"][0]["code"]) == (503, "queue.full")
                assert "Aigovtool-Receipt" not in headers
            crowd += [asyncio.create_task(enclave.infer(consumer=bob, body=SLOW)) for _ in range(2)]
            await charged(enclave, PLACES)
            assert (await enclave.infer(consumer=bob, body=SLOW))[0] == 503
            await custodian.set_state("stopped")
            ended = await asyncio.gather(*crowd)
    assert all("Aigovtool-Receipt" in headers for _, _, headers in ended)
    assert custodian.spent == 0  # they were stopped, which is taken back


async def test_bodies_of_one_consumer_that_never_end_leave_room_to_another(
    custodian: FakeCustodian,
) -> None:
    bob = custodian.add_consumer("bob")
    rows = query([[1.0, 1.0]] * 100)
    size = len(json.dumps(rows))
    custodian.granted = custodian.left = custodian.max_lease = 10_000
    limits = Limits(max_body_bytes=size, max_bodies_bytes=4 * size)
    async with running_enclave(custodian, limits=limits) as enclave:
        never = asyncio.Event()

        async def slowly():  # type: ignore[no-untyped-def]
            yield json.dumps(rows).encode()[:-1]
            await never.wait()

        async def upload() -> int:
            headers = custodian.alice.authorization
            async with enclave.http.post(INFER, data=slowly(), headers=headers) as answer:
                return answer.status

        async with asyncio.timeout(30):
            holding = [asyncio.create_task(upload()) for _ in range(4)]
            done, _ = await asyncio.wait(holding, return_when=asyncio.FIRST_COMPLETED)
            assert [task.result() for task in done] == [503]  # the fourth finds no room of its own
            assert (await enclave.infer(consumer=bob, body=rows))[0] == 200
        for task in holding:
            task.cancel()
        await asyncio.gather(*holding, return_exceptions=True)


def test_room_is_given_back_to_whom_it_was_taken_from() -> None:
    room = BodyRoom(100, 75)
    room.take(75, "alice")
    with pytest.raises(UnavailableError):
        room.take(1, "alice")
    room.take(25, "bob")
    with pytest.raises(UnavailableError):
        room.take(1, "carol")
    room.give_back(75, "alice")
    room.give_back(25, "bob")
    room.give_back(0, "carol")
    room.take(75, "alice")
    assert room._taken == {"alice": 75}
