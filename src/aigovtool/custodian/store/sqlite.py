"""
The ledger in one SQLite file.

Rule 1: WAL with ``synchronous=FULL``: a commit is on the disk when it returns.
Rule 2: one connection writes, behind a lock, in transactions that are immediate; readers have
        connections of their own and wait for nobody.
Rule 3: a file is made only by `create`; `open` of a wrong path is an error and not a new, empty
        ledger.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aigovtool.custodian.store.base import Listener
from aigovtool.custodian.store.queries import load_migrations, load_queries
from aigovtool.custodian.store.view import View
from aigovtool.errors import (
    AIGovToolError,
    ConfigurationError,
    ConflictError,
    PromiseBrokenError,
    UnavailableError,
)

BUSY_TIMEOUT_MS = 5_000  # another process (a backup) may hold the file for a moment
IDLE_READERS = 4

_QUERIES = load_queries()
_TAKEN = frozenset({sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY})


class SqliteStore:
    """A `Store` in the file *path*. Its methods may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = _connect(path)
        self._writing = threading.Lock()
        self._readers: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()

    @classmethod
    def create(cls, path: Path) -> SqliteStore:
        """
        Make a new, empty ledger, readable by its owner only.

        Raises:
            ConflictError: the file exists.
            ConfigurationError: it cannot be made.
        """
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            raise ConflictError(f"there is a ledger at {path} already") from None
        except OSError as error:
            raise ConfigurationError(
                f"cannot make the ledger {path}", came=error.strerror
            ) from None
        store = cls(path)
        store._migrate()
        return store

    @classmethod
    def open(cls, path: Path) -> SqliteStore:
        """
        Open a ledger that was made before, and bring its schema up to date.

        Raises:
            ConfigurationError: no such file, not a ledger, or of a newer program.
        """
        if not path.is_file():
            raise ConfigurationError(
                f"there is no ledger at {path}", mend="aigovtool custodian init --data DIR"
            )
        store = cls(path)
        store._migrate()
        return store

    @contextlib.contextmanager
    def read(self) -> Iterator[SqliteView]:
        try:
            connection = self._readers.get_nowait()
        except queue.Empty:
            connection = _connect(self._path)
        try:
            with _translated():
                connection.execute("BEGIN")
            yield SqliteView(connection)
        finally:
            _roll_back(connection)
            if self._readers.qsize() < IDLE_READERS:
                self._readers.put(connection)
            else:
                connection.close()

    @contextlib.contextmanager
    def write(self) -> Iterator[SqliteView]:
        with self._writing:
            connection = self._writer
            with _translated():
                connection.execute("BEGIN IMMEDIATE")
            try:
                yield SqliteView(connection)
                with _translated():
                    connection.execute("COMMIT")
            except BaseException:
                _roll_back(connection)
                raise

    replica: int | None = None  # whoever has the file is alone
    shared = False

    def join(self, listener: Listener) -> None:
        listener.joined()

    def close(self) -> None:
        with self._writing:
            self._writer.close()
            with contextlib.suppress(queue.Empty):
                while True:
                    self._readers.get_nowait().close()

    def _migrate(self) -> None:
        migrations = load_migrations()
        with _translated():
            (version,) = self._writer.execute("PRAGMA user_version").fetchone()
            if version > len(migrations):
                raise ConfigurationError(
                    f"the ledger {self._path} was written by a newer program",
                    expected=f"schema {len(migrations)} or older",
                    came=f"schema {version}",
                )
            for migration in migrations[version:]:
                # one transaction with its number: a crash leaves the old schema or the new one
                self._writer.executescript(
                    f"BEGIN IMMEDIATE; {migration.sql}\n"
                    f"PRAGMA user_version = {migration.number}; COMMIT;"
                )


def _connect(path: Path) -> sqlite3.Connection:
    with _translated():
        # mode=rw: connecting never makes a file
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=len(_QUERIES) + 8,
        )
        connection.row_factory = sqlite3.Row
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
        return connection


def _roll_back(connection: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Let no exception of sqlite3 out."""
    try:
        yield
    except sqlite3.Error as error:
        raise _error_of(error) from error


def _error_of(error: sqlite3.Error) -> AIGovToolError:
    code = getattr(error, "sqlite_errorcode", None)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    if isinstance(error, sqlite3.IntegrityError):
        if code in _TAKEN:
            return ConflictError("the ledger has such a row already", code="ledger.taken")
        return PromiseBrokenError("the ledger refused a row that breaks its rules", came=str(error))
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
        return ConfigurationError("the ledger cannot be used", code="ledger.file", came=name)
    return UnavailableError(
        "the ledger cannot be read or written now; what was asked may or may not have been kept",
        code="ledger.unavailable",
        came=name,
        mend="look at the custodian's disk, then ask again",
    )


class SqliteView(View):
    """One transaction on SQLite."""

    __slots__ = ("_connection",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__()
        self._connection = connection

    def _run(self, query: str, **values: Any) -> int:
        # not by _translated: a context manager costs as much as the statement
        try:
            return self._connection.execute(_QUERIES[query], values).rowcount
        except sqlite3.Error as error:
            raise _error_of(error) from error

    def _one(self, query: str, **values: Any) -> sqlite3.Row | None:
        try:
            row = self._connection.execute(_QUERIES[query], values).fetchone()
        except sqlite3.Error as error:
            raise _error_of(error) from error
        assert row is None or isinstance(row, sqlite3.Row)
        return row

    def _all(self, query: str, **values: Any) -> list[sqlite3.Row]:
        try:
            return self._connection.execute(_QUERIES[query], values).fetchall()
        except sqlite3.Error as error:
            raise _error_of(error) from error
