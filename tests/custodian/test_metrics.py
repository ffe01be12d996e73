"""What Prometheus sees of a running custodian: what the ledger says, behind a token of its own."""

from __future__ import annotations

from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from aigovtool.crypto.tls import pinned_client_context
from aigovtool.custodian.records import LoanTerms
from aigovtool.wire.control import Report, ReportAnswer, Want
from tests.custodian.house import open_house
from tests.custodian.test_server import Peer


def samples(text: str) -> dict[str, float]:
    """Every sample by its name and the values of its labels."""
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_the_numbers_are_those_of_the_ledger(tmp_path: Path) -> None:
    async with open_house(tmp_path) as (made, doors):
        loan = made.lent.loan.loan
        url = f"http://{doors.admin_address}/metrics"
        token = made.app.folder.metrics_token.read_text().strip()
        scraper = {"Authorization": f"Bearer {token}"}
        context = pinned_client_context(made.ticket.custodian_certificate.encode())
        async with (
            aiohttp.ClientSession(
                f"https://{doors.enclave_address}",
                connector=aiohttp.TCPConnector(ssl=context),
                headers={"Authorization": f"Bearer {made.ticket.token}"},
            ) as http,
            aiohttp.ClientSession() as prometheus,
        ):
            peer = Peer(made, http)
            await peer.enrol()
            await peer.hello()
            await peer.say(Report(number=1, settlements=(), want=Want(credits=10, by_consumer={})))
            answer = await peer.next()
            assert isinstance(answer, ReportAnswer)
            assert answer.lease is not None
            leased = answer.lease.credits
            async with prometheus.get(url, headers=scraper) as scraped:
                assert scraped.status == 200
                text = await scraped.text()
            seen = samples(text)
            assert seen["aigovtool_custodian_loans active"] == 1
            assert seen[f"aigovtool_custodian_loan_credits {loan} granted"] == 100
            assert seen[f"aigovtool_custodian_loan_credits {loan} leased"] == leased
            assert seen[f"aigovtool_custodian_loan_credits {loan} left"] == 100 - leased
            assert seen[f"aigovtool_custodian_exposure_credits {loan}"] == leased
            duration_s = LoanTerms().lease_duration_s
            assert 0 < seen[f"aigovtool_custodian_exposure_seconds {loan}"] <= duration_s
            assert seen[f"aigovtool_custodian_sessions {loan} live"] == 1
            assert seen[f"aigovtool_custodian_sessions {loan} ended"] == 0
            assert seen[f"aigovtool_custodian_sessions_connected {loan}"] == 1
            assert seen[f"aigovtool_custodian_tcb_steps {loan} full"] == 1
            assert seen[f"aigovtool_custodian_requests_open {loan}"] == 0
            assert seen["aigovtool_custodian_events_total lease.granted"] == 1
            assert seen["aigovtool_custodian_reports_total answered"] == 1
            assert seen["aigovtool_custodian_report_seconds_count"] == 1
            assert seen["aigovtool_custodian_connections"] == 1
            assert seen["aigovtool_custodian_http_requests_total 200 enclaves"] == 2
            for secret in (token, made.admin_token, made.ticket.token):
                assert secret not in text
            with made.app.ledger.read() as tx:
                consumers = tx.consumers_of_loan(loan)
            assert not any(one.consumer in text for one in consumers)
            await peer.socket.close()


async def test_the_metrics_token_opens_metrics_and_nothing_else(tmp_path: Path) -> None:
    async with open_house(tmp_path) as (made, doors):
        token = made.app.folder.metrics_token.read_text().strip()
        scraper = {"Authorization": f"Bearer {token}"}
        operator = {"Authorization": f"Bearer {made.admin_token}"}
        async with aiohttp.ClientSession(f"http://{doors.admin_address}") as http:

            async def status(path: str, **headers: str) -> int:
                async with http.get(path, headers=headers) as answer:
                    return answer.status

            assert await status("/metrics", **scraper) == 200
            assert await status("/metrics", **operator) == 200
            assert await status("/metrics") == 401
            assert await status("/metrics", Authorization="Bearer wrong") == 401
            assert await status("/metrics", **{**scraper, "Host": "rebound.example"}) == 403
            for path in ("/api/v1/loans", "/openapi.json", "/api/v1/watch"):
                assert await status(path, **scraper) == 401
            async with http.post("/supply_inferences", headers=scraper) as answer:
                assert answer.status == 401


async def test_without_its_file_only_the_admin_token_reads_metrics(tmp_path: Path) -> None:
    async with open_house(tmp_path, metrics_token=False) as (made, doors):
        assert made.app.metrics_token_sha256 is None
        async with aiohttp.ClientSession(f"http://{doors.admin_address}") as http:
            for token, expected in ((made.admin_token, 200), ("", 401), ("x", 401)):
                headers = {"Authorization": f"Bearer {token}"}
                async with http.get("/metrics", headers=headers) as answer:
                    assert answer.status == expected
