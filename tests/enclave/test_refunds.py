"""What is taken back and what is not; and that no refund lets more be served than was leased."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aigovtool.clock import SystemClock
from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.meter import Meter
from aigovtool.enclave.receipts import Receipts
from aigovtool.enclave.refunds import REFUNDS, Fate
from aigovtool.enclave.settling import Settlements
from aigovtool.enclave.till import Paid, Till
from aigovtool.errors import PromiseBrokenError, VerificationError
from aigovtool.ids import ConsumerId, LeaseId, LoanId, SessionId, sha256
from aigovtool.wire.codec import decode, open_signed
from aigovtool.wire.control import Lease, Settlement
from aigovtool.wire.receipt import NO_RECEIPT_BEFORE, Receipt, Refund, from_header

from . import models
from .conftest import RunningEnclave, query, running_enclave
from .custodian import FakeCustodian
from .test_control import SLOW, in_flight, slow_enclave

ALICE, BOB = ConsumerId("con_alice"), ConsumerId("con_bob")
LOAN, SESSION, KEY = LoanId("loan_x"), SessionId("ses_x"), SigningKey.generate()


def make_till() -> Till:
    receipts = Receipts(
        loan=LOAN, session=SESSION, model_digest=bytes(32), key=KEY, clock=SystemClock()
    )
    return Till(Meter(), receipts)


def lease(name: str, credits: int, duration_s: float = 5.0, **caps: int) -> Lease:
    return Lease(
        lease=LeaseId(name),
        credits=credits,
        caps={ConsumerId(f"con_{who}"): cap for who, cap in caps.items()},
        duration_s=duration_s,
    )


def paid_for(till: Till, consumer: ConsumerId, cost: int, now_s: float = 1.0) -> Paid:
    paid = till.pay(consumer, cost, now_s)
    assert isinstance(paid, Paid)
    return paid


# --- the rules ------------------------------------------------------------------------------------


def test_every_fate_has_its_rule() -> None:
    assert set(REFUNDS) == set(Fate)
    assert REFUNDS[Fate.ANSWERED] is REFUNDS[Fate.CLIENT_GONE] is REFUNDS[Fate.OUT_OF_TIME] is None


def test_a_refund_is_a_receipt_that_names_what_it_takes_back() -> None:
    till = make_till()
    till.meter.open(lease("one", 10), 0.0)
    paid = paid_for(till, ALICE, 4)
    paid_for(till, BOB, 1)
    assert till.refund(paid, "model-error")
    assert paid.refund is not None
    charge, refund = decode(paid.receipt, Receipt), decode(paid.refund, Receipt)
    assert refund.refund == Refund(kind="model-error", number=charge.number)
    assert (refund.cost, refund.balance_before, refund.balance_after) == (-4, 5, 9)
    assert (refund.number, refund.own_number) == (3, 2)
    assert refund.own_previous == sha256(paid.receipt)
    refund.check_sum()
    use = till.meter.close(LeaseId("one"))
    assert (use.used, use.unused, use.by_consumer) == (1, 9, {BOB: 1})
    assert use.refunded == {"model-error": 4}


def test_a_charge_is_taken_back_once() -> None:
    till = make_till()
    till.meter.open(lease("one", 10), 0.0)
    paid, other = paid_for(till, ALICE, 4), paid_for(till, ALICE, 4)
    till.refund(paid, "cancelled")
    till.close(other)
    for again in (paid, other):
        with pytest.raises(PromiseBrokenError):
            till.refund(again, "cancelled")
    assert till.meter.credits(1.0) == 6
    assert till.receipts.count == 3


def test_after_the_lease_was_closed_the_charge_stays() -> None:
    till = make_till()
    till.meter.open(lease("one", 10), 0.0)
    paid = paid_for(till, ALICE, 4)
    till.meter.close(LeaseId("one"))
    till.meter.open(lease("two", 10), 0.0)
    assert not till.refundable(paid)
    assert not till.refund(paid, "stopped")
    assert (paid.refund, till.receipts.count, till.meter.left) == (None, 1, 10)


def test_an_expired_lease_takes_a_charge_back_and_serves_nobody_with_it() -> None:
    till = make_till()
    till.meter.open(lease("one", 1), 0.0)
    paid = paid_for(till, ALICE, 1)
    assert not isinstance(till.pay(ALICE, 1, 6.0), Paid)
    assert till.refund(paid, "model-error")
    assert not isinstance(till.pay(ALICE, 1, 6.0), Paid)
    assert [use.used for use in till.close_leases(till.meter.over_at(6.0))] == [0]


def test_a_consumers_cap_gets_its_part_back() -> None:
    till = make_till()
    till.meter.set_capped({ALICE})
    till.meter.open(lease("one", 10, alice=2), 0.0)
    paid = paid_for(till, ALICE, 2)
    till.refund(paid, "model-error")
    assert till.meter.usable(ALICE, 1.0) == 2
    paid_for(till, ALICE, 2)
    assert not isinstance(till.pay(ALICE, 1, 1.0), Paid)


def test_a_lease_of_no_duration_stays_open_until_those_it_served_are_over() -> None:
    till = make_till()
    till.meter.open(lease("one", 5, 0.0), 0.0, expires_s=float("inf"))
    first, second = paid_for(till, ALICE, 2), paid_for(till, ALICE, 2)
    till.meter.retire(LeaseId("one"))
    assert not isinstance(till.pay(ALICE, 1, 0.0), Paid)
    assert till.close_leases(till.meter.over_at(1.0)) == []
    till.refund(first, "model-error")
    till.close(first)
    assert not isinstance(till.pay(ALICE, 1, 0.0), Paid)
    assert till.close_leases(till.meter.over_at(1.0)) == []
    assert till.meter.first_expiry_s() == float("inf")
    till.close(second)
    till.close(second)
    (use,) = till.close_leases(till.meter.over_at(1.0))
    assert (use.used, use.unused, use.refunded) == (2, 3, {"model-error": 2})


@pytest.mark.parametrize(
    "changes",
    [
        {"cost": 0, "balance_after": 10},
        {"cost": -1, "balance_after": 11},
        {"refund": Refund(kind="stopped", number=1)},
        {"cost": -1, "balance_after": 11, "refund": Refund(kind="stopped", number=2)},
        {"cost": -1, "balance_after": 11, "refund": Refund(kind="stopped", number=0)},
        {"cost": -1, "balance_after": 10, "refund": Refund(kind="stopped", number=1)},
    ],
)
def test_a_receipt_that_is_neither_charge_nor_refund_is_refused(changes: dict[str, object]) -> None:
    till = make_till()
    till.meter.open(lease("one", 10), 0.0)
    paid_for(till, ALICE, 1)
    receipt = decode(paid_for(till, ALICE, 1).receipt, Receipt)
    receipt.check_sum()
    bad = msgspec.structs.replace(receipt, **({"balance_before": 10} | changes))  # type: ignore[arg-type]
    with pytest.raises(VerificationError):
        bad.check_sum()


class TillMachine(RuleBasedStateMachine):
    """Charges and refunds in any order, against what the receipts and settlements say of them."""

    @initialize()
    def start(self) -> None:
        self.till = make_till()
        self.till.meter.set_capped({ALICE})
        self.settlements = Settlements(
            loan=LOAN, session=SESSION, key=KEY, receipts=self.till.receipts
        )
        self.now_s = 0.0
        self.leases: dict[LeaseId, Lease] = {}
        self.flying: list[Paid] = []
        self.served: list[Paid] = []
        self.payloads: list[bytes] = []
        self.settled: dict[LeaseId, Settlement] = {}

    @rule(
        credits=st.integers(1, 6),
        cap=st.integers(0, 6),
        duration_s=st.sampled_from([0.0, 1.0, 5.0]),
    )
    def open(self, credits: int, cap: int, duration_s: float) -> None:
        made = lease(f"lease{len(self.leases)}", credits, duration_s, alice=cap)
        expires_s = float("inf") if duration_s == 0 else None
        self.till.meter.open(made, self.now_s, expires_s=expires_s)
        self.leases[made.lease] = made

    @rule(consumer=st.sampled_from([ALICE, BOB]), cost=st.integers(1, 3))
    def pay(self, consumer: ConsumerId, cost: int) -> None:
        paid = self.till.pay(consumer, cost, self.now_s)
        if isinstance(paid, Paid):
            self.flying.append(paid)
            self.payloads.append(paid.receipt)

    @rule(which=st.integers(0, 20), fate=st.sampled_from(Fate))
    def finish(self, which: int, fate: Fate) -> None:
        if not self.flying:
            return
        paid = self.flying.pop(which % len(self.flying))
        kind = REFUNDS[fate]
        if kind is not None and self.till.refund(paid, kind):
            assert paid.refund is not None
            assert paid.charge.lease not in self.settled
            self.payloads.append(paid.refund)
        else:
            self.served.append(paid)  # or charged as if it had been
        self.till.close(paid)

    @rule(forward_s=st.floats(0, 3), retire=st.booleans())
    def time_passes(self, forward_s: float, retire: bool) -> None:
        self.now_s += forward_s
        if retire:
            for name, made in self.leases.items():
                if made.duration_s == 0:
                    self.till.meter.retire(name)

    @rule(all_of_them=st.booleans())
    def settle(self, all_of_them: bool) -> None:
        meter = self.till.meter
        over = meter.opened() if all_of_them else meter.over_at(self.now_s)
        uses = self.till.close_leases(over)
        self.settlements.add(uses)
        for signed in self.settlements.due(self.now_s):
            one = open_signed(signed, Settlement, public_key=KEY.public_key, label=Label.SETTLEMENT)
            self.settled[one.lease] = one
        self.settlements.acknowledged(list(self.settled), self.now_s)

    @invariant()
    def what_is_settled_is_what_the_receipts_say(self) -> None:
        for name, settlement in self.settled.items():
            of_lease = [one for one in self._receipts() if one.lease == name]
            assert settlement.used == sum(one.cost for one in of_lease)
            for consumer in (ALICE, BOB):
                own = sum(one.cost for one in of_lease if one.consumer == consumer)
                assert settlement.by_consumer.get(consumer, 0) == own
            assert min(settlement.by_consumer.values(), default=1) >= 1
            back = -sum(one.cost for one in of_lease if one.refund is not None)
            assert sum(settlement.refunded.values()) == back

    @invariant()
    def never_more_is_served_than_was_leased(self) -> None:
        for name, made in self.leases.items():
            of_lease = [one for one in (*self.served, *self.flying) if one.charge.lease == name]
            assert sum(one.charge.cost for one in of_lease) <= made.credits
            of_alice = [one.charge.cost for one in of_lease if one.consumer == ALICE]
            assert sum(of_alice) <= made.caps.get(ALICE, 0)

    @invariant()
    def the_receipts_are_one_chain_whose_balances_follow(self) -> None:
        previous, left = NO_RECEIPT_BEFORE, {name: one.credits for name, one in self.leases.items()}
        for number, (payload, receipt) in enumerate(
            zip(self.payloads, self._receipts(), strict=True), start=1
        ):
            receipt.check_sum()
            assert (receipt.number, receipt.previous) == (number, previous)
            assert receipt.balance_before == left[receipt.lease]
            left[receipt.lease] = receipt.balance_after
            previous = sha256(payload)

    def _receipts(self) -> list[Receipt]:
        return [decode(payload, Receipt) for payload in self.payloads]


TestTillMachine = TillMachine.TestCase


# --- the server -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def failing_enclave(
    tmp_path: Path, *, budget: int = 10, duration_s: float = 5.0
) -> AsyncIterator[RunningEnclave]:
    key = SigningKey.generate()
    sealed = models.sealed(tmp_path, key, models.failing())
    async with FakeCustodian(key, sealed, budget=budget) as custodian:
        custodian.lease_duration_s = duration_s
        async with running_enclave(custodian) as enclave:
            yield enclave


def at(*indices: int) -> dict:
    return query(list(indices), datatype="INT64", shape=[len(indices)])


async def settle(enclave: RunningEnclave) -> FakeCustodian:
    enclave.stop.set()
    await enclave.task
    assert enclave.custodian.leased == 0
    enclave.custodian.check()
    return enclave.custodian


def receipts_of(headers: object) -> tuple[Receipt, Receipt | None]:
    names = ("Aigovtool-Receipt", "Aigovtool-Refund")
    found = [
        decode(from_header(headers[name]).payload, Receipt) if name in headers else None  # type: ignore[index,operator]
        for name in names
    ]
    assert found[0] is not None
    return found[0], found[1]


@pytest.mark.parametrize("duration_s", [5.0, 0.0])
async def test_a_model_error_costs_nothing(tmp_path: Path, duration_s: float) -> None:
    async with failing_enclave(tmp_path, duration_s=duration_s) as enclave:
        status, answer, headers = await enclave.infer(body=at(1, 2, 99))
        assert (status, answer["reasons"][0]["code"]) == (422, "bad_tensor.compute")
        charge, refund = receipts_of(headers)
        assert refund is not None
        assert (charge.cost, refund.cost, refund.refund) == (
            3,
            -3,
            Refund(kind="model-error", number=charge.number),
        )
        if duration_s:
            assert headers["Aigovtool-Remaining"] == "10"
        status, _, headers = await enclave.infer(body=at(2))
        assert (status, receipts_of(headers)[1]) == (200, None)
        custodian = await settle(enclave)
    assert custodian.spent == 1
    assert sum(one.refunded.get("model-error", 0) for one in custodian.settlements) == 3


async def test_what_was_taken_back_serves_the_next_one(tmp_path: Path) -> None:
    async with failing_enclave(tmp_path, budget=1) as enclave:
        for _ in range(5):
            assert (await enclave.infer(body=at(99)))[0] == 422
        assert (await enclave.infer(body=at(1)))[0] == 200
        assert (await enclave.infer(body=at(99)))[0] == 429
        assert (await settle(enclave)).spent == 1


async def test_a_retry_of_a_model_error_is_told_the_same(tmp_path: Path) -> None:
    async with failing_enclave(tmp_path) as enclave:
        first = await enclave.infer(body=at(99), Idempotency_Key="a")
        again = await enclave.infer(body=at(99), Idempotency_Key="a")
        assert (first[0], first[1]) == (again[0], again[1])
        assert receipts_of(first[2]) == receipts_of(again[2])
        assert (await settle(enclave)).spent == 0


async def hang_up(task: asyncio.Task) -> None:
    task.cancel()
    await asyncio.wait({task})


async def test_who_leaves_before_its_computation_pays_nothing(
    key: SigningKey, tmp_path: Path
) -> None:
    async with slow_enclave(key, tmp_path, compute_threads=1) as enclave:
        first, second = await in_flight(enclave, 2)
        await hang_up(second)
        async with asyncio.timeout(30):
            while (await enclave.get("/v1/budget", enclave.custodian.alice))[1]["remaining"] != 9:
                pass
        await hang_up(first)
        custodian = await settle(enclave)
        refunded = [one.refunded for one in custodian.settlements if one.refunded]
        assert (refunded, custodian.spent) == ([{"cancelled": 1}], 1)


async def test_who_leaves_during_its_computation_pays_and_the_thread_is_free(
    key: SigningKey, tmp_path: Path
) -> None:
    async with slow_enclave(key, tmp_path, compute_threads=1) as enclave:
        (first,) = await in_flight(enclave, 1)
        await hang_up(first)
        async with asyncio.timeout(5):  # it would take longer
            enclave.stop.set()
            await enclave.task
        custodian = enclave.custodian
        assert custodian.spent == 1
        assert not any(one.refunded for one in custodian.settlements)


async def test_who_comes_back_with_its_key_gets_the_answer_and_pays_once(
    key: SigningKey, tmp_path: Path
) -> None:
    model = models.sealed(tmp_path, key, models.slow(steps=300_000))
    async with (
        FakeCustodian(key, model, budget=10) as custodian,
        running_enclave(custodian, compute_threads=1) as enclave,
    ):
        first = asyncio.create_task(enclave.infer(body=SLOW, Idempotency_Key="k"))
        async with asyncio.timeout(30):
            while (await enclave.get("/v1/budget", custodian.alice))[1]["remaining"] != 9:
                pass
        await hang_up(first)
        status, _, headers = await enclave.infer(body=SLOW, Idempotency_Key="k")
        assert (status, headers["Aigovtool-Replayed"]) == (200, "1")
        assert (await settle(enclave)).spent == 1
        assert receipts_of(headers)[0].number == 1
