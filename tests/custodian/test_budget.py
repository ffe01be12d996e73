"""The account: every path of moves keeps its sum, and no move makes credits out of nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigovtool.custodian import budget
from aigovtool.custodian.budget import Account
from aigovtool.errors import BudgetExhaustedError, MalformedError, PromiseBrokenError

SMALL = st.integers(1, 50)


@given(st.data())
def test_every_path_of_moves_adds_up(data: st.DataObject) -> None:
    account, held, lost, served, granted = Account(), [], [], 0, 0
    for _ in range(data.draw(st.integers(0, 30))):
        move = data.draw(st.sampled_from(["grant", "lease", "settle", "forfeit", "late"]))
        if move == "grant":
            credits = data.draw(SMALL)
            account, granted = budget.grant(account, credits), granted + credits
        elif move == "lease":
            credits = data.draw(SMALL)
            if credits > account.left:
                with pytest.raises(BudgetExhaustedError):
                    budget.lease(account, credits)
            else:
                account = budget.lease(account, credits)
                held.append(credits)
        elif move == "settle" and held:
            credits = held.pop()
            used = data.draw(st.integers(0, credits))
            account, served = budget.settle(account, credits, used), served + used
        elif move == "forfeit" and held:
            credits = held.pop()
            account = budget.forfeit(account, credits)
            lost.append(credits)
        elif move == "late" and lost:
            credits = lost.pop()
            used, refunded = data.draw(st.integers(0, credits)), data.draw(st.booleans())
            account = budget.settle_late(account, credits, used, refunded=refunded)
            served += used
        assert account.spent == served
        assert account.leased == sum(held)
        assert account.granted == granted >= served + sum(held) + sum(lost)


@pytest.mark.parametrize("used", [-1, 11])
def test_settlement_outside_its_lease_is_refused(used: int) -> None:
    account = budget.lease(budget.grant(Account(), 20), 10)
    with pytest.raises(MalformedError):
        budget.settle(account, 10, used)
    with pytest.raises(MalformedError):
        budget.settle_late(budget.forfeit(account, 10), 10, used, refunded=False)


@pytest.mark.parametrize("credits", [0, -5])
def test_a_grant_or_lease_of_nothing_is_refused(credits: int) -> None:
    account = budget.grant(Account(), 20)
    with pytest.raises(MalformedError):
        budget.grant(account, credits)
    with pytest.raises(MalformedError):
        budget.lease(account, credits)


def test_more_credits_than_an_account_can_count_are_refused() -> None:
    account = budget.grant(Account(), budget.MAX_CREDITS)
    with pytest.raises(MalformedError):
        budget.grant(account, 1)


def test_settling_more_than_is_leased_breaks_a_promise_instead_of_the_sum() -> None:
    with pytest.raises(PromiseBrokenError):
        budget.settle(budget.grant(Account(), 5), 5, 1)
    with pytest.raises(PromiseBrokenError):
        Account(granted=3, left=1, leased=1)


@given(
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.integers(0, 50),
    st.integers(1, 500),
    st.integers(1, 600),
)
def test_a_block_can_pay_for_the_query_that_waits_and_never_more_than_there_is(
    want: int, left: int, sessions: int, limit: int, at_least: int
) -> None:
    credits = budget.block(want, left, sessions, limit, at_least)
    assert 0 <= credits <= min(want, left, limit)
    if at_least <= min(want, left, limit):
        assert credits >= at_least
    else:  # no lease could pay for it, so it gets none of the others' share
        assert credits <= max(min(at_least, left, limit), budget.block(want, left, sessions, limit))


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 50), st.integers(1, 500))
def test_a_block_fits_what_is_left_wanted_and_allowed(
    want: int, left: int, sessions: int, limit: int
) -> None:
    credits = budget.block(want, left, sessions, limit)
    assert 0 <= credits <= min(want, left, limit)
    assert credits > 0 or min(want, left) == 0
    assert credits <= max(1, -(-left // (2 * max(1, sessions))))


def test_blocks_shrink_to_one_near_the_end() -> None:
    left, blocks = 100, []
    while left:
        blocks.append(budget.block(1000, left, 1, 1000))
        left -= blocks[-1]
    assert blocks == [50, 25, 13, 6, 3, 2, 1]
