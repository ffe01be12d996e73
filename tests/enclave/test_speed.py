"""Which models are computed on the event loop, and whose rows may share a run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from msgspec import UNSET
from onnx import TensorProto, helper

from aigovtool.enclave.runtime import speed as measured
from aigovtool.enclave.runtime.speed import (
    ALONE_S,
    MAX_AT_ONCE,
    QUICK_S,
    SLOW,
    Compute,
    Speed,
    measure,
    work_is_known,
)
from aigovtool.sealing.interface import Batch, Together
from aigovtool.wire.oip import TensorSignature
from aigovtool.wire.tensors import Array

X, Y = "x", "y"
ROWS = (-1, 3)


def signature(name: str, shape: tuple[int, ...], datatype: str = "FP32") -> TensorSignature:
    return TensorSignature(name=name, datatype=datatype, shape=shape)


def speed(
    compute: Compute,
    *,
    takes: TensorSignature | None = None,
    gives: tuple[int, ...] = ROWS,
    max_items: int = 1000,
    axis: int | None = 0,
    together: int | None = None,
    cores: int = 2,
) -> Speed:
    said = UNSET if together is None else Together(max_items=together)
    return measure(
        compute,
        inputs=[takes or signature(X, ROWS)],
        outputs=[signature(Y, gives)],
        batch=None if axis is None else Batch(axes={X: axis}, max_items=max_items, together=said),
        cores=cores,
    )


def doubled(inputs: Mapping[str, Array]) -> Sequence[Array]:
    return [inputs[X] * 2]


def test_rows_that_stand_alone_share_a_run() -> None:
    assert speed(doubled) == Speed(MAX_AT_ONCE, shared=True)
    assert speed(doubled, max_items=4) == Speed(4, shared=True)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: x - x.mean(axis=0),
        lambda x: x / np.abs(x).max(),
        lambda x: x[::-1].copy(),
        lambda x: x + np.float32(1e-7) * len(x),
        lambda x: x if len(x) < 17 else x + 1,  # only when there are many
        lambda x: np.where(np.isnan(x).any(), np.float32(0), x),  # only beside what is no number
        lambda x: x[:1],
    ],
)
def test_rows_that_depend_on_their_neighbours_share_none(mixed: Compute) -> None:
    assert not speed(lambda inputs: [mixed(inputs[X])]).shared


def slowly(compute: Compute) -> Compute:
    def slow(inputs: Mapping[str, Array]) -> Sequence[Array]:
        end_s = time.perf_counter() + 2 * QUICK_S
        while time.perf_counter() < end_s:
            pass
        return compute(inputs)

    return slow


def test_as_many_rows_of_a_slow_model_share_a_run_as_stand_alone() -> None:
    assert speed(slowly(doubled), together=8) == Speed(0, together=8)
    assert speed(slowly(doubled), together=8, max_items=3) == Speed(0, together=3)
    assert speed(slowly(doubled), takes=signature(X, (3, -1)), axis=1, together=8) == SLOW
    once_five = slowly(lambda inputs: [inputs[X] + (len(inputs[X]) > 4)])
    assert speed(once_five, together=8) == Speed(0, together=4)
    mixed = slowly(lambda inputs: [np.where(np.isnan(inputs[X]).any(), 0, inputs[X])])
    assert speed(mixed, together=8) == SLOW


def test_on_one_core_a_model_that_takes_longer_is_quick_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread would take turns with the event loop on it; but queries gather behind a thread."""
    monkeypatch.setattr(measured, "_fastest_s", lambda *_: ALONE_S / 3)
    assert speed(doubled, cores=2) == SLOW
    assert speed(doubled, cores=1) == Speed(3, shared=True)
    assert speed(doubled, takes=signature(X, (1, 3)), axis=None, cores=1) == Speed(1)
    assert speed(doubled, cores=1, together=8) == Speed(0, together=8)


def test_trying_how_many_rows_stand_alone_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "TRY_S", 0.05)
    assert 1 <= speed(slowly(doubled), together=1000).together < 1000


def test_a_batch_that_is_not_the_first_dimension_is_not_shared() -> None:
    assert not speed(doubled, takes=signature(X, (3, -1)), gives=(3, -1), axis=1).shared
    assert not speed(lambda inputs: [np.zeros((1, 3), np.float32)], gives=(1, 3)).shared


def test_a_query_that_is_one_item_is_alone() -> None:
    assert speed(doubled, takes=signature(X, (2, 3)), axis=None) == Speed(1)


def test_a_model_that_takes_its_time_is_slow() -> None:
    assert speed(slowly(doubled)) == SLOW


def test_work_that_is_not_known_beforehand_is_slow() -> None:
    assert speed(doubled, takes=signature(X, (-1, -1))) == SLOW
    assert speed(doubled, takes=signature(X, (-1,), "BYTES")) == SLOW


def test_a_model_that_fails_on_zeros_is_slow_and_usable() -> None:
    def compute(_: Mapping[str, Array]) -> Sequence[Array]:
        raise RuntimeError("no zeros")

    assert speed(compute) == SLOW


@pytest.mark.parametrize("operator", ["Loop", "Scan", "Range", "Expand", "Tile", "Resize"])
def test_operators_that_work_by_value_are_seen_wherever_they_are(operator: str) -> None:
    def model(operator: str) -> bytes:
        inner = helper.make_graph([helper.make_node(operator, ["a"], ["b"])], "inner", [], [])
        outer = [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)]
        value = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
        made: onnx.ModelProto = helper.make_model(helper.make_graph(outer, "g", [value], []))
        return made.SerializeToString()

    assert not work_is_known(model(operator))
    assert work_is_known(model("Relu"))
