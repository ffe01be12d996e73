"""The tree of RFC 6962 as its section 2.1 writes it, slow and plain, and a log in a dict."""

from __future__ import annotations

from hashlib import sha256

from aigovtool.errors import NotFoundError
from aigovtool.tlog.checkpoint import Checkpoint
from aigovtool.tlog.note import NoteKey
from aigovtool.tlog.tiles import Tile, join_entries, tiles_of


def split(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def mth(entries: list[bytes]) -> bytes:
    if not entries:
        return sha256(b"").digest()
    if len(entries) == 1:
        return sha256(b"\x00" + entries[0]).digest()
    k = split(len(entries))
    return sha256(b"\x01" + mth(entries[:k]) + mth(entries[k:])).digest()


def path(m: int, entries: list[bytes]) -> list[bytes]:
    if len(entries) == 1:
        return []
    k = split(len(entries))
    if m < k:
        return [*path(m, entries[:k]), mth(entries[k:])]
    return [*path(m - k, entries[k:]), mth(entries[:k])]


def proof(m: int, entries: list[bytes]) -> list[bytes]:
    return [] if m == 0 else subproof(m, entries, True)


def subproof(m: int, entries: list[bytes], whole: bool) -> list[bytes]:
    if m == len(entries):
        return [] if whole else [mth(entries)]
    k = split(len(entries))
    if m <= k:
        return [*subproof(m, entries[:k], whole), mth(entries[k:])]
    return [*subproof(m - k, entries[k:], False), mth(entries[:k])]


class PlainLog:
    """A published log: files by path, made by definition and not by what is tested."""

    def __init__(self, entries: list[bytes], key: NoteKey) -> None:
        self.entries, self.key = entries, key
        self.checkpoint = Checkpoint(key.verifier.name, len(entries), mth(entries))
        self.signed = self.checkpoint.sign(key)
        self.files: dict[str, bytes] = {}
        for tile in tiles_of(len(entries)):
            first = tile.index * 256
            if tile.level is None:
                body = join_entries(entries[first : first + tile.width])
            else:
                span = 256**tile.level
                body = b"".join(
                    mth(entries[at * span : (at + 1) * span])
                    for at in range(first, first + tile.width)
                )
            self.files[tile.path] = body

    def read(self, tile: Tile) -> bytes:
        try:
            return self.files[tile.path]
        except KeyError:
            raise NotFoundError("no such file") from None
