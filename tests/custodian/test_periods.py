"""Budgets that begin anew: the calendar, leases across a turn, jumping clocks, the account."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigovtool.custodian import budget, periods, rates
from aigovtool.custodian.budget import Account
from aigovtool.custodian.consumers import Consumers
from aigovtool.custodian.loans import exposure_of
from aigovtool.custodian.periods import Unit
from aigovtool.custodian.records import Consumer
from aigovtool.errors import MalformedError, RefusedError
from aigovtool.ids import ConsumerId
from aigovtool.wire.control import CreditsFreed, RosterChanged
from aigovtool.wire.limits import Limits, Rate
from tests.custodian.ledgers import Bench

DAY_S = 86_400.0


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("unit", "time", "begins", "ends"),
    [
        (Unit.DAY, "2026-03-01T12:30", "2026-03-01", "2026-03-02"),
        (Unit.DAY, "2026-12-31T23:59:59.999999", "2026-12-31", "2027-01-01"),
        (Unit.DAY, "2028-02-28T00:00", "2028-02-28", "2028-02-29"),
        (Unit.MONTH, "2026-01-31T23:59", "2026-01-01", "2026-02-01"),
        (Unit.MONTH, "2026-12-01T00:00", "2026-12-01", "2027-01-01"),
        (Unit.MONTH, "2028-02-29T12:00", "2028-02-01", "2028-03-01"),
    ],
)
def test_a_period_is_one_of_the_calendar(unit: Unit, time: str, begins: str, ends: str) -> None:
    assert (periods.begin_of(unit, at(time)), periods.end_of(unit, at(time))) == (
        at(begins),
        at(ends),
    )


class Straddling:
    """Leases of one consumer, used or not, across any number of turns."""

    def __init__(self, credits: int) -> None:
        self.now = at("2026-03-01T12:00")
        self.account = budget.grant(Account(), credits) if credits else Account()
        self.period = periods.period_at(Unit.DAY, credits, self.now)
        self.open: list[int] = []
        self.lost: list[tuple[int, datetime]] = []


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 20),
    st.lists(
        st.tuples(
            st.sampled_from(["lease", "settle", "turn", "lose", "find", "grant", "back", "lower"]),
            st.integers(0, 12),
        ),
        max_size=40,
    ),
)
def test_no_period_serves_more_than_its_budget_whatever_straddles_it(
    credits: int, steps: list[tuple[str, int]]
) -> None:
    """What is used of every lease counts in the period in which it is settled or lost."""
    book = Straddling(credits)
    allowed, charged = credits, 0  # of this period
    for what, many in steps:
        if what == "lease" and 1 <= many <= book.account.left:
            book.account = budget.lease(book.account, many)
            book.open.append(many)
        elif what in ("settle", "lose") and book.open:
            size = book.open.pop(many % len(book.open))
            used = min(many, size)
            if what == "lose":
                book.account = budget.forfeit(book.account, size)
                book.lost.append((size, book.now))
                charged += size
            else:
                book.account = budget.settle(book.account, size, used)
                book.account, book.period = periods.keep_back(
                    book.account, book.period, size - used, forfeited=None
                )
                charged += used
        elif what == "find" and book.lost:
            size, when = book.lost.pop(many % len(book.lost))
            used = min(many, size)
            before = book.account.left
            book.account = budget.settle_late(book.account, size, used, refunded=False)
            book.account, book.period = periods.keep_back(
                book.account, book.period, size - used, forfeited=when
            )
            if when < book.period.began:
                assert book.account.left == before  # nothing of another period comes back
            else:
                charged -= size - used
        elif what == "grant" and many:
            book.account = budget.grant(book.account, many)
            allowed += many
        elif what == "lower":
            book.period = periods.replace(book.period, budget=many)
        elif what == "turn":
            book.now += timedelta(days=1 + many)
            turn = periods.turn(book.account, book.period, book.now)
            assert turn.period.ends > book.period.ends
            book.account, book.period = turn.account, turn.period
            # what was leased beyond the budget was granted under the earlier one
            allowed, charged = max(book.period.budget, book.account.leased), 0
        elif what == "back":
            assert not periods.is_over(book.period, book.period.began - timedelta(days=many))
        assert charged + book.account.left + book.account.leased <= allowed


# --- on the ledger -------------------------------------------------------------------------------


def daily(ledger: Bench, credits: int, **more: object) -> tuple[Consumers, Consumer]:
    loan = ledger.lend(1000, settle_grace_s=30.0, reattest_interval_s=0).loan
    made = ledger.loans.add_consumer(
        loan,
        name="daily",
        budget=credits,
        actor="test",
        per=Unit.DAY,
        **more,  # type: ignore[arg-type]
    ).row
    return Consumers(ledger=ledger.ledger), made


def seen(ledger: Bench, consumer: ConsumerId) -> Consumer:
    with ledger.ledger.read() as tx:
        found = tx.consumer(consumer)
    assert found is not None
    return found


def turns(ledger: Bench, consumer: Consumer) -> list[tuple[int, int]]:
    with ledger.ledger.read() as tx:
        return [(one.withdrawn, one.granted) for one in tx.periods_of_loan(consumer.loan, 100)]


def test_a_day_begins_and_enclaves_are_told(ledger: Bench) -> None:
    consumers, consumer = daily(ledger, 10)
    enclave = ledger.enclave(consumer.loan)
    lease = ledger.lease(enclave, 4, by_consumer={consumer.consumer: 4}).lease
    assert lease is not None
    ledger.settle(enclave, enclave.settlement(lease.lease, {consumer.consumer: 3}))
    ledger.told.pushes.clear()
    assert consumers.sweep() == 0
    ledger.clock.forward(DAY_S)
    assert consumers.sweep() == 1
    assert turns(ledger, consumer) == [(7, 10)]
    account = seen(ledger, consumer.consumer).account
    assert (account.left, account.spent, account.granted) == (10, 3, 13)
    told = [type(push.message) for push in ledger.told.pushes]
    assert told == [RosterChanged, CreditsFreed]
    assert consumers.sweep() == 0


def test_a_lease_across_midnight_is_charged_to_the_day_in_which_it_ends(ledger: Bench) -> None:
    _, consumer = daily(ledger, 10)
    enclave = ledger.enclave(consumer.loan)
    lease = ledger.lease(enclave, 5, by_consumer={consumer.consumer: 5}).lease
    assert lease is not None
    cap = lease.caps[consumer.consumer]
    ledger.clock.time = at("2026-03-02T00:00:01")
    next_lease = ledger.lease(enclave, 10, by_consumer={consumer.consumer: 10}).lease
    assert next_lease is not None
    assert turns(ledger, consumer) == [(10 - cap, 10 - cap)]
    account = seen(ledger, consumer.consumer).account
    assert account.left + account.leased == 10
    ledger.settle(
        enclave,
        enclave.settlement(lease.lease, {consumer.consumer: 2}),
        enclave.settlement(next_lease.lease, {}),
    )
    assert seen(ledger, consumer.consumer).account.left == 8


def test_a_lease_lost_yesterday_and_found_today_brings_nothing_back(ledger: Bench) -> None:
    consumers, consumer = daily(ledger, 10)
    enclave = ledger.enclave(consumer.loan)
    lease = ledger.lease(enclave, 5, by_consumer={consumer.consumer: 5}).lease
    assert lease is not None
    ledger.sessions.disconnect(enclave.session)
    ledger.clock.forward(60)
    ledger.sessions.sweep()
    ledger.clock.forward(DAY_S)
    consumers.sweep()
    assert seen(ledger, consumer.consumer).account.left == 10
    ledger.sessions.connect(enclave.session)
    ledger.settle(enclave, enclave.settlement(lease.lease, {consumer.consumer: 1}))
    account = seen(ledger, consumer.consumer).account
    assert (account.left, account.spent, account.forfeited) == (10, 1, 0)


def test_a_clock_that_jumps_back_and_forth_begins_a_day_once(ledger: Bench) -> None:
    consumers, consumer = daily(ledger, 10)
    for hours in (13, -13, 13, -20, 20):
        ledger.clock.forward(hours * 3600)
        consumers.sweep()
    assert turns(ledger, consumer) == [(10, 10)]


def test_a_turn_that_fails_is_made_again_and_one_that_was_kept_is_not(ledger: Bench) -> None:
    consumers, consumer = daily(ledger, 10)
    ledger.clock.forward(DAY_S)
    for how in ("lost", "kept"):
        ledger.store.next = how
        with pytest.raises(Exception, match="disk"):
            consumers.sweep()
        assert len(turns(ledger, consumer)) == (how == "kept")
    assert consumers.sweep() == 0
    assert len(turns(ledger, consumer)) == 1


def test_a_budget_set_later_counts_from_the_next_period_on(ledger: Bench) -> None:
    consumers, consumer = daily(ledger, 10)
    changed = consumers.set_terms(consumer.consumer, actor="test", budget=3)
    assert changed.account.left == 10
    ledger.clock.forward(DAY_S)
    consumers.sweep()
    assert seen(ledger, consumer.consumer).account.left == 3
    consumers.set_terms(consumer.consumer, actor="test", per=None)
    ledger.clock.forward(40 * DAY_S)
    assert consumers.sweep() == 0
    with pytest.raises(RefusedError, match="does not begin anew"):
        consumers.set_terms(consumer.consumer, actor="test", budget=5)


def test_a_period_without_a_budget_is_refused(ledger: Bench) -> None:
    loan = ledger.lend(10).loan
    with pytest.raises(MalformedError, match="needs a budget"):
        ledger.loans.add_consumer(loan, name="x", budget=None, actor="test", per=Unit.DAY)
    plain = ledger.consumer(loan)
    with pytest.raises(RefusedError, match="no budget of its own"):
        Consumers(ledger=ledger.ledger).set_terms(plain, actor="test", per=Unit.DAY, budget=3)


# --- dates ---------------------------------------------------------------------------------------


def test_no_lease_lets_a_consumer_or_a_loan_outlive_its_date(ledger: Bench) -> None:
    loan = ledger.lend(
        100, expires=ledger.clock.time + timedelta(seconds=3), lease_duration_s=5.0
    ).loan
    ends = ledger.clock.time + timedelta(seconds=2)
    guest = ledger.loans.add_consumer(
        loan, name="guest", budget=None, actor="test", expires=ends
    ).row
    consumers, enclave = Consumers(ledger=ledger.ledger), ledger.enclave(loan)
    lease = ledger.lease(enclave, 5).lease
    assert lease is not None
    assert (lease.duration_s, lease.ends_s) == (3.0, {guest.consumer: 2.0})
    ledger.clock.forward(2)
    lease = ledger.lease(enclave, 5).lease
    assert lease is not None
    assert lease.ends_s == {guest.consumer: 0.0}
    ledger.told.pushes.clear()
    assert consumers.sweep() == 1
    (push,) = ledger.told.pushes
    assert isinstance(push.message, RosterChanged)
    assert push.message.roster[0].expires_in_s == 0.0
    assert "consumer.expired" in ledger.kinds()
    ledger.clock.forward(1)
    assert ledger.lease(enclave, 5).lease is None


# --- rates ---------------------------------------------------------------------------------------


def test_all_enclaves_together_are_leased_no_more_than_the_rate(ledger: Bench) -> None:
    loan = ledger.lend(100_000, limits=Limits(rate=Rate(credits=10, per_s=1))).loan
    enclaves = [ledger.enclave(loan) for _ in range(3)]
    leased = 0
    for step in range(100):  # ten seconds
        answer = ledger.lease(enclaves[step % 3], 50)
        leased += 0 if answer.lease is None else answer.lease.credits
        if answer.lease is not None:
            back = enclaves[step % 3].settlement(answer.lease.lease, {})
            ledger.settle(enclaves[step % 3], back)  # unused, and still gone from the rate
        assert leased <= 10 + 10 * step / 10
        ledger.clock.forward(0.1)
    assert leased >= 100


def test_a_consumers_rate_holds_over_all_enclaves_and_the_wait_is_told(ledger: Bench) -> None:
    loan = ledger.lend(1000).loan
    slow = ledger.loans.add_consumer(
        loan, name="s", budget=None, actor="test", limits=Limits(rate=Rate(credits=2, per_s=60))
    ).row.consumer
    first, second = ledger.enclave(loan), ledger.enclave(loan)
    lease = ledger.lease(first, 5, by_consumer={slow: 2}).lease
    assert lease is not None
    assert lease.caps == {slow: 2}
    answer = ledger.lease(second, 1, by_consumer={slow: 1})
    assert answer.lease is None
    assert answer.consumer_wait_s == {slow: pytest.approx(30.0)}
    ledger.settle(first, first.settlement(lease.lease, {slow: 2}))
    ledger.clock.forward(31)
    assert ledger.lease(second, 1, by_consumer={slow: 1}).lease is not None


@given(st.integers(1, 50), st.sampled_from([1, 60, 3600]), st.floats(0, 1e6))
def test_a_clock_that_jumps_back_neither_fills_a_bucket_nor_keeps_it_empty(
    credits: int, per_s: int, back_s: float
) -> None:
    rate, now = Rate(credits=credits, per_s=per_s), at("2026-03-01T12:00")
    full_at = rates.taken(rate, None, now, credits)
    earlier = now - timedelta(seconds=back_s)
    assert rates.available(rate, full_at, earlier) == 0
    assert rates.wait_s(rate, full_at, earlier, credits) <= per_s + 1e-6


def test_exposure_is_not_understated_when_the_custodians_clock_jumps(ledger: Bench) -> None:
    loan = ledger.lend(100).loan
    lease = ledger.lease(ledger.enclave(loan), 7).lease
    assert lease is not None
    ledger.clock.forward(3600)
    with ledger.ledger.read() as tx:
        exposure = exposure_of(tx, loan, ledger.clock.now())
    assert (exposure.credits, exposure.seconds) == (7, 5.0)
