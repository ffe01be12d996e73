"""What the enclave sends along with its evidence: all that its vendor publishes, if it is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.verify import verify
from aigovtool.enclave.app import endorsed
from aigovtool.enclave.attester.base import Attester
from aigovtool.enclave.config import EnclaveConfig
from tests.endorsements.stand_in import FakeClock, Vendor, recorded, running, serve_collateral

from .conftest import running_enclave
from .custodian import FakeAttester, FakeCustodian

EVIDENCE, COMPLETE, NOW = recorded("tdx/v4-up-to-date")
BOUND = bytes(64)


class RecordedTdx:
    """A TDX guest that gives one recorded quote, whatever it is asked."""

    tee = Tee.TDX

    def describe(self) -> str:
        return "a recorded quote"

    def evidence(self, report_data: bytes) -> Evidence:
        return EVIDENCE

    def endorsements(self) -> Endorsements:
        return Endorsements(tee=self.tee)


@pytest.fixture
async def pccs() -> AsyncIterator[Vendor]:
    async with running(Vendor()) as server:
        serve_collateral(server, "tdx", COMPLETE.documents)
        yield server


def config(pccs: Vendor, cache: Path | None = None, *, fetch: bool = True) -> EnclaveConfig:
    return EnclaveConfig(fetch_endorsements=fetch, pccs=pccs.url, endorsements_cache=cache)


async def shown_by(attester: Attester) -> tuple[Evidence, Endorsements]:
    return await asyncio.to_thread(lambda: (attester.evidence(BOUND), attester.endorsements()))


async def test_evidence_comes_with_all_that_a_verifier_without_a_network_needs(
    pccs: Vendor, tmp_path: Path
) -> None:
    with endorsed(RecordedTdx(), config(pccs, tmp_path), clock=FakeClock(wall=NOW)) as attester:
        assert attester.tee is Tee.TDX
        shown = await shown_by(attester)
        assert await shown_by(attester) == shown
    verify(*shown, now=NOW)
    assert len(pccs.asked) == 4


async def test_without_its_vendor_it_sends_what_there_is(
    pccs: Vendor, caplog: pytest.LogCaptureFixture
) -> None:
    pccs.replies.clear()
    with endorsed(RecordedTdx(), config(pccs), clock=FakeClock(wall=NOW)) as attester:
        assert await shown_by(attester) == (EVIDENCE, Endorsements(tee=Tee.TDX))
    assert "endorsements for tdx are not complete" in caplog.text


@pytest.mark.parametrize(("attester", "fetch"), [(FakeAttester(), True), (RecordedTdx(), False)])
async def test_nobody_is_asked_for_a_simulated_tee_nor_where_it_is_not_wanted(
    pccs: Vendor, attester: Attester, fetch: bool
) -> None:
    clock = FakeClock(wall=NOW)
    with endorsed(attester, config(pccs, fetch=fetch), clock=clock) as complete:
        assert complete is attester
    assert pccs.asked == []


async def test_a_running_enclave_sends_them_and_serves_without_them(
    custodian: FakeCustodian, pccs: Vendor
) -> None:
    class Tdx(FakeAttester):
        """The fake authority reads its report data; the quote is for the vendor."""

        tee = Tee.TDX

        def evidence(self, report_data: bytes) -> Evidence:
            told = super().evidence(report_data).documents
            return Evidence(tee=self.tee, documents={**told, **EVIDENCE.documents})

    # the collateral is of 2025: it is asked for, and not sent, as it is out of date
    async with running_enclave(custodian, attester=Tdx(), pccs=pccs.url) as enclave:
        assert (await enclave.infer())[0] == 200
    assert pccs.asked
