"""
What a custodian says right after the lease that pays for a query: no such query is computed.

A socket that holds both messages gives both in one step, before the query that was paid goes on.
"""

from __future__ import annotations

import asyncio

import pytest

from aigovtool.enclave.control import Conversation
from aigovtool.wire.codec import Message
from aigovtool.wire.control import LoanChanged, Report, ReportAnswer, RosterChanged, ShuttingDown

from .conftest import running_enclave
from .custodian import FakeCustodian


def follow_with(
    monkeypatch: pytest.MonkeyPatch, custodian: FakeCustodian, what: str
) -> list[Message]:
    """Let *what* be read in the step in which the first lease is; return what was so taken."""
    take, took = Conversation._take, []

    def both(self: Conversation, message: Message) -> None:
        take(self, message)
        if isinstance(message, ReportAnswer) and message.lease is not None and not took:
            if what == "a stop":
                custodian.state, custodian.state_reason = "stopped", "audit"
                took.append(LoanChanged(state="stopped", reason="audit"))
            else:
                custodian.alice.blocked = True
                took.append(RosterChanged(roster=custodian._roster()))
            take(self, took[0])

    monkeypatch.setattr(Conversation, "_take", both)
    return took


@pytest.mark.parametrize("what", ["a stop", "a block"])
@pytest.mark.parametrize("duration_s", [5.0, 0.0])
@pytest.mark.parametrize("patience", ["", "wait=60"])
async def test_who_was_paid_in_the_step_before_it_is_not_computed_and_pays_nothing(
    custodian: FakeCustodian,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    duration_s: float,
    patience: str,
) -> None:
    custodian.lease_duration_s = duration_s
    took = follow_with(monkeypatch, custodian, what)
    headers = {"Prefer": patience} if patience else {}
    async with running_enclave(custodian) as enclave:
        answers = await asyncio.gather(*(enclave.infer(**headers) for _ in range(3)))
    assert took
    refused = (503, "loan.not_active") if what == "a stop" else (403, "blocked")
    assert {(status, answer["kind"]) for status, answer, _ in answers} == {refused}
    charged = [told for *_, told in answers if "Aigovtool-Receipt" in told]
    assert charged  # or it would not be what is tested here
    assert all("Aigovtool-Refund" in told for told in charged)
    assert (custodian.spent, custodian.left, custodian.leased) == (0, 10, 0)


async def test_its_retry_under_the_same_key_is_charged_once_after_the_block(
    custodian: FakeCustodian, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow_with(monkeypatch, custodian, "a block")
    async with running_enclave(custodian) as enclave:
        assert (await enclave.infer(Idempotency_Key="k"))[0] == 403
        custodian.alice.blocked = False
        await custodian.set_roster()
        async with asyncio.timeout(30):
            while (await enclave.infer(Idempotency_Key="k"))[0] != 200:
                pass
        assert (await enclave.infer(Idempotency_Key="k"))[2]["Aigovtool-Replayed"] == "1"
    assert (custodian.spent, custodian.left, custodian.leased) == (1, 9, 0)


@pytest.mark.parametrize("duration_s", [5.0, 0.0])
@pytest.mark.parametrize("patience", ["", "wait=3"])
async def test_a_lease_that_comes_after_the_custodian_shuts_down_serves_nobody(
    custodian: FakeCustodian, duration_s: float, patience: str
) -> None:
    """It was granted before; its answer and what is pushed go two ways, and may change places."""
    custodian.lease_duration_s = duration_s

    async def shut_down(report: Report) -> None:
        if report.want is not None:
            await custodian.push(ShuttingDown(settle_within_s=2.0))

    custodian.before_answer = shut_down
    async with running_enclave(custodian) as enclave:
        headers = {"Prefer": patience} if patience else {}
        status, answer, told = await enclave.infer(**headers)
        assert (status, answer["reasons"][0]["code"]) == (503, "custodian.unreachable")
        assert "Aigovtool-Receipt" not in told
        await custodian.until(lambda: not custodian.leased)  # while it is still there to settle
    assert (custodian.spent, custodian.left) == (0, 10)
