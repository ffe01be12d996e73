"""Real processes, and a custodian's ledger from yesterday: nothing is served twice."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aigovtool.client.session import AsyncClient
from aigovtool.demo.stage import Process, Stage
from tests.system.test_faults import account, ask, connect, lend, settled_account

ROOT = Path(__file__).parents[2]
LIMIT_S = 60.0
GRANTED = 40


@pytest.fixture
def stage(tmp_path: Path) -> Any:
    with Stage(tmp_path) as made:
        assert made.init().code == 0
        yield made


async def serve(client: AsyncClient, queries: int) -> int:
    return [await ask(client) for _ in range(queries)].count(None)


async def serve_all(client: AsyncClient, most: int) -> int:
    """Ask until *most* were served, and a little beyond that."""
    served, begin_s = 0, time.monotonic()
    while served < most and time.monotonic() - begin_s < LIMIT_S:
        if await ask(client) is None:
            served += 1
        else:
            await asyncio.sleep(0.1)
    return served + await serve(client, 3)


async def serve_until(client: AsyncClient, queries: int) -> int:
    begin_s = time.monotonic()
    served = 0
    while served < queries:
        assert time.monotonic() - begin_s < LIMIT_S
        served += await ask(client) is None
    return served


def hold(stage: Stage) -> Any:
    return stage.run("custodian", "hold", "--data", str(stage.data), "--json").json()


def reconcile(stage: Stage, *more: str) -> Any:
    done = stage.custodian("reconcile", *more)
    assert done.code == 0, done.stderr
    return done.json()


def resume(stage: Stage) -> None:
    (loan,) = stage.custodian("loan", "list").json()
    assert loan["state"] == "stopped"
    assert stage.custodian("loan", "resume", loan["loan"]).code == 0


async def until(check: Any, limit_s: float = LIMIT_S) -> None:
    begin_s = time.monotonic()
    while not check():
        assert time.monotonic() - begin_s < limit_s
        await asyncio.sleep(0.2)


def end(custodian: Process) -> None:
    assert custodian.terminate() == 0


async def test_a_backup_put_back_serves_no_credit_twice(stage: Stage) -> None:
    """Everything on one machine: the mark knows what was left, and the enclave hands in its use."""
    custodian = lend(stage, GRANTED)
    enclave, port = stage.serve_enclave()
    async with await connect(stage, port) as client:
        served = await serve(client, 3)
        backup = stage.folder / "backup"
        assert stage.custodian("backup", "--output", str(backup)).code == 0
        served += await serve(client, 12)
        assert served == 15
        left = settled_account(stage)["left"]
        assert left == GRANTED - served
        end(custodian)
        master_key = (stage.data / "master.key").read_text()
        shutil.rmtree(stage.data)
        assert stage.custodian("restore", str(backup)).code == 0
        (stage.data / "master.key").write_text(master_key)
        (stage.data / "master.key").chmod(0o600)
        stage.serve_custodian()
        assert hold(stage)["code"] == "rollback.restored"
        await until(lambda: "the custodian's ledger is held" in enclave.output())
        assert await serve(client, 2) == 0
        refused = stage.custodian("grant", "5")
        assert refused.code == 3
        assert "reconcile" in refused.stderr + refused.stdout
        shown = reconcile(stage)
        assert not shown["applied"]
        assert hold(stage)["held"]
        done = reconcile(stage, "--apply", "--reason", "the disk died")
        assert done["vouched"]
        (line,) = done["accounts"]
        assert (line["mark_left"], line["left"]) == (left, left)
        assert done["handed_in"] > 0
        assert line["charged"] == 0  # what the enclave handed in accounts for all of it
        assert not hold(stage)["held"]
        assert await serve(client, 2) == 0  # stopped, until a person looks
        resume(stage)
        stage.wait_until_serving(enclave, port)
        served += await serve_all(client, left)
    assert served == GRANTED
    seen = settled_account(stage)
    assert (seen["left"], seen["granted"]) == (0, GRANTED)


async def test_a_folder_put_back_whole_on_a_new_machine_lends_nothing_that_was_lent(
    stage: Stage,
) -> None:
    """`cp -r` and no mark: only what an operator grants is served, with receipts as the proof."""
    custodian = lend(stage, GRANTED)
    _, port = stage.serve_enclave()

    async with await connect(stage, port) as client:
        served = await serve(client, 2)
        end(custodian)
        shutil.copytree(stage.data, stage.folder / "copy")
        stage.serve_custodian()
        await until(lambda: account(stage)["left"] >= 0)
        served += await serve_until(client, 10)
    custodian = stage.processes[-1]
    end(custodian)
    shutil.rmtree(stage.data)
    (stage.folder / "copy").rename(stage.data)
    shutil.rmtree(stage.folder / "state" / "aigovtool")
    stage.serve_custodian()
    # an enclave that is still there says more: its statement is newer than anything here
    assert hold(stage)["code"] in ("mark.absent", "rollback.statement")
    done = reconcile(stage, "--apply", "--reason", "a new machine")
    assert not done["vouched"]
    (line,) = done["accounts"]
    assert line["left"] == 0
    resume(stage)
    assert stage.custodian("grant", "4", "--reason", "what we still owe").code == 0
    _, port = stage.serve_enclave("second")
    async with await connect(stage, port) as client:
        after = await serve_all(client, 4)
    assert after == 4
    assert served + after <= GRANTED + 4


async def test_a_full_disk_leases_nothing_and_loses_nothing(stage: Stage) -> None:
    custodian = lend(stage, GRANTED)
    enclave, port = stage.serve_enclave()
    pid = custodian.popen.pid
    unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    async with await connect(stage, port) as client:
        served = await serve_until(client, 5)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (8192, unlimited[1]))
        outcomes = [await ask(client) for _ in range(3)]
        begin_s = time.monotonic()
        while outcomes[-1] is None and time.monotonic() - begin_s < LIMIT_S:
            outcomes.append(await ask(client))
        served += outcomes.count(None)
        assert outcomes[-1] is not None  # its leases are over, and it got no other
        assert custodian.alive()
        resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
        served += await serve_all(client, GRANTED - served)
    assert enclave.alive()
    seen = settled_account(stage)
    assert served == seen["spent"] == GRANTED
    assert not hold(stage)["held"]


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from tests.custodian.ledgers import Bench

bench = Bench(Path(sys.argv[1]))
loan = bench.lend(10**6, max_enclaves=1000).loan
consumer = bench.consumer(loan)
bench.close()
for round in range(20):
    child = os.fork()
    if child == 0:
        bench._open()
        assert bench.ledger.held is None, bench.ledger.held
        enclave = bench.enclave(loan)
        settlements = ()
        while True:
            answer = bench.leasing.report(enclave.session, enclave.report(settlements, want=3))
            settlements = (enclave.settlement(answer.lease.lease, {consumer: 2}),)
    time.sleep(random.Random(round).uniform(0.05, 0.3))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it ended by itself"
bench._open()
print(bench.ledger.held, len(bench.kinds()))
bench.close()
"""


def test_twenty_kills_never_hold(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    held, events = done.stdout.split()
    assert held == "None"
    assert int(events) > 40
