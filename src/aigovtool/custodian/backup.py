"""
Backups: a consistent copy of a custodian's data folder, taken while it serves.

A backup holds the ledger, the tokens and tickets, the policies and the sealed models. It does not
hold the master key: who steals a backup has ciphertext, hashes, the log of all decisions, and the
admin token of then, which opens the admin API of whoever restores it; who steals a backup *and* the
master key has every model and can speak as the custodian.

Rule 1: a backup is made in a folder of its own, readable by its owner only, whole or not at all.
Rule 2: a restore never replaces anything, and leaves the ledger held: from the moment of the backup
        on, the ledger does not know what was leased.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sqlite3
from datetime import datetime
from pathlib import Path

from aigovtool.custodian import files, rollback
from aigovtool.custodian.data import DataFolder
from aigovtool.custodian.records import Hold
from aigovtool.custodian.store.sqlite import SqliteStore
from aigovtool.errors import ConfigurationError, ConflictError, UnavailableError

RESTORED = "rollback.restored"
_LEFT_OUT = frozenset({"master.key", "server.lock", "admin.url", "ledger.db"})
_PAGES_AT_ONCE = 1024  # of the ledger, between which its writer gets its turn


def back_up(folder: DataFolder, to: Path) -> int:
    """
    Copy *folder* into the new folder *to*, while a server may run; return its bytes.

    Raises:
        ConflictError: *to* exists.
        ConfigurationError, UnavailableError: it cannot be read or written; nothing is left behind.
    """
    if not folder.ledger.is_file():
        raise ConfigurationError(f"there is no ledger in {folder.path}", code="data.missing")
    if to.exists():
        raise ConflictError(f"there is something at {to} already", code="backup.exists")
    staging = to.with_name(f".{to.name}.{secrets.token_hex(8)}.partial")
    try:
        staging.mkdir(mode=0o700, parents=True)
        # the ledger first: what it names is then in the folders that are copied after it
        _copy_ledger(folder.ledger, staging / folder.ledger.name)
        for item in sorted(folder.path.iterdir()):
            if item.name in _LEFT_OUT or item.name.startswith((".", "ledger.db-")):
                continue
            if item.is_dir():
                shutil.copytree(item, staging / item.name, ignore=shutil.ignore_patterns(".*"))
            elif item.is_file():
                shutil.copy2(item, staging / item.name)
        _make_private(staging)
        os.sync()
        staging.rename(to)
        files.sync_folder(to.parent)
    except OSError as error:
        raise files.unwritable(to, error) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return sum(item.stat().st_size for item in to.rglob("*") if item.is_file())


def restore(backup: Path, folder: DataFolder, *, now: datetime) -> None:
    """
    Put a backup into *folder*, which must be new or empty; its ledger is held.

    Raises:
        ConflictError: *folder* holds something.
        ConfigurationError: *backup* is none, or cannot be read or written.
    """
    if not (backup / folder.ledger.name).is_file():
        raise ConfigurationError(f"there is no backup in {backup}", code="backup.missing")
    if folder.path.exists() and any(folder.path.iterdir()):
        raise ConflictError(
            f"{folder.path} holds something already",
            code="data.initialised",
            mend="restore into a new folder; a ledger is never replaced",
        )
    staging = folder.path.with_name(f".{folder.path.name}.{secrets.token_hex(8)}.partial")
    try:
        shutil.copytree(backup, staging)
        _make_private(staging)
        _hold(staging / folder.ledger.name, backup, now)
        os.sync()
        with contextlib.suppress(FileNotFoundError):
            folder.path.rmdir()
        staging.rename(folder.path)
        files.sync_folder(folder.path.parent)
    except OSError as error:
        raise files.unwritable(folder.path, error) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _copy_ledger(source: Path, to: Path) -> None:
    """Copy with SQLite's backup API: one moment of the ledger, whatever is written meanwhile."""
    try:
        where = f"{source.absolute().as_uri()}?mode=ro"
        with (
            contextlib.closing(sqlite3.connect(where, uri=True)) as old,
            contextlib.closing(sqlite3.connect(to)) as new,
        ):
            old.backup(new, pages=_PAGES_AT_ONCE)
            new.execute("PRAGMA journal_mode = DELETE")  # one file, which is the whole of it
            (verdict,) = new.execute("PRAGMA integrity_check").fetchone()
    except sqlite3.Error as error:
        raise UnavailableError(
            "the ledger cannot be copied now", code="backup.failed", came=type(error).__name__
        ) from None
    if verdict != "ok":
        raise UnavailableError(
            "the copy of the ledger is damaged", code="backup.damaged", came=str(verdict)[:200]
        )


def _hold(ledger: Path, backup: Path, now: datetime) -> None:
    store = SqliteStore.open(ledger)
    try:
        with store.write() as tx:
            hold = Hold(
                code=RESTORED,
                reason=f"it was restored from the backup {backup.name}",
                since=now,
            )
            rollback.note_hold(tx, hold, after=rollback.head_of(tx).event)
    finally:
        store.close()


def _make_private(folder: Path) -> None:
    folder.chmod(0o700)
    for item in folder.rglob("*"):
        item.chmod(0o700 if item.is_dir() else 0o600)
