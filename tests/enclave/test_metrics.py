"""What Prometheus sees of a running enclave: true totals, and nothing of any consumer or query."""

from __future__ import annotations

import ssl
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from aigovtool.demo.stage import free_port
from aigovtool.errors import ConfigurationError

from .conftest import query, running_enclave
from .custodian import FakeCustodian

TOKEN = "a-token-of-enough-characters"


def samples(text: str) -> dict[str, float]:
    """Every sample by its name and the values of its labels."""
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scrape(
    port: int, *, tls: bool = False, path: str = "/metrics", **headers: str
) -> tuple[int, str, str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    url = f"http{'s' if tls else ''}://127.0.0.1:{port}{path}"
    async with (
        aiohttp.ClientSession() as http,
        http.get(url, ssl=context, headers=headers) as answer,
    ):
        return answer.status, answer.content_type, await answer.text()


async def test_the_numbers_are_those_of_what_happened(custodian: FakeCustodian) -> None:
    port = free_port()
    async with running_enclave(custodian, metrics_listen=f"127.0.0.1:{port}") as enclave:
        for _ in range(3):
            assert (await enclave.infer())[0] == 200
        assert (await enclave.infer(body=b"{"))[0] == 400
        assert (await enclave.infer(body=query([["x", 1]])))[0] == 422
        status, kind, text = await scrape(port)
        assert (status, kind) == (200, "text/plain")
        seen = samples(text)
        assert seen["aigovtool_enclave_queries_total 200"] == 3
        assert seen["aigovtool_enclave_queries_total 400"] == 1
        assert seen["aigovtool_enclave_queries_total 422"] == 1
        assert seen["aigovtool_enclave_receipts_total"] == 3
        assert seen["aigovtool_enclave_query_seconds_count"] == 5
        assert seen["aigovtool_enclave_compute_seconds_count"] == 3
        assert seen["aigovtool_enclave_compute_seconds_sum"] > 0
        assert seen["aigovtool_enclave_in_flight"] == 0
        assert seen["aigovtool_enclave_sessions_total"] == 1
        assert seen["aigovtool_enclave_state serving"] == 1
        assert seen["aigovtool_enclave_state stopped"] == 0
        assert seen["aigovtool_enclave_connected"] == 1
        assert 0 < seen["aigovtool_enclave_lease_seconds"] <= 5
        held = seen["aigovtool_enclave_lease_credits"]
        assert held + seen["aigovtool_enclave_loan_credits_left"] == 7
        assert seen["process_resident_memory_bytes"] > 0


async def test_no_consumer_or_key_is_in_any_number(custodian: FakeCustodian) -> None:
    port = free_port()
    async with running_enclave(custodian, metrics_listen=f"127.0.0.1:{port}") as enclave:
        await enclave.infer()
        await enclave.infer(X_Consumer="not-here")
        _, _, text = await scrape(port)
        for secret in (custodian.alice.key, "alice"):
            assert secret not in text


async def test_scrapers_that_ask_get_open_metrics(custodian: FakeCustodian) -> None:
    port = free_port()
    async with running_enclave(custodian, metrics_listen=f"127.0.0.1:{port}"):
        accept = "application/openmetrics-text; version=1.0.0"
        status, kind, text = await scrape(port, Accept=accept)
        assert (status, kind) == (200, "application/openmetrics-text")
        assert text.endswith("# EOF\n")


async def test_off_loopback_they_need_tls_and_the_token(
    custodian: FakeCustodian, tmp_path: Path
) -> None:
    port, token = free_port(), tmp_path / "token"
    token.write_text(TOKEN + "\n")
    async with running_enclave(
        custodian, metrics_listen=f"0.0.0.0:{port}", metrics_token=token
    ) as enclave:
        for wrong in ({}, {"Authorization": "Bearer x"}, custodian.alice.authorization):
            status, _, text = await scrape(port, tls=True, **wrong)
            assert status == 401
            assert "aigovtool_" not in text
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert (await scrape(port, tls=True, **right))[0] == 200
        assert (await scrape(port, tls=True, path="/v2", **right))[0] == 404
        with pytest.raises(aiohttp.ClientError):
            await scrape(port, **right)
        assert (await enclave.get("/metrics", custodian.alice))[0] == 404  # not on that port


async def test_off_loopback_without_a_token_it_does_not_start(
    custodian: FakeCustodian, tmp_path: Path
) -> None:
    short = tmp_path / "token"
    short.write_text("short\n")
    for token in (None, short, tmp_path / "missing"):
        with pytest.raises(ConfigurationError, match="token"):
            async with running_enclave(
                custodian, metrics_listen=f"0.0.0.0:{free_port()}", metrics_token=token
            ):
                pass
