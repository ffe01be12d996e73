"""
Queries that wait for a compute thread, joined into runs where the signed manifest says so.

A model that reads a hundred megabytes of weights for one row reads them once for sixteen. Whoever
gains from that is the custodian's to say (`sealing.interface.Together`); whether rows stand alone
is tried when the model is loaded (`runtime.speed`).

Rule 1: a query is due when it has waited for the manifest's delay, or as many items wait as a run
        may hold. Which queries a run holds is decided when a thread begins it: what came while
        all threads were busy joins without any delay.
Rule 2: each query is taken by a thread that was asked for at the latest when it was due, so that
        none waits for others to come.
Rule 3: queries of one kind share a run: of one consumer, unless the manifest says otherwise, with
        the same outputs and shapes.
Rule 4: a query that is cut frees its place, or, once begun, lets its neighbours go on: the run is
        terminated when nobody waits for it any more.
Rule 5: where a shared run fails, each of its queries is computed again alone, so that neighbours
        are answered and it is told its own fault.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np

from aigovtool.enclave.runtime.base import Run, TensorModel
from aigovtool.errors import PromiseBrokenError
from aigovtool.ids import ConsumerId
from aigovtool.sealing.interface import Together
from aigovtool.wire.tensors import Array

Outputs = dict[str, Array]


class Rows(Protocol):
    """A query's part of a run: *items* rows, first axis, of each input."""

    @property
    def items(self) -> int: ...

    @property
    def inputs(self) -> Mapping[str, Array]: ...


Q = TypeVar("Q", bound=Rows)


def take(waiting: deque[Q], max_items: int) -> list[Q]:
    """Take from the front what fits into one run, at least one query: first come, first served."""
    taken = [waiting.popleft()]
    items = taken[0].items
    while waiting and items + waiting[0].items <= max_items:
        items += waiting[0].items
        taken.append(waiting.popleft())
    return taken


def compute(
    queries: Sequence[Q], wanted: Sequence[str], new_run: Callable[[Sequence[Q]], Run]
) -> list[Outputs | Exception]:
    """
    Compute *queries* in one run, and return the outputs of each, or why there are none.

    Args:
        wanted: names of outputs.
        new_run: begins a run for some of the queries: for all, or for one (Rule 5).
    """
    try:
        run = new_run(queries)
        if len(queries) == 1:
            return [run.execute(queries[0].inputs, wanted)]
        rows = {
            name: np.concatenate([query.inputs[name] for query in queries])
            for name in queries[0].inputs
        }
        outputs = run.execute(rows, wanted)
        items = sum(query.items for query in queries)
        if any(output.shape[:1] != (items,) for output in outputs.values()):
            raise PromiseBrokenError("a run gave other rows than it was given")
    except Exception as error:  # noqa: BLE001 - charged: whatever happens, there is a receipt
        if len(queries) == 1:
            return [error]
        return [found for query in queries for found in compute([query], wanted, new_run)]
    parted: list[Outputs | Exception] = []
    start = 0
    for query in queries:
        end = start + query.items
        parted.append({name: output[start:end] for name, output in outputs.items()})
        start = end
    return parted


class _Ride:
    """One run, and how many still wait for it."""

    __slots__ = ("aboard", "run")

    def __init__(self, run: Run, aboard: int) -> None:
        self.run = run
        self.aboard = aboard

    def leave(self) -> None:
        self.aboard -= 1
        if self.aboard == 0:
            self.run.terminate()


class Seat:
    """A query that waits, is taken by a thread, and can be told to end, as a `Run` can."""

    __slots__ = ("_left", "_lock", "_ride", "inputs", "items", "job", "taken")

    def __init__(self, inputs: Mapping[str, Array], items: int, lock: threading.Lock) -> None:
        self.inputs = inputs
        self.items = items
        self.job: Future[Outputs] = Future()
        self.taken = False
        self._left = False
        self._ride: _Ride | None = None
        self._lock = lock

    def board(self, ride: _Ride) -> None:
        """This run computes it now."""
        with self._lock:
            self._ride = ride
            if self._left:
                ride.leave()

    def terminate(self) -> None:
        """Nobody waits for its outputs any more."""
        with self._lock:
            if not self._left:
                self._left = True
                if self._ride is not None:
                    self._ride.leave()


class Batching:
    """
    The queries of one model that wait for a thread.

    Args:
        model: computes them.
        pool: the threads.
        together: what the manifest says, with no more items than stand alone.
    """

    def __init__(self, model: TensorModel, pool: ThreadPoolExecutor, together: Together) -> None:
        self._model = model
        self._pool = pool
        self._together = together
        self._waiting: dict[Hashable, deque[Seat]] = {}
        self._lock = threading.Lock()  # of what waits, and of who sits where

    def add(
        self,
        consumer: ConsumerId,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        items: int,
    ) -> Seat:
        """Let a query wait for a thread; its `job` ends with its outputs."""
        wanted = tuple(outputs)
        whose = None if self._together.across_consumers else consumer
        kind = (whose, wanted, tuple(array.shape[1:] for array in inputs.values()))
        seat = Seat(inputs, items, self._lock)
        with self._lock:
            queue = self._waiting.setdefault(kind, deque())
            queue.append(seat)
            full = sum(one.items for one in queue) >= self._together.max_items

        def due() -> None:
            if not seat.taken:
                self._pool.submit(self._serve, seat, kind, wanted)

        if full or not self._together.max_delay_ms:
            due()
        else:
            asyncio.get_running_loop().call_later(self._together.max_delay_ms / 1000, due)
        seat.job.add_done_callback(lambda _: self._vacate(seat, kind))
        return seat

    def _vacate(self, seat: Seat, kind: Hashable) -> None:
        """It is over; if it was cut before a thread took it, it waits no longer."""
        with self._lock:
            if not seat.taken:
                seat.taken = True
                queue = self._waiting[kind]
                queue.remove(seat)
                if not queue:
                    del self._waiting[kind]

    def _serve(self, seat: Seat, kind: Hashable, wanted: Sequence[str]) -> None:
        """Compute what waits in front of *seat*, with it or before it, on a thread."""
        with self._lock:
            if seat.taken:
                return
            queue = self._waiting[kind]
            riders = take(queue, self._together.max_items)
            for one in riders:
                one.taken = True
            if not queue:
                del self._waiting[kind]
        if not seat.taken:
            self._pool.submit(self._serve, seat, kind, wanted)
        if riders := [one for one in riders if one.job.set_running_or_notify_cancel()]:
            for one, found in zip(riders, compute(riders, wanted, self._begin), strict=True):
                if isinstance(found, Exception):
                    one.job.set_exception(found)
                else:
                    one.job.set_result(found)

    def _begin(self, riders: Sequence[Seat]) -> Run:
        ride = _Ride(self._model.new_run(), aboard=len(riders))
        for one in riders:
            one.board(ride)
        return ride.run
