"""
The disk cache of sealed bodies: ciphertext only, by the digest that the signed manifest names.

Rule 1: a cache never decides anything. What it gives is decrypted and authenticated like any
        download; what does not authenticate is removed.
Rule 2: a cache that cannot be used is a warning, never a failure: the model is then fetched.
Rule 3: one process at a time writes a body; another that wants it meanwhile fetches for itself.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from aigovtool.sealing.manifest import BodyEntry

_log = logging.getLogger(__name__)


class BodyCache:
    """A folder of bodies: whole ones, and partial ones under the ending ``.part``."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def reading(self, body: BodyEntry) -> Iterator[io.FileIO | None]:
        """Lend the whole body, if it is here."""
        try:
            stream = None if self._folder is None else io.FileIO(self._path(body), "rb")
        except OSError:
            stream = None
        if stream is None or os.fstat(stream.fileno()).st_size != body.size:
            yield None
            return
        with stream:
            yield stream

    @contextlib.contextmanager
    def writing(self, body: BodyEntry) -> Iterator[io.FileIO | None]:
        """Lend the partial body, at its end, to be continued; None when there is no such place."""
        stream = self._open_part(body)
        if stream is None:
            yield None
            return
        with stream:
            yield stream

    def keep(self, body: BodyEntry) -> None:
        """The partial body is whole, and has proven genuine."""
        with self._warn("keep a model in"):
            self._part(body).rename(self._path(body))

    def forget(self, body: BodyEntry) -> None:
        """Remove what is here of a body."""
        if self._folder is None:
            return
        for path in (self._path(body), self._part(body)):
            with self._warn("remove a damaged model from"):
                path.unlink(missing_ok=True)

    def _open_part(self, body: BodyEntry) -> io.FileIO | None:
        if self._folder is None:
            return None
        with self._warn("use"):
            self._folder.mkdir(parents=True, exist_ok=True)
            stream = io.FileIO(self._part(body), "a+b", opener=_open_private)
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                have = os.fstat(stream.fileno()).st_size
                if have > body.size:
                    stream.truncate(0)
                    have = 0
                if shutil.disk_usage(self._folder).free < body.size - have:
                    raise OSError(errno.ENOSPC, "not enough room for this model")
            except OSError:
                stream.close()
                raise
            stream.seek(0, os.SEEK_END)
            return stream
        return None

    @contextlib.contextmanager
    def _warn(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _log.warning("cannot %s the cache %s: %s", what, self._folder, error.strerror)

    def _path(self, body: BodyEntry) -> Path:
        assert self._folder is not None
        return self._folder / f"{body.sha256}.sealed"

    def _part(self, body: BodyEntry) -> Path:
        assert self._folder is not None
        return self._folder / f"{body.sha256}.part"


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
