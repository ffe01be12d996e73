"""
A runtime for language models of the format ``echo``: their one file is a word, said before what is
asked is said again. It shows all that a runtime has to do; tokens are words.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aigovtool.enclave.runtime.base import Kind, Piece, Prompt, RuntimeOptions
from aigovtool.errors import BadPromptError, UnavailableError
from aigovtool.ids import ConsumerId
from aigovtool.sealing.manifest import FileEntry, SealedManifest
from aigovtool.sealing.memory import anonymous_memory


class EchoRuntime:
    """Brings one model into memory. Implements `base.Runtime`."""

    def __init__(self, manifest: SealedManifest, options: RuntimeOptions) -> None:
        self._manifest = manifest
        self._options = options

    def allocate(self, file: FileEntry) -> memoryview:
        return anonymous_memory(file.size)

    def load(self, files: Mapping[str, memoryview], wipe: Callable[[], None]) -> EchoModel:
        return EchoModel(self._manifest, self._options, files[self._manifest.entry], wipe)


class EchoModel:
    """Implements `base.LanguageModel`."""

    chats = True
    embeds = False
    shared_prefixes = False

    def __init__(
        self,
        manifest: SealedManifest,
        options: RuntimeOptions,
        weights: memoryview,
        wipe: Callable[[], None],
    ) -> None:
        self.name, self.version = manifest.name, manifest.version
        self.context, self.slots = options.context, options.slots
        self._weights = weights
        self._wipe = wipe

    def count(self, kind: Kind, body: Mapping[str, Any]) -> int:
        return len(words(kind, body))

    def generate(self, prompt: Prompt, consumer: ConsumerId, tell: Callable[[Piece], None]) -> Echo:
        said = [bytes(self._weights).decode(), *words(prompt.kind, prompt.body)]
        return Echo(prompt, said, tell)

    def count_embedded(self, texts: Sequence[str]) -> Sequence[int]:
        raise BadPromptError("an echo has no embeddings", param="input")

    def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        raise BadPromptError("an echo has no embeddings", param="input")

    def close(self) -> None:
        self._wipe()


class Echo:
    """One answer. Implements `base.Generation`."""

    cached = 0

    def __init__(self, prompt: Prompt, said: list[str], tell: Callable[[Piece], None]) -> None:
        self._prompt = prompt
        self._said = said[: prompt.max_output]
        self._whole = len(self._said) == len(said)
        self._tell = tell
        self._terminated = threading.Event()

    def execute(self) -> None:
        for number, word in enumerate(self._said, 1):
            if self._terminated.is_set():
                raise UnavailableError("the answer was ended", code="query.terminated")
            self._tell(self._piece(word + " ", number, finish_reason=None))
        reason = "stop" if self._whole else "length"
        self._tell(self._piece("", len(self._said), finish_reason=reason))

    def terminate(self) -> None:
        self._terminated.set()

    def _piece(self, text: str, produced: int, *, finish_reason: str | None) -> Piece:
        said = {"delta": {"content": text}} if self._prompt.kind == "chat" else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish_reason}
        return Piece(chunk={"choices": [choice]}, produced=produced)


def words(kind: Kind, body: Mapping[str, Any]) -> list[str]:
    """Return what is asked: the prompt, or all messages one after the other."""
    texts = [body["prompt"]] if kind == "completion" else [m["content"] for m in body["messages"]]
    if not all(isinstance(text, str) for text in texts):
        raise BadPromptError("only text can be echoed")
    return [word for text in texts for word in text.split()]
