"""
Several processes on one ledger: who holds which session, and who is gone.

Rule 1: a session's control connection is held by one process, whose number is in the session's row.
        Another takes it over only when that one has let go, or is gone. Reports that come by any
        other are not applied: two connections that live at once would be clones.
Rule 2: a process is gone when it no longer belongs (its lock is free), or when its beat stood still
        for `STILL_FOR_S` by the clock of whoever watches: no two clocks are compared.
Rule 3: of one that is gone every session is disconnected, with a fresh grace, and its row is
        removed. Should it live after all, it finds that out, drops its connections and joins anew.
Rule 4: who finds himself alone at the start was not the only one who was away: every session gets a
        fresh grace.
"""

from __future__ import annotations

from aigovtool.custodian.ledger import Entry, Ledger
from aigovtool.custodian.records import Session
from aigovtool.errors import UnavailableError

STILL_FOR_S = 5.0
CUSTODIAN = "custodian"  # the actor, as in `sessions`


def check_not_elsewhere(entry: Entry, session: Session, mine: int | None) -> None:
    """Raise UnavailableError when another process that lives holds the session's connection."""
    if session.replica in (None, mine):
        return
    if entry.tx.replica_lives(session.replica):
        raise UnavailableError(
            "this session is connected to another replica", code="control.connected"
        )
    _give_up(entry, session.replica)


def check_ours(session: Session, mine: int | None) -> None:
    """Raise UnavailableError when a report of the session comes by a connection that is void."""
    if session.replica not in (None, mine):
        raise UnavailableError("this session is connected to another replica", code="control.moved")


class Replicas:
    """Finds who is gone."""

    def __init__(self, *, ledger: Ledger) -> None:
        self._ledger = ledger
        self._seen: dict[int, tuple[int, float]] = {}  # the beat, and when it was new to us

    def start(self) -> None:
        """Free the sessions of those that are gone; all of them, if nobody else is here."""
        mine = self._ledger.replica
        with self._ledger.write(while_held=True) as entry:
            others = False
            for number in entry.tx.replicas():
                if number == mine:
                    continue
                if entry.tx.replica_lives(number):
                    others = True
                else:
                    _give_up(entry, number)
            if not others:
                entry.tx.disconnect_all_sessions(entry.now)

    def sweep(self) -> int:
        """Give up who is gone; returns how many there were."""
        mine = self._ledger.replica
        if mine is None:
            return 0
        with self._ledger.read() as tx:
            beats = {number: beat for number, beat in tx.replicas().items() if number != mine}
            left = {number for number in beats if not tx.replica_lives(number)}
        now_s = self._ledger.clock.monotonic_s()
        for number, beat in beats.items():
            if self._seen.get(number, (-1, 0.0))[0] != beat:
                self._seen[number] = (beat, now_s)
        still = {number for number in beats if now_s - self._seen[number][1] >= STILL_FOR_S}
        if not left | still:
            return 0  # a sweep that finds nothing must not wait for the writers
        with self._ledger.write(while_held=True) as entry:
            known = entry.tx.replicas()
            gone = [
                number
                for number in sorted(left | still)
                if number in known and (number in left or known[number] == beats[number])
            ]
            for number in gone:
                _give_up(entry, number)
        return len(gone)


def _give_up(entry: Entry, number: int) -> None:
    entry.tx.remove_replica(number, entry.now)
    entry.event("replica.gone", actor=CUSTODIAN, replica=number)
