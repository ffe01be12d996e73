"""Queries joined into one run by the manifest's word: each gets its own, whatever others do."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.batching import Batching, Seat, take
from aigovtool.enclave.runtime import speed
from aigovtool.enclave.runtime.onnx import OnnxRun
from aigovtool.errors import BadTensorError, UnavailableError
from aigovtool.ids import ConsumerId
from aigovtool.sealing.interface import Batch, ModelInterface, TensorInput, TensorOutput, Together
from aigovtool.wire.codec import decode
from aigovtool.wire.receipt import Receipt, from_header
from aigovtool.wire.tensors import Array

from . import models
from .conftest import RunningEnclave, query, running_enclave
from .custodian import Consumer, FakeCustodian

LIMIT_S = 30
ALICE, BOB = ConsumerId("con_alice"), ConsumerId("con_bob")
BAD = 13.0  # a row that the model below fails on

# --- what a run takes -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Items:
    items: int
    inputs: Mapping[str, Array] = field(default_factory=dict)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(2, 12))
def test_runs_are_full_in_order_and_never_over(sizes: list[int], max_items: int) -> None:
    queries = [Items(size) for size in sizes]
    waiting, taken = deque(queries), []
    while waiting:
        run = take(waiting, max_items)
        items = sum(one.items for one in run)
        assert len(run) == 1 or items <= max_items
        assert not waiting or items + waiting[0].items > max_items
        taken += run
    assert [id(one) for one in taken] == [id(one) for one in queries]


# --- threads and cuts -----------------------------------------------------------------------------


class Doubling:
    """A model in words: twice its rows. It computes when *gate* is open, and fails on `BAD`."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)
        self.rows: list[list[float]] = []
        self.ended: list[bool] = []

    def new_run(self) -> DoublingRun:
        return DoublingRun(self)


class DoublingRun:
    def __init__(self, model: Doubling) -> None:
        self._model = model
        self._ended = threading.Event()

    def execute(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        self._model.begun.release()
        while not self._model.gate.wait(0.002) and not self._ended.is_set():
            pass
        self._model.ended.append(self._ended.is_set())
        if self._ended.is_set():
            raise UnavailableError("the computation was ended")
        self._model.rows.append(inputs["x"].ravel().tolist())
        if BAD in inputs["x"]:
            raise BadTensorError("thirteen")
        return dict.fromkeys(outputs, inputs["x"] * 2)

    def terminate(self) -> None:
        self._ended.set()


@contextlib.contextmanager
def batching(model: Doubling, threads: int = 1, **words: Any) -> Iterator[Batching]:
    with ThreadPoolExecutor(threads) as pool:
        try:
            yield Batching(model, pool, Together(**{"max_items": 8} | words))  # type: ignore[arg-type]
        finally:
            model.gate.set()


def add(to: Batching, *rows: float, consumer: ConsumerId = ALICE) -> Seat:
    inputs = {"x": np.array([[row] for row in rows], np.float32)}
    return to.add(consumer, inputs, ["y"], len(rows))


def found(seat: Seat) -> list[float]:
    return seat.job.result(LIMIT_S)["y"].ravel().tolist()


async def busy(model: Doubling, to: Batching) -> Seat:
    """Let the one thread compute until the gate opens, so that others wait."""
    model.gate.clear()
    seat = add(to, 0.0)
    assert await asyncio.to_thread(model.begun.acquire, timeout=LIMIT_S)
    return seat


async def test_what_waits_for_a_thread_shares_a_run() -> None:
    model = Doubling()
    with batching(model) as queries:
        seats = [await busy(model, queries), *(add(queries, n, n + 0.5) for n in range(1, 6))]
        model.gate.set()
        assert [found(seat) for seat in seats] == [[0], *([2 * n, 2 * n + 1] for n in range(1, 6))]
    assert [len(rows) for rows in model.rows] == [1, 8, 2]


@pytest.mark.parametrize("across", [False, True])
async def test_two_consumers_share_a_run_only_by_the_manifests_word(across: bool) -> None:
    model = Doubling()
    with batching(model, across_consumers=across) as queries:
        first = await busy(model, queries)
        seats = [add(queries, n, consumer=(ALICE, BOB)[n % 2]) for n in range(1, 5)]
        model.gate.set()
        assert [found(seat) for seat in (first, *seats)] == [[2 * n] for n in range(5)]
    expected = [[1, 2, 3, 4]] if across else [[1, 3], [2, 4]]
    assert sorted(model.rows[1:]) == expected


async def test_a_query_that_fails_is_told_so_alone() -> None:
    model = Doubling()
    with batching(model) as queries:
        await busy(model, queries)
        seats = [add(queries, row) for row in (1.0, BAD, 3.0)]
        model.gate.set()
        assert (found(seats[0]), found(seats[2])) == ([2], [6])
        with pytest.raises(BadTensorError):
            seats[1].job.result(LIMIT_S)


async def test_a_run_ends_when_its_last_rider_has_left_and_no_sooner() -> None:
    model = Doubling()
    with batching(model) as queries:
        first = await busy(model, queries)
        one, other = add(queries, 4.0), add(queries, 5.0)
        assert first.job.running()
        first.terminate()  # which lets the two begin
        assert await asyncio.to_thread(model.begun.acquire, timeout=LIMIT_S)
        one.terminate()
        one.terminate()  # a second word changes nothing
        assert not other.job.done()
        other.terminate()
        with pytest.raises(UnavailableError):
            other.job.result(LIMIT_S)
    assert model.ended[-1]


async def test_a_query_that_is_cut_while_it_waits_is_not_computed() -> None:
    model = Doubling()
    with batching(model, max_delay_ms=1000) as queries:
        cut, kept = add(queries, 1.0), add(queries, 2.0)
        assert cut.job.cancel()
        more = [add(queries, n) for n in range(3, 10)]  # the run is full: nobody waits longer
        assert [found(seat) for seat in (kept, *more)] == [[2 * n] for n in range(2, 10)]
    assert model.rows == [list(range(2, 10))]


async def test_a_query_alone_waits_no_longer_than_the_manifest_says() -> None:
    model = Doubling()
    loop = asyncio.get_running_loop()
    with batching(model, max_delay_ms=20) as queries:
        begin_s = loop.time()
        seat = add(queries, 1.0)
        assert (await asyncio.wrap_future(seat.job))["y"].tolist() == [[2]]
        assert loop.time() - begin_s >= 0.019


@given(
    asked=st.lists(
        st.tuples(st.integers(1, 5), st.sampled_from([ALICE, BOB]), st.booleans(), st.booleans()),
        min_size=1,
        max_size=25,
    ),
    delay_ms=st.sampled_from([0.0, 1.0]),
    threads=st.integers(1, 3),
)
def test_whoever_is_not_cut_gets_its_own(
    asked: list[tuple[int, ConsumerId, bool, bool]], delay_ms: float, threads: int
) -> None:
    model, number = Doubling(), itertools.count(100)

    async def ask() -> None:
        with batching(model, threads, max_items=6, max_delay_ms=delay_ms) as queries:
            seats = []
            for items, consumer, fails, cut in asked:
                rows = [float(next(number)) for _ in range(items)]
                if fails:
                    rows[-1] = BAD
                seats.append((add(queries, *rows, consumer=consumer), rows))
                if cut:
                    seats[-1][0].job.cancel()
                    seats[-1][0].terminate()
            for seat, rows in seats:
                if seat.job.cancelled():
                    continue
                try:
                    outputs = await asyncio.wait_for(asyncio.wrap_future(seat.job), LIMIT_S)
                except BadTensorError:
                    assert BAD in rows
                except UnavailableError:
                    assert seat._left
                else:
                    assert outputs["y"].ravel().tolist() == [2 * row for row in rows]
            assert not queries._waiting

    asyncio.run(ask())
    assert all(len(rows) <= 6 for rows in model.rows)


# --- in an enclave --------------------------------------------------------------------------------


@dataclass
class Gate:
    """Holds every computation but the first *allowed*, and keeps how many rows each had."""

    allowed: float = 0
    rows: list[int] = field(default_factory=list)

    def open(self) -> None:
        self.allowed = math.inf


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    held, execute = Gate(), OnnxRun.execute

    def gated(run: OnnxRun, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Any:
        held.rows.append(len(next(iter(inputs.values()))))
        number = len(held.rows)
        while number > held.allowed and not run._options.terminate:
            time.sleep(0.001)
        return execute(run, inputs, outputs)

    monkeypatch.setattr(OnnxRun, "execute", gated)
    monkeypatch.setattr(speed, "_fastest_s", lambda *_: 1.0)  # so that threads compute it
    return held


@contextlib.asynccontextmanager
async def joining(
    tmp_path: Path, model: Any = None, *, datatype: Any = "FP32", **words: Any
) -> AsyncIterator[RunningEnclave]:
    """An enclave with one compute thread whose model computes queries together."""
    key = SigningKey.generate()
    files, signature = model or models.doubling()
    interface = ModelInterface(
        inputs=(TensorInput(name="x", datatype=datatype, shape=signature.inputs[0].shape),),
        outputs=(TensorOutput(name="y"),),
        batch=Batch(axes={"x": 0}, together=Together(**{"max_items": 8} | words)),
    )
    sealed = models.sealed(tmp_path, key, (files, signature), interface=interface)
    async with FakeCustodian(key, sealed, budget=100) as custodian:
        custodian.least_lease = 50
        custodian.add_consumer("bob")
        async with running_enclave(custodian, compute_threads=1) as enclave:
            yield enclave


async def waiting(
    enclave: RunningEnclave, asked: Sequence[tuple[Consumer, dict]]
) -> list[asyncio.Task[Any]]:
    """Send queries in their order, each once the one before it is charged."""
    tasks = []
    async with asyncio.timeout(LIMIT_S):
        for count, (consumer, body) in enumerate(asked, start=1):
            tasks.append(asyncio.create_task(enclave.infer(consumer=consumer, body=body)))
            while (await enclave.get("/v1/budget", consumer))[1]["remaining"] != 100 - count:
                pass
    return tasks


def receipt_of(headers: Any, name: str = "Receipt") -> Receipt:
    return decode(from_header(headers[f"Aigovtool-{name}"]).payload, Receipt)


async def test_each_query_of_a_run_has_its_answer_and_its_receipt(
    gate: Gate, tmp_path: Path
) -> None:
    async with joining(tmp_path) as enclave:
        alice = enclave.custodian.alice
        tasks = await waiting(enclave, [(alice, query([[n, -n]])) for n in range(6)])
        gate.open()
        for n, (status, answer, headers) in enumerate(await asyncio.gather(*tasks)):
            assert (status, answer["outputs"][0]["data"]) == (200, [2.0 * n, -2.0 * n])
            assert receipt_of(headers).number == n + 1
            assert receipt_of(headers).cost == 1
        assert gate.rows == [1, 5]
        enclave.stop.set()
        await enclave.task
        enclave.custodian.check()


async def test_without_a_word_each_query_has_a_run_of_its_own(gate: Gate, tmp_path: Path) -> None:
    key = SigningKey.generate()
    async with FakeCustodian(
        key, models.sealed(tmp_path, key, models.doubling()), budget=100
    ) as custodian:
        custodian.least_lease = 50
        async with running_enclave(custodian, compute_threads=1) as enclave:
            tasks = await waiting(enclave, [(custodian.alice, query([[n, n]])) for n in range(4)])
            gate.open()
            assert [answer[0] for answer in await asyncio.gather(*tasks)] == [200] * 4
    assert gate.rows == [1, 1, 1, 1]


async def test_a_block_cuts_one_out_of_a_run_and_its_neighbour_is_answered(
    gate: Gate, tmp_path: Path
) -> None:
    async with joining(tmp_path, across_consumers=True) as enclave:
        custodian = enclave.custodian
        alice, bob = custodian.alice, custodian.consumers[BOB]
        first, *pair = await waiting(enclave, [(alice, query([[1, 1]]))])
        pair = [
            asyncio.create_task(enclave.infer(consumer=who, body=query([[n, n]])))
            for who, n in ((alice, 2), (bob, 3))
        ]
        async with asyncio.timeout(LIMIT_S):
            while (await enclave.get("/v1/budget", alice))[1]["remaining"] != 97:
                pass
        gate.allowed = 1
        assert (await first)[0] == 200
        async with asyncio.timeout(LIMIT_S):
            while gate.rows != [1, 2]:
                await enclave.get("/v1/budget", alice)
        bob.blocked = True
        await custodian.set_roster()
        status, _, headers = await asyncio.wait_for(pair[1], LIMIT_S)
        assert status == 403
        assert receipt_of(headers, "Refund").cost == -1
        assert not pair[0].done()
        gate.open()
        status, answer, _ = await asyncio.wait_for(pair[0], LIMIT_S)
        assert (status, answer["outputs"][0]["data"]) == (200, [4.0, 4.0])
        assert gate.rows == [1, 2]


async def test_a_stop_cuts_a_whole_run_and_all_is_taken_back(gate: Gate, tmp_path: Path) -> None:
    async with joining(tmp_path) as enclave:
        custodian = enclave.custodian
        tasks = await waiting(enclave, [(custodian.alice, query([[n, n]])) for n in range(4)])
        await custodian.set_state("stopped", "audit")
        async with asyncio.timeout(LIMIT_S):
            for status, answer, headers in [await task for task in tasks]:
                assert (status, answer["kind"]) == (503, "loan.not_active")
                assert receipt_of(headers, "Refund").cost == -1
            await custodian.until(lambda: len(custodian.proofs) == 1)  # no thread computes
        custodian.check()


async def test_a_query_that_fails_in_a_run_is_refunded_and_its_neighbours_are_answered(
    gate: Gate, tmp_path: Path
) -> None:
    async with joining(tmp_path, models.failing(), datatype="INT64") as enclave:
        alice = enclave.custodian.alice
        bodies = [query([n], datatype="INT64", shape=[1]) for n in (0, 1, 9, 2)]
        tasks = await waiting(enclave, [(alice, body) for body in bodies])
        gate.open()
        answers = await asyncio.gather(*tasks)
        assert [status for status, _, _ in answers] == [200, 200, 422, 200]
        assert [answer["outputs"][0]["data"] for _, answer, _ in (*answers[:2], answers[3])] == [
            [0], [1], [4],
        ]  # fmt: skip
        assert receipt_of(answers[2][2], "Refund").cost == -1
        assert gate.rows == [1, 3, 1, 1, 1]
