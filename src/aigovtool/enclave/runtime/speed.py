"""
How fast a model computes, and whether queries may share a run: measured when it is loaded.

A quick model is computed on the event loop: a hop to a thread and back costs more than it does.
Where there is one core, this goes for models that take longer, too: a thread would take turns with
the event loop on it, which gains nothing and lets each query wait longer.

Rule 1: only a model whose work is known beforehand can be called quick: every dimension but the
        batch's is fixed, no input is text, and no operator does more work for other values
        (`work_is_known`). Zeros are what it is measured with.
Rule 2: queries share a run only if each gets, bit for bit, what it gets alone: tried with rows that
        differ, one of them not a number, for every number of rows that may come. Some models mix
        rows (a norm over the batch), and some kernels round otherwise when there are more.
        Of a slow model as many rows may share a run as were tried in a bounded time (`TRY_S`).
Rule 3: whatever goes wrong here makes a model slow, never unusable.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec import UnsetType

from aigovtool.sealing.batch import FREE
from aigovtool.sealing.interface import Batch
from aigovtool.wire.oip import TensorSignature
from aigovtool.wire.tensors import BYTES, DTYPES, Array

QUICK_S = 0.0005  # of one item; a thread's hop costs a tenth of this
RUN_S = 0.002  # of one run on the event loop, so that everything else there goes on
ALONE_S = 0.01  # of both, on one core
MAX_AT_ONCE = 32  # items; what a run costs besides its items is spread thin by then
HOPELESS_S = 100 * QUICK_S
TRY_S = 5.0  # in which it is tried how many rows of a slow model may share a run
RUNS = 5  # of which the fastest counts: the machine does other things, too

# operators of ai.onnx and com.microsoft whose work, or output's size, values decide
_BY_VALUE = (
    *("Loop", "Scan", "SequenceMap", "BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch"),
    *("Range", "Expand", "Tile", "ConstantOfShape", "Resize", "Upsample", "Pad", "OneHot"),
    *("CenterCropPad", "Col2Im", "MaxUnpool", "DFT", "STFT", "MelWeightMatrix", "HannWindow"),
    *("HammingWindow", "BlackmanWindow", "DynamicTimeWarping"),
)
_OP_TYPE = b"\x22"  # field 4 of NodeProto in onnx.proto, of wire type 2: a length and the name
_NODES_BY_VALUE = tuple(_OP_TYPE + bytes([len(name)]) + name.encode() for name in _BY_VALUE)

Compute = Callable[[Mapping[str, Array]], Sequence[Array]]


@dataclass(frozen=True, slots=True)
class Speed:
    """
    What was measured.

    Args:
        at_once: how many items one run on the event loop may hold; 0 for a model that is not quick.
        shared: whether these may be of several queries.
        together: how many items of several queries a run on a thread may hold; tried only for a
            slow model whose manifest wants it.
    """

    at_once: int
    shared: bool = False
    together: int = 1


SLOW = Speed(0)


def work_is_known(entry: bytes) -> bool:
    """
    Return whether no operator of a model works longer for some values than for others.

    Args:
        entry: the model's file. It is searched, not read: what only looks like an operator makes a
            model slow, which is harmless.
    """
    return not any(node in entry for node in _NODES_BY_VALUE)


def measure(
    compute: Compute,
    *,
    inputs: Sequence[TensorSignature],
    outputs: Sequence[TensorSignature],
    batch: Batch | None,
    cores: int,
) -> Speed:
    """
    Measure a model.

    Args:
        compute: gives all outputs, in order; raises what it likes.
        batch: how the model takes batches; None when a query is one item.
        cores: that the enclave may use.
    """
    axes = {} if batch is None else batch.axes
    if any(
        one.datatype == BYTES
        or FREE in (size for axis, size in enumerate(one.shape) if axis != axes.get(one.name))
        for one in inputs
    ):
        return SLOW
    try:
        zeros = {one.name: _filled(one, 1, axes.get(one.name)) for one in inputs}
        joined = batch is not None and not isinstance(batch.together, UnsetType)
        quick_s, run_s = (ALONE_S, ALONE_S) if cores == 1 and not joined else (QUICK_S, RUN_S)
        item_s = _fastest_s(compute, zeros)
        quick = item_s <= quick_s
        if batch is None:
            return Speed(1) if quick else SLOW
        rows_first = [axes.get(one.name) == 0 for one in inputs]
        rows_first += [one.shape[:1] == (FREE,) for one in outputs]
        if quick:
            at_once = min(MAX_AT_ONCE, batch.max_items, int(run_s / item_s))
            stand_alone = all(rows_first) and _stand_alone(compute, inputs, at_once) == at_once
            return Speed(at_once, shared=stand_alone)
        if isinstance(batch.together, UnsetType) or not all(rows_first):
            return SLOW
        limit = min(batch.together.max_items, batch.max_items)
        until_s = time.perf_counter() + TRY_S
        return Speed(0, together=_stand_alone(compute, inputs, limit, until_s=until_s))
    except Exception:  # noqa: BLE001 - whatever the runtime raises (Rule 3)
        return SLOW


def _fastest_s(compute: Compute, inputs: Mapping[str, Array]) -> float:
    """Return what the fastest of some runs took; the first may still make something ready."""
    fastest_s = math.inf
    for _ in range(RUNS):
        begin_s = time.perf_counter()
        compute(inputs)
        fastest_s = min(fastest_s, time.perf_counter() - begin_s)
        if fastest_s > HOPELESS_S:
            break  # do not keep the enclave from serving
    return fastest_s


def _stand_alone(
    compute: Compute,
    inputs: Sequence[TensorSignature],
    limit: int,
    *,
    until_s: float = math.inf,
) -> int:
    """Return up to how many rows, all numbers tried, get together what each gets alone (Rule 2)."""
    random = np.random.default_rng(0)
    rows = {one.name: _random_row(random, one) for one in inputs}
    alone = _by_row(compute(rows))
    for count in range(2, limit + 1):
        more = {one.name: _random_row(random, one) for one in inputs}
        if count == 2:
            for row in more.values():
                if row.dtype.kind == "f":
                    row[:] = np.nan  # one bad input must not hurt its neighbours
        for column, of_row in zip(alone, _by_row(compute(more)), strict=True):
            column.extend(of_row)
        rows = {name: np.concatenate((row, more[name])) for name, row in rows.items()}
        if time.perf_counter() > until_s or _by_row(compute(rows)) != alone:
            return count - 1
    return limit


def _by_row(outputs: Sequence[Array]) -> list[list[bytes]]:
    return [[row.tobytes() for row in output] for output in outputs]


def _filled(one: TensorSignature, items: int, axis: int | None) -> Array:
    shape = [items if at == axis else size for at, size in enumerate(one.shape)]
    return np.zeros(shape, DTYPES[one.datatype])


def _random_row(random: np.random.Generator, one: TensorSignature) -> Array:
    """A row of values that any model can take: small whole numbers where it takes whole ones."""
    dtype, shape = DTYPES[one.datatype], (1, *one.shape[1:])
    if dtype.kind != "f":
        return random.integers(0, 2, shape).astype(dtype)
    return random.standard_normal(shape).astype(dtype)
