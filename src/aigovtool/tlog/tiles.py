"""
Where a log's hashes and entries lie: C2SP ``tlog-tiles``, tiles of height 8 and width 256.

Rule 1: a tile at level *L* holds the hashes of level ``8 * L`` of the tree; the levels between are
        hashed from them.
Rule 2: a path has one spelling, and a tile one length; anything else is refused.
Rule 3: what is published for a tree size is `tiles_of` it; going on from an older size adds
        `tiles_of(size, since=old)` and takes nothing away.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from aigovtool.errors import MalformedError, PromiseBrokenError
from aigovtool.tlog.tree import HASH_BYTES, MAX_SIZE, hash_children, hash_leaf

HEIGHT = 8
WIDTH = 1 << HEIGHT
MAX_LEVEL = 63 // HEIGHT  # above it no tree of MAX_SIZE entries has a tile
MAX_ENTRY_BYTES = 0xFFFF  # a bundle's length prefix is a uint16
MAX_BUNDLE_BYTES = WIDTH * (2 + MAX_ENTRY_BYTES)
CHECKPOINT_PATH = "checkpoint"

_ENTRIES = "entries"
_PATH = re.compile(
    r"tile/(?P<level>entries|0|[1-9][0-9]?)/(?P<index>(?:x[0-9]{3}/)*[0-9]{3})"
    r"(?:\.p/(?P<width>[1-9][0-9]{0,2}))?"
)


@dataclass(frozen=True, slots=True, order=True)
class Tile:
    """
    One file of a log.

    Args:
        level: of the tile, 0 to 7; None for the bundle of entries under a tile of level 0.
        index: within the level.
        width: hashes or entries in it, 1 to 256; below 256 it is partial.
    """

    level: int | None
    index: int
    width: int = WIDTH

    @property
    def partial(self) -> bool:
        return self.width < WIDTH

    @property
    def path(self) -> str:
        """Its path below the log's prefix, such as ``tile/0/x001/x234/067.p/5``."""
        rest, groups = self.index, [f"{self.index % 1000:03d}"]
        while rest := rest // 1000:
            groups.append(f"x{rest % 1000:03d}")
        level = _ENTRIES if self.level is None else str(self.level)
        suffix = f".p/{self.width}" if self.partial else ""
        return f"tile/{level}/{'/'.join(reversed(groups))}{suffix}"

    @classmethod
    def parse(cls, path: str) -> Tile:
        """Read a path that `path` wrote; raises MalformedError on every other spelling."""
        if (match := _PATH.fullmatch(path)) is None:
            raise MalformedError("not the path of a tile", code="log.path")
        level = None if match["level"] == _ENTRIES else int(match["level"])
        index = int(match["index"].replace("x", "").replace("/", ""))
        tile = cls(level, index, WIDTH if match["width"] is None else int(match["width"]))
        if (level or 0) > MAX_LEVEL or index >= MAX_SIZE // WIDTH or tile.path != path:
            raise MalformedError("not the path of a tile", code="log.path")
        return tile


ReadTile: TypeAlias = Callable[[Tile], bytes]
"""Gives the bytes of a tile's file, or raises NotFoundError or UnavailableError."""


def tiles_of(size: int, *, since: int = 0) -> Iterator[Tile]:
    """
    Go through the tiles and bundles of a tree of *size* entries, the lowest level first.

    With *since*, only those that a tree of that smaller size did not have already.
    """
    yield from _row(None, size, since)
    level = 0
    while size >> HEIGHT * level:
        yield from _row(level, size >> HEIGHT * level, since >> HEIGHT * level)
        level += 1


def _row(level: int | None, hashes: int, since: int) -> Iterator[Tile]:
    full, width = divmod(hashes, WIDTH)
    for index in range(since // WIDTH, full):
        yield Tile(level, index)
    if width and hashes != since:
        yield Tile(level, full, width)


def tile_holding(level: int | None, index: int, size: int) -> Tile:
    """
    Return the tile of a tree of *size* entries in which hash *index* of tile level *level* lies.

    Raises:
        PromiseBrokenError: a tree of that size has no such hash.
    """
    hashes = size >> HEIGHT * (level or 0)
    if not 0 <= index < hashes:
        raise PromiseBrokenError(f"hash {index} of tile level {level} is not in a tree of {size}")
    number = index // WIDTH
    return Tile(level, number, min(WIDTH, hashes - number * WIDTH))


class TileSubtrees:
    """
    The `Subtrees` of a tree of *size* entries, read from its tiles.

    What it gives is only as true as the tiles: whoever uses it holds the result against a signed
    root. Tiles are kept, so one object serves one question or one walk from left to right.
    """

    def __init__(self, size: int, read: ReadTile) -> None:
        self._size = size
        self._read = read
        self._kept: dict[Tile, tuple[bytes, ...]] = {}

    def __call__(self, level: int, index: int) -> bytes:
        """Raises what *read* raises, and MalformedError when a tile has another length."""
        tile_level, above = divmod(level, HEIGHT)
        first = index << above
        tile = tile_holding(tile_level, first + (1 << above) - 1, self._size)
        hashes = self._kept.get(tile)
        if hashes is None:
            hashes = self._kept[tile] = split_tile(tile, self._read(tile))
        first %= WIDTH
        return subtree_root(hashes[first : first + (1 << above)])


def subtree_root(hashes: Sequence[bytes]) -> bytes:
    """Return the root over a power of two of hashes, such as those of one full tile."""
    row = list(hashes)
    while len(row) > 1:
        row = [hash_children(*pair) for pair in zip(row[::2], row[1::2], strict=True)]
    return row[0]


def split_tile(tile: Tile, data: bytes) -> tuple[bytes, ...]:
    """Return the hashes in a tile's file; raises MalformedError on any other length."""
    if len(data) != tile.width * HASH_BYTES:
        raise MalformedError(
            f"{tile.path} has another length",
            code="log.tile",
            expected=f"{tile.width * HASH_BYTES} bytes",
            came=f"{len(data)}",
        )
    return tuple(data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES))


def join_entries(entries: Sequence[bytes]) -> bytes:
    """
    Return the bundle of up to 256 entries.

    Raises:
        PromiseBrokenError: there are more, or one is longer than 65,535 bytes.
    """
    if not 1 <= len(entries) <= WIDTH or any(len(each) > MAX_ENTRY_BYTES for each in entries):
        raise PromiseBrokenError("more than fits a bundle of entries")
    return b"".join(len(each).to_bytes(2, "big") + each for each in entries)


def split_entries(tile: Tile, data: bytes) -> tuple[bytes, ...]:
    """Return the entries of a bundle's file; raises MalformedError unless it is exactly so many."""
    entries: list[bytes] = []
    at = 0
    while at < len(data) and len(entries) < tile.width:
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if end > len(data) or at + 2 > len(data):
            break
        entries.append(data[at + 2 : end])
        at = end
    if at != len(data) or len(entries) != tile.width:
        raise MalformedError(
            f"{tile.path} is not {tile.width} length-prefixed entries", code="log.bundle"
        )
    return tuple(entries)


def leaf_hashes(entries: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return the hashes of entries, as they stand in a tile of level 0."""
    return tuple(hash_leaf(each) for each in entries)
