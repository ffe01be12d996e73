"""The ledger's log: every event is in it, no crash makes two histories, no rollback passes."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aigovtool.crypto.signing import SigningKey
from aigovtool.custodian.log_files import FolderDisk, LogFiles
from aigovtool.custodian.logbook import Logbook, logged, new_log_head, new_log_key
from aigovtool.errors import (
    ConflictError,
    MalformedError,
    NotFoundError,
    PromiseBrokenError,
    RefusedError,
    UnavailableError,
    VerificationError,
)
from aigovtool.tlog.check import check_log
from aigovtool.tlog.checkpoint import Checkpoint, open_checkpoint
from aigovtool.tlog.note import NoteKey
from aigovtool.tlog.proof import Proof
from aigovtool.wire.codec import decode
from aigovtool.wire.log import (
    LoggedEvent,
    ProofExtra,
    entry_of,
    open_certificate,
    open_entry,
    read_entry,
)
from tests.custodian.ledgers import REFUSALS, Bench

Write = Callable[..., None]


class BreakingDisk(FolderDisk):
    """Fails at one step: ``lost`` before it did anything, ``kept`` after it did everything."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.steps = 0
        self.at: int | None = None
        self.how = ""

    def _step(self, do: Callable[[], None]) -> None:
        breaks = self.steps == self.at
        self.steps += 1
        if breaks and self.how == "lost":
            raise UnavailableError("the disk failed")
        do()
        if breaks:
            raise UnavailableError("the disk failed, after it had kept everything")

    def keep(self, path: str, data: bytes) -> None:
        self._step(lambda: super(BreakingDisk, self).keep(path, data))

    def replace(self, path: str, data: bytes) -> None:
        if path == "checkpoint":
            self._step(lambda: super(BreakingDisk, self).replace(path, data))
        else:
            super().replace(path, data)

    def sync(self) -> None:
        self._step(super().sync)

    def forget_parts(self, path: str) -> None:
        self._step(lambda: super(BreakingDisk, self).forget_parts(path))


class Logged:
    """A bench's ledger with its log, opened as a custodian opens it."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.bench, self.folder = bench, folder
        self.key: NoteKey = new_log_key(bench.key.public_key)
        with bench.store.write() as tx:
            tx.insert_log_head(new_log_head(self.key, wrapped_key=b"w", custodian=bench.key))
        self.disk = BreakingDisk(folder)
        self.book = self.another(self.disk)

    def another(self, disk: FolderDisk) -> Logbook:
        files = LogFiles(disk=disk, verifier=self.key.verifier)
        return Logbook(store=self.bench.store, files=files, key=self.key, clock=self.bench.clock)

    def events(self, count: int) -> None:
        with self.bench.ledger.write(while_held=True) as entry:
            for at in range(count):
                entry.event("test.event", actor="a person", consumer=None, credits=at)

    @property
    def checkpoint(self) -> Checkpoint:
        return open_checkpoint((self.folder / "checkpoint").read_bytes(), self.key.verifier)

    def check(self, since: Checkpoint | None = None) -> list[bytes]:
        """The whole log as anybody checks it; its entries."""
        entries: list[bytes] = []
        files = LogFiles(disk=FolderDisk(self.folder), verifier=self.key.verifier)
        found = check_log(
            self.checkpoint, files.read, since=since, seen=lambda _, each: entries.append(each)
        )
        assert found.faults == []
        return entries

    def check_complete(self) -> None:
        """Every event of the ledger is in the published log, once, and opens."""
        entries = self.check()
        with self.bench.store.read() as tx:
            events = tx.events_after(0, None, 100_000)
        assert sorted(read_entry(each).event for each in entries) == [
            each.number for each in events
        ]
        for event in events[-3:]:
            proof, extra = self.proof(event.number)
            assert extra.opening is not None
            assert open_entry(extra.entry, extra.opening) == logged(event)
            assert proof.verify(extra.entry, self.key.verifier) == self.checkpoint

    def proof(self, event: int) -> tuple[Proof, ProofExtra]:
        proof = Proof.parse(self.book.proof(event).encode())
        assert proof.extra is not None
        return proof, decode(proof.extra, ProofExtra)

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }


@pytest.fixture
def log(ledger: Bench, tmp_path: Path) -> Logged:
    return Logged(ledger, tmp_path / "log")


def test_every_event_is_published_and_old_ones_too(log: Logged) -> None:
    log.bench.lend(10)
    log.book.run()
    log.check_complete()
    before = log.checkpoint
    log.events(700)
    assert log.book.run() == 700
    log.check(since=before)
    log.check_complete()
    assert log.book.run() == 0
    status = log.book.status()
    assert (status.size, status.published, status.pending) == (702, 702, 0)
    # parts of what is full have gone, and nothing but the log's own files is there
    assert not (log.folder / "tile/0/000.p").exists()
    assert set(log.files()) == {
        "checkpoint",
        "log-key.json",
        *(f"tile/{level}/{n:03d}" for level in ("entries", 0) for n in (0, 1)),
        # 514 was a checkpoint too: no more than 512 events are signed at a time
        *(f"tile/{level}/002.p/{width}" for level in ("entries", 0) for width in (2, 190)),
        "tile/1/000.p/2",
    }


def test_the_logs_key_is_certified_by_the_custodians(log: Logged) -> None:
    log.book.run()
    certificate = (log.folder / "log-key.json").read_bytes()
    certified = open_certificate(certificate, log.bench.key.public_key)
    assert certified.public_key == log.key.verifier.public_key != log.bench.key.public_key
    assert certified.origin == log.key.verifier.name
    with pytest.raises(VerificationError):
        open_certificate(certificate, SigningKey.generate().public_key)


def test_nothing_personal_is_in_the_clear(log: Logged) -> None:
    loan = log.bench.lend(10)
    consumer = log.bench.consumer(loan.loan, budget=3)
    log.bench.grants.grant(
        loan.loan, 5, actor="Ada Lovelace", consumer=consumer, reason="for Mr Babbage"
    )
    log.book.run()
    public = b"".join(log.files().values())
    for hidden in (consumer, "Lovelace", "Babbage", loan.name):
        assert hidden.encode() not in public
    assert loan.loan.encode() in public
    assert b'"credits":5' in public


def test_the_same_event_twice_looks_different(log: Logged) -> None:
    """Whoever knows an event by heart cannot find it: the salt is random."""
    event = LoggedEvent(
        number=1,
        time=log.bench.clock.now(),
        kind="consumer.blocked",
        actor="admin",
        loan=None,
        session=None,
        consumer="consumer_1",
        lease=None,
        detail=msgspec.Raw(b"{}"),
    )
    one, other = (read_entry(entry_of(event, bytes([at]) * 32)) for at in (1, 2))
    assert one.commitment != other.commitment


def test_an_opening_of_another_event_or_a_false_entry_is_refused(log: Logged) -> None:
    log.events(2)
    log.book.run()
    (_, first), (_, second) = (log.proof(number) for number in (1, 2))
    opening = first.opening
    assert opening is not None
    with pytest.raises(VerificationError, match="another event"):
        open_entry(second.entry, opening)
    for forged in (
        msgspec.structs.replace(opening, salt=bytes(32)),
        msgspec.structs.replace(opening, event=opening.event.replace(b"a person", b"somebody")),
    ):
        with pytest.raises(VerificationError, match="another event"):
            open_entry(first.entry, forged)
    with pytest.raises(MalformedError):
        open_entry(first.entry, msgspec.structs.replace(opening, salt=bytes(31)))
    false = msgspec.structs.replace(read_entry(first.entry), counts={"credits": 7})
    with pytest.raises(VerificationError, match="in the clear"):
        open_entry(msgspec.json.encode(false), opening)


def test_words_under_a_public_name_stay_hidden(log: Logged) -> None:
    with log.bench.ledger.write() as entry:
        entry.event("test.event", actor="x", credits="Ada", used=True, left=3)
    log.book.run()
    (entry_bytes,) = log.check()
    assert read_entry(entry_bytes).counts == {"left": 3}


@pytest.mark.parametrize("how", ["lost", "kept"])
def test_whatever_step_of_publishing_breaks_the_next_run_mends_it(log: Logged, how: str) -> None:
    """Every write, broken twice; after each, what is published is whole, and so is the next run."""
    log.events(250)
    log.book.run()
    log.events(300)
    log.disk.steps, before = 0, log.checkpoint
    log.disk.how, at = how, 0
    while True:
        log.disk.steps, log.disk.at = 0, at
        try:
            log.book.run()
        except UnavailableError:
            seen = log.files()
            log.check(since=before)  # readers see the old log or the new one, whole
            log.disk.at = None
            log.book = log.another(log.disk)  # a new process knows nothing of the old one
            log.book.run()
            for path, data in log.files().items():
                if path in seen and path != "checkpoint":
                    assert data == seen[path]
            log.check_complete()
            before = log.checkpoint
            log.events(300)
            at += 1
            continue
        break
    assert at >= 8
    log.check_complete()


@pytest.mark.parametrize("how", ["lost", "kept"])
def test_a_swap_that_breaks_signs_no_second_history(log: Logged, how: str) -> None:
    log.events(5)
    log.book.run()
    before = log.checkpoint
    log.events(5)
    log.bench.store.next = how
    with pytest.raises(UnavailableError):
        log.book.run()
    assert log.checkpoint == before
    log.book.run()
    log.check(since=before)
    log.check_complete()


def test_two_replicas_sign_one_history(log: Logged, tmp_path: Path) -> None:
    """Both stage at once: the second finds that the head has moved, and publishes the first's."""
    other = log.another(FolderDisk(tmp_path / "other"))
    log.events(3)
    stage = other._swap
    raced = False

    def late(*args: object) -> None:
        nonlocal raced
        if not raced:
            raced = True
            log.book.run()
        stage(*args)  # type: ignore[arg-type]

    other._swap = late  # type: ignore[method-assign]
    other.run()
    assert raced
    assert log.checkpoint.size == 3
    log.events(4)
    other.run()
    log.book.run()
    mine, theirs = log.files(), (tmp_path / "other" / "checkpoint").read_bytes()
    assert mine["checkpoint"] == theirs
    log.check_complete()


def test_a_second_tree_of_one_size_is_refused_by_the_ledger(log: Logged) -> None:
    log.events(3)
    with log.bench.store.read() as tx:
        stale = tx.log_head()
    assert stale is not None
    log.book.run()
    with pytest.raises(ConflictError), log.bench.store.write() as tx:
        tx.swap_log_head(stale, stale)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE log_entries SET leaf = leaf + 100",
        "DELETE FROM log_entries",
        "UPDATE log_head SET size = size - 1",
        "INSERT INTO log_entries SELECT 99, event, salt, entry FROM log_entries WHERE leaf = 1",
        "INSERT INTO log_entries SELECT 99, NULL, salt, entry FROM log_entries WHERE leaf = 1",
        "INSERT INTO log_entries SELECT 99, 77, NULL, entry FROM log_entries WHERE leaf = 1",
    ],
)
def test_the_database_refuses_to_rewrite_the_log(log: Logged, statement: str) -> None:
    log.events(3)
    log.book.run()
    before = log.bench.dump()
    with pytest.raises(REFUSALS):
        log.bench.run_sql(statement)
    assert log.bench.dump() == before


@pytest.fixture
def sqlite_log(sqlite_ledger: Bench, tmp_path: Path) -> Logged:
    """For tests that do with the ledger's file what only an owner of the machine can."""
    return Logged(sqlite_ledger, tmp_path / "log")


@pytest.fixture
def restored(sqlite_log: Logged) -> Iterator[Logged]:
    """A ledger that was restored from the copy of yesterday, beside the log of today."""
    log = sqlite_log
    log.events(5)
    log.book.run()
    copy = log.bench.path.with_name("copy.db")
    source, target = sqlite3.connect(log.bench.path), sqlite3.connect(copy)
    source.backup(target)
    source.close()
    target.close()
    log.events(300)
    log.book.run()
    log.bench.close()
    for suffix in ("", "-wal", "-shm"):
        log.bench.path.with_name(log.bench.path.name + suffix).unlink(missing_ok=True)
    copy.rename(log.bench.path)
    log.bench._open()
    log.book = log.another(log.disk)
    return log


def test_a_ledger_from_yesterday_signs_nothing(restored: Logged) -> None:
    before = restored.files()
    restored.events(400)  # more than was lost: size alone would not show it
    with pytest.raises(RefusedError, match="older than the log that it published") as refused:
        restored.book.run()
    assert refused.value.reasons[0].code == "log.rolled_back"
    with pytest.raises(RefusedError):
        restored.book.check_not_rolled_back()
    assert restored.files() == before
    with restored.bench.store.read() as tx:
        head = tx.log_head()
    assert head is not None
    assert head.size == 5


def test_a_ledger_from_yesterday_goes_on_after_it_adopted_its_log(restored: Logged) -> None:
    before = restored.checkpoint
    assert restored.book.adopt(actor="test") == 300
    assert restored.book.adopt(actor="test") == 0
    restored.events(2)
    restored.book.run()
    entries = restored.check(since=before)
    kinds = [read_entry(entry).kind for entry in entries[305:307]]
    assert kinds == ["ledger.held", "log.adopted"]  # its mark had told before
    assert len(entries) == 309
    restored.book.check_not_rolled_back()


def test_a_forged_log_is_not_adopted(restored: Logged) -> None:
    bundle = restored.folder / "tile/entries/000"
    bundle.write_bytes(bundle.read_bytes().replace(b"test.event", b"fake.event"))
    with pytest.raises(RefusedError):
        restored.book.adopt(actor="test")
    with restored.bench.store.read() as tx:
        head = tx.log_head()
    assert head is not None
    assert head.size == 5


def test_a_rewritten_ledger_is_refused_by_its_published_log(sqlite_log: Logged) -> None:
    log = sqlite_log
    log.events(5)
    log.book.run()
    before = log.files()
    connection = sqlite3.connect(log.bench.path)
    connection.executescript(
        "DROP TRIGGER log_entries_are_never_deleted; DELETE FROM log_entries;"
        "DROP TRIGGER the_log_never_shrinks; UPDATE log_head SET size = 0, edge = ''"
    )
    connection.execute(
        "UPDATE log_head SET checkpoint = ?",
        (
            Checkpoint(
                log.key.verifier.name,
                0,
                bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            ).sign(log.key),
        ),
    )
    connection.commit()
    connection.close()
    # with another folder the rewritten history is signed; beside the old one it is not
    log.events(6)
    log.another(FolderDisk(log.folder.with_name("elsewhere"))).run()
    with pytest.raises(RefusedError, match="not a continuation") as refused:
        log.book.run()
    assert refused.value.reasons[0].code == "log.forked"
    assert log.files() == before


def test_a_file_that_was_put_there_is_not_overwritten(log: Logged) -> None:
    log.book.run()
    stranger = log.folder / "tile/entries/000.p/3"
    stranger.parent.mkdir(parents=True)
    stranger.write_bytes(b"somebody else's")
    log.events(3)
    with pytest.raises(PromiseBrokenError, match="would be rewritten"):
        log.book.run()
    assert stranger.read_bytes() == b"somebody else's"
    assert log.checkpoint.size == 0


def test_a_damaged_copy_is_named_and_made_again(log: Logged) -> None:
    log.events(5)
    log.book.run()
    tile = log.folder / "tile/0/000.p/5"
    tile.write_bytes(bytes(160))
    log.events(1)
    with pytest.raises(PromiseBrokenError, match="do not come to"):
        log.book.run()
    log.folder.rename(log.folder.with_name("aside"))
    log.book.run()
    log.check_complete()


def test_another_custodians_log_in_our_folder_is_refused(log: Logged) -> None:
    log.folder.mkdir()
    theirs = new_log_key(bytes(32))
    (log.folder / "checkpoint").write_bytes(
        Checkpoint(theirs.verifier.name, 0, bytes(32)).sign(theirs)
    )
    log.events(1)
    with pytest.raises(VerificationError, match="not this ledger's"):
        log.book.run()


def test_an_event_that_was_changed_in_the_database_does_not_open(sqlite_log: Logged) -> None:
    log = sqlite_log
    log.events(2)
    log.book.run()
    connection = sqlite3.connect(log.bench.path)
    connection.executescript(
        "DROP TRIGGER events_are_never_changed; UPDATE events SET actor = 'nobody' WHERE number = 1"
    )
    connection.close()
    with pytest.raises(VerificationError, match="is not the one that was logged"):
        log.book.proof(1)
    with pytest.raises(NotFoundError):
        log.book.proof(3)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 12), st.booleans()), max_size=4)
)
def test_any_growth_with_any_breaks_ends_whole(
    sqlite_log: Logged, steps: list[tuple[int, int, bool]]
) -> None:
    log = sqlite_log
    for count, at, kept in steps:
        log.events(count)
        log.disk.steps, log.disk.at, log.disk.how = 0, at, "kept" if kept else "lost"
        with contextlib.suppress(UnavailableError):
            log.book.run()
    log.disk.at = None
    log.book.run()
    log.check_complete()


def test_two_custodians_of_one_folder_do_not_write_at_one_time(log: Logged) -> None:
    log.events(3)
    with FolderDisk(log.folder).alone():
        assert log.book.run() == 0  # left to the other
        with pytest.raises(ConflictError):
            log.book.adopt(actor="test")
        assert not log.folder.exists()
    assert log.book.run() == 3
    log.check_complete()
