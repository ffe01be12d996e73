"""
Real processes on loopback, and what a user or an attacker does to them.

Each test has a stage of its own: a custodian, its ledger, a simulated platform, enclaves.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aigovtool
from aigovtool.client.session import AsyncClient
from aigovtool.demo.stage import Process, Stage
from aigovtool.demo.story import ASSETS, supply
from aigovtool.errors import (
    AIGovToolError,
    BlockedError,
    BudgetExhaustedError,
    LoanNotActiveError,
    MoreDeniedError,
    UnavailableError,
)
from tests.system.files import files_of

IMAGE = np.zeros((1, 8, 8), np.float32)
LEASE_S = 5.0  # the default duration of a lease
SETTLE_GRACE_S = 30.0


@pytest.fixture
def stage(tmp_path: Path) -> Any:
    with Stage(tmp_path) as made:
        assert made.init().code == 0
        yield made


def lend(stage: Stage, budget: int, *more: str) -> Process:
    return stage.serve_custodian(
        "--upload", str(ASSETS / "digits.onnx"),
        "--interface", str(ASSETS / "interface.json"),
        "--num-requests", str(budget), *more,
    )  # fmt: skip


async def connect(stage: Stage, port: int) -> AsyncClient:
    return await aigovtool.connect_async(
        f"127.0.0.1:{port}",
        manifest=stage.data / "manifest.toml",
        api_key=(stage.data / "consumer.key").read_text().strip(),
    )


async def ask(client: AsyncClient) -> type[AIGovToolError] | None:
    """One query: None when it was served, else the class of the refusal."""
    try:
        await client.infer({"image": IMAGE})
    except AIGovToolError as error:
        return type(error)
    return None


def account(stage: Stage) -> dict[str, int]:
    """The loan's account, from the custodian's ledger; it must add up."""
    loan = stage.custodian("loan", "list").json()[0]
    seen = {k: loan["account"][k] for k in ("granted", "left", "leased", "spent", "forfeited")}
    assert seen["granted"] == seen["left"] + seen["leased"] + seen["spent"] + seen["forfeited"]
    return seen


def settled_account(stage: Stage, limit_s: float = 30.0) -> dict[str, int]:
    """Wait until no lease is open, and return the account."""
    begin = time.monotonic()
    while (seen := account(stage))["leased"]:
        assert time.monotonic() - begin < limit_s, f"leases stay open: {seen}"
        time.sleep(0.1)
    return seen


async def test_1000_requests_at_once_against_100_credits_serve_exactly_100(stage: Stage) -> None:
    lend(stage, 100)
    _, port = stage.serve_enclave()
    async with await connect(stage, port) as client:
        outcomes = Counter(await asyncio.gather(*(ask(client) for _ in range(1000))))
    assert outcomes[None] == 100
    assert set(outcomes) <= {None, BudgetExhaustedError, UnavailableError}
    seen = settled_account(stage)
    assert (seen["spent"], seen["left"], seen["forfeited"]) == (100, 0, 0)


async def test_two_enclaves_on_one_loan_share_its_budget(stage: Stage) -> None:
    lend(stage, 60)
    ports = [stage.serve_enclave(name)[1] for name in ("first", "second")]
    clients = [await connect(stage, port) for port in ports]
    served = 0
    deadline = time.monotonic() + 60
    while account(stage)["spent"] < 60 and time.monotonic() < deadline:
        outcomes = await asyncio.gather(*(ask(client) for client in clients for _ in range(10)))
        served += outcomes.count(None)
        if None not in outcomes:
            await asyncio.sleep(0.2)  # what the other one holds comes back within a lease
    assert served == 60
    assert settled_account(stage)["spent"] == 60
    for client in clients:
        await client.aclose()


async def test_custodian_killed_and_restarted_has_the_budget_exact(stage: Stage) -> None:
    custodian = lend(stage, 50)
    _, port = stage.serve_enclave()
    async with await connect(stage, port) as client:
        assert [await ask(client) for _ in range(7)] == [None] * 7
        custodian.kill()
        stage.serve_custodian()
        begin = time.monotonic()
        served = 7
        while served < 12:
            assert time.monotonic() - begin < 60
            served += await ask(client) is None
    seen = settled_account(stage)
    assert (seen["spent"], seen["forfeited"]) == (served, 0)
    assert seen["left"] == 50 - served


async def test_unreachable_custodian_ends_service_within_a_lease(stage: Stage) -> None:
    custodian = lend(stage, 10_000)
    _, port = stage.serve_enclave()
    async with await connect(stage, port) as client:
        assert await ask(client) is None
        custodian.popen.send_signal(signal.SIGSTOP)
        stopped_at = last_served = time.monotonic()
        while (asked_at := time.monotonic()) - stopped_at < LEASE_S + 3:
            if await ask(client) is None:
                last_served = asked_at
        assert last_served - stopped_at <= LEASE_S
        custodian.popen.send_signal(signal.SIGCONT)
        begin = time.monotonic()
        while await ask(client) is not None:
            assert time.monotonic() - begin < 60, "it never served again"


async def test_enclave_suspended_past_its_lease_serves_nothing_from_it(stage: Stage) -> None:
    custodian = lend(stage, 1000)
    enclave, port = stage.serve_enclave()
    async with await connect(stage, port) as client:
        assert await ask(client) is None
        enclave.popen.send_signal(signal.SIGSTOP)
        custodian.kill()
        await asyncio.sleep(LEASE_S)
        enclave.popen.send_signal(signal.SIGCONT)
        assert await ask(client) in (UnavailableError, LoanNotActiveError)


@pytest.mark.slow
async def test_killed_enclave_forfeits_its_lease_and_nothing_more(stage: Stage) -> None:
    lend(stage, 40)
    enclave, port = stage.serve_enclave()
    async with await connect(stage, port) as client:
        assert [await ask(client) for _ in range(3)] == [None] * 3
    enclave.kill()  # at once, while its lease lives
    held = account(stage)
    leased, spent = held["leased"], held["spent"]
    assert leased
    seen = settled_account(stage, limit_s=LEASE_S + SETTLE_GRACE_S + 15)
    assert seen["forfeited"] == leased
    assert seen["spent"] == spent
    assert seen["spent"] + seen["forfeited"] >= 3
    leases = stage.custodian("lease", "list").json()
    lost = next(lease for lease in leases if lease["state"] == "forfeited")
    refund = stage.custodian("lease", "refund", lost["lease"], "--reason", "power cut, on video")
    assert refund.code == 0, refund.stderr
    after = account(stage)
    assert after["left"] == seen["left"] + lost["credits"]
    assert after["forfeited"] == seen["forfeited"]


async def no_longer(client: AsyncClient, before: type[AIGovToolError] | None) -> object:
    """Ask until a push has come, much sooner than a lease would end; return what is said then."""
    async with asyncio.timeout(LEASE_S / 2):
        while (said := await ask(client)) is before:
            pass
    return said


async def test_stop_cuts_off_and_is_proven_and_resume_serves_again(stage: Stage) -> None:
    lend(stage, 100)
    _, port = stage.serve_enclave()
    loan = stage.custodian("loan", "list").json()[0]["loan"]
    async with await connect(stage, port) as client:
        assert await ask(client) is None
        stopped = stage.custodian("stop", loan, "--reason", "contract ended")
        assert stopped.code == 0, stopped.stderr
        assert await no_longer(client, None) is LoanNotActiveError
        begin = time.monotonic()
        while "stop_proof" not in (told := stage.custodian("events").stdout):
            assert time.monotonic() - begin < 60, told[-500:]
        assert stage.custodian("resume", loan).code == 0
        begin = time.monotonic()
        while await ask(client) is not None:
            assert time.monotonic() - begin < 60, "it never served again"
    assert settled_account(stage)["forfeited"] == 0


async def test_block_ends_service_at_once_and_unblock_brings_it_back(stage: Stage) -> None:
    lend(stage, 100)
    _, port = stage.serve_enclave()
    consumer = stage.custodian("consumer", "list").json()[0]["consumer"]
    async with await connect(stage, port) as client:
        assert await ask(client) is None
        assert stage.custodian("block", consumer, "--reason", "key on a forum").code == 0
        assert await no_longer(client, None) is BlockedError
        assert stage.custodian("unblock", consumer).code == 0
        assert await no_longer(client, BlockedError) is None


async def test_waiting_client_is_woken_by_a_grant(stage: Stage) -> None:
    lend(stage, 1)
    _, port = stage.serve_enclave()
    async with await connect(stage, port) as client:
        assert await ask(client) is None
        assert await ask(client) is BudgetExhaustedError
        waiting = asyncio.create_task(client.infer({"image": IMAGE}, wait_s=60, reason="a ward"))
        begin = time.monotonic()
        while not (requests := stage.custodian("request", "list").json()):
            assert time.monotonic() - begin < 60
            await asyncio.sleep(0.05)
        assert requests[0]["reason"] == "a ward"
        assert not waiting.done()
        await asyncio.to_thread(supply, stage, 2)
        result = await asyncio.wait_for(waiting, 10)
        assert result.remaining == 1


async def test_denied_request_reaches_the_waiting_client(stage: Stage) -> None:
    lend(stage, 1)
    _, port = stage.serve_enclave()
    async with await connect(stage, port) as client:
        assert await ask(client) is None
        waiting = asyncio.create_task(client.infer({"image": IMAGE}, wait_s=60, reason="more"))
        begin = time.monotonic()
        while not (requests := stage.custodian("request", "list").json()):
            assert time.monotonic() - begin < 60
            await asyncio.sleep(0.05)
        denied = stage.custodian("request", "deny", requests[0]["request"], "--reason", "not now")
        assert denied.code == 0, denied.stderr
        with pytest.raises(MoreDeniedError, match="not now"):
            await asyncio.wait_for(waiting, 10)
    assert account(stage)["granted"] == 1


async def test_terminated_enclave_settles_everything(stage: Stage) -> None:
    lend(stage, 30)
    enclave, port = stage.serve_enclave()
    async with await connect(stage, port) as client:
        assert [await ask(client) for _ in range(4)] == [None] * 4
    assert enclave.terminate() == 0
    seen = settled_account(stage)
    assert seen == {"granted": 30, "left": 26, "leased": 0, "spent": 4, "forfeited": 0}


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_originals_call_works_by_http_and_https_and_needs_the_token(
    stage: Stage, scheme: str
) -> None:
    lend(stage, 5)
    url = f"{scheme}://127.0.0.1:{stage.admin_port}/supply_inferences"
    unverified = ssl.create_default_context()  # as with `curl -k`
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE

    def call(headers: dict[str, str]) -> Any:
        request = urllib.request.Request(url, data=b"number_inferences=10", headers=headers)
        with urllib.request.urlopen(request, timeout=20, context=unverified) as answer:
            return json.load(answer)

    token = (stage.data / "admin.token").read_text().strip()
    basic = base64.b64encode(f"admin:{token}".encode()).decode()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        call({})
    with pytest.raises(urllib.error.HTTPError, match="401"):
        call({"Authorization": f"Bearer {token[:-1]}x"})
    assert account(stage)["granted"] == 5
    assert call({"Authorization": f"Basic {basic}"})["left"] == 15
    assert call({"Authorization": f"Bearer {token}"})["left"] == 25


def test_a_garbled_or_silent_caller_does_not_close_the_admin_door(stage: Stage) -> None:
    lend(stage, 5)
    where = ("127.0.0.1", stage.admin_port)
    silent = socket.create_connection(where)
    with socket.create_connection(where) as garbled:
        garbled.sendall(b"\x16\x03 this is no handshake")
        assert garbled.recv(100)[:1] in (b"", b"\x15")  # closed, perhaps with a TLS alert
    socket.create_connection(where).close()
    assert account(stage)["granted"] == 5
    silent.close()


def test_port_in_use_is_named(stage: Stage) -> None:
    lend(stage, 5)
    second = stage.run(
        "custodian", "serve", "--data", str(stage.data),
        "--listen", f"127.0.0.1:{stage.custodian_port}", "--admin-listen", "127.0.0.1:0",
        limit_s=30,
    )  # fmt: skip
    assert second.code in (2, 4)
    assert "Traceback" not in second.stderr
    assert account(stage)["granted"] == 5


@pytest.mark.parametrize(
    "arguments",
    [
        ["custodian", "serve", "--no-such-option"],
        ["custodian", "serve", "--data", "/proc/nothing-here"],
        ["custodian", "init", "--data", "/proc/nothing-here"],
        ["enclave", "serve", "--ticket", "/nonexistent/loan.toml"],
        ["client", "query", "--address", "127.0.0.1:1", "--manifest", "/nonexistent.toml"],
    ],
    ids=lambda arguments: " ".join(arguments[:3]),
)
def test_misuse_exits_2_and_says_what_to_do(stage: Stage, arguments: list[str]) -> None:
    outcome = stage.run(*arguments, limit_s=30)
    assert outcome.code == 2
    assert outcome.stdout == ""
    assert "Traceback" not in outcome.stderr
    assert outcome.stderr.strip()


def test_init_never_overwrites_keys(stage: Stage) -> None:
    before = {path: path.read_bytes() for path in stage.data.iterdir() if path.is_file()}
    outcome = stage.init()
    assert outcome.code in (2, 4)
    assert {path: path.read_bytes() for path in stage.data.iterdir() if path.is_file()} == before


def test_secrets_at_rest_are_for_the_owner_only(stage: Stage) -> None:
    lend(stage, 5)
    for name in ("master.key", "admin.token", "loan.toml", "consumer.key"):
        assert (stage.data / name).stat().st_mode & 0o077 == 0, name


def test_no_weights_on_any_disk(stage: Stage) -> None:
    """A run of the model's own bytes is looked for in every file that any process wrote."""
    lend(stage, 5)
    stage.serve_enclave()
    model = (ASSETS / "digits.onnx").read_bytes()
    middle = len(model) // 2
    needle = model[middle : middle + 64]
    files = files_of(stage)
    assert any("cache" in str(path) for path in files)
    assert not [path for path, body in files.items() if needle in body]
    assert os.path.getsize(ASSETS / "digits.onnx") > 1000
