"""
What was fetched, on disk: two files an answer, ``<key>.body`` and ``<key>.json``.

Rule 1: a cache never decides anything. What it gives has the shape and the digest of what was
        kept, and is proven by the vendor's signature like any other. Its thief can only withhold.
Rule 2: an entry that is damaged is removed, said so, and fetched again.
Rule 3: a cache that cannot be used (read-only, full, not ours) is a warning, never a failure.
Rule 4: it stays below its size: the entries fetched longest ago go first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from aigovtool.endorsements.fetch import MAX_ANSWER_BYTES, Answer, Question
from aigovtool.ids import sha256

MAX_CACHE_BYTES = 64 << 20  # some 2,000 platforms
MAX_DESCRIPTION_BYTES = 64 << 10  # it holds the issuer chains, some 3 kB
_BODY, _DESCRIPTION = ".body", ".json"

_log = logging.getLogger(__name__)


class _Description(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    What is known of a body.

    Args:
        source: the URL it came from.
        fetched: when.
        next_update: when it stops to count; for people, as it is read from the body again.
        headers: those that are part of the answer.
        sha256: of the body, in hex.
    """

    version: Literal[1] = 1
    source: str
    fetched: Annotated[datetime, Meta(tz=True)]
    next_update: Annotated[datetime, Meta(tz=True)]
    headers: dict[str, str]
    sha256: str


# made here, where nobody else runs: see `wire.codec`
_description_decoder = msgspec.json.Decoder(_Description)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An answer, and when it was fetched."""

    answer: Answer
    fetched: datetime


class DiskCache:
    """A folder of answers, which it makes when it is not there; processes may share it."""

    def __init__(self, folder: Path, *, max_bytes: int = MAX_CACHE_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def get(self, question: Question) -> Kept | None:
        """Return what was kept for *question*, however old; None when nothing sound is here."""
        try:
            description = _read(self._path(question, _DESCRIPTION), MAX_DESCRIPTION_BYTES)
            body = _read(self._path(question, _BODY), MAX_ANSWER_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn("read", error)
            return None
        try:
            known = _description_decoder.decode(description)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            known = None
        if known is None or known.source != question.url or known.sha256 != sha256(body).hex():
            self.forget(question)
            return None
        return Kept(answer=Answer(body=body, headers=known.headers), fetched=known.fetched)

    def put(
        self, question: Question, answer: Answer, *, fetched: datetime, until: datetime
    ) -> None:
        """Keep *answer*, fetched at *fetched* and good until *until*."""
        description = _Description(
            source=question.url,
            fetched=fetched.astimezone(UTC),
            next_update=until.astimezone(UTC),
            headers=dict(answer.headers),
            sha256=sha256(answer.body).hex(),
        )
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # A crash between the two leaves a body that its description does not fit: rule 2.
            self._write(self._path(question, _BODY), answer.body)
            self._write(self._path(question, _DESCRIPTION), msgspec.json.encode(description))
            self._make_room(keep=question.key)
        except OSError as error:
            self._warn("write to", error)

    def forget(self, question: Question) -> None:
        """Remove a damaged entry, and say so."""
        _log.warning("damaged in the cache, fetched again: %s", question.url)
        with contextlib.suppress(OSError):
            self._remove(question.key)

    def _path(self, question: Question, ending: str) -> Path:
        return self._folder / (question.key + ending)

    def _write(self, path: Path, data: bytes) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=self._folder, prefix=".new-")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
            Path(temporary).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise

    def _make_room(self, *, keep: str) -> None:
        sizes: dict[str, int] = {}
        written: dict[str, float] = {}
        for path, status in self._files():
            sizes[path.stem] = sizes.get(path.stem, 0) + status.st_size
            written[path.stem] = max(written.get(path.stem, 0.0), status.st_mtime)
        excess = sum(sizes.values()) - self._max_bytes
        for key in sorted(written, key=written.__getitem__):
            if excess <= 0:
                return
            if key != keep:
                self._remove(key)
                excess -= sizes[key]

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self._folder.iterdir():
            if path.suffix in {_BODY, _DESCRIPTION}:
                with contextlib.suppress(FileNotFoundError):  # another process made room too
                    yield path, path.stat()

    def _remove(self, key: str) -> None:
        for ending in (_DESCRIPTION, _BODY):
            (self._folder / (key + ending)).unlink(missing_ok=True)

    def _warn(self, what: str, error: OSError) -> None:
        _log.warning("cannot %s the cache %s: %s", what, self._folder, error.strerror)


def _read(path: Path, max_bytes: int) -> bytes:
    """Read a file of ours; one longer than we write is cut, and fails its digest."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read(max_bytes)
