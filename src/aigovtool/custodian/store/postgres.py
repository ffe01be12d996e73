"""
The ledger in a PostgreSQL database, which several processes may share.

Rule 1: ``synchronous_commit`` is on, and a server that runs with ``fsync`` off is refused: a commit
        is on the disk when it returns.
Rule 2: a write block begins by taking the ledger's advisory lock, which its transaction holds to
        the end: write blocks of all processes happen one after the other, in the order of their
        commits. Each statement reads what is committed by then, and nobody else commits.
Rule 3: readers have one snapshot, and wait for nobody.
Rule 4: nobody holds the lock for long. A statement, a wait for the lock and a pause within a block
        have limits that the server keeps, so that a process which is stopped in the middle of a
        block loses the block and not the others their ledger.
Rule 5: a connection on which anything failed is given up; the next use makes another.
Rule 6: a schema is made only by `create`; `open` of an empty or foreign database is an error.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg
from psycopg import errors as pg

from aigovtool.custodian.store import dialect, rows
from aigovtool.custodian.store.base import Listener
from aigovtool.custodian.store.postgres_connection import (
    LOCK_SPACE,
    TAKE_WRITE_LOCK,
    Connection,
    checked_url,
    connect,
    error_of,
    translated,
)
from aigovtool.custodian.store.postgres_member import CHANNEL, Member, parts_of
from aigovtool.custodian.store.queries import load_migrations, load_queries
from aigovtool.custodian.store.view import View
from aigovtool.errors import ConfigurationError, ConflictError, PromiseBrokenError

IDLE_READERS = 4

_BEGIN_WRITE = f"BEGIN; {TAKE_WRITE_LOCK}"
_BEGIN_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_BUSY = (pg.LockNotAvailable, pg.QueryCanceled)
_QUERIES = {name: dialect.query(sql) for name, sql in load_queries().items()}
_IDLE = psycopg.pq.TransactionStatus.IDLE


class PostgresStore:
    """A `Store` in the database at *url*. Its methods may be called from any thread."""

    def __init__(self, url: str) -> None:
        self._url = checked_url(url)
        self._writing = threading.Lock()
        self._writer: Connection | None = None
        self._readers: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._member: Member | None = None

    @classmethod
    def create(cls, url: str) -> PostgresStore:
        """
        Make a new, empty ledger in a database that has none, or has one that belongs to nobody:
        making it was cut off before its custodian was written.

        Raises:
            ConflictError: there is a custodian's.
            ConfigurationError: the database cannot be used.
            UnavailableError: it cannot be reached.
        """
        store = cls(url)
        with store._deciding_on_schema() as connection:
            version = _schema(connection)
            if version is None:
                version = 0
                connection.execute(dialect.FIRST, prepare=False)
            elif PostgresView(connection, None).custodian() is not None:
                raise ConflictError(
                    "there is a ledger in this database already",
                    code="ledger.taken",
                    mend="name an empty database; a ledger is never replaced",
                )
            _migrate(connection, version)
        return store

    @classmethod
    def open(cls, url: str) -> PostgresStore:
        """
        Open a ledger that was made before, and bring its schema up to date.

        Raises:
            ConfigurationError: the database has none, cannot be used, or is of a newer program.
            UnavailableError: it cannot be reached.
        """
        store = cls(url)
        with store._deciding_on_schema() as connection:
            version = _schema(connection)
            if version is None:
                raise ConfigurationError(
                    "there is no ledger in this database",
                    code="data.missing",
                    came=f"database {connection.info.dbname!r}",
                    mend="check --database, or aigovtool custodian init --data DIR --database URL",
                )
            _migrate(connection, version)
        return store

    @contextlib.contextmanager
    def _deciding_on_schema(self) -> Iterator[Connection]:
        with contextlib.closing(connect(self._url)) as connection, translated():
            connection.execute("SET statement_timeout = 0")  # a migration may take its time
            with connection.transaction():
                _check_server(connection)
                connection.execute(TAKE_WRITE_LOCK)
                yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[PostgresView]:
        connection = self._begin(self._take_reader, _BEGIN_READ)
        try:
            yield PostgresView(connection, self._member)
        finally:
            if _ended(connection, "COMMIT") and self._readers.qsize() < IDLE_READERS:
                self._readers.put(connection)
            else:
                connection.close()

    @contextlib.contextmanager
    def write(self) -> Iterator[PostgresView]:
        with self._writing:
            connection = self._begin(self._take_writer, _BEGIN_WRITE)
            try:
                yield PostgresView(connection, self._member)
                with translated():
                    done = connection.execute("COMMIT", prepare=False).statusmessage
                if done != "COMMIT":  # the server says ROLLBACK when a statement had failed
                    raise PromiseBrokenError("a block went on after a statement of it had failed")
            except BaseException:
                if not _ended(connection, "ROLLBACK"):
                    connection.close()
                raise
            finally:
                self._writer = None if connection.closed else connection

    shared = True

    def join(self, listener: Listener) -> None:
        assert self._member is None, "a process belongs once"
        self._member = Member(lambda: connect(self._url), listener)

    @property
    def replica(self) -> int | None:
        return None if self._member is None else self._member.number

    def close(self) -> None:
        if self._member is not None:
            self._member.close()
        with self._writing:
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            with contextlib.suppress(queue.Empty):
                while True:
                    self._readers.get_nowait().close()

    def _begin(self, take: Callable[[], Connection | None], begin: str) -> Connection:
        """Begin on a connection that lay idle, if the server still knows it, else on a new one."""
        while (connection := take()) is not None:
            try:
                connection.execute(begin, prepare=False)
            except _BUSY as error:
                connection.close()
                raise error_of(error) from None
            except psycopg.Error:
                connection.close()  # it ended while it lay idle: nothing was begun on it
            else:
                return connection
        connection = connect(self._url)
        try:
            with translated():
                connection.execute(begin, prepare=False)
        except BaseException:
            connection.close()
            raise
        return connection

    def _take_reader(self) -> Connection | None:
        try:
            return self._readers.get_nowait()
        except queue.Empty:
            return None

    def _take_writer(self) -> Connection | None:
        connection, self._writer = self._writer, None
        return connection


class PostgresView(View):
    """One transaction on PostgreSQL."""

    __slots__ = ("_connection", "_member")

    def __init__(self, connection: Connection, member: Member | None) -> None:
        super().__init__()
        self._connection = connection
        self._member = member

    def _run(self, query: str, **values: Any) -> int:
        return self._execute(query, values).rowcount

    def _one(self, query: str, **values: Any) -> rows.Row | None:
        return self._execute(query, values).fetchone()

    def _all(self, query: str, **values: Any) -> list[rows.Row]:
        return self._execute(query, values).fetchall()

    def _execute(self, query: str, values: dict[str, Any]) -> psycopg.Cursor[dict[str, Any]]:
        # not by _translated: a context manager costs as much as the statement
        try:
            return self._connection.execute(_QUERIES[query], values, binary=True)
        except psycopg.Error as error:
            raise error_of(error) from None

    def announce(self, messages: Sequence[bytes]) -> bool:
        try:
            for message in messages:
                for part in parts_of(message):
                    self._connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, part))
        except psycopg.Error as error:
            raise error_of(error) from None
        return self._member is not None and self._member.number is not None

    def replica_lives(self, replica: int) -> bool:
        if self._member is not None and replica == self._member.number:
            return True
        try:
            row = self._connection.execute(
                f"SELECT pg_try_advisory_xact_lock_shared({LOCK_SPACE}, %s::int4) AS free",
                (replica,),
            ).fetchone()
        except psycopg.Error as error:
            raise error_of(error) from None
        return row is None or not row["free"]


def _schema(connection: Connection) -> int | None:
    """Return the version of the ledger in this database, None when there is none."""
    found = connection.execute("SELECT to_regclass('ledger_schema') IS NOT NULL AS made").fetchone()
    if found is None or not found["made"]:
        return None
    row = connection.execute("SELECT version FROM ledger_schema").fetchone()
    if row is None:
        raise PromiseBrokenError("a schema without its version")
    return int(row["version"])


def _migrate(connection: Connection, version: int) -> None:
    """Bring the schema up to date; in one transaction with its number."""
    migrations = load_migrations()
    if version > len(migrations):
        raise ConfigurationError(
            "the ledger was written by a newer program",
            expected=f"schema {len(migrations)} or older",
            came=f"schema {version}",
        )
    for migration in migrations[version:]:
        connection.execute(dialect.migration(migration.sql), prepare=False)
    if version < len(migrations):
        connection.execute("UPDATE ledger_schema SET version = %s", (len(migrations),))


def _check_server(connection: Connection) -> None:
    for setting, expected in (("fsync", "on"), ("server_encoding", "UTF8")):
        row = connection.execute("SELECT current_setting(%s) AS value", (setting,)).fetchone()
        came = None if row is None else row["value"]
        if came != expected:
            raise ConfigurationError(
                "the database server cannot keep what a ledger promises",
                code=f"database.{setting}",
                expected=f"{setting} = {expected}",
                came=f"{setting} = {came}",
            )


def _ended(connection: Connection, how: str) -> bool:
    """End a transaction that may be open; whether the connection can be used again."""
    with contextlib.suppress(psycopg.Error):
        if connection.info.transaction_status is not _IDLE:
            connection.execute(how, prepare=False)
        return not connection.broken and connection.info.transaction_status is _IDLE
    return False
