"""Tiles: the examples of C2SP tlog-tiles, one spelling a path, and trees read from tiles alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigovtool.errors import MalformedError, PromiseBrokenError
from aigovtool.tlog.note import NoteKey
from aigovtool.tlog.proof import prove, prove_consistency
from aigovtool.tlog.tiles import (
    MAX_ENTRY_BYTES,
    Tile,
    TileSubtrees,
    join_entries,
    split_entries,
    split_tile,
    tile_holding,
    tiles_of,
)
from aigovtool.tlog.tree import tree_root, verify_consistency
from tests.tlog import reference

KEY = NoteKey.from_seed("test.example/log", b"\x07" * 32)


def test_the_specifications_path_comes_out() -> None:
    assert Tile(0, 1234067).path == "tile/0/x001/x234/067"
    assert Tile(None, 1234067, 5).path == "tile/entries/x001/x234/067.p/5"
    assert Tile(2, 0, 1).path == "tile/2/000.p/1"


def test_the_specifications_tree_of_70000_has_its_tiles() -> None:
    tiles = list(tiles_of(70_000))
    count = lambda level, partial: [  # noqa: E731
        each.width for each in tiles if each.level == level and each.partial is partial
    ]
    for level in (None, 0):
        assert len(count(level, False)) == 273
        assert count(level, True) == [112]
    assert (count(1, False), count(1, True)) == ([256], [17])
    assert (count(2, False), count(2, True)) == ([], [1])
    assert [(each.level, each.width) for each in tiles_of(256)] == [(None, 256), (0, 256), (1, 1)]
    assert list(tiles_of(0)) == []


@given(st.integers(0, 200_000), st.integers(0, 3000))
def test_a_grown_tree_has_what_it_had_and_what_is_new(old: int, more: int) -> None:
    before, after = set(tiles_of(old)), set(tiles_of(old + more))
    new = list(tiles_of(old + more, since=old))
    assert len(set(new)) == len(new)
    assert set(new) == after - before
    # nothing that is gone was more than a part of something new
    for each in before - after:
        assert each.partial
        assert any((each.level, each.index) == (other.level, other.index) for other in new)


@given(st.one_of(st.none(), st.integers(0, 7)), st.integers(0, 10**15), st.integers(1, 256))
def test_a_path_reads_back(level: int | None, index: int, width: int) -> None:
    tile = Tile(level, index, width)
    assert Tile.parse(tile.path) == tile


@pytest.mark.parametrize(
    "path",
    [
        "tile/0/0",
        "tile/00/000",
        "tile/8/000",
        "tile/64/000",
        "tile/-1/000",
        "tile/0/x000/001",
        "tile/0/001/067",
        "tile/0/x001",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/01",
        "tile/0/000.p/",
        "tile/data/000",
        "tile/0/000\n",
        "/tile/0/000",
        "tile/0/../../checkpoint",
        "tile/0/x999/x999/x999/x999/x999/x999/999",
        "tile/0/٠٠٠",
        "checkpoint",
        "",
    ],
)
def test_another_spelling_is_refused(path: str) -> None:
    with pytest.raises(MalformedError):
        Tile.parse(path)


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=256))
def test_a_bundle_reads_back_and_no_other_length_does(entries: list[bytes]) -> None:
    bundle, tile = join_entries(entries), Tile(None, 0, len(entries))
    assert list(split_entries(tile, bundle)) == entries
    for wrong in (bundle + b"\0", bundle + b"\0\0", bundle[:-1]):
        with pytest.raises(MalformedError):
            split_entries(tile, wrong)
    for width in {len(entries) - 1, len(entries) + 1} - {0, 257}:
        with pytest.raises(MalformedError):
            split_entries(Tile(None, 0, width), bundle)


def test_what_does_not_fit_is_not_made() -> None:
    assert len(join_entries([bytes(MAX_ENTRY_BYTES)])) == MAX_ENTRY_BYTES + 2
    for entries in ([], [b""] * 257, [bytes(MAX_ENTRY_BYTES + 1)]):
        with pytest.raises(PromiseBrokenError):
            join_entries(entries)
    with pytest.raises(PromiseBrokenError):
        tile_holding(0, 7, 7)
    with pytest.raises(MalformedError, match="64 bytes"):
        split_tile(Tile(0, 0, 2), bytes(63))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 1400), st.data())
def test_roots_and_proofs_come_from_tiles_alone(size: int, data: st.DataObject) -> None:
    entries = [b"%d" % at for at in range(size)]
    log = reference.PlainLog(entries, KEY)
    assert tree_root(size, TileSubtrees(size, log.read)) == log.checkpoint.root
    index = data.draw(st.integers(0, size - 1))
    proof = prove(index, log.signed, log.checkpoint, log.read)
    assert list(proof.hashes) == reference.path(index, entries)
    assert proof.verify(entries[index], KEY.verifier) == log.checkpoint
    old = data.draw(st.integers(0, size))
    steps = prove_consistency(old, log.checkpoint, log.read)
    verify_consistency(old, reference.mth(entries[:old]), size, log.checkpoint.root, steps)


def test_a_tree_over_65536_reads_its_second_level() -> None:
    """By its definition it would take minutes: the tiles are hashed up from constant ones."""
    size = 65_536 + 300
    edge_tiles: dict[str, bytes] = {}
    leaf = reference.mth([b"same"])

    def full(level: int) -> bytes:
        return leaf if level == 0 else reference.sha256(b"\x01" + full_of[level - 1] * 2).digest()

    full_of: list[bytes] = []
    for level in range(17):
        full_of.append(full(level))
    for tile in tiles_of(size):
        if tile.level is not None:
            edge_tiles[tile.path] = full_of[8 * tile.level] * tile.width
    came = tree_root(size, TileSubtrees(size, lambda tile: edge_tiles[tile.path]))
    node = lambda left, right: reference.sha256(b"\x01" + left + right).digest()  # noqa: E731
    rest = node(full_of[5], node(full_of[3], full_of[2]))  # 300 = 256 + 32 + 8 + 4
    assert came == node(full_of[16], node(full_of[8], rest))
