"""A model that turns out to be slow leaves the event loop, and is served all the same."""

from __future__ import annotations

import pytest

from aigovtool.enclave import pace
from aigovtool.enclave.pace import SLOW_RUNS, TOO_OFTEN_S, TOO_SLOW_S, Pace
from aigovtool.enclave.runtime import speed
from aigovtool.enclave.runtime.base import TensorModel
from aigovtool.enclave.runtime.speed import Speed

from .conftest import query, running_enclave
from .custodian import FakeCustodian
from .test_turn import receipt_of, request, together


class Quick:
    speed = Speed(7)


def model() -> TensorModel:
    return Quick()  # type: ignore[return-value]


def test_some_slow_runs_far_between_are_the_machine() -> None:
    seen = Pace()
    for number in range(20):
        begin_s = number * TOO_OFTEN_S / (SLOW_RUNS - 1)
        seen.took(begin_s, begin_s + 2 * TOO_SLOW_S)
    assert seen.at_once(model()) == 7


def test_slow_runs_one_after_the_other_are_the_model() -> None:
    seen = Pace()
    for number in range(SLOW_RUNS):
        assert seen.at_once(model()) == 7
        seen.took(number, number + 2 * TOO_SLOW_S)
    assert seen.at_once(model()) == 0
    seen.took(100.0, 100.0)
    assert seen.at_once(model()) == 0  # for good


@pytest.mark.parametrize("keyed", [False, True], ids=["in turns", "by the application"])
async def test_a_slow_model_is_left_to_the_threads_and_served(
    custodian: FakeCustodian, monkeypatch: pytest.MonkeyPatch, keyed: bool
) -> None:
    monkeypatch.setattr(speed, "_fastest_s", lambda *_: 1e-5)
    monkeypatch.setattr(pace, "TOO_SLOW_S", -1.0)
    async with running_enclave(custodian) as enclave:
        costs = []
        for number in range(SLOW_RUNS + 3):
            more = f"Idempotency-Key: {number}\r\n" if keyed else ""
            asked = request(query([[number, 1]]), custodian.alice, more=more)
            (answer,) = await together(enclave, [asked], warm=False)
            assert answer.data == [2.0 * number, 2.0]
            costs.append(receipt_of(enclave, answer).cost)
        assert costs == [1] * (SLOW_RUNS + 3)
        used = (await enclave.get("/v1/budget", custodian.alice))[1]
        assert used["remaining"] == custodian.granted - sum(costs)
