"""
Prove a whole log, or name what is wrong with it.

1. The checkpoint is signed by the log's key, and is of this log (`open_checkpoint`, before).
2. Every entry hashes to its place in a tile of level 0.
3. Every tile above holds the roots of the full tiles below.
4. All entries come to the root that was signed, and so do all tiles.
5. The tree goes on from the one that the reader saw before: the same root at that size.

A fault does not end the walk: all are found, each with its file and, where one can say it, the
entry. Whoever alters a tile and its entry alike is found by 4; the log itself, signing another
history, by 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from aigovtool.errors import MalformedError, NotFoundError, Reason
from aigovtool.tlog.checkpoint import Checkpoint
from aigovtool.tlog.tiles import (
    WIDTH,
    ReadTile,
    Tile,
    leaf_hashes,
    split_entries,
    split_tile,
    subtree_root,
    tiles_of,
)
from aigovtool.tlog.tree import Edge

MAX_FAULTS = 100  # of one log; more would say nothing new


@dataclass(slots=True)
class Findings:
    """What a walk through a log found; `faults` is empty for a whole one."""

    entries: int = 0
    tiles: int = 0
    faults: list[Reason] = field(default_factory=list)

    def fault(
        self, code: str, message: str, *, expected: str | None = None, came: str | None = None
    ) -> None:
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(Reason(code=code, message=message, expected=expected, came=came))


class _Sum:
    """The tree over one reading of the log, with its root at the size that was seen before."""

    __slots__ = ("_since", "edge", "since_root")

    def __init__(self, since: int | None) -> None:
        self._since = since
        self.edge: Edge | None = Edge()
        self.since_root = self.edge.root() if since == 0 else None

    def add(self, row: Sequence[bytes] | None) -> None:
        if row is None:
            self.edge = None  # a part is missing: there is no root after it
        if self.edge is None or row is None:
            return
        for each in row:
            self.edge.add(each)
            if self.edge.size == self._since:
                self.since_root = self.edge.root()

    def root(self) -> bytes | None:
        return None if self.edge is None else self.edge.root()


def check_log(
    checkpoint: Checkpoint,
    read: ReadTile,
    *,
    since: Checkpoint | None = None,
    seen: Callable[[int, bytes], None] | None = None,
) -> Findings:
    """
    Walk through the log of an opened checkpoint and do steps 2 to 5.

    Args:
        since: an older checkpoint of it, opened with the same key.
        seen: is told every entry that could be read, by index.

    Raises:
        UnavailableError: of *read*, when a file cannot be had just now.
    """
    found = Findings()
    by_tiles, by_entries = (_Sum(None if since is None else since.size) for _ in range(2))
    below: dict[int, bytes | None] = {}  # roots of the full tiles one level down, by index
    roots: dict[int, bytes | None] = {}
    level = 0
    for tile in tiles_of(checkpoint.size):
        if tile.level is None:
            continue
        if tile.level != level:
            level, below, roots = tile.level, roots, {}
        found.tiles += 1
        row = _row(found, tile, read)
        if level == 0:
            entries = _entries(found, tile, read, row, seen)
            by_tiles.add(row)
            by_entries.add(entries)
        elif row is not None:
            _compare_roots(found, tile, row, below)
        if not tile.partial:
            roots[tile.index] = None if row is None else subtree_root(row)
    _compare_root(found, checkpoint, by_tiles.root(), by_entries.root())
    if since is not None:
        _compare_since(found, checkpoint, since, by_tiles.since_root or by_entries.since_root)
    return found


def _row(found: Findings, tile: Tile, read: ReadTile) -> tuple[bytes, ...] | None:
    """Read a tile; None, and a fault, when it is missing or misshapen."""
    try:
        return split_tile(tile, read(tile))
    except NotFoundError:
        found.fault("log.missing", f"{tile.path} is missing")
    except MalformedError as error:
        found.faults += error.reasons
    return None


def _entries(
    found: Findings,
    tile: Tile,
    read: ReadTile,
    row: tuple[bytes, ...] | None,
    seen: Callable[[int, bytes], None] | None,
) -> tuple[bytes, ...] | None:
    """Read the bundle that belongs to a tile of level 0, and hold them against each other."""
    bundle = Tile(None, tile.index, tile.width)
    try:
        entries = split_entries(bundle, read(bundle))
    except NotFoundError:
        found.fault("log.missing", f"{bundle.path} is missing")
        return None
    except MalformedError as error:
        found.faults += error.reasons
        return None
    hashes = leaf_hashes(entries)
    first = tile.index * WIDTH
    for at, (entry, came) in enumerate(zip(entries, hashes, strict=True)):
        if row is not None and row[at] != came:
            found.fault(
                "log.entry",
                f"entry {first + at} is not the one of which {tile.path} holds the hash",
                expected=row[at].hex(),
                came=came.hex(),
            )
        if seen is not None:
            seen(first + at, entry)
    found.entries += len(entries)
    return hashes


def _compare_roots(
    found: Findings, tile: Tile, row: tuple[bytes, ...], below: dict[int, bytes | None]
) -> None:
    assert tile.level is not None
    for at, expected in enumerate(row):
        index = tile.index * WIDTH + at
        came = below.get(index)
        if came is not None and came != expected:
            found.fault(
                "log.tile",
                f"{Tile(tile.level - 1, index).path} does not hash to what {tile.path} says",
                expected=expected.hex(),
                came=came.hex(),
            )


def _compare_root(
    found: Findings, checkpoint: Checkpoint, by_tiles: bytes | None, by_entries: bytes | None
) -> None:
    signed = checkpoint.root
    if by_tiles is not None and by_tiles != signed:
        entries_hold = by_entries == signed
        found.fault(
            "log.tiles" if entries_hold else "log.root",
            "the tiles were altered, the entries were not"
            if entries_hold
            else "the log does not come to the root that was signed",
            expected=f"root {signed.hex()}",
            came=f"root {by_tiles.hex()}",
        )
    elif by_entries is not None and by_entries != signed:
        found.fault(
            "log.entries" if by_tiles == signed else "log.root",
            "the entries were altered, the tiles were not"
            if by_tiles == signed
            else "the log does not come to the root that was signed",
            expected=f"root {signed.hex()}",
            came=f"root {by_entries.hex()}",
        )


def _compare_since(
    found: Findings, checkpoint: Checkpoint, since: Checkpoint, came: bytes | None
) -> None:
    if since.size > checkpoint.size:
        found.fault(
            "log.rollback",
            "the log is shorter than it was",
            expected=f"at least {since.size} entries",
            came=f"{checkpoint.size}",
        )
    elif came is not None and came != since.root:
        found.fault(
            "log.fork",
            f"the log's first {since.size} entries are not those that it showed before",
            expected=f"root {since.root.hex()}",
            came=f"root {came.hex()}",
        )
