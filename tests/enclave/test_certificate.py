"""Evidence in the enclave's TLS certificate: read by other tools, and never needed to serve."""

from __future__ import annotations

import asyncio
import ssl
import threading
from datetime import UTC, datetime

import pytest

from aigovtool.attestation.binding import REPORT_DATA_BYTES
from aigovtool.attestation.evidence import Evidence, Tee
from aigovtool.attestation.verify import check_binding, verify
from aigovtool.channel.ratls import MAX_EXTENSION_BYTES, read_certificate
from aigovtool.clock import SystemClock
from aigovtool.enclave.attester.simulated import SimulatedAttester
from aigovtool.enclave.keys import make_keys
from aigovtool.errors import MalformedError, UnavailableError
from aigovtool.simulation.measure import Measurement
from aigovtool.simulation.platform import SimulatedPlatform

from .conftest import RunningEnclave, running_enclave
from .custodian import FakeAttester, FakeCustodian

MEASUREMENT = Measurement(mr_td=bytes(range(48)), lines=("a line",))


async def certificate_of(enclave: RunningEnclave) -> bytes:
    """What a TLS client is shown, as PEM."""
    host, _, port = enclave.address.rpartition(":")
    pem = await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))
    return pem.encode()


async def test_a_tool_reads_and_verifies_the_certificate_of_a_running_enclave(
    custodian: FakeCustodian,
) -> None:
    platform = SimulatedPlatform.in_memory(now=datetime.now(UTC))
    attester = SimulatedAttester(platform, clock=SystemClock(), measurement=MEASUREMENT)

    async with running_enclave(custodian, attester=attester, wait_ready=False) as enclave:
        certificate = await certificate_of(enclave)

    read, now = read_certificate(certificate), datetime.now(UTC)
    claims = verify(read.evidence, platform.endorsements(now), now=now)
    check_binding(claims, read.report_data)
    assert read.evidence.tee is Tee.SIMULATED
    assert claims.report_data[32:] == bytes(32)  # no report data with a nonce ends so


class Broken(FakeAttester):
    """No evidence at start; some for whoever asks later."""

    def __init__(self) -> None:
        self.asked = 0

    def evidence(self, report_data: bytes) -> Evidence:
        self.asked += 1
        if self.asked == 1:
            raise UnavailableError("busy", code="attester.busy")
        return super().evidence(report_data)


async def test_an_enclave_serves_without_evidence_in_its_certificate(
    custodian: FakeCustodian, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_enclave(custodian, attester=Broken()) as enclave:
        assert (await enclave.infer())[0] == 200
        with pytest.raises(MalformedError):
            read_certificate(await certificate_of(enclave))
    assert "no evidence in the TLS certificate" in caplog.text


async def test_a_platform_that_hangs_delays_the_start_by_so_much_and_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    released = threading.Event()

    class Hanging(FakeAttester):
        def evidence(self, report_data: bytes) -> Evidence:
            released.wait(10)
            return super().evidence(report_data)

    try:
        keys = await make_keys(Hanging(), now=datetime.now(UTC), wait_s=0.05)
    finally:
        released.set()

    with pytest.raises(MalformedError):
        read_certificate(keys.tls.certificate_pem)
    assert "none in 0.05 s" in caplog.text


async def test_evidence_too_large_for_a_certificate_is_left_out() -> None:
    class Large(FakeAttester):
        def evidence(self, report_data: bytes) -> Evidence:
            assert len(report_data) == REPORT_DATA_BYTES
            return Evidence(tee=Tee.COMPOSITE, documents={"a": bytes(MAX_EXTENSION_BYTES)})

    keys = await make_keys(Large(), now=datetime.now(UTC), wait_s=10)

    with pytest.raises(MalformedError):
        read_certificate(keys.tls.certificate_pem)
