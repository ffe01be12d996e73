"""
The ledger's transparency log: every event becomes an entry, in the order stage, swap, apply,
publish (as FiloSottile/sunlight does it).

Rule 1: *stage and swap* are one transaction of the ledger: the new entries, and the signed head in
        the place of the one that they grow from. A head is signed over rows that are kept with it
        or not at all, so no two trees of one size are ever signed and kept, by however many
        replicas.
Rule 2: *apply and publish* make files from those rows (`log_files`). Each data folder has
        its own copy, which one process at a time writes.
Rule 3: recovery is the normal path run again: publish what the ledger has, then stage what is new,
        then publish that. No step needs to know whether an earlier one was cut short.
Rule 4: nothing here is on the path of a lease. A log that cannot be written is told to the
        operator and caught up with later.
Rule 5: nothing is signed that continues from less than what was published: a ledger that is older
        than its published log stages nothing until the log was adopted back.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from aigovtool.clock import Clock
from aigovtool.crypto.signing import SigningKey, fingerprint
from aigovtool.custodian.log_files import LogFiles
from aigovtool.custodian.records import Event, LogHead, LogRow
from aigovtool.custodian.store.base import Reading, Store
from aigovtool.errors import (
    ConflictError,
    NotFoundError,
    PromiseBrokenError,
    RefusedError,
    VerificationError,
)
from aigovtool.tlog.check import check_log
from aigovtool.tlog.checkpoint import Checkpoint, open_checkpoint
from aigovtool.tlog.note import NoteKey
from aigovtool.tlog.proof import Proof, prove
from aigovtool.tlog.tree import EMPTY_ROOT, Edge, hash_leaf
from aigovtool.wire.codec import encode
from aigovtool.wire.log import (
    SALT_BYTES,
    LoggedEvent,
    LogKey,
    LogOpening,
    ProofExtra,
    certify,
    entry_of,
)

BATCH = 512  # events in one transaction, so that a report never waits long for it


@dataclass(frozen=True, slots=True, kw_only=True)
class LogStatus:
    """
    How far the log is.

    Args:
        key: of its checkpoints, as a verifier reads it.
        size: entries that are signed.
        pending: events that are not.
        published: entries that the files have, None before the first.
    """

    key: str
    size: int
    root: bytes
    pending: int
    published: int | None


def new_log_key(custodian_key: bytes) -> NoteKey:
    """Make the key of a new log; its name tells custodians' logs apart, and a log made anew."""
    return NoteKey.generate(f"aigovtool.log/{fingerprint(custodian_key)}/{secrets.token_hex(4)}")


def new_log_head(key: NoteKey, *, wrapped_key: bytes, custodian: SigningKey) -> LogHead:
    """Return the head of a log without entries."""
    verifier = key.verifier
    log_key = LogKey(origin=verifier.name, public_key=verifier.public_key)
    return LogHead(
        origin=verifier.name,
        public_key=verifier.public_key,
        wrapped_key=wrapped_key,
        certificate=certify(log_key, custodian),
        size=0,
        edge=(),
        checkpoint=Checkpoint(verifier.name, 0, EMPTY_ROOT).sign(key),
    )


class Logbook:
    """Keeps the log; `run` may be called from any thread, as often as one likes."""

    def __init__(self, *, store: Store, files: LogFiles, key: NoteKey, clock: Clock) -> None:
        self._store = store
        self._files = files
        self._key = key
        self._clock = clock
        self._running = threading.Lock()

    def run(self) -> int:
        """
        Publish what is signed, sign what is new, publish that; return how many entries were new.

        Raises:
            RefusedError: the ledger was rolled back or rewritten under its published log.
            VerificationError: the published files are another log's.
            UnavailableError, ConfigurationError: database or disk; run again.
        """
        with self._running, contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._files.alone())
            except ConflictError:
                return 0  # another custodian of this folder is at it; what it leaves comes next
            self._publish()
            new = 0
            while added := self._stage():
                new += added
                self._publish()
            return new

    def _publish(self) -> None:
        with self._store.read() as tx:
            head = head_of(tx)
            self._files.publish(
                head.checkpoint,
                open_checkpoint(head.checkpoint, self._key.verifier),
                lambda first, limit: _entries(tx, first, limit),
                certificate=head.certificate,
            )

    def _stage(self) -> int:
        with self._store.read() as tx:
            old, events = head_of(tx), tx.events_to_log(BATCH)
        if not events:
            return 0
        edge = Edge(old.size, old.edge)
        if edge.root() != open_checkpoint(old.checkpoint, self._key.verifier).root:
            raise PromiseBrokenError("the log's head in the ledger is not what was signed")
        staged = []
        for event in events:
            salt = secrets.token_bytes(SALT_BYTES)
            row = LogRow(
                leaf=edge.size,
                event=event.number,
                salt=salt,
                entry=entry_of(logged(event), salt),
            )
            edge.add(hash_leaf(row.entry))
            staged.append(row)
        signed = Checkpoint(old.origin, edge.size, edge.root()).sign(self._key)
        new = replace(old, size=edge.size, edge=tuple(edge.hashes), checkpoint=signed)
        try:
            self._swap(old, new, staged)
        except ConflictError:
            return 0  # another replica was first, and publishing is all that is left
        return len(staged)

    def _swap(self, old: LogHead, new: LogHead, staged: Sequence[LogRow]) -> None:
        with self._store.write() as tx:
            tx.swap_log_head(old, new)
            for row in staged:
                tx.insert_log_entry(row)

    def adopt(self, *, actor: str) -> int:
        """
        Take back from the published log what a ledger restored from an older copy has lost of it.

        What comes back are the published entries, so that the log goes on and never forks; the
        events themselves are gone, and a new one says how many.

        Returns:
            How many entries came back; 0 when nothing was lost, and nothing was done.

        Raises:
            NotFoundError: nothing is published here.
            RefusedError: the published log is damaged, or is not a continuation of the ledger's.
            ConflictError: another custodian writes this log.
        """
        with self._running, self._files.alone():
            published = self._files.published()
            if published is None:
                raise NotFoundError("no log is published here", code="log.missing")
            signed, checkpoint = published
            with self._store.read() as tx:
                old = head_of(tx)
            if checkpoint.size <= old.size:
                return 0
            entries: list[bytes] = []
            found = check_log(
                checkpoint,
                self._files.read,
                since=open_checkpoint(old.checkpoint, self._key.verifier),
                seen=lambda _, entry: entries.append(entry),
            )
            if found.faults:
                raise RefusedError(found.faults[0], others=found.faults[1:])
            edge = Edge(old.size, old.edge)
            rows = []
            for entry in entries[old.size :]:
                rows.append(LogRow(leaf=edge.size, event=None, salt=None, entry=entry))
                edge.add(hash_leaf(entry))
            new = replace(old, size=edge.size, edge=tuple(edge.hashes), checkpoint=signed)
            with self._store.write() as tx:
                tx.swap_log_head(old, new)
                for row in rows:
                    tx.insert_log_entry(row)
                tx.insert_event(
                    time=self._clock.now(),
                    kind="log.adopted",
                    actor=actor,
                    loan=None,
                    session=None,
                    consumer=None,
                    lease=None,
                    detail=msgspec.json.encode({"from": old.size, "entries": len(rows)}),
                )
            return len(rows)

    def check_not_rolled_back(self) -> None:
        """
        Hold the ledger against the published log.

        Raises:
            RefusedError: the ledger is older than what it published.
            VerificationError: the published files are another log's.
        """
        with self._store.read() as tx:
            head = head_of(tx)
        self._files.check_behind(open_checkpoint(head.checkpoint, self._key.verifier))

    def last_published_event(self) -> int:
        """
        Return the highest number that the last event in the published log can have.

        Each entry that the ledger does not know is of one event, or of none (`adopt`).

        Raises:
            VerificationError: the published files are another log's.
        """
        published = self._files.published()
        with self._store.read() as tx:
            known, size = tx.last_logged_event(), head_of(tx).size
        return known + (0 if published is None else max(0, published[1].size - size))

    def status(self) -> LogStatus:
        """Return how far the log is; raises VerificationError when the files are another's."""
        with self._store.read() as tx:
            head, pending = head_of(tx), tx.count_to_log()
        published = self._files.published()
        return LogStatus(
            key=str(self._key.verifier),
            size=head.size,
            root=Edge(head.size, head.edge).root(),
            pending=pending,
            published=None if published is None else published[1].size,
        )

    def proof(self, event: int) -> Proof:
        """
        Return the proof that an event is in the log, with its entry and what opens it as extra.

        Raises:
            NotFoundError: no such event, or it is not published yet.
            VerificationError: the event in the ledger is not the one that was logged.
        """
        with self._store.read() as tx:
            row = tx.log_entry_of_event(event)
            found = tx.events_after(event - 1, None, 1)
        published = self._files.published()
        if row is None or not found or published is None or published[1].size <= row.leaf:
            raise NotFoundError(f"the event {event} is not in the published log", code="log.event")
        assert row.salt is not None, "only an entry without an event has none"
        if entry_of(logged(found[0]), row.salt) != row.entry:
            raise VerificationError(
                f"the event {event} in the ledger is not the one that was logged",
                code="log.event_changed",
                mend="somebody has written into the database: the log is the older witness",
            )
        opening = LogOpening(salt=row.salt, event=encode(logged(found[0])))
        signed, checkpoint = published
        extra = encode(ProofExtra(entry=row.entry, opening=opening))
        return prove(row.leaf, signed, checkpoint, self._files.read, extra=extra)


def head_of(tx: Reading) -> LogHead:
    """Return the log's head, which every opened ledger has."""
    head = tx.log_head()
    if head is None:
        raise PromiseBrokenError("a ledger without a log")
    return head


def logged(event: Event) -> LoggedEvent:
    """Return an event as the log commits to it."""
    return LoggedEvent(
        number=event.number,
        time=event.time,
        kind=event.kind,
        actor=event.actor,
        loan=event.loan,
        session=event.session,
        consumer=event.consumer,
        lease=event.lease,
        detail=msgspec.Raw(event.detail),
    )


def _entries(tx: Reading, first: int, limit: int) -> list[bytes]:
    return [row.entry for row in tx.log_entries(first, limit)]
