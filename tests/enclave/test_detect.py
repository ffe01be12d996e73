"""``aigovtool enclave detect`` and ``--tee``: what can be proven here, and nothing else."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from aigovtool.attestation.evidence import Tee
from aigovtool.cli import main
from aigovtool.enclave.attester import detect as module
from aigovtool.enclave.attester.base import ATTESTED
from aigovtool.enclave.attester.composite import CPU_TEES, CompositeAttester
from aigovtool.enclave.attester.tdx_guest import TDX_GUEST
from aigovtool.enclave.attester.tsm import PROVIDERS
from aigovtool.simulation.platform import DIRECTORY_VARIABLE, SimulatedPlatform


class Machine:
    """A kernel of which only these doors are known."""

    doors: tuple[Path, ...] = ()

    def exists(self, path: Path) -> bool:
        return path in self.doors


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """A machine without any TEE, and without a simulated platform."""
    made = Machine()
    monkeypatch.setattr(module, "Kernel", lambda: made)
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path / "platform"))
    return made


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["enclave", *arguments])


def test_hardware_is_found_and_said_why(machine: Machine) -> None:
    machine.doors = (TDX_GUEST,)
    came = json.loads(run("detect", "--json").stdout)
    assert came == {
        "tee": "tdx",
        "why": f"{TDX_GUEST} is there",
        "found": [f"tdx by {TDX_GUEST}"],
    }
    assert f"found: tdx by {TDX_GUEST}" in run("detect").stdout


def test_the_simulated_platform_is_said_to_be_one(tmp_path: Path) -> None:
    SimulatedPlatform.create(tmp_path / "platform", now=datetime.now(UTC))
    done = run("detect", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["found"] == []
    assert "SIMULATED TEE" in done.stderr
    assert "no TEE" in run("detect").stdout


def test_a_machine_with_nothing_says_so() -> None:
    assert run("detect").exit_code == 2
    assert run("detect", "--tee", "snp").exit_code == 2


@pytest.mark.parametrize("tee", sorted(set(Tee) - set(ATTESTED)))
@pytest.mark.parametrize("command", ["serve", "detect", "measure"])
def test_kinds_that_hold_no_enclave_cannot_be_asked_for(command: str, tee: Tee) -> None:
    done = run(command, "--tee", tee)
    assert done.exit_code == 2
    assert "Invalid value for '--tee'" in done.stderr


def test_every_kind_that_can_be_asked_for_has_an_attester() -> None:
    assert {*CPU_TEES, CompositeAttester.tee} <= set(ATTESTED)
    assert {*PROVIDERS.values()} <= set(ATTESTED)
