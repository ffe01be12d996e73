"""The drill with real processes: it passes with the product as it is, fails with a worse one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aigovtool.drill import collateral
from aigovtool.drill.rehearsal import PAST_BOUND_S, SLACK_S, Rehearsal, cut_off, settled
from aigovtool.drill.sheet import Measured, judge
from aigovtool.errors import UnavailableError

pytestmark = pytest.mark.xdist_group("drill")

# an enclave that serves longer from its leases than it was let, and more
GREEDY = """
import msgspec
from aigovtool.enclave.meter import Meter
_open = Meter.open
def open(self, lease, sent_at_s, *, expires_s=None):
    more = msgspec.structs.replace(lease, credits=lease.credits * 1000)
    _open(self, more, sent_at_s + {more_s}, expires_s=expires_s)
Meter.open = open
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aigovtool", "drill", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_drill_is_played_signed_and_verified(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.json"
    key = tmp_path / "drill.key"
    played = run("--quick", "--only", "stop", "--json", "--output", str(sheet), "--key", str(key))
    assert played.returncode == 0, played.stderr
    told = json.loads(played.stdout)
    assert told["passed"]
    assert told["sheet"]["simulated"]
    assert "SIMULATED TEE" in played.stderr
    (result,) = told["sheet"]["results"]
    (cut,) = result["measured"]["cut_offs"]
    assert cut["measured_s"] <= cut["bound_s"] == 1.0
    verified = run("verify", str(sheet), "--key", told["key"])
    assert verified.returncode == 0, verified.stderr
    assert "PASSED" in verified.stdout
    sheet.write_bytes(sheet.read_bytes().replace(b"ey", b"ez", 1))
    assert run("verify", str(sheet)).returncode in (1, 2)


def test_an_enclave_that_serves_past_its_lease_fails_the_drill(tmp_path: Path) -> None:
    """Sabotage: without it the scenario would pass, so it must be what fails it."""
    rehearsal = Rehearsal(folder=tmp_path, tee="simulated", policy=None, quick=True)
    bound_s = rehearsal.lease_s + SLACK_S
    with rehearsal.scene("greedy", credits=100_000, enclaves=0) as scene:
        scene.add_enclave(environment=collateral.changed(scene, "greedy", GREEDY, more_s=5.0))
        rehearsal.ask(scene)
        fault_s = time.monotonic()
        scene.custodian.kill()
        time.sleep(bound_s + PAST_BOUND_S)
        cut = cut_off(scene, "SIGKILL of the custodian", fault_s, bound_s)
        scene.consumers.rest()
    wrong = judge(Measured(cut_offs=(cut,)))
    assert cut.measured_s > bound_s
    assert any("queries were admitted for" in reason for reason in wrong)


def test_credits_that_a_ledger_forgot_fail_the_drill(tmp_path: Path) -> None:
    """Sabotage: the ledger says that less was used than consumers hold receipts for."""
    rehearsal = Rehearsal(folder=tmp_path, tee="simulated", policy=None, quick=True)
    with rehearsal.scene("forgetful", credits=1000) as scene:
        rehearsal.ask(scene)
        measured = settled(scene)
        assert judge(measured) == ()
        scene.consumers.seen.served.append(scene.consumers.seen.served[0])
        assert judge(Measured(count=scene.reconcile()))


def test_a_scenario_that_breaks_down_has_failed(tmp_path: Path) -> None:
    from aigovtool.drill.rehearsal import Scenario, play

    def breaks(_: Rehearsal) -> Measured:
        raise UnavailableError("no custodian")

    def faulty(_: Rehearsal) -> Measured:
        raise ZeroDivisionError

    rehearsal = Rehearsal(folder=tmp_path, tee="simulated", policy=None, quick=True)
    scenarios = [Scenario("a", "a", breaks), Scenario("b", "b", faulty)]
    results = play(rehearsal, scenarios, lambda _: None)
    assert [result.passed for result in results] == [False, False]
    on_hardware = Rehearsal(folder=tmp_path, tee="tdx", policy=None, quick=True)
    (skipped,) = play(on_hardware, [Scenario("c", "c", faulty, "cannot be had")], lambda _: None)
    assert (skipped.skipped, skipped.passed) == ("cannot be had", True)
