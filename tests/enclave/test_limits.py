"""Rates and numbers at one time, before a charge: the arithmetic, the shares, the turns."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigovtool.enclave.limits import LocalLimits
from aigovtool.enclave.meter import Charge, Meter, Refusal
from aigovtool.enclave.roster import Roster
from aigovtool.errors import BlockedError, LimitedError, MalformedError
from aigovtool.ids import ConsumerId, LeaseId
from aigovtool.wire.control import Lease
from aigovtool.wire.enrolment import RosterEntry
from aigovtool.wire.limits import (
    Limits,
    Rate,
    after,
    available,
    parse_rate,
    share_of,
)
from aigovtool.wire.problem import error_of, headers_of, problem_of

ALICE, BOB = ConsumerId("con_alice"), ConsumerId("con_bob")
RATES = st.builds(Rate, credits=st.integers(1, 50), per_s=st.sampled_from([1, 60, 3600]))


def entry(consumer: ConsumerId, **more: object) -> RosterEntry:
    return RosterEntry(
        consumer=consumer,
        api_key_sha256=consumer.encode().ljust(32),
        blocked=False,
        budgeted=False,
        left=None,
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("text", ["10/s", "600/min", "1/hour", "5000/day"])
def test_a_rate_reads_as_it_is_written(text: str) -> None:
    assert str(parse_rate(text)) == text


@pytest.mark.parametrize("text", ["", "0/s", "-1/s", "10", "10/week", "1e3/s", "10 /s", "٣/s"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        parse_rate(text)


@given(RATES, st.lists(st.tuples(st.floats(-5, 4000), st.integers(1, 60)), max_size=60))
def test_no_window_lets_more_through_than_the_bucket_and_its_refill(
    rate: Rate, steps: list[tuple[float, int]]
) -> None:
    full_at_s = now_s = 0.0
    taken: list[tuple[float, int]] = []
    for passed_s, wanted in steps:
        now_s += max(0.0, passed_s)
        got = min(wanted, available(rate, full_at_s, now_s))
        if got:
            full_at_s = after(rate, full_at_s, now_s, got)
            taken.append((now_s, got))
    for index, (begin_s, _) in enumerate(taken):
        total = 0
        for end_s, got in taken[index:]:
            total += got
            most = rate.credits + rate.credits * (end_s - begin_s) / rate.per_s
            assert total <= most + 1e-6


@given(st.integers(1, 100), st.integers(1, 100))
def test_the_shares_of_a_limit_add_up_to_it(concurrency: int, sharers: int) -> None:
    assert sum(share_of(concurrency, place, sharers) for place in range(sharers)) == concurrency


def test_a_query_past_its_rate_is_refused_with_the_time_to_wait_and_takes_nothing() -> None:
    limits = LocalLimits()
    limits.set_consumers([entry(ALICE, limits=Limits(rate=Rate(credits=2, per_s=1)))])
    limits.set_loan(Limits(rate=Rate(credits=3, per_s=1)))
    assert [limits.enter(ALICE, 1, 0.0) for _ in range(2)] == [None, None]
    held = limits.enter(ALICE, 1, 0.0)
    assert held is not None
    refused = held.error()
    assert "your limit of 2/s" in str(refused)
    assert refused.retry_after_s == pytest.approx(0.5)
    assert limits.enter(BOB, 1, 0.0) is None  # what was refused took nothing of the loan's
    held = limits.enter(BOB, 1, 0.0)
    assert held is not None
    assert "the loan's limit of 3/s" in str(held.error())
    problem = problem_of(refused)
    assert (problem.status, problem.reasons[0].code) == (429, "limit.rate")
    assert headers_of(refused) == {"Retry-After": "1"}


def test_a_refusal_by_a_limit_is_no_used_up_budget_for_the_client() -> None:
    limits = LocalLimits()
    limits.set_loan(Limits(rate=Rate(credits=1, per_s=60)))
    assert limits.enter(ALICE, 1, 0.0) is None
    held = limits.enter(ALICE, 1, 0.0)
    assert held is not None
    body = msgspec.json.encode(problem_of(held.error()))
    assert type(error_of(429, body, retry_after_s=60)) is LimitedError


def test_a_price_above_the_bucket_never_comes() -> None:
    limits = LocalLimits()
    limits.set_loan(Limits(rate=Rate(credits=1, per_s=1)))
    held = limits.enter(ALICE, 2, 100.0)
    assert held is not None
    assert held.wait_s == math.inf
    assert limits.enter(ALICE, 1, 100.0) is None


class Still:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def monotonic_s(self) -> float:
        return self.time_s


def test_a_lease_ends_earlier_for_a_consumer_whose_time_is_over_even_if_the_clock_goes_back() -> (
    None
):
    meter = Meter()
    meter.open(
        Lease(lease=LeaseId("l"), credits=9, caps={}, duration_s=5.0, ends_s={ALICE: 2.0}), 100.0
    )
    assert isinstance(meter.charge(ALICE, 1, 101.9), Charge)
    assert meter.charge(ALICE, 1, 102.0) is Refusal.CAPPED
    assert meter.charge(ALICE, 1, 100.0) is Refusal.CAPPED
    assert isinstance(meter.charge(BOB, 1, 102.0), Charge)


def test_a_date_runs_on_our_monotonic_clock_from_when_we_heard_it() -> None:
    clock = Still()
    roster = Roster([entry(ALICE, expires_in_s=10.0)], now_s=clock.monotonic_s)
    assert roster.admits(ALICE)
    clock.time_s = 10.0
    refusal = roster.refusal(ALICE)
    assert isinstance(refusal, BlockedError)
    assert refusal.reasons[0].code == "consumer.expired"
    assert not roster.admits(ALICE)
