"""
What becomes of a session as its platform ages: each step is noted once, by an event that says why.

Rule 1: the event names the short component, what was expected and what came, and when the window
        ends. It commits with the step.
Rule 2: leases follow the time and not the note: a step that nobody has noted yet counts.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from aigovtool.attestation.appraise import AttestationResult
from aigovtool.custodian.ageing import DIVISORS, Step, step_at
from aigovtool.custodian.ledger import Entry
from aigovtool.custodian.records import CUSTODIAN, Session, Standing
from aigovtool.custodian.sessions import end_session

EVENTS: dict[Step, str] = {
    Step.FULL: "tcb.restored",
    Step.WARNED: "tcb.warning",
    Step.HALVED: "tcb.shortened",
    Step.QUARTERED: "tcb.shortened",
    Step.EIGHTH: "tcb.shortened",
    Step.REFUSED: "tcb.refused",
}


def open_standing(entry: Entry, session: Session, result: AttestationResult) -> None:
    """Note how a new session stands."""
    standing = _appraised(entry, session, result)
    entry.tx.insert_standing(standing)
    if standing.step is not Step.FULL:
        _say(entry, session, standing)


def renew_standing(
    entry: Entry, session: Session, before: Standing, result: AttestationResult
) -> None:
    """Note how a session stands by new evidence that was accepted; nothing more is awaited."""
    standing = _appraised(entry, session, result)
    entry.tx.set_standing(standing)
    if standing.step is not before.step:
        _say(entry, session, standing)
    if standing.step is Step.REFUSED:
        _end(entry, session)


def note_age(entry: Entry, session: Session, standing: Standing) -> bool:
    """Note that time has brought a session to its next step, if it has; the last one ends it."""
    step = step_at(standing.grace, entry.now)
    if step is standing.step:
        return False
    standing = dataclasses.replace(standing, step=step)
    entry.tx.set_standing(standing)
    _say(entry, session, standing)
    if step is Step.REFUSED:
        _end(entry, session)
    return True


def _appraised(entry: Entry, session: Session, result: AttestationResult) -> Standing:
    return Standing(
        session=session.session,
        appraised=entry.now,
        tcb_status=result.tcb_status,
        grace=result.grace,
        step=step_at(result.grace, entry.now),
    )


def _end(entry: Entry, session: Session) -> None:
    end_session(entry, session, "its platform is out of date, and the policy's grace is over")


def _say(entry: Entry, session: Session, standing: Standing) -> None:
    grace = standing.grace
    detail: dict[str, Any] = (
        {}
        if grace is None
        else {
            "short": grace.short,
            "expected": grace.expected,
            "came": grace.status,
            "since": grace.since,
            "window_ends": grace.ends,
        }
    )
    entry.event(
        EVENTS[standing.step],
        actor=CUSTODIAN,
        loan=session.loan,
        session=session.session,
        step=standing.step,
        leases_divided_by=DIVISORS.get(standing.step),
        **detail,
    )
