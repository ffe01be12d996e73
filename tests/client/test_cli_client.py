"""``aigovtool client`` against a stand-in enclave."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop
from click.testing import CliRunner, Result

from aigovtool.attestation.policy import write_policy
from aigovtool.cli import main
from aigovtool.crypto.signing import SigningKey
from aigovtool.errors import BlockedError, LoanNotActiveError
from aigovtool.wire.receipt import from_header
from tests.channel.stand_in import API_KEY, Asked, Platform, Session, StandIn, World, answer

LOUD = "SIMULATED TEE"


@pytest.fixture(scope="module")
def world() -> World:
    return World.make(Platform.make())


@pytest.fixture
def enclave(world: World) -> Iterator[StandIn]:
    with StandIn(Session(world)) as stand_in:
        yield stand_in


@dataclass
class Consumer:
    """A folder with what a consumer has, and the enclave's address."""

    folder: Path
    enclave: StandIn

    def options(self, *, key: bool = True) -> list[str]:
        found = [
            "--address",
            self.enclave.address,
            "--manifest",
            str(self.folder / "manifest.toml"),
        ]
        return [*found, "--api-key-file", str(self.folder / "consumer.key")] if key else found

    def run(self, command: str, *more: str, key: bool = True, **env: str) -> Result:
        # width: what is folded cannot be searched
        return CliRunner().invoke(
            main, ["client", command, *self.options(key=key), *more], env={"COLUMNS": "200"} | env
        )

    @contextmanager
    def start(self, command: str, *more: str) -> Iterator[subprocess.Popen[str]]:
        """Run a real process, which ends with the block."""
        program = Path(sys.executable).with_name("aigovtool")
        with subprocess.Popen(
            [str(program), "client", command, *self.options(), *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()


@pytest.fixture
def consumer(tmp_path: Path, enclave: StandIn, world: World) -> Consumer:
    (tmp_path / "manifest.toml").write_text(write_policy(world.policy))
    (tmp_path / "consumer.key").write_text(API_KEY + "\n")
    np.save(tmp_path / "x.npy", np.array([[1, 5, 2]], np.float32))
    return Consumer(tmp_path, enclave)


def test_query_for_people(consumer: Consumer) -> None:
    done = consumer.run("query", "--input", str(consumer.folder / "x.npy"))
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0].startswith("dog")
    assert done.stdout.splitlines()[-1] == "4 queries left"
    assert LOUD in done.stderr
    assert LOUD not in done.stdout


def test_query_for_programs(consumer: Consumer, enclave: StandIn) -> None:
    (consumer.folder / "x.json").write_text("[[1, 5, 2]]")
    done = consumer.run("query", "--input", f"x={consumer.folder / 'x.json'}", "--json")
    assert done.exit_code == 0
    seen = json.loads(done.stdout)
    assert seen["answer"]["label"] == "dog"
    assert seen["answer"]["score"] == 10
    assert seen["remaining"] == 4
    assert seen["cost"] == 1
    assert seen["simulated"] is True
    assert seen["model"] == {"name": "double", "version": "1"}
    assert len(from_header(seen["receipt"]).signature) == 64


def test_flags_from_the_environment(consumer: Consumer) -> None:
    _, address, _, manifest, _, key = consumer.options()
    done = CliRunner().invoke(
        main,
        ["client", "query", "--json"],
        env={
            "AIGOVTOOL_ADDRESS": address,
            "AIGOVTOOL_MANIFEST": manifest,
            "AIGOVTOOL_API_KEY_FILE": key,
            "AIGOVTOOL_INPUT": str(consumer.folder / "x.npy"),
        },
    )
    assert done.exit_code == 0
    assert json.loads(done.stdout)["remaining"] == 4


@pytest.mark.parametrize("command", ["query", "verify", "budget", "proxy", "chat"])
def test_every_flag_names_its_variable(command: str) -> None:
    text = CliRunner().invoke(main, ["client", command, "--help"]).stdout
    options = [" ".join(one.split()) for one in text.split("\n  --")[1:]]
    assert len(options) > 3
    for option in options:
        if option.split()[0] not in ("json", "help"):
            assert "env var:" in option


def test_no_wait(consumer: Consumer, enclave: StandIn) -> None:
    enclave.credits = 0
    done = consumer.run("query", "--input", str(consumer.folder / "x.npy"), "--no-wait")
    assert done.exit_code == 1
    assert "budget is used up" in done.stderr
    assert done.stdout == ""


def test_waiting_says_so_and_goes_on(consumer: Consumer, enclave: StandIn) -> None:
    enclave.credits = 0
    waiting, granted = threading.Event(), threading.Event()

    def serve(asked: Asked) -> bytes | None:
        if "prefer" not in asked.headers:
            return enclave.infer(asked)
        waiting.set()
        enclave._loop.run_in_executor(None, push, asked, list(enclave.alive))
        return b""  # held

    def push(held: Asked, connections: list[asyncio.Transport]) -> None:
        assert granted.wait(20)
        enclave.credits = 2
        reply = enclave.infer(held)
        assert reply is not None
        for transport in connections:
            enclave._loop.call_soon_threadsafe(transport.write, reply)

    enclave.reply = serve
    given = ("--input", str(consumer.folder / "x.npy"), "--reason", "one more batch", "--json")
    with consumer.start("query", *given) as process:
        assert waiting.wait(20)
        granted.set()
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "waiting" in err
    assert json.loads(out)["remaining"] == 1
    asked = [one for one in enclave.queries if one.method == "POST"]  # GET: it looked at its place
    assert asked[-1].headers["aigovtool-reason"] == "one more batch"


def test_interrupting_a_wait(consumer: Consumer, enclave: StandIn) -> None:
    enclave.credits = 0
    waiting = threading.Event()

    def serve(asked: Asked) -> bytes | None:
        if "prefer" in asked.headers:
            waiting.set()
            return b""
        return enclave.infer(asked)

    enclave.reply = serve
    with consumer.start("query", "--input", str(consumer.folder / "x.npy")) as process:
        assert waiting.wait(20)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.parametrize("command", ["query", "verify", "budget"])
def test_an_interrupt_in_the_moment_in_which_the_loop_falls_asleep(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    interrupt = partial(ctypes.CDLL(None).kill, os.getpid(), int(signal.SIGINT))

    async def connect(*_: object, **__: object) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, uvloop.Loop)  # asyncio's own sleeps on
        loop.call_soon(interrupt)  # no step in Python, where handlers run, until the loop sleeps
        await asyncio.sleep(20)
        raise AssertionError("it was slept through")

    monkeypatch.setattr("aigovtool.client.session.connect_async", connect)
    given = ["--input", str(consumer.folder / "x.npy")] if command == "query" else []
    assert consumer.run(command, *given).exit_code == 130


def test_verify(consumer: Consumer, world: World) -> None:
    done = consumer.run("verify")
    assert done.exit_code == 0
    for shown in ("SIMULATED", "11" * 48, "UpToDate", world.loan, "double 1", "lease_1"):
        assert shown in done.stdout
    assert world.model.digest.hex() in done.stdout
    assert "5, loan active" in done.stdout
    assert LOUD in done.stderr


def test_verify_for_programs(consumer: Consumer, world: World) -> None:
    done = consumer.run("verify", "--json")
    seen = json.loads(done.stdout)
    assert seen["simulated"] is True
    assert seen["tee"] == "simulated"
    assert seen["measurement"] == "11" * 48
    assert seen["remaining"] == 5
    assert seen["loan"] == world.loan
    assert seen["model"]["digest"] == world.model.digest.hex()


def test_verify_without_a_key_sends_none(consumer: Consumer, enclave: StandIn) -> None:
    done = consumer.run("verify", "--json", key=False)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["remaining"] is None
    assert not enclave.queries


def test_budget(consumer: Consumer) -> None:
    assert "5 queries left" in consumer.run("budget").stdout
    assert json.loads(consumer.run("budget", "--json").stdout)["remaining"] == 5


def test_refused_enclave(consumer: Consumer, enclave: StandIn) -> None:
    enclave.tell = lambda nonce: enclave.session.document(bytes(32))
    done = consumer.run("query", "--input", str(consumer.folder / "x.npy"), "--json")
    assert done.exit_code == 1
    seen = json.loads(done.stdout)
    assert seen["error"]["reasons"][0]["code"] == "channel.nonce"
    assert not enclave.queries
    assert API_KEY.encode() not in enclave.everything


def test_forged_receipt_gives_no_answer(consumer: Consumer, enclave: StandIn) -> None:
    honest = enclave.receipt
    enclave.receipt = lambda **changes: honest(key=SigningKey.generate())  # type: ignore[method-assign]
    done = consumer.run("query", "--input", str(consumer.folder / "x.npy"))
    assert done.exit_code == 1
    assert "dog" not in done.stdout


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (BlockedError("the consumer is blocked"), 1, "blocked"),
        (LoanNotActiveError("the loan was stopped"), 3, "stopped"),
    ],
    ids=["blocked", "stopped"],
)
def test_exit_codes(
    consumer: Consumer, enclave: StandIn, error: Any, code: int, shown: str
) -> None:
    enclave.reply = lambda asked: enclave.problem(error)
    done = consumer.run("query", "--input", str(consumer.folder / "x.npy"))
    assert done.exit_code == code
    assert shown in done.stderr


def test_nobody_there(consumer: Consumer, enclave: StandIn) -> None:
    enclave._stop_listening()
    assert consumer.run("verify").exit_code == 3
    enclave._listen()


@pytest.mark.parametrize(
    "given",
    [["no-such-file.png"], ["x=a.npy", "x=b.npy"], ["z=a.npy", "x=b.npy"], ["a.npy", "b.npy"]],
    ids=["no file", "twice", "unknown", "unnamed"],
)
def test_misuse_sends_nothing(consumer: Consumer, enclave: StandIn, given: list[str]) -> None:
    done = consumer.run("query", *(part for one in given for part in ("--input", one)))
    assert done.exit_code == 2
    assert not enclave.queries


def test_wrong_files_reach_nobody(consumer: Consumer, enclave: StandIn) -> None:
    (consumer.folder / "consumer.key").write_bytes(b"\xff two words")
    assert consumer.run("budget").exit_code == 2
    (consumer.folder / "consumer.key").unlink()
    assert consumer.run("budget").exit_code == 2
    (consumer.folder / "manifest.toml").write_text("version = 1\n")
    assert consumer.run("verify", key=False).exit_code == 2
    assert not enclave.received


def test_proxy(consumer: Consumer, enclave: StandIn) -> None:
    enclave.reply = lambda asked: answer(asked.headers["authorization"].encode())
    with consumer.start("proxy", "--listen", "127.0.0.1:0") as process:
        assert process.stderr is not None
        said = ""
        while "listening on " not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        url = said.split("listening on ")[1].split(",")[0]
        with urllib.request.urlopen(f"{url}/v2/health/live", timeout=10) as came:
            assert came.read() == f"Bearer {API_KEY}".encode()
        process.terminate()
        process.communicate(timeout=20)
    assert LOUD in said


def test_proxy_beyond_loopback(consumer: Consumer) -> None:
    done = consumer.run("proxy", "--listen", "0.0.0.0:0")
    assert done.exit_code == 2
    assert "other machines" in done.stderr
