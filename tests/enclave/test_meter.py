"""The enclave's count never serves more than was leased, nor after its time."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aigovtool.enclave.meter import Charge, Meter, Refusal
from aigovtool.errors import ConflictError, MalformedError, PromiseBrokenError
from aigovtool.ids import ConsumerId, LeaseId
from aigovtool.wire.control import Lease

ALICE, BOB = ConsumerId("con_alice"), ConsumerId("con_bob")


def lease(
    name: str, credits: int, *, duration_s: float = 5.0, caps: dict[ConsumerId, int] | None = None
) -> Lease:
    return Lease(lease=LeaseId(name), credits=credits, caps=caps or {}, duration_s=duration_s)


def test_no_lease_serves_nobody() -> None:
    assert Meter().charge(ALICE, 1, 0.0) is Refusal.NO_LEASE


def test_a_charge_names_lease_and_balances() -> None:
    meter = Meter()
    meter.open(lease("one", 3), 10.0)
    assert meter.charge(ALICE, 2, 11.0) == Charge(LeaseId("one"), 2, 3, 1)
    assert meter.charge(ALICE, 2, 11.0) is Refusal.USED_UP
    assert meter.credits(11.0) == 1


def test_time_runs_from_sending_and_not_from_arrival() -> None:
    meter = Meter()
    meter.open(lease("one", 3, duration_s=5), sent_at_s=10.0)
    assert isinstance(meter.charge(ALICE, 1, 14.999), Charge)
    assert meter.charge(ALICE, 1, 15.0) is Refusal.NO_LEASE


def test_a_clock_that_jumps_back_revives_no_expired_lease() -> None:
    meter = Meter()
    meter.open(lease("one", 3), 10.0)
    assert meter.charge(ALICE, 1, 16.0) is Refusal.NO_LEASE
    assert meter.charge(ALICE, 1, 11.0) is Refusal.NO_LEASE
    assert meter.usable(ALICE, 11.0) == 0
    assert [meter.close(lease).used for lease in meter.over_at(11.0)] == [0]


def test_the_lease_that_expires_first_pays() -> None:
    meter = Meter()
    meter.open(lease("late", 1), 12.0)
    meter.open(lease("early", 1), 10.0)
    charges = [meter.charge(ALICE, 1, 13.0), meter.charge(ALICE, 1, 13.0)]
    assert [charge.lease for charge in charges if isinstance(charge, Charge)] == ["early", "late"]


def test_a_consumer_with_a_budget_of_its_own_uses_only_its_cap() -> None:
    meter = Meter()
    meter.set_capped({ALICE})
    meter.open(lease("one", 10, caps={ALICE: 2}), 0.0)
    outcomes = [meter.charge(ALICE, 1, 1.0) for _ in range(3)]
    assert outcomes[2] is Refusal.CAPPED
    assert meter.usable(BOB, 1.0) == 8
    meter.open(lease("two", 10), 0.0)
    assert meter.charge(ALICE, 1, 1.0) is Refusal.CAPPED
    use = meter.close(LeaseId("one"))
    assert (use.used, use.unused, use.by_consumer, use.unused_caps) == (
        2,
        8,
        {ALICE: 2},
        {ALICE: 0},
    )


def test_a_cap_holds_even_when_the_roster_no_longer_has_the_budget() -> None:
    meter = Meter()
    meter.open(lease("one", 10, caps={ALICE: 1}), 0.0)
    assert isinstance(meter.charge(ALICE, 1, 1.0), Charge)
    assert meter.charge(ALICE, 1, 1.0) is Refusal.CAPPED


def test_a_closed_lease_cannot_be_used_or_closed_again() -> None:
    meter = Meter()
    meter.open(lease("one", 10), 0.0)
    assert meter.close(LeaseId("one")).unused == 10
    assert meter.charge(ALICE, 1, 1.0) is Refusal.NO_LEASE
    with pytest.raises(ConflictError):
        meter.close(LeaseId("one"))
    assert meter.left == 0


def test_a_lease_replayed_while_open_adds_nothing() -> None:
    meter = Meter()
    meter.open(lease("one", 10), 0.0)
    with pytest.raises(ConflictError):
        meter.open(lease("one", 10), 0.0)
    assert meter.credits(1.0) == 10


@pytest.mark.parametrize(
    "bad",
    [
        lease("x", -1),
        lease("x", 1, caps={ALICE: -1}),
        lease("x", 1, duration_s=-1),
        lease("x", 1, duration_s=math.nan),
        lease("x", 1, duration_s=math.inf),
    ],
)
def test_a_lease_that_cannot_be_is_refused(bad: Lease) -> None:
    meter = Meter()
    with pytest.raises(MalformedError):
        meter.open(bad, 0.0)
    assert meter.charge(ALICE, 1, 0.0) is Refusal.NO_LEASE


@given(st.integers(max_value=0))
def test_nothing_is_served_for_nothing(cost: int) -> None:
    meter = Meter()
    meter.open(lease("one", 10), 0.0)
    with pytest.raises(PromiseBrokenError):
        meter.charge(ALICE, cost, 1.0)
    assert meter.credits(1.0) == 10


class MeterMachine(RuleBasedStateMachine):
    """Against a plain model: what was charged, per lease and consumer, and when it had to end."""

    @initialize()
    def start(self) -> None:
        self.meter = Meter()
        self.meter.set_capped({ALICE})
        self.now_s = 0.0
        self.opened: dict[str, tuple[Lease, float]] = {}
        self.charged: dict[str, int] = {}
        self.by_alice: dict[str, int] = {}
        self.closed: set[str] = set()

    @rule(
        credits=st.integers(0, 5),
        cap=st.none() | st.integers(0, 5),
        duration_s=st.floats(0, 10),
        age_s=st.floats(0, 3),
    )
    def open(self, credits: int, cap: int | None, duration_s: float, age_s: float) -> None:
        name = f"lease{len(self.opened)}"
        made = lease(name, credits, duration_s=duration_s, caps={} if cap is None else {ALICE: cap})
        self.meter.open(made, self.now_s - age_s)
        self.opened[name] = (made, self.now_s - age_s)

    @rule(consumer=st.sampled_from([ALICE, BOB]), cost=st.integers(1, 3))
    def charge(self, consumer: ConsumerId, cost: int) -> None:
        usable = self.meter.usable(consumer, self.now_s)
        charge = self.meter.charge(consumer, cost, self.now_s)
        if isinstance(charge, Refusal):
            assert usable < cost or len(self.opened) > 1
            return
        made, sent_at_s = self.opened[charge.lease]
        assert charge.lease not in self.closed
        assert self.now_s < sent_at_s + made.duration_s
        assert charge.before - charge.after == cost <= usable
        self.charged[charge.lease] = self.charged.get(charge.lease, 0) + cost
        if consumer == ALICE:
            self.by_alice[charge.lease] = self.by_alice.get(charge.lease, 0) + cost

    @rule(forward_s=st.floats(0, 4))
    def time_passes(self, forward_s: float) -> None:
        self.now_s += forward_s

    @rule()
    def close_expired(self) -> None:
        for use in map(self.meter.close, self.meter.over_at(self.now_s)):
            assert use.used == self.charged.get(use.lease, 0) == sum(use.by_consumer.values())
            self.closed.add(use.lease)

    @invariant()
    def never_more_than_leased(self) -> None:
        for name, charged in self.charged.items():
            assert charged <= self.opened[name][0].credits
        for name, charged in self.by_alice.items():
            assert charged <= self.opened[name][0].caps.get(ALICE, 0)

    @invariant()
    def the_counts_agree(self) -> None:
        open_credits = sum(
            made.credits - self.charged.get(name, 0)
            for name, (made, _) in self.opened.items()
            if name not in self.closed
        )
        assert self.meter.left == open_credits


TestMeterMachine = MeterMachine.TestCase
