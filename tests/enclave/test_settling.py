"""Settlements are sent at once, again only when they were not taken, and none is forgotten."""

from __future__ import annotations

import math

import pytest

from aigovtool.clock import SystemClock
from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.meter import Use
from aigovtool.enclave.receipts import Receipts
from aigovtool.enclave.settling import AGAIN_S, Settlements
from aigovtool.ids import LeaseId, LoanId, SessionId
from aigovtool.wire.codec import Signed, open_signed
from aigovtool.wire.control import MAX_SETTLEMENTS, Settlement

KEY = SigningKey.generate()
LOAN, SESSION = LoanId("loan_1"), SessionId("session_1")


@pytest.fixture
def settlements() -> Settlements:
    receipts = Receipts(
        loan=LOAN, session=SESSION, model_digest=bytes(32), key=KEY, clock=SystemClock()
    )
    return Settlements(loan=LOAN, session=SESSION, key=KEY, receipts=receipts)


def closed(number: int) -> Use:
    return Use(
        lease=LeaseId(f"lease_{number}"),
        used=0,
        unused=1,
        by_consumer={},
        refunded={},
        unused_caps={},
    )


def leases(sent: tuple[Signed, ...]) -> list[LeaseId]:
    return [
        open_signed(one, Settlement, public_key=KEY.public_key, label=Label.SETTLEMENT).lease
        for one in sent
    ]


def test_more_than_one_report_holds_go_one_report_after_the_other_without_a_pause(
    settlements: Settlements,
) -> None:
    settlements.add(closed(number) for number in range(3 * MAX_SETTLEMENTS - 1))
    told: list[LeaseId] = []
    for _ in range(3):
        sent = leases(settlements.due(0.0))
        settlements.acknowledged(sent, 0.0)
        told += sent
    assert told == [f"lease_{number}" for number in range(3 * MAX_SETTLEMENTS - 1)]
    assert not settlements
    assert settlements.due(0.0) == ()


def test_what_was_not_taken_is_sent_again_after_a_pause_whatever_else_is_answered(
    settlements: Settlements,
) -> None:
    settlements.add([closed(1), closed(2)])
    first = settlements.due(0.0)
    settlements.acknowledged([LeaseId("lease_1")], 0.0)
    for now_s in (0.1, 0.5, AGAIN_S - 0.1):  # answers to reports that carried no settlement
        assert settlements.due(now_s) == ()
        settlements.acknowledged([], now_s)
    assert settlements.again_s == AGAIN_S
    assert settlements.due(AGAIN_S) == first[1:]  # the very bytes that were signed
    settlements.acknowledged([LeaseId("lease_2")], AGAIN_S)
    assert not settlements
    assert settlements.again_s == -math.inf
