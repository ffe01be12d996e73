"""
Files of the data folder: whole or not at all, on disk when the call returns, for the owner only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from aigovtool.errors import AIGovToolError, ConfigurationError, ConflictError, UnavailableError

PRIVATE = 0o600
MAX_SMALL_FILE_BYTES = 4 << 20
FOLDER_IN_USE = "data.in_use"  # the code of what `held` raises


def write_whole(path: Path, text: str, *, mode: int = PRIVATE) -> None:
    """
    Write *path*, replacing what was there.

    Raises:
        UnavailableError: the disk is full.
        ConfigurationError: it cannot be written for another reason.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with open(descriptor, "wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(descriptor)
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from None


def sync_folder(folder: Path) -> None:
    """Make the names in *folder* durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_text(path: Path, *, mend: str) -> str:
    """Read a small text file; raises ConfigurationError, with *mend*, when that cannot be."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_SMALL_FILE_BYTES).decode()
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path}", code="file", came=error.strerror, mend=mend
        ) from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not text", code="file", mend=mend) from None


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """
    Hold the lock *path* for the length of the block; the system lets it go if the process dies.

    Raises:
        ConflictError: another process holds it.
        ConfigurationError: it cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
    except OSError as error:
        raise unwritable(path, error) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConflictError(
                f"another custodian uses {path.parent}",
                code=FOLDER_IN_USE,
                mend="end it first, or name another --data folder",
            ) from None
        yield
    finally:
        os.close(descriptor)


def unwritable(path: Path, error: OSError) -> AIGovToolError:
    """Say why *path* cannot be written, in our own errors."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UnavailableError(
            f"no room to write {path}", code="disk_full", mend="free space on that disk"
        )
    return ConfigurationError(
        f"cannot write {path}",
        code="file",
        came=error.strerror,
        mend="name a folder that this user may write",
    )
