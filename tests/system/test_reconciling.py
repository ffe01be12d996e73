"""Real processes: yesterday's copy of a custodian's folder, reconciled with consumers' receipts."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import aigovtool
from aigovtool.client.session import AsyncClient
from aigovtool.demo.stage import Stage
from tests.system.test_faults import ask, lend, settled_account
from tests.system.test_rollback import (
    GRANTED,
    hold,
    reconcile,
    resume,
    serve,
    serve_all,
    serve_until,
    until,
)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path) as made:
        assert made.init().code == 0
        yield made


async def keeping(stage: Stage, port: int) -> AsyncClient:
    """Connect as the consumer, who keeps its receipts."""
    return await aigovtool.connect_async(
        f"127.0.0.1:{port}",
        manifest=stage.data / "manifest.toml",
        api_key=(stage.data / "consumer.key").read_text().strip(),
        receipts=stage.folder / "receipts",
    )


@pytest.mark.slow
async def test_receipts_show_what_yesterdays_copy_does_not_know_and_the_statement_holds(
    stage: Stage,
) -> None:
    """One enclave lives on and hands in its use; of one that died only receipts are left."""
    custodian = lend(stage, GRANTED)
    first, port = stage.serve_enclave()
    receipts = str(stage.folder / "receipts")
    async with await keeping(stage, port) as client:
        served = await serve(client, 3)
        settled_account(stage)
        assert custodian.terminate() == 0
        shutil.copytree(stage.data, stage.folder / "yesterday")
        custodian = stage.serve_custodian()
        served += await serve_until(client, 5)
        second, other_port = stage.serve_enclave("second")
        async with await keeping(stage, other_port) as other:
            served += (died := await serve_until(other, 4))
            second.kill()
        custodian.popen.send_signal(signal.SIGKILL)
        custodian.popen.wait()
        shutil.rmtree(stage.data)
        (stage.folder / "yesterday").rename(stage.data)
        stage.serve_custodian()

        assert hold(stage)["held"]
        await until(lambda: "the custodian's ledger is held" in first.output())
        while await ask(client) is None:  # of what was leased before it died
            served += 1
        assert await serve(client, 3) == 0
        assert stage.custodian("grant", "5").code == 3
        assert not reconcile(stage, "--receipts", receipts)["applied"]
        assert hold(stage)["held"]
        done = reconcile(stage, "--receipts", receipts, "--apply", "--reason", "the disk died")
        (line,) = done["accounts"]
        assert done["receipts_refused"] == 0
        assert line["shown"] >= died
        assert not hold(stage)["held"]
        resume(stage)
        stage.wait_until_serving(first, port)
        served += await serve_all(client, line["left"])
    assert served <= GRANTED
    seen = settled_account(stage, 90.0)
    assert (seen["granted"], seen["left"]) == (GRANTED, 0)
    assert seen["spent"] + seen["forfeited"] == GRANTED

    file = stage.folder / "statement.json"
    month = time.strftime("%Y-%m", time.gmtime())
    made = stage.custodian("statement", "--period", month, "--output", str(file))
    assert made.code == 0, made.stderr
    for process in stage.processes:
        process.kill()
    verified = stage.run(
        "statement", "verify", str(file), "--ticket", str(stage.data / "loan.toml"),
        "--receipts", receipts, "--log", str(stage.data / "log"), "--json",
    )  # fmt: skip
    assert verified.code == 0, verified.json()["findings"]
    assert verified.json()["receipts"] == {"counted": served, "outside": 0}
    assert len(verified.json()["recovered"]) >= 2  # those of either enclave
    assert "ledger.loan_reconciled" in {line["kind"] for line in verified.json()["decisions"]}
