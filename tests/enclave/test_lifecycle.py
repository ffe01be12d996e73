"""The table of an enclave's states."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigovtool.enclave.lifecycle import ADMITTING, MOVES, Lifecycle, State
from aigovtool.errors import PromiseBrokenError


def test_every_state_is_in_the_table() -> None:
    assert set(MOVES) == set(State)


def test_closed_is_final() -> None:
    assert MOVES[State.CLOSED] == frozenset()


def test_nothing_is_admitted_before_a_model_is_loaded_or_after_a_stop() -> None:
    assert {State.SERVING, State.UNREACHABLE} == ADMITTING
    assert all(State.SERVING not in MOVES[state] for state in (State.STOPPED, State.ENROLLING))


@given(st.lists(st.sampled_from(State)))
def test_an_illegal_move_changes_nothing(walk: list[State]) -> None:
    life = Lifecycle()
    for to in walk:
        before = (life.state, life.reason)
        if to is life.state or to in MOVES[life.state]:
            life.move(to, f"to {to}")
            assert (life.state, life.reason) == (to, f"to {to}")
        else:
            with pytest.raises(PromiseBrokenError):
                life.move(to, "no")
            assert (life.state, life.reason) == before
