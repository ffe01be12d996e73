"""What the server asks of a runtime, whichever kind of model it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from aigovtool.enclave.runtime.speed import Speed
from aigovtool.ids import ConsumerId
from aigovtool.sealing.interface import Together
from aigovtool.sealing.manifest import FileEntry
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

    takes: Literal["tensors"]
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


Kind = Literal["chat", "completion"]
DEFAULT_SLOTS = 4
DEFAULT_CONTEXT = 4096  # tokens


@dataclass(frozen=True, slots=True)
class Prompt:
    """
    What a language model is asked, as it can be run.

    Args:
        body: parameters in OpenAI's words, all of them known to `wire.openai` and checked there.
        tokens: of the input, counted by the model's own tokenizer, its template included.
        max_output: tokens that it may produce at the most.
    """

    kind: Kind
    body: Mapping[str, Any]
    tokens: int
    max_output: int


@dataclass(frozen=True, slots=True)
class Piece:
    """
    A part of an answer.

    Args:
        chunk: a chunk as OpenAI streams it, with the member ``choices`` of one choice; its
            ``usage``, ``model``, ``id`` and ``created`` are made elsewhere.
        produced: tokens that the model produced up to here, those of this piece included.
    """

    chunk: Mapping[str, Any]
    produced: int


class Generation(Protocol):
    """
    One answer being made. `execute` is called once, on a thread; `terminate` from anywhere.

    Args:
        cached: tokens of the input that were not computed, because they had been kept; known when
            the first piece is told.
    """

    cached: int

    def execute(self) -> None:
        """
        Produce, telling each piece, until the answer is at its end.

        Raises:
            BadPromptError: the model cannot answer this.
            UnavailableError: it was terminated.
        """
        ...

    def terminate(self) -> None:
        """Produce nothing more as soon as possible; harmless before and after it."""
        ...


class LanguageModel(Protocol):
    """
    A loaded model that goes on from text.

    Args:
        platform: its format and runtime, as other servers of the Open Inference Protocol name it.
        context: tokens that input and output of one query may have together.
        slots: queries that are computed at one time.
        chats: whether it has a template for conversations.
        embeds: whether it gives embeddings.
        threads: on which `Generation.execute` and `embed` run, as many as there are slots.
        shared_prefixes: whether what it has kept of one consumer's prompt may serve another's; set
            by whoever knows the loan's terms, at any time, and False until then.
    """

    takes: Literal["text"]
    name: str
    version: str
    platform: str
    context: int
    slots: int
    chats: bool
    embeds: bool
    threads: Executor
    shared_prefixes: bool

    def count(self, kind: Kind, body: Mapping[str, Any]) -> int:
        """
        Return how many tokens the input has; blocks.

        Raises:
            BadPromptError: the model cannot read it.
        """
        ...

    def generate(
        self, prompt: Prompt, consumer: ConsumerId, tell: Callable[[Piece], None]
    ) -> Generation:
        """
        Begin an answer.

        Args:
            consumer: who asks: what the model has kept of one consumer's prompt serves no other,
                but with `shared_prefixes`.
            tell: called with each piece, on the thread that executes.
        """
        ...

    def count_embedded(self, texts: Sequence[str]) -> Sequence[int]:
        """Return how many tokens each text has, as `embed` reads it; raises BadPromptError."""
        ...

    def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """Return the embedding of each text; blocks; raises BadPromptError."""
        ...

    def close(self) -> None:
        """Let go of the model's memory, overwritten; nothing computes with it any more."""
        ...


Model = TensorModel | LanguageModel


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOptions:
    """
    What the borrower says of how models are run; a runtime takes what concerns it.

    Args:
        intra_op_threads: of one computation; 0 for the runtime's own choice.
        packed_bytes: larger models get no second copy of their weights.
        slots: queries that a language model computes at one time.
        context: tokens that input and output of one query to it may have together.
    """

    intra_op_threads: int = 0
    packed_bytes: int = 0
    slots: int = DEFAULT_SLOTS
    context: int = DEFAULT_CONTEXT


class Runtime(Protocol):
    """Brings one model into memory. Made for each model from its manifest and the options."""

    def allocate(self, file: FileEntry) -> memoryview:
        """
        Return writable memory of the file's size, all zero, that no disk backs; see
        `sealing.memory`.

        Raises:
            UnavailableError: there is no such memory.
        """
        ...

    def load(self, files: Mapping[str, memoryview], wipe: Callable[[], None]) -> Model:
        """
        Load the model from its files, which are whole and genuine by now; blocks.

        Args:
            files: read-only, by name: the memory that `allocate` returned.
            wipe: overwrites all of it and lets go. It is called by the model's `close`, or here if
                the model does not need it any more; when this raises, by who called this.

        Raises:
            MalformedError: not a model that this runtime can run.
            VerificationError: not the model that its manifest describes.
            UnavailableError: there is no memory for it.
        """
        ...
