"""``aigovtool enclave`` as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
from click.testing import CliRunner

from aigovtool.attestation.policy import parse_policy
from aigovtool.cli import main
from aigovtool.enclave.config import Limits
from aigovtool.simulation.measure import measure
from aigovtool.simulation.platform import DIRECTORY_VARIABLE, SimulatedPlatform
from aigovtool.wire.ticket import to_toml

from .conftest import INFER, query
from .custodian import FakeCustodian


@pytest.fixture
def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimulatedPlatform:
    folder = tmp_path / "platform"
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(folder))
    return SimulatedPlatform.create(folder, now=datetime.now(UTC))


async def start(
    custodian: FakeCustodian, folder: Path
) -> tuple[asyncio.subprocess.Process, str, AsyncIterator[str]]:
    """Start the server, and return it with its address and what else it says."""
    ticket = folder / "loan.toml"
    ticket.write_text(to_toml(custodian.ticket))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "aigovtool", "enclave", "serve"),
        *("--ticket", str(ticket), "--listen", "127.0.0.1:0", "--tee", "simulated"),
        *("--cache", str(folder / "cache")),
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"AIGOVTOOL_ENCLAVE_GOODBYE_S": "5"},
    )

    async def lines() -> AsyncIterator[str]:
        assert process.stderr is not None
        async for line in process.stderr:
            yield line.decode()

    talk = lines()
    async for line in talk:
        if found := re.search(r"ready after .* on (\S+), 10 credits left", line):
            return process, found[1], talk
    raise AssertionError("it never became ready")


async def ask(custodian: FakeCustodian, address: str) -> int:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as http,
        http.post(
            f"https://{address}{INFER}",
            data=json.dumps(query([[1.0, 1.0]])),
            headers=custodian.alice.authorization,
        ) as answer,
    ):
        return answer.status


async def test_a_process_serves_settles_on_sigterm_and_exits_with_0(
    custodian: FakeCustodian, tmp_path: Path, platform: SimulatedPlatform
) -> None:
    process, address, talk = await start(custodian, tmp_path)
    said = [await anext(talk)]
    assert await ask(custodian, address) == 200
    process.terminate()
    said += [line async for line in talk]
    async with asyncio.timeout(30):
        assert await process.wait() == 0
    assert (custodian.spent, custodian.leased, len(custodian.proofs)) == (1, 0, 1)
    assert "SIMULATED TEE" in said[0]
    assert "settled and wiped" in said[-1]


async def test_a_killed_process_leaves_its_lease_to_be_forfeited(
    custodian: FakeCustodian, tmp_path: Path, platform: SimulatedPlatform
) -> None:
    process, address, _ = await start(custodian, tmp_path)
    assert await ask(custodian, address) == 200
    process.kill()
    await process.communicate()
    await custodian.until(lambda: not custodian.sockets)
    assert (custodian.leased, custodian.spent) == (2, 0)
    suffixes = {path.suffix for path in (tmp_path / "cache").iterdir()}
    assert suffixes == {".sealed", ".statement"}  # ciphertext, and what any consumer is told


def test_measure_prints_a_policy_that_names_this_code(platform: SimulatedPlatform) -> None:
    done = CliRunner().invoke(main, ["enclave", "measure"])
    assert done.exit_code == 0
    policy = parse_policy(done.stdout.encode())
    assert measure().mr_td.hex() in done.stdout
    assert platform.root_sha256.hex() in done.stdout
    assert len(policy.accept) == 1
    as_json = CliRunner().invoke(main, ["enclave", "measure", "--json"])
    assert json.loads(as_json.stdout)["accept"]["root_sha256"] == platform.root_sha256.hex()


def test_a_missing_ticket_is_the_operators_to_mend(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["enclave", "serve", "--ticket", str(tmp_path / "none.toml")])
    assert done.exit_code == 2
    assert "the custodian gives it out" in done.stderr


def test_every_flag_and_its_variable_are_in_the_help() -> None:
    text = " ".join(CliRunner().invoke(main, ["enclave", "serve", "--help"]).stdout.split())
    flags = ["ticket", "tee", "listen", "cache", "compute_threads", "intra_op_threads"]
    flags += ["slots", "context"]
    for name in [*flags, *Limits.__struct_fields__]:
        assert f"--{name.replace('_', '-')}" in text
        assert f"AIGOVTOOL_ENCLAVE_{name.upper()}" in text.replace(" ", "")
