"""``aigovtool client chat`` against a stand-in enclave: for programs, and for a person."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from aigovtool.attestation.policy import write_policy
from aigovtool.cli import main
from aigovtool.errors import BadPromptError, LoanNotActiveError
from aigovtool.wire.enrolment import TokenPrice
from tests.channel.stand_in import API_KEY, Asked, Platform, Session, StandIn, World
from tests.client.talker import USED_UP, Gate, Talker, language_world
from tests.client.test_cli_client import LOUD, Consumer
from tests.client.test_proxy_tokens import COST, without

WORDS = "Good day, wörld"


@pytest.fixture(scope="module")
def world() -> World:
    return language_world(Platform.make())


@pytest.fixture
def enclave(world: World) -> Iterator[Talker]:
    with Talker(Session(world)) as talker:
        yield talker


@pytest.fixture
def consumer(tmp_path: Path, enclave: Talker, world: World) -> Consumer:
    (tmp_path / "manifest.toml").write_text(write_policy(world.policy))
    (tmp_path / "consumer.key").write_text(API_KEY + "\n")
    return Consumer(tmp_path, enclave)


def say(consumer: Consumer, text: str, *more: str) -> Result:
    """Give *text* as a program does."""
    command = ["client", "chat", *consumer.options(), *more]
    return CliRunner().invoke(main, command, input=text, env={"COLUMNS": "200"})


def conversations(enclave: Talker) -> list[list[str]]:
    """Return what was sent of each question, as words of who said them."""
    asked = (msgspec.json.decode(one.body) for one in enclave.queries if one.method == "POST")
    return [[f"{m['role']}: {m['content']}" for m in one["messages"]] for one in asked]


def test_once(consumer: Consumer, enclave: Talker, world: World) -> None:
    done = consumer.run("chat", "--once", "Hello", "--system", "Be kind", "--max-tokens", "9")
    assert done.exit_code == 0
    assert done.stdout == WORDS + "\n"
    for shown in (LOUD, "11" * 48, world.loan, "talker 1", "10000, loan active", "2 of input"):
        assert shown in done.stderr
    told = done.stderr.splitlines()[-1]
    assert told.startswith("4 + 5 tokens, ")
    assert told.endswith(f"cost {COST}, {10_000 - COST} credits left, for 3325 tokens of output")
    assert conversations(enclave) == [["system: Be kind", "user: Hello"]]


def test_tokens_are_counted_where_one_costs_one(consumer: Consumer, enclave: Talker) -> None:
    enclave.tokens = TokenPrice()
    assert "9991 tokens left" in consumer.run("chat", "--once", "Hello").stderr
    assert "9991 tokens left" in consumer.run("budget").stdout


def test_for_programs(consumer: Consumer) -> None:
    done = say(consumer, "one\ntwo\n", "--json")
    assert done.exit_code == 0
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first["answer"] == second["answer"] == WORDS
    assert first["cost"] == COST
    assert first["usage"] == {"prompt_tokens": 4, "completion_tokens": 5}
    assert second["remaining"] == 10_000 - 2 * COST
    assert first["finish_reason"] == "stop"
    assert first["simulated"] is True
    assert len(first["receipts"]) == 4


def test_what_was_said_is_remembered_until_it_is_cleared(
    consumer: Consumer, enclave: Talker
) -> None:
    done = say(consumer, "one\n\ntwo\n/clear\n/unknown\nthree\n/quit\nfour\n", "--system", "s")
    assert done.exit_code == 0
    assert conversations(enclave) == [
        ["system: s", "user: one"],
        ["system: s", "user: one", f"assistant: {WORDS}", "user: two"],
        ["system: s", "user: three"],
    ]
    assert "/clear begins anew" in done.stderr


def test_text_of_the_model_does_not_steer_the_terminal(consumer: Consumer, enclave: Talker) -> None:
    family = "\U0001f468\u200d\U0001f467"
    enclave.words = ["\x1b]0;owned\x07", "\x9b31m", "\u202eabc", "\r", f" {family}\n", "\tend"]
    done = consumer.run("chat", "--once", "Hello")
    assert done.stdout == f"\ufffd]0;owned\ufffd\ufffd31m\ufffdabc\ufffd {family}\n\tend\n"
    told = consumer.run("chat", "--once", "Hello", "--json").stdout
    assert told.isascii()
    assert "\x1b" not in told
    assert json.loads(told)["answer"] == "".join(enclave.words)


def test_no_wait(consumer: Consumer, enclave: Talker) -> None:
    enclave.refusal = USED_UP
    done = consumer.run("chat", "--once", "Hello", "--no-wait")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "budget is used up" in done.stderr


def test_waiting_says_so_and_goes_on(consumer: Consumer, enclave: Talker) -> None:
    serve = enclave.infer

    def held(asked: Asked) -> Any:
        if "prefer" in asked.headers:
            enclave.refusal = None
        return serve(asked)

    enclave.reply, enclave.refusal = held, USED_UP
    done = consumer.run("chat", "--once", "Hello", "--reason", "a long talk")
    assert (done.exit_code, done.stdout) == (0, WORDS + "\n")
    assert "too few credits left: waiting" in done.stderr
    (_, asked) = [one for one in enclave.queries if one.method == "POST"]
    assert asked.headers["aigovtool-reason"] == "a long talk"


def test_an_answer_that_is_cut_says_why_and_what_it_cost(
    consumer: Consumer, enclave: Talker
) -> None:
    enclave.cut = LoanNotActiveError("the loan was stopped")
    done = consumer.run("chat", "--once", "Hello")
    assert (done.exit_code, done.stdout) == (3, WORDS + "\n")
    assert "the loan was stopped" in done.stderr
    assert f"cost {COST}" in done.stderr


def test_receipts_that_do_not_hold_end_it(consumer: Consumer, enclave: Talker) -> None:
    enclave.spoil = without
    done = say(consumer, "one\ntwo\n")
    assert done.exit_code == 1
    assert "without the receipts" in done.stderr
    assert len(conversations(enclave)) == 1


def test_a_refusal_ends_a_program(consumer: Consumer, enclave: Talker) -> None:
    enclave.refusal = BadPromptError("too long", code="context_length_exceeded")
    done = say(consumer, "one\ntwo\n")
    assert done.exit_code == 1
    assert len(conversations(enclave)) == 1


def test_a_model_that_takes_tensors() -> None:
    with StandIn(Session(World.make(Platform.make()))) as tensors:
        folder = Path(os.environ["XDG_STATE_HOME"])
        (folder / "manifest.toml").write_text(write_policy(tensors.session.world.policy))
        (folder / "consumer.key").write_text(API_KEY)
        done = Consumer(folder, tensors).run("chat", "--once", "Hello")
        assert done.exit_code == 2
        assert "client query" in done.stderr
        assert all(one.method == "GET" for one in tensors.queries)


# run a program whose terminal is the one that Ctrl-C reaches it by
TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Person:
    """Somebody at a terminal."""

    def __init__(self, consumer: Consumer) -> None:
        self._controller, terminal = pty.openpty()
        self._unread = b""
        program = Path(sys.executable).with_name("aigovtool")
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, str(program), "client", "chat",
             *consumer.options()],
            stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
            env=os.environ | {"TERM": "dumb"},
        )  # fmt: skip
        os.close(terminal)

    def type(self, keys: str) -> None:
        os.write(self._controller, keys.encode())

    def sees(self, text: str) -> None:
        """Read on until *text* is on the screen."""
        while text.encode() not in self._unread:
            self._unread += os.read(self._controller, 4096)
        self._unread = self._unread.partition(text.encode())[2]

    def __enter__(self) -> Person:
        self._limit = threading.Timer(60, self.process.kill)
        self._limit.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._limit.cancel()
        self.process.kill()
        self.process.wait()
        os.close(self._controller)


def test_ctrl_c_cuts_the_answer_and_not_the_program(consumer: Consumer, enclave: Talker) -> None:
    gate = Gate(enclave, 1)
    with Person(consumer) as person:
        person.sees("you> ")
        person.type("one\n")
        person.sees("Good")
        person.type("\x03")
        person.sees("cut; ")
        gate.open()
        person.sees("you> ")
        person.type("\x03")  # and at the prompt it is no end either
        person.sees("/quit ends")
        person.type("two\n")
        person.sees(WORDS)
        enclave.refusal = BadPromptError("too long", code="context_length_exceeded")
        person.sees("you> ")
        person.type("three\n")
        person.sees("error: too long")
        person.sees("you> ")
        person.type("/quit\n")
        assert person.process.wait(30) == 0
    assert conversations(enclave)[:2] == [
        ["user: one"],
        ["user: one", "assistant: Good", "user: two"],
    ]
