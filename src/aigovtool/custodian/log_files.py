"""
The published log: static files that anybody may serve, copy and keep (C2SP tlog-tiles).

    log/checkpoint            the newest signed tree
    log/log-key.json          the custodian's certificate for the key that signs it
    log/tile/<L>/<N>[.p/<W>]  hashes
    log/tile/entries/<N>[...] entries

Rule 1: tiles and entries are on the disk before the checkpoint that needs them is.
Rule 2: a file that is there is never written with other content; only the checkpoint changes, and
        only to a larger tree of the same history.
Rule 3: what is published is held against the ledger before anything is added. A ledger that is
        behind the published log was restored from an older copy, one that differs was rewritten:
        either is refused, and nothing is written.
Rule 4: publishing again what a crash cut short is the same as publishing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from aigovtool.custodian import files
from aigovtool.errors import NotFoundError, PromiseBrokenError, RefusedError, VerificationError
from aigovtool.tlog.checkpoint import Checkpoint, open_checkpoint
from aigovtool.tlog.note import MAX_NOTE_BYTES, NoteVerifier
from aigovtool.tlog.tiles import (
    CHECKPOINT_PATH,
    MAX_BUNDLE_BYTES,
    WIDTH,
    Tile,
    TileSubtrees,
    join_entries,
    leaf_hashes,
    split_tile,
    subtree_root,
    tiles_of,
)
from aigovtool.tlog.tree import Edge
from aigovtool.wire.log import CERTIFICATE_NAME

ADOPT_MEND = (
    "if the ledger was restored from a copy, reconcile it, then: aigovtool custodian log adopt"
)

ReadEntries = Callable[[int, int], Sequence[bytes]]
"""Gives so many of the ledger's log entries from a number on."""


class Disk(Protocol):
    """
    Where files are kept. `keep` and `replace` are whole or not at all; what they did survives the
    machine once `sync` has returned. All raise UnavailableError or ConfigurationError.
    """

    def alone(self) -> AbstractContextManager[None]:
        """Keep others from writing for the length of the block; ConflictError if one does."""
        ...

    def read(self, path: str, max_bytes: int) -> bytes | None: ...
    def keep(self, path: str, data: bytes) -> None: ...
    def replace(self, path: str, data: bytes) -> None: ...
    def sync(self) -> None: ...
    def forget_parts(self, path: str) -> None: ...


class FolderDisk:
    """A `Disk` in a folder, which it makes when it first writes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._touched: set[Path] = set()

    def alone(self) -> AbstractContextManager[None]:
        """Several custodians on one ledger may share a data folder, and so its log."""
        return files.held(self._folder.with_name(f"{self._folder.name}.lock"))

    def read(self, path: str, max_bytes: int) -> bytes | None:
        """Return a file's bytes, one more than *max_bytes* at the most; None when it is missing."""
        try:
            with (self._folder / path).open("rb") as file:
                return file.read(max_bytes + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise files.unwritable(self._folder / path, error) from None

    def keep(self, path: str, data: bytes) -> None:
        """Write a file that is to stay as it is; PromiseBrokenError if it is there and differs."""
        there = self.read(path, len(data))
        if there is None:
            self.replace(path, data)
        elif there != data:
            raise PromiseBrokenError(
                f"the published log would be rewritten at {path}",
                code="log.rewritten",
                mend=f"look at {self._folder}; files made by nobody else may be moved away, and "
                "are made again from the ledger",
            )
        else:
            self._touched.add((self._folder / path).parent)  # perhaps not durable yet

    def replace(self, path: str, data: bytes) -> None:
        target, temporary = self._folder / path, self._folder / ".partial"
        try:
            self._make(target.parent)
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(target)
        except OSError as error:
            raise files.unwritable(target, error) from None
        self._touched.add(target.parent)

    def _make(self, folder: Path) -> None:
        for each in (folder, *folder.parents):
            if each == self._folder.parent:
                break
            self._touched.add(each.parent)
        folder.mkdir(parents=True, exist_ok=True)

    def sync(self) -> None:
        try:
            for folder in self._touched:
                files.sync_folder(folder)
        except OSError as error:
            raise files.unwritable(self._folder, error) from None
        self._touched.clear()

    def forget_parts(self, path: str) -> None:
        """Remove the partial versions of a tile that is full now; readers fall back to it."""
        shutil.rmtree(self._folder / f"{path}.p", ignore_errors=True)


class LogFiles:
    """The published files of one log."""

    def __init__(self, *, disk: Disk, verifier: NoteVerifier) -> None:
        self._disk = disk
        self._verifier = verifier

    def alone(self) -> AbstractContextManager[None]:
        """As `Disk.alone`."""
        return self._disk.alone()

    def read(self, tile: Tile) -> bytes:
        """Return a tile's file; raises NotFoundError."""
        data = self._disk.read(tile.path, MAX_BUNDLE_BYTES)
        if data is None:
            raise NotFoundError(f"{tile.path} is missing", code="log.missing")
        return data

    def published(self) -> tuple[bytes, Checkpoint] | None:
        """
        Return the published checkpoint, as signed and as read; None before the first.

        Raises:
            VerificationError: it is of another log than this ledger's.
        """
        signed = self._disk.read(CHECKPOINT_PATH, MAX_NOTE_BYTES)
        if signed is None:
            return None
        try:
            return signed, open_checkpoint(signed, self._verifier)
        except VerificationError as error:
            raise VerificationError(
                "the published log is not this ledger's",
                code="log.foreign",
                expected=str(self._verifier),
                came=str(error),
                mend="name the data folder of the ledger's own log, or move the files away",
            ) from None

    def publish(
        self, signed: bytes, checkpoint: Checkpoint, entries: ReadEntries, *, certificate: bytes
    ) -> None:
        """
        Bring the files up to *checkpoint*.

        1. What is published must be the beginning of it, and whole at its edge.
        2. The ledger's entries must come to its root.
        3. New tiles and bundles are written, and made durable.
        4. The checkpoint is.
        5. Parts of tiles that are full now go.

        Raises:
            RefusedError: the ledger is behind the published log, or another history (Rule 3).
            PromiseBrokenError: the published files do not come to their own checkpoint.
            UnavailableError, ConfigurationError: the disk; do it again.
        """
        published = self.published()
        if published is not None and published[0] == signed:
            return
        edge = self._edge(checkpoint)
        old = edge.size
        for first in range(old, checkpoint.size, WIDTH):
            for leaf_hash in leaf_hashes(entries(first, min(WIDTH, checkpoint.size - first))):
                edge.add(leaf_hash)
        if (edge.size, edge.root()) != (checkpoint.size, checkpoint.root):
            raise RefusedError(
                "the ledger's log is not a continuation of the published one",
                code="log.forked",
                expected=f"root {edge.root().hex()} at {edge.size}",
                came=f"root {checkpoint.root.hex()} at {checkpoint.size}",
                mend="find out who rewrote the ledger; the published log is the older witness",
            )
        self._disk.keep(CERTIFICATE_NAME, certificate)
        full = []
        for tile in tiles_of(checkpoint.size, since=old):
            self._disk.keep(tile.path, self._content(tile, old, entries))
            if not tile.partial:
                full.append(tile.path)
        self._disk.sync()
        self._disk.replace(CHECKPOINT_PATH, signed)
        self._disk.sync()
        for path in full:
            self._disk.forget_parts(path)

    def check_behind(self, checkpoint: Checkpoint) -> None:
        """Raise RefusedError when the published log has more than the ledger's *checkpoint*."""
        published = self.published()
        if published is not None and published[1].size > checkpoint.size:
            raise RefusedError(
                "the ledger is older than the log that it published",
                code="log.rolled_back",
                expected=f"{published[1].size} entries or more",
                came=f"{checkpoint.size}",
                mend=ADOPT_MEND,
            )

    def _edge(self, checkpoint: Checkpoint) -> Edge:
        self.check_behind(checkpoint)
        published = self.published()
        if published is None:
            return Edge()
        _, old = published
        edge = Edge.of(old.size, TileSubtrees(old.size, self.read))
        if edge.root() != old.root:
            raise PromiseBrokenError(
                "the published tiles do not come to the published checkpoint",
                code="log.damaged",
                mend="move the files away; they are made again from the ledger",
            )
        return edge

    def _content(self, tile: Tile, old: int, entries: ReadEntries) -> bytes:
        """Make a tile's file; its first hashes may have been published at size *old*."""
        first = tile.index * WIDTH
        if tile.level is None:
            return join_entries(entries(first, tile.width))
        if tile.level == 0:
            return b"".join(leaf_hashes(entries(first, tile.width)))
        had = min(tile.width, max(0, (old >> 8 * tile.level) - first))
        content = self.read(Tile(tile.level, tile.index, had)) if had else b""
        for index in range(first + had, first + tile.width):
            below = Tile(tile.level - 1, index)
            content += subtree_root(split_tile(below, self.read(below)))
        return content
