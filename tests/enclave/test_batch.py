"""A batch costs a credit for each of its items, whatever a client says of it."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from aigovtool.crypto.signing import SigningKey
from aigovtool.ids import ConsumerId
from aigovtool.wire.codec import decode
from aigovtool.wire.oip import HEADER_LENGTH, encode_infer_request
from aigovtool.wire.receipt import Receipt, from_header

from . import models
from .conftest import INFER, RunningEnclave, query, running_enclave
from .custodian import FakeCustodian


@contextlib.asynccontextmanager
async def lending(
    tmp_path: Path, model: object, *, budget: int
) -> AsyncIterator[tuple[FakeCustodian, RunningEnclave]]:
    key = SigningKey.generate()
    async with (
        FakeCustodian(key, models.sealed(tmp_path, key, model), budget=budget) as custodian,  # type: ignore[arg-type]
        running_enclave(custodian) as enclave,
    ):
        yield custodian, enclave


def batch(items: int) -> dict:
    return query([[1.0, 2.0]] * items)


def cost_of(headers: object) -> int:
    return decode(from_header(headers["Aigovtool-Receipt"]).payload, Receipt).cost  # type: ignore[index]


async def settle(custodian: FakeCustodian, enclave: RunningEnclave) -> None:
    enclave.stop.set()
    await enclave.task
    assert custodian.leased == 0
    custodian.check()


async def test_a_batch_of_fifty_costs_fifty(enclave: RunningEnclave) -> None:
    custodian = enclave.custodian
    custodian.granted = custodian.left = 60
    status, answer, headers = await enclave.infer(body=batch(50))
    assert (status, answer["outputs"][0]["shape"]) == (200, [50, 2])
    assert (cost_of(headers), headers["Aigovtool-Remaining"]) == (50, "10")
    assert (await enclave.infer(body=batch(10)))[0] == 200
    assert (await enclave.infer())[0] == 429
    await settle(custodian, enclave)
    assert (custodian.spent, custodian.left) == (60, 0)


async def test_a_binary_batch_costs_as_much(enclave: RunningEnclave) -> None:
    enclave.custodian.granted = enclave.custodian.left = 60
    encoded = encode_infer_request({"x": np.ones((50, 2), np.float32)})
    async with enclave.http.post(
        INFER,
        data=b"".join(bytes(chunk) for chunk in encoded.chunks),
        headers=enclave.custodian.alice.authorization | dict(encoded.headers),
    ) as answer:
        assert (answer.status, HEADER_LENGTH in answer.headers) == (200, True)
        assert cost_of(answer.headers) == 50


async def test_a_batch_of_texts_costs_one_for_each(tmp_path: Path) -> None:
    async with lending(tmp_path, models.every_type(), budget=10) as (_, enclave):
        inputs = [
            {"name": f"in_{kind}", "datatype": kind, "shape": [3], "data": [value] * 3}
            for kind in models.ONNX_TYPES
            for value in ["a text" if kind == "BYTES" else kind == "BOOL" or 1]
            if kind != "FP16"  # only as binary data
        ]
        half = np.ones(3, np.float16).tobytes()
        inputs.append(
            {
                "name": "in_FP16",
                "datatype": "FP16",
                "shape": [3],
                "parameters": {"binary_data_size": len(half)},
            }
        )
        head = json.dumps({"inputs": inputs}).encode()
        status, _, headers = await enclave.infer(
            body=head + half, **{"Inference_Header_Content_Length": str(len(head))}
        )
        assert (status, cost_of(headers)) == (200, 3)


@pytest.mark.parametrize(("a", "b"), [(1, 50), (50, 1), (0, 0)])
async def test_broadcasting_computes_no_batch_for_the_price_of_one(
    tmp_path: Path, a: int, b: int
) -> None:
    async with lending(tmp_path, models.adding(), budget=60) as (custodian, enclave):
        inputs = [
            query([[1.0, 2.0]] * n, name=name)["inputs"][0] for name, n in (("a", a), ("b", b))
        ]
        for one, n in zip(inputs, (a, b), strict=True):
            one["shape"] = [n, 2]
        status, answer, headers = await enclave.infer(body={"inputs": inputs})
        assert (status, answer["kind"]) == (422, "bad_tensor")
        assert "Aigovtool-Receipt" not in headers
        assert custodian.left == 60


@pytest.mark.parametrize("shape", [[1, 2], [100], [], [-50, 2], [50, 2, 1], ["50", 2], [10**12, 2]])
async def test_a_shape_that_lies_is_refused_and_charged_nothing(
    enclave: RunningEnclave, shape: list
) -> None:
    body = batch(50)
    body["inputs"][0]["shape"] = shape
    status, _, headers = await enclave.infer(body=body)
    assert status in (400, 413, 422)
    assert "Aigovtool-Receipt" not in headers
    assert enclave.custodian.left == 10


async def test_what_costs_more_than_is_left_is_refused_and_the_rest_still_serves(
    enclave: RunningEnclave,
) -> None:
    status, answer, headers = await enclave.infer(body=batch(11))
    assert (status, answer["kind"]) == (429, "budget.exhausted")
    assert "costs 11 credits" in answer["error"]
    assert headers["Aigovtool-Remaining"] == "10"
    assert (await enclave.infer(body=batch(10)))[0] == 200


async def test_what_no_lease_can_hold_is_refused_for_good(custodian: FakeCustodian) -> None:
    custodian.granted = custodian.left = 100
    custodian.max_lease = 20
    async with running_enclave(custodian) as enclave:
        assert (await enclave.infer())[0] == 200  # the custodian's answer said how much fits
        for prefer in ({}, {"Prefer": "wait=20"}):
            status, answer, _ = await enclave.infer(body=batch(21), **prefer)
            assert (status, answer["reasons"][0]["code"]) == (413, "budget.too_large")
        assert (await enclave.infer(body=batch(20)))[0] == 200
        assert len(custodian.wanted) == 0  # nobody is asked for what would not help


async def test_the_first_query_of_all_may_be_the_one_that_no_lease_can_hold(
    custodian: FakeCustodian,
) -> None:
    custodian.granted = custodian.left = 100
    custodian.max_lease = 20
    async with running_enclave(custodian) as enclave:
        assert (await enclave.infer(body=batch(21)))[0] == 413


async def test_pieces_of_several_leases_are_dealt_anew_for_a_batch(enclave: RunningEnclave) -> None:
    custodian = enclave.custodian
    custodian.max_lease = 10
    custodian.lease_duration_s = 60
    assert (await enclave.infer(body=batch(4)))[0] == 200  # leaves a piece of some lease
    status, _, _ = await enclave.infer(body=batch(6))
    assert status == 200
    await settle(custodian, enclave)
    assert custodian.spent == 10


async def test_batches_at_the_end_of_a_budget_use_exactly_the_budget(
    custodian: FakeCustodian,
) -> None:
    custodian.granted = custodian.left = 100
    async with running_enclave(custodian) as enclave:
        answers = await asyncio.gather(*(enclave.infer(body=batch(7)) for _ in range(40)))
        assert collections.Counter(status for status, _, _ in answers) == {200: 14, 429: 26}
        answers = await asyncio.gather(*(enclave.infer() for _ in range(10)))
        assert collections.Counter(status for status, _, _ in answers) == {200: 2, 429: 8}
        await settle(custodian, enclave)
    assert (custodian.spent, custodian.left) == (100, 0)


async def test_a_batch_that_waits_is_woken_when_there_is_enough(enclave: RunningEnclave) -> None:
    custodian = enclave.custodian
    waiting = asyncio.create_task(enclave.infer(body=batch(12), Prefer="wait=20"))
    await custodian.until(lambda: len(custodian.wanted) == 1)
    assert custodian.wanted[0].credits == 12
    await custodian.grant(2)
    async with asyncio.timeout(30):
        assert (await waiting)[0] == 200


async def test_a_batch_finds_out_that_another_enclave_gave_back(enclave: RunningEnclave) -> None:
    custodian = enclave.custodian
    waiting = asyncio.create_task(enclave.infer(body=batch(12), Prefer="wait=20"))
    await custodian.until(lambda: len(custodian.wanted) == 1)
    custodian.granted, custodian.left = custodian.granted + 2, custodian.left + 2  # no push
    async with asyncio.timeout(30):
        assert (await waiting)[0] == 200


async def test_a_consumers_own_budget_pays_for_its_batches(enclave: RunningEnclave) -> None:
    custodian = enclave.custodian
    carol = custodian.add_consumer("carol", budget=5)
    await custodian.set_roster()
    while (await enclave.get("/v1/budget", carol))[0] != 200:
        pass
    assert (await enclave.infer(consumer=carol, body=batch(6)))[0] == 429
    assert (await enclave.infer(consumer=carol, body=batch(5)))[0] == 200
    assert (await enclave.infer(consumer=carol))[0] == 429
    await settle(custodian, enclave)
    assert custodian.settlements[-1].by_consumer in ({ConsumerId("con_carol"): 5}, {})
    assert custodian.spent == 5


async def test_a_lease_of_no_duration_pays_for_a_batch(custodian: FakeCustodian) -> None:
    custodian.lease_duration_s = 0
    async with running_enclave(custodian) as enclave:
        assert (await enclave.infer(body=batch(8)))[0] == 200
        assert (await enclave.infer(body=batch(3)))[0] == 429
        assert (await enclave.infer(body=batch(2)))[0] == 200
