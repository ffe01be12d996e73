"""Language models that say what a test lets them say, on threads as real ones do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aigovtool.enclave.runtime.base import Kind, Piece, Prompt
from aigovtool.errors import BadPromptError, UnavailableError
from aigovtool.ids import ConsumerId

WORDS = ("one", " two", " three", " four", " five", " six", " seven", " eight", " nine", " ten")


class Utterance:
    """One answer: a word a token, each when its model lets it go on."""

    def __init__(self, model: Talker, prompt: Prompt, tell: Callable[[Piece], None]) -> None:
        self._model = model
        self._prompt = prompt
        self._tell = tell
        self._ended = threading.Event()
        self.cached = 0

    def execute(self) -> None:
        model = self._model
        with model.counting:
            model.running += 1
            model.idle.clear()
            model.most_running = max(model.most_running, model.running)
        try:
            for number in range(self._prompt.max_output):
                model.step(self._ended)
                if self._ended.is_set():
                    raise UnavailableError("the computation was ended", code="query.terminated")
                if model.fails_at == number:
                    raise BadPromptError("the model cannot answer this")
                with model.counting:
                    model.produced += 1
                last = number + 1 == self._prompt.max_output
                word = WORDS[number % len(WORDS)]
                self._tell(Piece(chunk(word, kind=self._prompt.kind, last=last), number + 1))
        finally:
            with model.counting:
                model.running -= 1
                if not model.running:
                    model.idle.set()

    def terminate(self) -> None:
        self._ended.set()
        self._model.wake()


class Talker:
    """
    A language model of which a word is a token.

    Args:
        step: called before each token, with the event that says that the answer is ended.
    """

    takes = "text"
    platform = "test"

    def __init__(
        self,
        *,
        slots: int = 4,
        context: int = 64,
        step: Callable[[threading.Event], None] = lambda _: None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.version = "talker", "1"
        self.slots, self.context = slots, context
        self.chats = self.embeds = True
        self.shared_prefixes = False
        self.threads = ThreadPoolExecutor(slots)
        self.step, self.wake = step, wake
        self.counting = threading.Lock()
        self.idle = threading.Event()  # no answer is being made
        self.idle.set()
        self.running = self.most_running = self.produced = 0
        self.fails_at: int | None = None

    def count(self, kind: Kind, body: Mapping[str, Any]) -> int:
        if kind == "chat":
            return sum(len(str(one["content"]).split()) for one in body["messages"])
        return len(body["prompt"].split())

    def generate(
        self, prompt: Prompt, consumer: ConsumerId, tell: Callable[[Piece], None]
    ) -> Utterance:
        return Utterance(self, prompt, tell)

    def count_embedded(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [[float(len(text)), 0.5] for text in texts]

    def close(self) -> None:
        self.threads.shutdown()


class Gate:
    """Lets tokens through one by one, as the test says."""

    def __init__(self) -> None:
        self._turns = threading.Semaphore(0)

    def let(self, tokens: int) -> None:
        for _ in range(tokens):
            self._turns.release()

    def step(self, _: threading.Event) -> None:
        self._turns.acquire()

    def wake(self) -> None:
        self._turns.release()


def chunk(text: str, *, kind: Kind = "chat", last: bool = False) -> dict[str, Any]:
    """Return a chunk as llama.cpp gives it."""
    said = {"delta": {"content": text}} if kind == "chat" else {"text": text}
    return {"choices": [{"index": 0, "finish_reason": "length" if last else None, **said}]}
