"""
Connections to PostgreSQL: their settings, their limits, and what their errors are here.

What comes from the driver may hold a password or a row: only names and codes of it go further.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg.adapt import AdaptersMap
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row
from psycopg.types.numeric import Int8Dumper, NumericBinaryLoader

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
MOST_STATEMENTS = 500  # that are kept prepared on one connection

LOCK_SPACE = 0x61696776  # "aigv": the first half of our advisory locks' keys in this database
WRITE_LOCK = 0  # the second half

# a server that writes elsewhere first must not be made less durable than it is
_SETTINGS = f"""
SET statement_timeout = '{STATEMENT_TIMEOUT_S}s';
SET lock_timeout = '{LOCK_TIMEOUT_S}s';
SET idle_in_transaction_session_timeout = '{PAUSE_TIMEOUT_S}s';
SELECT set_config('synchronous_commit', 'on', false)
    WHERE current_setting('synchronous_commit') IN ('off', 'local')"""
TAKE_WRITE_LOCK = f"SELECT pg_advisory_xact_lock({LOCK_SPACE}, {WRITE_LOCK})"
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
        raise error_of(error) from None
    connection.prepared_max = MOST_STATEMENTS
    try:
        with translated():
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


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Let no exception of psycopg out."""
    try:
        yield
    except psycopg.Error as error:
        raise error_of(error) from None


def error_of(error: psycopg.Error) -> AIGovToolError:
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
