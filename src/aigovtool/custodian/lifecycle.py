"""
The states of a loan and of a session, and the moves between them that are legal.

    loan      active ◀─▶ stopped        either ─▶ expired ─▶ closed, or ─▶ closed at once

    session   live ◀─▶ lapsed           either ─▶ ended

Rule 1: only an active loan that has not expired releases keys and grants leases.
Rule 2: `closed` and `ended` are final.
Rule 3: a session that lapsed was silent for its grace time; it may still settle, and lives again
        when it reconnects and the loan has room for it. One that ended may only settle.

Pure: time is an argument.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from aigovtool.errors import ConflictError


class LoanState(StrEnum):
    """Where a loan is in its life."""

    ACTIVE = "active"
    STOPPED = "stopped"
    EXPIRED = "expired"
    CLOSED = "closed"


class SessionState(StrEnum):
    """Where an enclave's session is in its life."""

    LIVE = "live"
    LAPSED = "lapsed"
    ENDED = "ended"


LOAN_MOVES: dict[LoanState, frozenset[LoanState]] = {
    LoanState.ACTIVE: frozenset({LoanState.STOPPED, LoanState.EXPIRED, LoanState.CLOSED}),
    LoanState.STOPPED: frozenset({LoanState.ACTIVE, LoanState.EXPIRED, LoanState.CLOSED}),
    LoanState.EXPIRED: frozenset({LoanState.CLOSED}),
    LoanState.CLOSED: frozenset(),
}

SESSION_MOVES: dict[SessionState, frozenset[SessionState]] = {
    SessionState.LIVE: frozenset({SessionState.LAPSED, SessionState.ENDED}),
    SessionState.LAPSED: frozenset({SessionState.LIVE, SessionState.ENDED}),
    SessionState.ENDED: frozenset(),
}


def move_loan(state: LoanState, to: LoanState) -> LoanState:
    """Return *to*; raises ConflictError when `LOAN_MOVES` does not have this move."""
    if to not in LOAN_MOVES[state]:
        raise ConflictError(
            f"a loan that is {state} cannot become {to}",
            code="loan.state",
            expected=f"one of {sorted(LOAN_MOVES[state])}" if LOAN_MOVES[state] else "no move",
        )
    return to


def move_session(state: SessionState, to: SessionState) -> SessionState:
    """Return *to*; raises ConflictError when `SESSION_MOVES` does not have this move."""
    if to not in SESSION_MOVES[state]:
        raise ConflictError(f"a session that is {state} cannot become {to}", code="session.state")
    return to


def state_at(state: LoanState, expires: datetime | None, now: datetime) -> LoanState:
    """Return the state that counts at *now*: past its date a loan is expired, noted or not."""
    if expires is not None and now >= expires and LoanState.EXPIRED in LOAN_MOVES[state]:
        return LoanState.EXPIRED
    return state
