"""
Whether this ledger is the one that was last served, or an older copy of it.

Rule 1: whatever shows something that the ledger has lost holds it: its mark outside, a statement
        that it signed itself, its own memory of a moment ago.
Rule 2: a held ledger leases, releases and grants nothing, until `custodian reconcile`.
Rule 3: what belongs to a life of the ledger that a reconciliation has ended is no alarm: all that
        was leased in it has been charged.

What judges here reads the ledger and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from aigovtool.custodian.budget import Account
from aigovtool.custodian.mark import AccountId, Mark, Marked
from aigovtool.custodian.records import Event, Hold
from aigovtool.custodian.store.base import Reading, Writing
from aigovtool.custodian.store.rows import to_us
from aigovtool.errors import MalformedError, PromiseBrokenError, Reason, UnavailableError
from aigovtool.ids import DIGEST_BYTES, sha256
from aigovtool.wire.codec import decode
from aigovtool.wire.enrolment import LedgerHead

LOST = "rollback."  # the codes of what shows that the ledger has lost something begin so
HELD_EVENT = "ledger.held"
BY_STATEMENT = "rollback.statement"  # a statement of ours shows more than ledger and mark know
BEHIND_LOG = "rollback.log"  # the published log knows more than the ledger
MARK_BEHIND_LOG = "rollback.log_and_mark"  # and more than the mark
DISPROVES_MARK = frozenset({BY_STATEMENT, MARK_BEHIND_LOG})
RETRY_AFTER_S = 30.0  # a person has to act


def digest_of(event: Event) -> bytes:
    """Return the SHA-256 of an event: of its columns as a JSON array, times in microseconds."""
    return sha256(
        msgspec.json.encode(
            [
                event.number,
                to_us(event.time),
                event.kind,
                event.actor,
                event.loan,
                event.session,
                event.consumer,
                event.lease,
                event.detail,
            ]
        )
    )


def head_of(tx: Reading) -> LedgerHead:
    """Return how far the ledger is."""
    incarnation, events = tx.life().incarnation, tx.last_events(None, 1)
    if incarnation is None:
        raise PromiseBrokenError("a ledger without a beginning")
    if not events:
        return LedgerHead(incarnation=incarnation, event=0, digest=bytes(DIGEST_BYTES))
    return LedgerHead(incarnation=incarnation, event=events[0].number, digest=digest_of(events[0]))


def accounts_of(tx: Reading) -> dict[AccountId, Account]:
    """Return the accounts that a mark remembers: of loans, and of consumers with one."""
    accounts: dict[AccountId, Account] = {}
    for loan in tx.loans():
        accounts[loan.loan] = loan.account
        for consumer in tx.consumers_of_loan(loan.loan):
            if consumer.budgeted:
                accounts[consumer.consumer] = consumer.account
    return accounts


def lost_since(tx: Reading, seen: LedgerHead) -> Reason | None:
    """Return what *seen*, once this ledger's head, shows it to have lost, if anything."""
    incarnations = tx.incarnations()
    if seen.incarnation not in incarnations:
        return Reason(
            code="rollback.incarnation",
            message="this ledger is older than its last reconciliation",
            expected=f"incarnation {seen.incarnation.hex()}",
            came=f"incarnation {incarnations[-1].hex()}",
        )
    if seen.incarnation != incarnations[-1] or seen.event == 0:
        return None
    event = tx.event(seen.event)
    if event is None:
        return Reason(
            code="rollback.behind",
            message="this ledger is an older copy of itself",
            expected=f"event {seen.event} or a later one",
            came=f"event {head_of(tx).event} is its last",
        )
    if digest_of(event) != seen.digest:
        return Reason(
            code="rollback.fork",
            message="this ledger has another history than the one that was served",
            expected=f"event {seen.event} with the digest {seen.digest.hex()}",
            came=digest_of(event).hex(),
        )
    return None


def note_hold(tx: Writing, hold: Hold, *, after: int) -> None:
    """Write that the ledger is held from here, *after* being its newest event before that."""
    tx.lift_hold()
    tx.set_hold(hold)
    tx.insert_event(
        time=hold.since,
        kind=HELD_EVENT,
        actor="custodian",
        loan=None,
        session=None,
        consumer=None,
        lease=None,
        detail=msgspec.json.encode({"code": hold.code, "reason": hold.reason, "after": after}),
    )


def vouches(tx: Reading, marked: Marked, hold: Hold, past: Sequence[bytes]) -> bool:
    """
    Whether a mark is the newest there is, so that it knows what was left when the ledger was lost.

    1. Nothing was written after it that it does not know (`Marked.current`).
    2. No statement of ours and no published log knows more than it, and it was not the published
       log alone that showed the loss.
    3. It is of no life of the ledger that has ended; *past* are those.
    4. It is not older than the copy itself, which then was served elsewhere.
    """
    disproved = hold.code in DISPROVES_MARK or hold.code == BEHIND_LOG
    if not marked.current or disproved or marked.head.incarnation in past:
        return False
    held = tx.last_event_of_kind(HELD_EVENT)
    if held is None or not hold.code.startswith(LOST):
        return False
    return marked.head.event >= decode(held.detail, _HeldDetail).after


class _HeldDetail(msgspec.Struct, frozen=True):
    after: int


def judge_mark(tx: Reading, mark: Mark) -> tuple[Marked | None, Reason | None]:
    """
    Return what the mark says, and why the ledger must be held for it, if so.

    A ledger without loans lends nothing, so that a mark which is not there yet is none missing. Nor
    is it for a replica that comes to a database which others serve now: they know how far it is.
    """
    try:
        marked = mark.read()
    except MalformedError as error:
        return None, error.reasons[0]
    if marked is not None:
        return marked, lost_since(tx, marked.head)
    beside = mark.shared and any(tx.replica_lives(number) for number in tx.replicas())
    if beside or not tx.loans():
        return None, None
    return None, Reason(
        code="mark.absent",
        message="this ledger was last served elsewhere, or its mark is lost",
        expected=f"a mark at {mark.path}",
        came="none",
        mend="name the mark with --mark, or aigovtool custodian reconcile",
    )


def held_error(hold: Hold) -> UnavailableError:
    """Return what everybody is told who asks a held ledger for something."""
    return UnavailableError(
        f"the custodian's ledger is held: {hold.reason}",
        code="ledger.held",
        came=hold.code,
        mend="the custodian's operator runs: aigovtool custodian reconcile",
        retry_after_s=RETRY_AFTER_S,
    )
