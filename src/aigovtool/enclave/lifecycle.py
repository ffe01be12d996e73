"""
The states of an enclave, and the moves between them that are legal.

    starting ─▶ enrolling ─▶ loading ─▶ serving ◀─▶ unreachable
                 ▲   ▲          │          │             │
                 │   └──────────┴──────────┴─────────────┤  session ended, or wiped after silence
                 │                                       ▼
              stopped ◀── the loan is stopped or expired: key and model are wiped

    serving ─▶ evicted ─▶ enrolling: the model made room for another, until a query wants it again
    (any) ─▶ draining ─▶ closed          (any) ─▶ closed: the loan is closed, for good

Rule 1: only `serving` and `unreachable` admit queries, and there only live leases pay.
Rule 2: `closed` is final.
"""

from __future__ import annotations

from enum import StrEnum

from aigovtool.errors import PromiseBrokenError


class State(StrEnum):
    """Where an enclave is in its life."""

    STARTING = "starting"
    ENROLLING = "enrolling"
    LOADING = "loading"
    SERVING = "serving"
    UNREACHABLE = "unreachable"
    STOPPED = "stopped"
    EVICTED = "evicted"
    DRAINING = "draining"
    CLOSED = "closed"


_ENDS = {State.DRAINING, State.CLOSED}

MOVES: dict[State, frozenset[State]] = {
    State.STARTING: frozenset({State.ENROLLING} | _ENDS),
    State.ENROLLING: frozenset({State.LOADING, State.STOPPED} | _ENDS),
    State.LOADING: frozenset({State.SERVING, State.ENROLLING, State.STOPPED} | _ENDS),
    State.SERVING: frozenset(
        {State.UNREACHABLE, State.ENROLLING, State.STOPPED, State.EVICTED} | _ENDS
    ),
    State.UNREACHABLE: frozenset({State.SERVING, State.ENROLLING, State.STOPPED} | _ENDS),
    State.STOPPED: frozenset({State.ENROLLING} | _ENDS),
    State.EVICTED: frozenset({State.ENROLLING} | _ENDS),
    State.DRAINING: frozenset({State.CLOSED}),
    State.CLOSED: frozenset(),
}

ADMITTING = frozenset({State.SERVING, State.UNREACHABLE})


class Lifecycle:
    """The enclave's state, and in words why it is so."""

    __slots__ = ("reason", "state")

    def __init__(self) -> None:
        self.state = State.STARTING
        self.reason = "the enclave is starting"

    @property
    def admits(self) -> bool:
        """Whether a query may be charged (Rule 1)."""
        return self.state in ADMITTING

    def move(self, to: State, reason: str) -> None:
        """
        Go to another state; going where one is only renews the reason.

        Raises:
            PromiseBrokenError: `MOVES` does not have this move.
        """
        if to is not self.state and to not in MOVES[self.state]:
            raise PromiseBrokenError(f"an enclave cannot go from {self.state} to {to}")
        self.state, self.reason = to, reason
