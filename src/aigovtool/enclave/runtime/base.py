"""What the server asks of a runtime, whichever kind of model it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from aigovtool.enclave.runtime.speed import Speed
from aigovtool.sealing.interface import Together
from aigovtool.wire.oip import ModelMetadata
from aigovtool.wire.tensors import Array


class Run(Protocol):
    """One computation. `execute` is called once, on a thread; `terminate` from anywhere."""

    def execute(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """
        Compute the named *outputs*.

        Raises:
            BadTensorError: the model cannot compute with these tensors.
            UnavailableError: it was terminated.
        """
        ...

    def terminate(self) -> None:
        """Let the computation end as soon as it can; harmless before and after it."""
        ...


class TensorModel(Protocol):
    """A loaded model that takes and gives tensors."""

    metadata: ModelMetadata
    labels: Mapping[str, Sequence[str]]  # of the classes of an output, by its name
    speed: Speed
    together: Together | None  # how queries may share a run on a thread, None where they may not

    def price(self, inputs: Mapping[str, Array]) -> int:
        """
        Return what a query with *inputs*, which fit `metadata`, costs, in credits.

        Raises:
            BadTensorError: not a batch that the model takes.
        """
        ...

    def prepare(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """
        Return *inputs*, which fit `metadata`, as `Run.execute` takes them; nothing is charged yet.

        Raises:
            BadTensorError: a value that this runtime cannot hold.
        """
        ...

    def new_run(self) -> Run:
        """Begin a computation."""
        ...

    def close(self) -> None:
        """Let go of the model's memory; nothing computes with it any more."""
        ...
