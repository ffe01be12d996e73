"""Proof files, and whole logs: each attack on one is found and named."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigovtool.errors import AIGovToolError, MalformedError, VerificationError
from aigovtool.tlog.check import MAX_FAULTS, check_log
from aigovtool.tlog.checkpoint import Checkpoint
from aigovtool.tlog.note import NoteKey
from aigovtool.tlog.proof import HEADER, Proof, prove
from aigovtool.tlog.tiles import Tile, join_entries
from tests.tlog.reference import PlainLog, mth

KEY = NoteKey.from_seed("test.example/log", b"\x07" * 32)
SIZE = 600


def entries_of(size: int) -> list[bytes]:
    return [f"entry {at}".encode() for at in range(size)]


@pytest.fixture
def log() -> PlainLog:
    return PlainLog(entries_of(SIZE), KEY)


def codes(log: PlainLog, since: Checkpoint | None = None) -> list[str]:
    return [each.code for each in check_log(log.checkpoint, log.read, since=since).faults]


def test_a_whole_log_is_whole_and_every_entry_is_seen(log: PlainLog) -> None:
    seen: dict[int, bytes] = {}
    found = check_log(log.checkpoint, log.read, seen=seen.__setitem__)
    assert (found.faults, found.entries, found.tiles) == ([], SIZE, 4)
    assert list(seen.values()) == entries_of(SIZE)
    assert codes(PlainLog([], KEY)) == []


@pytest.mark.parametrize("old", [0, 1, 255, 256, 257, 599, 600])
def test_a_log_goes_on_from_what_it_showed(log: PlainLog, old: int) -> None:
    assert codes(log, PlainLog(entries_of(old), KEY).checkpoint) == []


def test_a_log_that_was_rolled_back_is_named(log: PlainLog) -> None:
    assert codes(log, PlainLog(entries_of(SIZE + 1), KEY).checkpoint) == ["log.rollback"]


@pytest.mark.parametrize("at", [0, 255, 256, 511])
def test_a_log_that_rewrote_its_history_with_its_own_key_is_named(at: int) -> None:
    before = PlainLog(entries_of(512), KEY).checkpoint
    rewritten = entries_of(SIZE)
    rewritten[at] = b"never happened"
    assert codes(PlainLog(rewritten, KEY), before) == ["log.fork"]


def test_a_log_that_dropped_an_entry_is_named() -> None:
    before = PlainLog(entries_of(512), KEY).checkpoint
    dropped = entries_of(SIZE)
    del dropped[100]
    assert codes(PlainLog(dropped, KEY), before) == ["log.fork"]


def swap_entry(log: PlainLog) -> None:
    log.files["tile/entries/000"] = join_entries([b"forged", *entries_of(256)[1:]])


def swap_hash(log: PlainLog) -> None:
    path = Tile(0, 1).path
    log.files[path] = bytes(32) + log.files[path][32:]


def swap_both(log: PlainLog) -> None:
    swap_entry(log)
    path = Tile(0, 0).path
    log.files[path] = mth([b"forged"]) + log.files[path][32:]


def swap_root(log: PlainLog) -> None:
    path = Tile(1, 0, 2).path
    log.files[path] = bytes(32) + log.files[path][32:]


def lose_tile(log: PlainLog) -> None:
    del log.files[Tile(0, 1).path]


def lose_bundle(log: PlainLog) -> None:
    del log.files[Tile(None, 2, SIZE - 512).path]


def cut_tile(log: PlainLog) -> None:
    log.files[Tile(0, 1).path] = log.files[Tile(0, 1).path][:-1]


def cut_bundle(log: PlainLog) -> None:
    log.files[Tile(None, 1).path] = log.files[Tile(None, 1).path][:-1]


@pytest.mark.parametrize(
    ("attack", "names", "says"),
    [
        (swap_entry, {"log.entry", "log.entries"}, "entry 0 "),
        (swap_hash, {"log.entry", "log.tile", "log.tiles"}, "entry 256 "),
        (swap_both, {"log.tile", "log.root"}, "tile/0/000 "),
        (swap_root, {"log.tile"}, "tile/0/000 does not hash to what tile/1/000.p/2"),
        (lose_tile, {"log.missing"}, "tile/0/001 is missing"),
        (lose_bundle, {"log.missing"}, "tile/entries/002.p/88 is missing"),
        (cut_tile, {"log.tile"}, "tile/0/001 has another length"),
        (cut_bundle, {"log.bundle"}, "tile/entries/001 is not 256"),
    ],
)
def test_what_was_altered_is_named(
    log: PlainLog, attack: Callable[[PlainLog], None], names: set[str], says: str
) -> None:
    attack(log)
    found = check_log(log.checkpoint, log.read)
    assert {each.code for each in found.faults} == names
    assert any(says in str(each) for each in found.faults)


def test_a_fork_is_named_even_when_a_tile_is_missing_too(log: PlainLog) -> None:
    lose_tile(log)
    other = PlainLog([b"other", *entries_of(SIZE)[1:512]], KEY).checkpoint
    assert set(codes(log, other)) == {"log.missing", "log.fork"}


def test_a_log_of_nothing_but_faults_names_no_more_than_a_hundred(log: PlainLog) -> None:
    log.files["tile/entries/000"] = join_entries([b"forged"] * 256)
    assert len(check_log(log.checkpoint, log.read).faults) == MAX_FAULTS


def test_a_proof_file_holds_alone(log: PlainLog) -> None:
    proof = prove(300, log.signed, log.checkpoint, log.read, extra=b"an opening")
    data = proof.encode()
    assert data.startswith(f"{HEADER}\nextra YW4gb3BlbmluZw==\nindex 300\n".encode())
    assert data.endswith(b"\n\n" + log.signed)
    again = Proof.parse(data)
    assert again == proof
    assert again.verify(b"entry 300", KEY.verifier) == log.checkpoint
    with pytest.raises(VerificationError, match="not number 300"):
        again.verify(b"entry 301", KEY.verifier)
    other = NoteKey.from_seed("test.example/log", b"\x08" * 32)
    with pytest.raises(VerificationError, match="not signed"):
        again.verify(b"entry 300", other.verifier)


def test_a_proof_in_a_log_of_one_has_no_hashes() -> None:
    log = PlainLog([b"only"], KEY)
    proof = Proof.parse(prove(0, log.signed, log.checkpoint, log.read).encode())
    assert (proof.hashes, proof.extra) == ((), None)
    proof.verify(b"only", KEY.verifier)


def test_every_changed_byte_of_a_proof_is_noticed() -> None:
    log = PlainLog(entries_of(5), KEY)
    data = prove(3, log.signed, log.checkpoint, log.read).encode()
    for at in range(len(data)):
        forged = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises((MalformedError, VerificationError)):
            Proof.parse(forged).verify(b"entry 3", KEY.verifier)


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        HEADER.encode(),
        f"{HEADER}\nindex 0\n".encode(),
        f"{HEADER}\n\nindex 0\n\nx".encode(),
        f"{HEADER}\nindex 00\n\nx".encode(),
        f"{HEADER}\nindex -1\n\nx".encode(),
        f"{HEADER}\nextra !!\nindex 0\n\nx".encode(),
        f"{HEADER}\nextra YW5=\nindex 0\n\nx".encode(),
        f"{HEADER}\nextra YW4=\n\nx".encode(),
        f"{HEADER}\nindex 0\nYW4=\n\nx".encode(),
        f"{HEADER}\nindex 0\n{'AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=' + chr(10)}".encode()
        * 70,
        b"c2sp.org/tlog-proof@v2\nindex 0\n\nx",
        bytes(1 << 20),
    ],
)
def test_what_is_no_proof_is_refused(bad: bytes) -> None:
    with pytest.raises(MalformedError):
        Proof.parse(bad)


@given(st.binary(max_size=300).map(lambda tail: HEADER.encode() + b"\n" + tail))
def test_no_foreign_exception_leaves_a_proof(data: bytes) -> None:
    with contextlib.suppress(AIGovToolError):
        Proof.parse(data).verify(b"entry", KEY.verifier)
