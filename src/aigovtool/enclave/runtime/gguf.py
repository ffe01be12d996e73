"""
Language models of the format GGUF, on llama.cpp (the extra ``llm``).

Rule 1: weights are where they were decrypted, in a sealed memory file, from which llama.cpp maps
        them; they are overwritten when the model is closed and llama.cpp is gone.
Rule 2: tokens are counted by llama.cpp itself, of the input beforehand and of the output with each
        piece; it produces no more than it is told to.
Rule 3: what is kept of a prompt serves whom `slots` says.
"""

from __future__ import annotations

import functools
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any, Literal

import msgspec

from aigovtool.enclave.runtime.base import Kind, Piece, Prompt, RuntimeOptions
from aigovtool.enclave.runtime.cores import usable_cores
from aigovtool.enclave.runtime.llamacpp import Engine, unreadable
from aigovtool.enclave.runtime.memory_file import MemoryFile
from aigovtool.enclave.runtime.parameters import (
    alternatives_of,
    as_completion,
    input_of,
    run_of,
    trimmed,
)
from aigovtool.enclave.runtime.slots import Slots
from aigovtool.errors import (
    BadPromptError,
    ConfigurationError,
    MalformedError,
    UnavailableError,
)
from aigovtool.ids import ConsumerId
from aigovtool.sealing.manifest import FileEntry, SealedManifest

PLATFORM = "gguf_llamacpp"
EMBEDDED_TOKENS = 512  # of one text
_OK = 200
_BUSY = 503

# GGUF v3: a key is a string (its length, 8 bytes) before the type of its value (4 bytes)
_METADATA_BYTES = 64 << 20  # at the file's beginning; 20 times a large vocabulary
_UINT32, _STRING = 4, 8
_TEMPLATE = b"tokenizer.chat_template"
_HAS_TEMPLATE = struct.pack("<Q", len(_TEMPLATE)) + _TEMPLATE + struct.pack("<I", _STRING)
_HAS_POOLING = b".pooling_type" + struct.pack("<I", _UINT32)  # after the architecture's name


class GgufRuntime:
    """
    Decrypts to memory files, from which llama.cpp loads. Implements `base.Runtime`.

    Raises:
        ConfigurationError: the extra ``llm`` is not installed.
    """

    def __init__(self, manifest: SealedManifest, options: RuntimeOptions) -> None:
        if find_spec("xllamacpp") is None:
            raise ConfigurationError(
                "llama.cpp is not installed, which models of the format gguf need",
                expected="the extra `llm`",
                mend="pip install 'aigovtool[llm]'",
            )
        self._manifest = manifest
        self._options = options
        self._memory: dict[str, MemoryFile] = {}

    def allocate(self, file: FileEntry) -> memoryview:
        self._memory[file.name] = MemoryFile(file.size)
        return self._memory[file.name].view

    def load(self, files: Mapping[str, memoryview], wipe: Callable[[], None]) -> GgufModel:
        for memory in self._memory.values():
            memory.seal()
        options = self._options

        def let_go() -> None:
            wipe()
            for memory in self._memory.values():
                memory.close()

        return GgufModel(
            self._manifest,
            self._memory[self._manifest.entry],
            slots=options.slots,
            context=options.context,
            threads=options.intra_op_threads or usable_cores(),
            repacked=self._manifest.plaintext_size <= options.packed_bytes,
            wipe=let_go,
        )


class GgufModel:
    """Implements `base.LanguageModel`; see `GgufRuntime.load`."""

    takes: Literal["text"] = "text"
    platform = PLATFORM
    embeds = True

    def __init__(
        self,
        manifest: SealedManifest,
        memory: MemoryFile,
        *,
        slots: int,
        context: int,
        threads: int,
        repacked: bool,
        wipe: Callable[[], None],
    ) -> None:
        self.name, self.version = manifest.name, manifest.version
        self.slots = slots
        self.threads = ThreadPoolExecutor(slots, thread_name_prefix="generate")
        self.chats = memory.holds(_HAS_TEMPLATE, within=_METADATA_BYTES)
        self.shared_prefixes = False
        self._memory = memory
        self._threads = threads
        self._repacked = repacked
        self._wipe = wipe
        self._engine = Engine(
            memory.path, slots=slots, context=context, threads=threads, repacked=repacked
        )
        _, about = self._engine.ask("/props")
        # llama.cpp rounds it up, and goes no further than the model was trained for
        self.context = min(context, about["default_generation_settings"]["n_ctx"])
        self._lent = Slots(slots)
        self._embedding: Engine | MalformedError | None = None  # or why there is none
        self._making = threading.Lock()

    def count(self, kind: Kind, body: Mapping[str, Any]) -> int:
        asked = input_of(kind, body)
        if kind == "completion":
            prompt = asked["prompt"]
            return len(prompt) if isinstance(prompt, list) else self._tokens(self._engine, prompt)
        status, answer = self._engine.ask("/v1/chat/completions/input_tokens", asked)
        if status != _OK:
            raise _refusal(status, "messages")
        return int(answer["input_tokens"])

    def generate(
        self, prompt: Prompt, consumer: ConsumerId, tell: Callable[[Piece], None]
    ) -> GgufGeneration:
        return GgufGeneration(
            self._engine, self._lent, prompt, consumer, tell, shared=self.shared_prefixes
        )

    def count_embedded(self, texts: Sequence[str]) -> Sequence[int]:
        return [self._tokens(self._engine, text) for text in texts]

    def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        with self._making:
            if self._embedding is None:
                self._embedding = self._embedder()
        if isinstance(self._embedding, MalformedError):
            raise self._embedding.with_traceback(None)
        return self._embedding.embeddings(texts)

    def close(self) -> None:
        self.threads.shutdown()
        self._engine.close()
        with self._making:
            if isinstance(self._embedding, Engine):
                self._embedding.close()
        self._wipe()

    def _embedder(self) -> Engine | MalformedError:
        pooling = self._memory.holds(_HAS_POOLING, within=_METADATA_BYTES)
        try:
            return Engine(
                self._memory.path,
                slots=1,
                context=min(EMBEDDED_TOKENS, self.context),
                threads=self._threads,
                repacked=self._repacked,
                pooled=not pooling,
            )
        except MalformedError as error:
            return error  # and not tried again with each query

    def _tokens(self, engine: Engine, text: str) -> int:
        asked = {"content": text, "add_special": True, "parse_special": True}
        status, answer = engine.ask("/tokenize", asked)
        if status != _OK:
            raise _refusal(status, "prompt")
        return len(answer["tokens"])


class GgufGeneration:
    """One answer; implements `base.Generation`."""

    def __init__(
        self,
        engine: Engine,
        slots: Slots,
        prompt: Prompt,
        consumer: ConsumerId,
        tell: Callable[[Piece], None],
        *,
        shared: bool,
    ) -> None:
        self.cached = 0
        self._engine = engine
        self._slots = slots
        self._prompt = prompt
        self._consumer = consumer
        self._tell = tell
        self._shared = shared
        self._alternatives = alternatives_of(prompt)
        self._terminated = False
        self._failure: BaseException | None = None
        self._waiting: list[dict[str, Any]] = []  # choices whose tokens are not counted yet
        self._said = 0  # characters
        self._greeted = self._ended = False
        self._begun: Callable[[], None] = lambda: None

    def execute(self) -> None:
        asked = msgspec.json.encode(input_of(self._prompt.kind, self._prompt.body))
        with self._slots.taken(
            self._consumer, asked, shared=self._shared, given_up=lambda: self._terminated
        ) as slot:
            body = run_of(self._prompt, slot=slot.number, cached=slot.cached)
            self._begun = functools.partial(self._slots.begun, slot, self._consumer, asked)
            self._engine.run(self._prompt.kind, body, self._told)
        if self._failure is not None:
            raise self._failure
        if self._ended:
            return
        if self._terminated:
            raise UnavailableError("the answer was ended", code="query.terminated")
        raise UnavailableError("the model ended without an answer", code="model.compute")

    def terminate(self) -> None:
        self._terminated = True
        self._slots.wake()

    def _told(self, raw: bytes) -> bool:
        """Take a chunk, on the thread of the run; True ends it."""
        if not self._terminated and self._failure is None:
            try:
                self._take(msgspec.json.decode(raw))
            except BaseException as error:  # noqa: BLE001 - raised by `execute`: not through C++
                self._failure = error
        return self._terminated or self._failure is not None

    def _take(self, chunk: Mapping[str, Any]) -> None:
        if "error" in chunk:
            raise _failure(chunk["error"], self._prompt)
        if (progress := chunk.get("prompt_progress")) is not None:
            if progress["processed"] > progress["cache"]:
                self._begun()
            return
        self._waiting += chunk.get("choices", ())
        if (timings := chunk.get("timings")) is None:
            return  # of several chunks for one token the last says how many there are by now
        self.cached = timings["cache_n"]
        waiting, self._waiting = self._waiting, []
        for choice in waiting:
            self._ended = self._ended or choice["finish_reason"] is not None
            self._tell(
                Piece(chunk={"choices": [self._plain(choice)]}, produced=timings["predicted_n"])
            )

    def _plain(self, choice: dict[str, Any]) -> dict[str, Any]:
        """Return a choice as OpenAI has it."""
        logprobs = choice.get("logprobs")
        if self._prompt.kind == "chat":
            delta = choice["delta"]
            if not self._greeted:
                self._greeted = True
                delta = {"role": "assistant"} | delta
            if logprobs is not None and self._alternatives is not None:
                logprobs = trimmed(logprobs, self._alternatives)
            return {
                "index": 0,
                "delta": delta,
                "logprobs": logprobs,
                "finish_reason": choice["finish_reason"],
            }
        text = choice["text"]
        if logprobs is not None and self._alternatives is not None:
            logprobs = as_completion(logprobs, self._alternatives, self._said)
        self._said += len(text)
        return {
            "index": 0,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": choice["finish_reason"],
        }


def _failure(error: Mapping[str, Any], prompt: Prompt) -> BadPromptError | UnavailableError:
    """Say what llama.cpp said in the middle of a stream, without its words."""
    param = "messages" if prompt.kind == "chat" else "prompt"
    if error.get("type") == "exceed_context_size_error":
        return BadPromptError(
            "the input is longer than the model's context",
            code="context_length_exceeded",
            expected=f"at most {error.get('n_ctx')} tokens",
            came=f"{error.get('n_prompt_tokens')}",
            param=param,
        )
    return _refusal(int(error.get("code", 0)), None)


def _refusal(status: int, param: str | None) -> BadPromptError | UnavailableError:
    if status == _BUSY:
        return UnavailableError("the model is busy", code="model.busy")
    return unreadable(param)
