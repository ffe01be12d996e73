"""
Which database holds a folder's ledger, and opening it.

Rule 1: `--database` says it, else the environment, else what `custodian init` noted in
        ``database.url``, else it is the folder's own file. None of them makes a ledger.
Rule 2: a URL may hold a password: it is in a file of mode 0600 or in the environment, and in no
        error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from aigovtool.custodian import files
from aigovtool.custodian.data import DataFolder
from aigovtool.custodian.store.base import Store
from aigovtool.custodian.store.postgres import PostgresStore
from aigovtool.custodian.store.postgres_connection import SCHEMES, checked_url, is_postgres
from aigovtool.custodian.store.sqlite import SqliteStore
from aigovtool.errors import ConfigurationError

DATABASE_VARIABLE = "AIGOVTOOL_DATABASE"
SQLITE_SCHEME = "sqlite:///"


def database_of(folder: DataFolder, named: str | None, environ: Mapping[str, str]) -> str:
    """
    Return the URL of the ledger of *folder*.

    Raises:
        ConfigurationError: *named* is of no kind that is known, or not a URL of its kind.
    """
    url = named or environ.get(DATABASE_VARIABLE)
    if url is None and folder.database_url.exists():
        url = files.read_text(folder.database_url, mend="name it with --database").strip()
    if url is None:
        return f"{SQLITE_SCHEME}{folder.ledger}"
    if is_postgres(url):
        checked_url(url)
    elif not url.startswith(SQLITE_SCHEME):
        raise ConfigurationError(
            "--database names a kind of database that is not known",
            expected=f"{SQLITE_SCHEME}PATH or {SCHEMES[0]}…",
            came=ascii(url.partition(":")[0][:20]),
        )
    return url


def may_be_shared(url: str) -> bool:
    """Whether several processes may serve the ledger at *url* at once."""
    return is_postgres(url)


def create_ledger(url: str) -> Store:
    """Make a new, empty ledger; raises as the stores' `create`."""
    if is_postgres(url):
        return PostgresStore.create(url)
    return SqliteStore.create(Path(url.removeprefix(SQLITE_SCHEME)))


def open_ledger(url: str) -> Store:
    """Open a ledger that was made before; raises as the stores' `open`."""
    if is_postgres(url):
        return PostgresStore.open(url)
    return SqliteStore.open(Path(url.removeprefix(SQLITE_SCHEME)))
