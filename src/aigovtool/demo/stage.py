"""
Custodian, enclave and client as real processes on loopback, in one folder.

The demo, the system tests and the benchmarks all stand on this stage. It ends only processes that
it started, and everything it writes is in its folder.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aigovtool
from aigovtool.errors import UnavailableError

START_LIMIT_S = 60.0
STOP_LIMIT_S = 20.0
POLL_S = 0.02
COMMAND_LIMIT_S = 120.0


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert isinstance(port, int)
        return port


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended: exit code, what it printed, how long it took."""

    code: int
    stdout: str
    stderr: str
    seconds: float

    def json(self) -> Any:
        """Return standard output read as JSON; raises ValueError when it is not."""
        return json.loads(self.stdout)


@dataclass
class Process:
    """One process of ours, with its output in a log file."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    def alive(self) -> bool:
        return self.popen.poll() is None

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def terminate(self) -> int:
        """Ask it to end (SIGTERM), wait, and return its exit code; kill it if it will not."""
        if self.alive():
            self.popen.send_signal(signal.SIGTERM)
        try:
            return self.popen.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise UnavailableError(f"{self.name} did not end within {STOP_LIMIT_S:g} s") from None

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        if self.alive():
            self.popen.kill()
        self.popen.wait(STOP_LIMIT_S)


@dataclass
class Stage:
    """
    A folder with its processes; leaving the ``with`` block ends them all.

    Args:
        folder: empty or new; custodian data, cache, the simulated platform and logs go here.
        database: URL of an empty PostgreSQL database for the ledger, None for a file in the
            folder. With one, `serve_custodian` may be called for several replicas.
    """

    folder: Path
    database: str | None = None
    processes: list[Process] = field(default_factory=list)
    custodian_port: int = field(default_factory=free_port)
    admin_port: int = field(default_factory=free_port)

    @property
    def data(self) -> Path:
        """The custodian's data folder."""
        return self.folder / "custodian"

    @property
    def platform(self) -> Path:
        """Where the simulated platform of these processes is."""
        return self.folder / "simulated-platform"

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of every process here: ours, with platform and state of its own."""
        return {
            **os.environ,
            "AIGOVTOOL_SIMULATED_PLATFORM": str(self.platform),
            "PYTHONUNBUFFERED": "1",
            "XDG_STATE_HOME": str(self.folder / "state"),
            **(more or {}),
        }

    def run(
        self,
        *arguments: str,
        limit_s: float = COMMAND_LIMIT_S,
        stdin: bytes | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Outcome:
        """Run ``aigovtool`` with *arguments* to its end."""
        begin = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "aigovtool", *arguments],
            env=self.environment(environment),
            capture_output=True,
            input=stdin,
            timeout=limit_s,
            check=False,
        )
        return Outcome(
            done.returncode,
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
            time.monotonic() - begin,
        )

    def start(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        stdin: Path = Path(os.devnull),
    ) -> Process:
        """Start ``aigovtool`` with *arguments*, its output going to ``<name>.log``."""
        log = self.folder / f"{name}.log"
        with log.open("ab") as sink, stdin.open("rb") as source:
            popen = subprocess.Popen(
                [sys.executable, "-m", "aigovtool", *arguments],
                env=self.environment(environment),
                stdin=source,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        return self.adopt(name, popen, log)

    def adopt(self, name: str, popen: subprocess.Popen[bytes], log: Path) -> Process:
        """Take in a process that was started here otherwise, to be ended with the stage."""
        process = Process(name, popen, log)
        self.processes.append(process)
        return process

    def wait_for(
        self, process: Process, ready: Callable[[], bool], limit_s: float = START_LIMIT_S
    ) -> float:
        """
        Poll *ready* until it holds and return the seconds it took.

        Raises:
            UnavailableError: *process* ended, or the time ran out; carries the end of its log.
        """
        begin = time.monotonic()
        while not ready():
            if not process.alive() or time.monotonic() - begin > limit_s:
                why = "ended" if not process.alive() else f"was not ready within {limit_s:g} s"
                raise UnavailableError(f"{process.name} {why}", came=process.output()[-2000:])
            time.sleep(POLL_S)
        return time.monotonic() - begin

    def init(self) -> Outcome:
        """``custodian init --simulated``; a database is noted in the data folder for all else."""
        environment = {} if self.database is None else {"AIGOVTOOL_DATABASE": self.database}
        return self.run(
            "custodian", "init", "--data", str(self.data), "--simulated", environment=environment
        )

    def serve_custodian(
        self,
        *more: str,
        name: str = "custodian",
        port: int | None = None,
        admin_port: int | None = None,
    ) -> Process:
        """
        Start ``custodian serve`` and wait until both its ports answer.

        Args:
            name: of the process; each replica has its own, and its own ports.
        """
        port, admin_port = port or self.custodian_port, admin_port or self.admin_port
        process = self.start(
            name,
            [
                "custodian", "serve", "--data", str(self.data),
                "--listen", f"127.0.0.1:{port}",
                "--admin-listen", f"127.0.0.1:{admin_port}",
                *more,
            ],
        )  # fmt: skip
        self.wait_for(process, lambda: answers(admin_port) and answers(port))
        return process

    def serve_enclave(
        self,
        name: str = "enclave",
        *more: str,
        port: int | None = None,
        ticket: Path | None = None,
        environment: Mapping[str, str] | None = None,
        wait: bool = True,
    ) -> tuple[Process, int]:
        """Start ``enclave serve``; wait until it is ready, unless told not to. Gives its port."""
        port = port or free_port()
        process = self.start(
            name,
            [
                "enclave", "serve", "--ticket", str(ticket or self.data / "loan.toml"),
                "--listen", f"127.0.0.1:{port}", "--cache", str(self.folder / f"{name}-cache"),
                *more,
            ],
            environment,
        )  # fmt: skip
        if wait:
            self.wait_until_serving(process, port)
        return process, port

    def wait_until_serving(self, process: Process, port: int) -> float:
        """Wait until the enclave at *port* says that it is ready; return the seconds it took."""
        return self.wait_for(process, lambda: enclave_ready(port))

    def client(self, command: str, port: int, *more: str) -> list[str]:
        """Return the arguments of a client command against the enclave at *port*."""
        return [
            "client", command, "--address", f"127.0.0.1:{port}",
            "--manifest", str(self.data / "manifest.toml"),
            "--api-key-file", str(self.data / "consumer.key"),
            *more,
        ]  # fmt: skip

    def serve_proxy(self, port: int, *more: str) -> tuple[Process, int]:
        """Start ``client proxy`` to the enclave at *port* and wait for it. Gives its port."""
        own = free_port()
        process = self.start(
            "proxy", self.client("proxy", port, "--listen", f"127.0.0.1:{own}", *more)
        )
        self.wait_for(process, lambda: answers(own))
        return process, own

    def custodian(self, *arguments: str, admin_port: int | None = None) -> Outcome:
        """Run a custodian command against the running custodian, with JSON output."""
        admin = () if admin_port is None else ("--admin", f"http://127.0.0.1:{admin_port}")
        return self.run("custodian", *arguments, *admin, "--data", str(self.data), "--json")

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.processes):
            with contextlib.suppress(OSError):
                # a stopped process (SIGSTOP) could not be waited for
                process.popen.send_signal(signal.SIGCONT)
            process.kill()


def answers(port: int) -> bool:
    """Whether something listens on this loopback port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def enclave_ready(port: int) -> bool:
    """Ask an enclave's health only; nothing is trusted and nothing is sent, so no pin is needed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=context)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def tampered_copy(folder: Path) -> dict[str, str]:
    """
    Copy this package into *folder* with one harmless line more in the enclave's meter; return the
    environment that runs the copy. Its measurement differs, as any change's would.
    """
    source = Path(aigovtool.__file__).parent
    copy = folder / "aigovtool"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "enclave" / "meter.py").open("a") as meter:
        meter.write("# one line that the custodian never saw\n")
    return {"PYTHONPATH": str(folder)}
