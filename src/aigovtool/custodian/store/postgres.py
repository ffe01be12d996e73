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

What comes from the driver may hold a password or a row: only names and codes of it go further.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg.adapt import AdaptersMap
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row
from psycopg.types.numeric import Int8Dumper, NumericBinaryLoader

from aigovtool.custodian.store import dialect, rows
from aigovtool.custodian.store.queries import load_migrations, load_queries
from aigovtool.custodian.store.view import View
from aigovtool.errors import (
    AIGovToolError,
    ConfigurationError,
    ConflictError,
    MalformedError,
    PromiseBrokenError,
    UnavailableError,
)

SCHEMES = ("postgresql://", "postgres://")
CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_S = 10
LOCK_TIMEOUT_S = 10
PAUSE_TIMEOUT_S = 5  # within a block, between two statements of it
TCP_SILENCE_S = 10  # after which a network that answers nothing is a lost connection
IDLE_READERS = 4

LOCK_SPACE = 0x61696776  # "aigv": the first half of our advisory locks' keys in this database
WRITE_LOCK = 0  # the second half

# a server that writes elsewhere first must not be made less durable than it is
_SETTINGS = f"""
SET statement_timeout = '{STATEMENT_TIMEOUT_S}s';
SET lock_timeout = '{LOCK_TIMEOUT_S}s';
SET idle_in_transaction_session_timeout = '{PAUSE_TIMEOUT_S}s';
SELECT set_config('synchronous_commit', 'on', false)
    WHERE current_setting('synchronous_commit') IN ('off', 'local')"""
_TAKE_WRITE_LOCK = f"SELECT pg_advisory_xact_lock({LOCK_SPACE}, {WRITE_LOCK})"
_BEGIN_WRITE = f"BEGIN; {_TAKE_WRITE_LOCK}"
_BEGIN_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_BUSY = (pg.LockNotAvailable, pg.QueryCanceled)
_QUERIES = {name: dialect.query(sql) for name, sql in load_queries().items()}

_IDLE = psycopg.pq.TransactionStatus.IDLE
_CONNECTION: dict[str, Any] = {
    "application_name": "aigovtool custodian",
    "client_encoding": "UTF8",
    "connect_timeout": CONNECT_TIMEOUT_S,
    "keepalives_idle": TCP_SILENCE_S // 2,
    "keepalives_interval": 1,
    "keepalives_count": TCP_SILENCE_S // 2,
    "tcp_user_timeout": TCP_SILENCE_S * 1000,
}

Connection = psycopg.Connection[dict[str, Any]]

_log = logging.getLogger(__name__)


class PostgresStore:
    """A `Store` in the database at *url*. Its methods may be called from any thread."""

    def __init__(self, url: str) -> None:
        self._url = checked_url(url)
        self._writing = threading.Lock()
        self._writer: Connection | None = None
        self._readers: queue.SimpleQueue[Connection] = queue.SimpleQueue()

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
            elif PostgresView(connection).custodian() is not None:
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
        with contextlib.closing(connect(self._url)) as connection, _translated():
            connection.execute("SET statement_timeout = 0")  # a migration may take its time
            with connection.transaction():
                _check_server(connection)
                connection.execute(_TAKE_WRITE_LOCK)
                yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[PostgresView]:
        connection = self._begin(self._take_reader, _BEGIN_READ)
        try:
            yield PostgresView(connection)
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
                yield PostgresView(connection)
                with _translated():
                    done = connection.execute("COMMIT", prepare=False).statusmessage
                if done != "COMMIT":  # the server says ROLLBACK when a statement had failed
                    raise PromiseBrokenError("a block went on after a statement of it had failed")
            except BaseException:
                if not _ended(connection, "ROLLBACK"):
                    connection.close()
                raise
            finally:
                self._writer = None if connection.closed else connection

    def close(self) -> None:
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
                raise _error_of(error) from None
            except psycopg.Error:
                connection.close()  # it ended while it lay idle: nothing was begun on it
            else:
                return connection
        connection = connect(self._url)
        try:
            with _translated():
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

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

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
            raise _error_of(error) from None


def is_postgres(url: str) -> bool:
    """Whether *url* names a PostgreSQL database."""
    return url.startswith(SCHEMES)


def checked_url(url: str) -> str:
    """
    Return the connection string for *url*, with limits where it says none.

    Raises:
        ConfigurationError: it is not such a URL; nothing of it is repeated.
    """
    try:
        given = conninfo_to_dict(url)
    except psycopg.Error:
        raise ConfigurationError(
            "--database is not a PostgreSQL URL",
            code="database.url",
            expected="postgresql://USER@HOST:PORT/NAME, special characters percent-encoded",
        ) from None
    return make_conninfo("", **{**_CONNECTION, **given})


def password_of(url: str) -> str | None:
    """Return the password in *url*; raises ConfigurationError as `checked_url`."""
    password = conninfo_to_dict(checked_url(url)).get("password")
    return None if password is None else str(password)


def connect(url: str) -> Connection:
    """
    Return a new connection in autocommit, with our settings.

    Raises:
        UnavailableError: the database does not answer, or turns us away; the log says why.
    """
    try:
        connection: Connection = psycopg.connect(
            url,
            autocommit=True,
            row_factory=dict_row,
            context=_ADAPTERS,
            prepare_threshold=0,
        )
    except psycopg.Error as error:
        _log.warning("the ledger's database: %s", _without_password(str(error), url))
        raise _error_of(error) from None
    connection.prepared_max = len(_QUERIES) + 8
    try:
        with _translated():
            connection.execute(_SETTINGS, prepare=False)
    except BaseException:
        connection.close()
        raise
    return connection


class _WholeLoader(NumericBinaryLoader):
    """``sum`` over BIGINT is NUMERIC; ours are whole."""

    def load(self, data: Any) -> Any:
        return int(super().load(data))


_ADAPTERS = AdaptersMap(psycopg.adapters)
_ADAPTERS.register_loader("numeric", _WholeLoader)
_ADAPTERS.register_dumper(int, Int8Dumper)  # else each size of a number is another statement


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


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Let no exception of psycopg out."""
    try:
        yield
    except psycopg.Error as error:
        raise _error_of(error) from None


def _error_of(error: psycopg.Error) -> AIGovToolError:
    name = type(error).__name__
    if isinstance(error, pg.UniqueViolation):
        return ConflictError("the ledger has such a row already", code="ledger.taken")
    if isinstance(error, pg.IntegrityError):
        # its detail would show the row
        came = error.diag.message_primary or name
        return PromiseBrokenError("the ledger refused a row that breaks its rules", came=came)
    if isinstance(error, pg.DataError):
        return MalformedError("a value that the ledger cannot hold", code="ledger.value", came=name)
    if isinstance(error, pg.InsufficientPrivilege):
        return ConfigurationError(
            "the ledger's database lets this user not do what it must",
            code="database.privilege",
            mend="let the user own the ledger's tables",
        )
    if isinstance(error, pg.ProgrammingError):
        came = error.diag.message_primary or name
        return PromiseBrokenError("the database does not understand the ledger's SQL", came=came)
    return UnavailableError(
        "the ledger cannot be read or written now; what was asked may or may not have been kept",
        code="ledger.unavailable",
        came=name,
        mend="look at the custodian's database server, then ask again",
    )


def _without_password(text: str, url: str) -> str:
    password = password_of(url)
    line = " ".join(text.split())
    return line.replace(password, "…") if password else line
