"""``GET /v1/budget`` and ``/v1/waiting``: what a consumer can still use, and where it waits."""

from __future__ import annotations

from aigovtool.ids import ConsumerId, LoanId
from aigovtool.wire.codec import Message
from aigovtool.wire.control import MoreDecided
from aigovtool.wire.enrolment import TokenPrice


class BudgetView(Message, frozen=True, kw_only=True):
    """
    Args:
        state: of the loan: active, stopped, expired, closed, or unreachable (no contact).
        remaining: credits this consumer can still use here: without contact those in live leases,
            and none of a loan that is stopped, expired or closed.
        own_budget: whether the consumer has a budget of its own within the loan's.
        lease_remaining: credits in the live leases of this enclave.
        lease_valid_s: how long the longest of them still lives, 0 without one.
        waiting: queries that wait for credits.
        token_price: of a language model, None for one of tensors.
    """

    loan: LoanId
    consumer: ConsumerId
    model: str
    model_version: str
    state: str
    remaining: int
    own_budget: bool
    lease_remaining: int
    lease_valid_s: float
    waiting: int
    token_price: TokenPrice | None = None


class WaitingQuery(Message, frozen=True, kw_only=True):
    """
    A query that waits for credits.

    Args:
        key: its Idempotency-Key, by which its consumer knows it; empty for none.
        cost: credits.
        place: from 1, among all that wait at this enclave.
    """

    key: str
    cost: int
    place: int


class WaitingView(Message, frozen=True, kw_only=True):
    """
    Args:
        waiting: queries of all consumers that wait at this enclave.
        queries: this consumer's own, the next to be served first; at most `MAX_WAITING_SHOWN`.
        limited: how many of this consumer's wait for a limit on rate or number at one time; they
            are not charged yet, nor among the others here.
        asked: whether a person has been asked for more for this consumer, and not yet answered.
        decided: the last answer, while it is told.
        again_s: how long to wait before looking again.
    """

    waiting: int
    queries: tuple[WaitingQuery, ...]
    limited: int = 0
    asked: bool
    decided: MoreDecided | None
    again_s: float


MAX_WAITING_SHOWN = 256
