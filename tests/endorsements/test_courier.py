"""Endorsements for threads: completed where they can be, and never a reason to fail or to hang."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.verify import verify
from aigovtool.endorsements import courier as module
from aigovtool.endorsements.collector import Services
from aigovtool.endorsements.courier import QUIET_S, Courier, open_courier
from tests.endorsements.stand_in import (
    FakeClock,
    Reply,
    Vendor,
    recorded,
    running,
    serve_collateral,
)

EVIDENCE, COMPLETE, NOW = recorded("tdx/v4-up-to-date")
NONE = Endorsements(tee=Tee.TDX)
TCB = "/tdx/certification/v4/tcb"


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    async with running(Vendor()) as server:
        serve_collateral(server, "tdx", COMPLETE.documents)
        yield server


@contextmanager
def courier_to(vendor: Vendor, clock: FakeClock, cache: Path | None = None) -> Iterator[Courier]:
    services = Services.by(pccs=vendor.url)
    with open_courier(services, cache=cache, clock=clock) as courier:
        yield courier


async def completed(
    courier: Courier, have: Endorsements = NONE, *, evidence: Evidence = EVIDENCE
) -> Endorsements:
    return await asyncio.to_thread(courier.complete, evidence, have, now=NOW)


async def test_what_is_missing_is_fetched_once(vendor: Vendor) -> None:
    with courier_to(vendor, FakeClock(wall=NOW)) as courier:
        for _ in range(3):
            assert await completed(courier) == COMPLETE
    verify(EVIDENCE, COMPLETE, now=NOW)
    assert len(vendor.asked) == 4


async def test_what_came_with_the_evidence_and_is_fresh_is_not_asked_for(vendor: Vendor) -> None:
    with courier_to(vendor, FakeClock(wall=NOW)) as courier:
        assert await completed(courier, COMPLETE) == COMPLETE
    assert vendor.asked == []


async def test_the_next_start_asks_the_cache(vendor: Vendor, tmp_path: Path) -> None:
    for _ in range(2):
        with courier_to(vendor, FakeClock(wall=NOW), tmp_path) as courier:
            assert await completed(courier) == COMPLETE
    assert len(vendor.asked) == 4


@pytest.mark.parametrize("tee", sorted(module.SELF_SUFFICIENT))
async def test_kinds_that_bring_everything_ask_nobody(vendor: Vendor, tee: Tee) -> None:
    evidence, have = Evidence(tee=tee, documents={"quote": b"q"}), Endorsements(tee=tee)
    with courier_to(vendor, FakeClock(wall=NOW)) as courier:
        assert await completed(courier, have, evidence=evidence) is have
    assert vendor.asked == []


async def test_a_vendor_that_does_not_know_is_no_failure_and_said_once(
    vendor: Vendor, caplog: pytest.LogCaptureFixture
) -> None:
    del vendor.replies[TCB]
    with courier_to(vendor, FakeClock(wall=NOW)) as courier:
        for _ in range(2):
            assert await completed(courier) is NONE
    assert caplog.text.count("endorsements for tdx are not complete") == 1


@pytest.mark.parametrize("body", [b"", b"not a quote", b"\x04\x00" + bytes(700)])
async def test_evidence_that_cannot_be_read_is_left_to_the_judge(
    vendor: Vendor, body: bytes
) -> None:
    junk = Evidence(tee=Tee.TDX, documents={"quote": body})
    with courier_to(vendor, FakeClock(wall=NOW)) as courier:
        assert await completed(courier, evidence=junk) is NONE
        assert await completed(courier) == COMPLETE  # and the next one is not made to wait for it


async def test_a_vendor_that_hangs_makes_one_wait_and_no_other(
    vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.2)
    gate = asyncio.Event()
    right = vendor.replies[TCB][0]
    vendor.set(TCB, Reply(body=right.body, headers=right.headers, gate=gate))
    clock = FakeClock(wall=NOW)
    with courier_to(vendor, clock) as courier:
        assert await completed(courier) is NONE
        asked = len(vendor.asked)
        assert await completed(courier) is NONE
        assert len(vendor.asked) == asked
        gate.set()
        monkeypatch.setattr(module, "WAIT_S", 5.0)
        clock.advance(timedelta(seconds=QUIET_S))
        assert await completed(courier) == COMPLETE
    assert vendor.count(TCB) == 1  # the slow answer was waited for, not asked for again


async def test_it_ends_while_a_vendor_hangs(vendor: Vendor) -> None:
    vendor.set(TCB, Reply(hang=True))
    with courier_to(vendor, FakeClock(wall=NOW)) as courier:
        waiting = asyncio.create_task(completed(courier))
        await vendor.was_asked.wait()
    assert await waiting is NONE
