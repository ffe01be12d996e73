from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from aigovtool.custodian.lifecycle import (
    LOAN_MOVES,
    SESSION_MOVES,
    LoanState,
    SessionState,
    move_loan,
    move_session,
    state_at,
)
from aigovtool.errors import ConflictError

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("state", LoanState)
@pytest.mark.parametrize("to", LoanState)
def test_a_loan_moves_as_its_table_says(state: LoanState, to: LoanState) -> None:
    if to in LOAN_MOVES[state]:
        assert move_loan(state, to) is to
    else:
        with pytest.raises(ConflictError):
            move_loan(state, to)


@pytest.mark.parametrize("state", SessionState)
@pytest.mark.parametrize("to", SessionState)
def test_a_session_moves_as_its_table_says(state: SessionState, to: SessionState) -> None:
    if to in SESSION_MOVES[state]:
        assert move_session(state, to) is to
    else:
        with pytest.raises(ConflictError):
            move_session(state, to)


def test_closed_and_ended_are_final() -> None:
    assert not LOAN_MOVES[LoanState.CLOSED]
    assert not SESSION_MOVES[SessionState.ENDED]


def test_past_its_date_a_loan_is_expired_before_anyone_notes_it() -> None:
    assert state_at(LoanState.ACTIVE, NOW, NOW) is LoanState.EXPIRED
    assert state_at(LoanState.STOPPED, NOW, NOW) is LoanState.EXPIRED
    assert state_at(LoanState.CLOSED, NOW, NOW) is LoanState.CLOSED
    assert state_at(LoanState.ACTIVE, NOW + timedelta(microseconds=1), NOW) is LoanState.ACTIVE
    assert state_at(LoanState.ACTIVE, None, NOW) is LoanState.ACTIVE
