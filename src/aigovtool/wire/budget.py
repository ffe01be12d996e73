"""``GET /v1/budget``: what a consumer can still use, as the enclave knows it now."""

from __future__ import annotations

from aigovtool.ids import ConsumerId, LoanId
from aigovtool.wire.codec import Message


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
