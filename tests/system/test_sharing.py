"""
How leases share a budget: enclaves with uneven rates, in a pure model of fixed seed.

The model is the real arithmetic of both sides (`budget.block`, `Demand`, `Meter`) with the rules of
`renewal` for when to ask: when nothing pays, when credits run low, and at half time when in use.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from aigovtool.custodian import budget
from aigovtool.custodian.budget import Account
from aigovtool.enclave.demand import Demand
from aigovtool.enclave.meter import Charge, Meter
from aigovtool.ids import ConsumerId, LeaseId
from aigovtool.wire.control import Lease

DURATION_S = 5.0
STEP_S = 0.01
SOMEBODY = ConsumerId("con_x")


@dataclass
class Enclave:
    rate: float
    meter: Meter = field(default_factory=Meter)
    demand: Demand = field(default_factory=lambda: Demand(0.0))
    served: int = 0
    leases: int = 0
    last_served_s: float = 0.0


class Model:
    def __init__(self, credits: int, rates: list[float]) -> None:
        self.dice = random.Random(7)
        self.account = budget.grant(Account(), credits)
        self.held: dict[LeaseId, tuple[int, int]] = {}
        self.enclaves = [Enclave(rate) for rate in rates]
        self.now_s = 0.0
        self.unserved = 0

    def run(self, until_s: float) -> None:
        while self.now_s < until_s:
            for index, enclave in enumerate(self.enclaves):
                self._settle(enclave)
                for _ in range(self._arrivals(enclave.rate)):
                    self._query(index, enclave)
                self._renew(index, enclave)
            self.now_s += STEP_S

    def _arrivals(self, rate: float) -> int:
        whole, part = divmod(rate * STEP_S, 1)
        return int(whole) + (self.dice.random() < part)

    def _settle(self, enclave: Enclave) -> None:
        for use in map(enclave.meter.close, enclave.meter.over_at(self.now_s)):
            _, credits = self.held.pop(use.lease)
            self.account = budget.settle(self.account, credits, use.used)

    def _query(self, index: int, enclave: Enclave) -> None:
        for _ in range(2):
            if isinstance(enclave.meter.charge(SOMEBODY, 1, self.now_s), Charge):
                enclave.served += 1
                enclave.last_served_s = self.now_s
                return
            self._lease(index, enclave, at_least=2)
        self.unserved += 1

    def _renew(self, index: int, enclave: Enclave) -> None:
        meter = enclave.meter
        if meter.live(self.now_s) and meter.recent:
            low = meter.left < enclave.demand.low_mark()
            if low or self.now_s >= meter.half_time_s():
                self._lease(index, enclave, at_least=1)

    def _lease(self, index: int, enclave: Enclave, *, at_least: int) -> None:
        meter = enclave.meter
        enclave.demand.observe(sum(meter.take_recent().values()), self.now_s)
        want = max(at_least, enclave.demand.credits_for(DURATION_S) - meter.left)
        sharers = len({holder for holder, _ in self.held.values()} | {index})
        credits = budget.block(want, self.account.left, sharers, 10_000)
        if not credits:
            return
        self.account = budget.lease(self.account, credits)
        enclave.leases += 1
        name = LeaseId(f"{index}.{enclave.leases}")
        self.held[name] = (index, credits)
        meter.open(Lease(lease=name, credits=credits, caps={}, duration_s=DURATION_S), self.now_s)


def test_with_enough_for_all_every_enclave_serves_at_its_own_rate() -> None:
    model = Model(1_000_000, [1, 10, 100, 400])
    model.run(20)
    assert model.unserved == 0
    for enclave in model.enclaves[1:]:  # of one a second too few come to compare
        assert enclave.served == pytest.approx(enclave.rate * 20, rel=0.2)
    for enclave in model.enclaves:
        assert enclave.leases <= 20  # one a second at the most, whatever the rate


def test_the_last_credits_are_served_and_none_is_stranded_for_longer_than_a_lease() -> None:
    model = Model(2_000, [1, 10, 100, 400])
    model.run(60)
    assert sum(enclave.served for enclave in model.enclaves) == 2_000
    used_up_s = max(enclave.last_served_s for enclave in model.enclaves)
    # at the full rate of 511 a second 2,000 credits last 3.9 s
    assert used_up_s <= 3.9 + 2 * DURATION_S
    assert (model.account.left, model.account.leased) == (0, 0)


def test_no_enclave_starves_another_that_asks() -> None:
    model = Model(5_000, [500, 500, 5])
    model.run(4)
    slow = model.enclaves[2]
    assert slow.served >= 15
    fast = [enclave.served for enclave in model.enclaves[:2]]
    assert min(fast) >= 0.7 * max(fast)


def test_idle_enclaves_cost_a_busy_one_nothing() -> None:
    alone, among = Model(10_000, [200]), Model(10_000, [200] + [0.0] * 200)
    alone.run(20)
    among.run(20)
    assert among.enclaves[0].leases <= alone.enclaves[0].leases + 1
    assert among.enclaves[0].served == pytest.approx(alone.enclaves[0].served, rel=0.1)


def test_what_an_enclave_no_longer_uses_comes_back_within_one_and_a_half_leases() -> None:
    """It was in use when it was last looked at, so it is renewed once more, at half time."""
    model = Model(1_000, [100, 100])
    model.run(2)
    model.enclaves[0].rate = 0
    model.run(2 + 1.5 * DURATION_S + STEP_S)
    assert not any(index == 0 for index, _ in model.held.values())
    model.run(60)
    assert sum(enclave.served for enclave in model.enclaves) == 1_000
