"""Real processes: consumers' limits and dates over two enclaves, and leases of duration 0."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aigovtool
from aigovtool.client.session import AsyncClient
from aigovtool.demo.stage import Stage
from aigovtool.demo.story import ASSETS
from aigovtool.errors import AIGovToolError, LimitedError, LoanNotActiveError

IMAGE = np.zeros((1, 8, 8), np.float32)


@pytest.fixture
def stage(tmp_path: Path) -> Any:
    with Stage(tmp_path) as made:
        assert made.init().code == 0
        made.serve_custodian(
            "--upload", str(ASSETS / "digits.onnx"),
            "--interface", str(ASSETS / "interface.json"),
            "--num-requests", "1000",
        )  # fmt: skip
        yield made


async def connect(stage: Stage, port: int, key: str | None = None) -> AsyncClient:
    return await aigovtool.connect_async(
        f"127.0.0.1:{port}",
        manifest=stage.data / "manifest.toml",
        api_key=key or (stage.data / "consumer.key").read_text().strip(),
    )


async def ask(client: AsyncClient) -> str:
    """Return the code of the refusal, or "served"."""
    try:
        await client.infer({"image": IMAGE})
    except AIGovToolError as error:
        return error.reasons[0].code
    return "served"


def done(stage: Stage, *arguments: str) -> Any:
    outcome = stage.custodian(*arguments)
    assert outcome.code == 0, outcome.stderr
    return json.loads(outcome.stdout)


async def test_a_rate_holds_over_two_enclaves_and_is_lifted_by_a_push(stage: Stage) -> None:
    done(stage, "consumer", "set", "consumer", "--rate", "10/min")
    ports = [stage.serve_enclave(name)[1] for name in ("first", "second")]
    clients = [await connect(stage, port) for port in ports]
    said: Counter[str] = Counter()
    begin = time.monotonic()
    for _ in range(15):
        said.update(await asyncio.gather(*(ask(client) for client in clients)))
    passed_s = time.monotonic() - begin
    assert set(said) == {"served", "limit.rate"}, said
    assert said["served"] <= 10 + 10 * passed_s / 60
    assert said["served"] >= 5
    with pytest.raises(LimitedError) as refused:
        await clients[0].infer({"image": IMAGE})
    assert 0 < refused.value.retry_after_s <= 60
    done(stage, "consumer", "set", "consumer", "--rate", "none")
    async with asyncio.timeout(30):  # much less than the rate would need to serve both again
        for client in clients:
            while await ask(client) != "served":
                pass
    again = Counter([await ask(client) for client in clients for _ in range(10)])
    assert again == {"served": 20}
    for client in clients:
        await client.aclose()


async def test_a_consumers_day_and_date_are_kept(stage: Stage) -> None:
    _, port = stage.serve_enclave()
    ends = datetime.now(UTC) + timedelta(seconds=12)
    made = done(
        stage, "consumer", "create", "--name", "guest", "--budget", "2", "--per", "day",
        "--expires", f"{ends:%Y-%m-%dT%H:%M:%SZ}",
    )  # fmt: skip
    assert made["consumer"]["period"]["budget"] == 2
    async with await connect(stage, port, made["api_key"]) as client:
        assert [await ask(client) for _ in range(3)] == ["served", "served", "budget.exhausted"]
        while await ask(client) != "consumer.expired":
            assert datetime.now(UTC) < ends + timedelta(seconds=15)
            await asyncio.sleep(0.1)
        assert datetime.now(UTC) >= ends - timedelta(seconds=1)
    listed = stage.run("custodian", "consumer", "list", "--data", str(stage.data))
    assert "2 per day, until" in " ".join(listed.stdout.split())


async def test_with_leases_of_0_s_a_stop_takes_effect_for_the_very_next_query(
    stage: Stage,
) -> None:
    loan = done(stage, "loan", "set", "--lease-duration", "0")
    assert loan["terms"]["lease_duration_s"] == 0
    enclave, port = stage.serve_enclave()
    async with await connect(stage, port) as client:
        assert await ask(client) == "served"
        said = Counter(await asyncio.gather(*(ask(client) for _ in range(200))))
        assert said == {"served": 200}
        done(stage, "stop", loan["loan"], "--reason", "test")
        with pytest.raises(LoanNotActiveError):
            await client.infer({"image": IMAGE})
    begin = time.monotonic()
    while (account := done(stage, "loan", "list")[0]["account"])["leased"]:
        assert time.monotonic() - begin < 60, account
    assert (account["spent"], account["left"], account["forfeited"]) == (201, 799, 0)
    assert enclave.alive()


async def test_a_frozen_custodian_leaves_usable_what_it_exposed_and_no_more(
    stage: Stage,
) -> None:
    """Freeze the custodian, then use all that can be: leases it had granted, within their time."""
    _, port = stage.serve_enclave()
    async with await connect(stage, port) as client:
        for _ in range(20):
            assert await ask(client) == "served"
        custodian = stage.processes[0]
        custodian.popen.send_signal(signal.SIGSTOP)
        frozen, frozen_s = datetime.now(UTC), time.monotonic()
        served, last_s = 0, frozen_s
        while (asked_s := time.monotonic()) - frozen_s < 8:
            if await ask(client) == "served":
                served, last_s = served + 1, asked_s
        custodian.popen.send_signal(signal.SIGCONT)
    assert last_s - frozen_s <= 5.0
    exposed = sum(
        lease["credits"]
        for lease in done(stage, "lease", "list")
        if datetime.fromisoformat(lease["granted"]) <= frozen
        and datetime.fromisoformat(lease["expires"]) > frozen
    )
    assert served <= exposed
