"""
The story of a language model: lend, verify, talk, run out, wait, free more, stop, prove.

Programs talk with it as with OpenAI's API: here by plain HTTP, through the proxy.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aigovtool.demo.stage import Process
from aigovtool.demo.steps import StepFailed, Story, check, succeeded

BUDGET = 240  # tokens: for two short answers and the beginning of a conversation
FREED = 6000
SHORT = 24
TURN = 32
LONG = 2000
STOP_LIMIT_S = 5.0
TURNS = ("Who are you?", "Name three colours.", "Which of them has the sea?")
WHY = "the lender needs it back"


@dataclass
class TalkStory(Story):
    """
    A language model, metered by the token.

    Args:
        model: its GGUF file.
    """

    model: Path = Path()
    proxy_port: int = 0
    conversation: Process | None = None

    def steps(self) -> list[tuple[str, Callable[[], str]]]:
        return [
            ("custodian makes keys, database and a simulated root", self.make_custodian),
            (f"custodian seals the model and lends it for {BUDGET} tokens", self.lend),
            ("enclave is attested, gets the key and loads the model", self.host),
            ("consumer verifies the enclave, and asks", self.ask_once),
            ("a program streams an answer by OpenAI's API, through the proxy", self.stream),
            ("a conversation uses the budget up, and waits", self.run_out),
            (f"custodian frees {FREED} tokens, and it goes on", self.free_more),
            ("custodian stops the loan in the middle of an answer", self.stop),
            ("the consumer's receipts are what the custodian's ledger says", self.prove),
        ]

    def lend(self) -> str:
        begin = time.monotonic()
        self.custodian = self.stage.serve_custodian(
            "--upload", str(self.model), "--num-requests", str(BUDGET)
        )
        size = self.model.stat().st_size / 1e6
        return f"{self.model.name}, {size:.0f} MB, sealed in {time.monotonic() - begin:.1f} s"

    def ask_once(self) -> str:
        asked = succeeded(
            self.stage.run(
                *self.stage.client(
                    "chat", self.enclave_port, "--once", "What is rain?",
                    "--max-tokens", str(SHORT), "--temperature", "0", "--no-wait", "--json",
                )
            )
        )  # fmt: skip
        check("evidence" in asked.stderr, "it was not said that the enclave was verified")
        seen = asked.json()
        check(seen["answer"], "the answer is empty")
        check(seen["cost"] == _tokens(seen["usage"]), f"{seen['usage']} cost {seen['cost']}")
        check(seen["remaining"] == BUDGET - seen["cost"], f"{seen['remaining']} tokens left")
        return f"“{_one_line(seen['answer'])}”, {_priced(seen['usage'])}, {seen['remaining']} left"

    def stream(self) -> str:
        _, self.proxy_port = self.stage.serve_proxy(self.enclave_port)
        events = list(self._asked("What is the sun?", SHORT))
        text, end = "".join(map(_text_of, events)), events[-1]
        check(text, "the answer is empty")
        check("error" not in end, f"it was cut: {end.get('error')}")
        left = end["aigovtool"]["remaining"]
        return f"“{_one_line(text)}”, {_priced(end['usage'])}, {left} left"

    def run_out(self) -> str:
        said = self.stage.folder / "conversation.txt"
        said.write_text("\n".join(TURNS))
        conversation = self.conversation = self.stage.start(
            "conversation",
            self.stage.client(
                "chat", self.enclave_port, "--max-tokens", str(TURN), "--temperature", "0",
                "--reason", "demo: we were not done", "--json",
            ),
            stdin=said,
        )  # fmt: skip
        self.stage.wait_for(conversation, lambda: "waiting" in conversation.output())
        answered = len(_results(conversation))
        return f"{answered} of {len(TURNS)} answers came; for the next it says so, and holds on"

    def free_more(self) -> str:
        conversation = self.conversation
        assert conversation is not None
        succeeded(self.stage.custodian("grant", str(FREED)))
        begin = time.monotonic()
        code = conversation.popen.wait(60)
        check(code == 0, f"the conversation ended with {code}: {conversation.output()[-300:]}")
        answers = _results(conversation)
        check(len(answers) == len(TURNS), f"{len(answers)} answers to {len(TURNS)} questions")
        left = answers[-1]["remaining"]
        return f"all {len(TURNS)} answers came within {time.monotonic() - begin:.1f} s; {left} left"

    def stop(self) -> str:
        events = self._asked("Write a very long story about a lighthouse and its keeper.", LONG)
        while not _text_of(next(events)):
            pass
        begin = time.monotonic()
        succeeded(self.stage.custodian("stop", "--reason", WHY))
        (*_, end) = events
        seconds = time.monotonic() - begin
        check("error" in end, "the answer ended as if nothing had happened")
        check(WHY in end["error"]["message"], f"it does not say why: {end['error']}")
        check(seconds < STOP_LIMIT_S, f"it went on for {seconds:.1f} s")
        tokens = end["usage"]["completion_tokens"]
        return f"cut after {tokens} of {LONG} tokens: “{end['error']['message']}”"

    def prove(self) -> str:
        assert self.enclave is not None
        self.enclave.terminate()  # which settles what it used
        checked = succeeded(
            self.stage.run(
                "client", "receipts", "check", "--json",
                "--manifest", str(self.stage.data / "manifest.toml"),
                "--log", str(self.stage.data / "log"),
            )
        ).json()  # fmt: skip
        (loan,) = succeeded(self.stage.custodian("loan", "list")).json()
        account = loan["account"]
        check(account["leased"] == 0, f"{account['leased']} credits are not settled")
        check(
            account["spent"] == checked["cost"],
            f"receipts of {checked['cost']}, the ledger has {account['spent']}",
        )
        return f"{checked['receipts']} receipts, all in order: {checked['cost']} tokens in both"

    def _asked(self, text: str, most: int) -> Iterator[dict[str, Any]]:
        """Ask the proxy for at most so many tokens, and give the events of the stream."""
        with closing(
            http.client.HTTPConnection("127.0.0.1", self.proxy_port, timeout=60)
        ) as connection:
            connection.request("GET", "/v1/models")
            (model,) = json.load(connection.getresponse())["data"]
            body = {
                "model": model["id"],
                "messages": [{"role": "user", "content": text}],
                "max_tokens": most,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            connection.request("POST", "/v1/chat/completions", json.dumps(body))
            answer = connection.getresponse()
            if answer.status != 200:
                raise StepFailed(f"{answer.status}: {answer.read(600)!r}")
            for line in answer:
                if line.startswith(b"data: {"):  # neither a keep-alive nor the last, [DONE]
                    yield json.loads(line.removeprefix(b"data: "))


def _text_of(event: dict[str, Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _tokens(usage: dict[str, int]) -> int:
    return usage["prompt_tokens"] + usage["completion_tokens"]


def _priced(usage: dict[str, int]) -> str:
    return f"{usage['prompt_tokens']} + {usage['completion_tokens']} tokens"


def _results(process: Process) -> list[Any]:
    """The log holds talk and the answers; each answer is a line of JSON."""
    return [json.loads(line) for line in process.output().splitlines() if line.startswith("{")]
