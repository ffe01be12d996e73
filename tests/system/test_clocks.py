"""
Real processes whose wall clock jumps or stands still: I2 is kept by the monotonic clock.

The wall clock is moved from outside, by a `sitecustomize` beside the package, whose measured code
stays as it is.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

import aigovtool
from aigovtool.client.session import AsyncClient
from aigovtool.demo.stage import Stage
from aigovtool.demo.story import ASSETS
from aigovtool.errors import AIGovToolError

IMAGE = np.zeros((1, 8, 8), np.float32)
LEASE_S = 5.0
DAY_S = 86_400.0
PATIENCE_S = 90.0

MOVED = """
import datetime, pathlib
import aigovtool.clock

_file = pathlib.Path(__file__).with_name("wall-clock")

def now(self):
    said = _file.read_text()
    if said.startswith("at "):
        return datetime.datetime.fromisoformat(said[3:])
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=float(said))

aigovtool.clock.SystemClock.now = now
"""


class WallClock:
    """The wall clock of the processes that run with `environment`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._file = folder / "wall-clock"
        (folder / "sitecustomize.py").write_text(MOVED)
        package = Path(aigovtool.__file__).parent.parent
        before = os.environ.get("PYTHONPATH", "")
        self.environment = {"PYTHONPATH": f"{folder}:{package}:{before}".rstrip(":")}
        self.set("0")

    def set(self, said: str) -> None:
        """Set it to ``at TIME`` and still, or to so many seconds before or after the true time."""
        written = self._file.with_suffix(".new")
        written.write_text(said)
        written.rename(self._file)


async def charged_at(client: AsyncClient) -> datetime | None:
    """Ask, and return when it was charged by the enclave's own wall clock; None when refused."""
    try:
        result = await client.infer({"image": IMAGE})
    except AIGovToolError:
        return None
    return result.receipt.receipt.time


async def served(client: AsyncClient) -> bool:
    return await charged_at(client) is not None


async def until_served(client: AsyncClient) -> None:
    begin = time.monotonic()
    while not await served(client):
        assert time.monotonic() - begin < PATIENCE_S, "it never served again"
        await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_an_enclave_whose_wall_clock_jumps_or_stalls_serves_no_longer_than_its_lease(
    tmp_path: Path,
) -> None:
    with Stage(tmp_path / "stage") as stage:
        assert stage.init().code == 0
        custodian = stage.serve_custodian(
            "--upload", str(ASSETS / "digits.onnx"),
            "--interface", str(ASSETS / "interface.json"),
            "--num-requests", "100000",
        )  # fmt: skip
        wall = WallClock(tmp_path / "clock")
        enclave, port = stage.serve_enclave(environment=wall.environment)
        async with await aigovtool.connect_async(
            f"127.0.0.1:{port}",
            manifest=stage.data / "manifest.toml",
            api_key=(stage.data / "consumer.key").read_text().strip(),
        ) as client:
            for said in (f"{DAY_S}", f"{-DAY_S}", "at 2026-01-01T00:00:00+00:00"):
                wall.set("0")
                await until_served(client)
                for _ in range(20):  # a lease that is in use
                    await served(client)
                custodian.popen.send_signal(signal.SIGSTOP)
                frozen_s = time.monotonic()
                wall.set(said)
                last_s, count = frozen_s, 0
                while time.monotonic() - frozen_s < LEASE_S + 2:
                    asked_s = time.monotonic()  # it is admitted after this, if it is
                    if (charged := await charged_at(client)) is not None:
                        last_s, count = asked_s, count + 1
                        assert abs((charged - datetime.now(UTC)).total_seconds()) > DAY_S / 2, said
                custodian.popen.send_signal(signal.SIGCONT)
                assert count > 0, said
                assert last_s - frozen_s <= LEASE_S + 0.1, said
                assert enclave.alive()
            wall.set("0")
            await until_served(client)


@pytest.mark.slow
async def test_an_enclave_that_stood_still_past_its_lease_serves_nothing_from_it(
    tmp_path: Path,
) -> None:
    """Also where its wall clock was set back meanwhile, so that no time seems to have passed."""
    with Stage(tmp_path / "stage") as stage:
        assert stage.init().code == 0
        custodian = stage.serve_custodian(
            "--upload", str(ASSETS / "digits.onnx"),
            "--interface", str(ASSETS / "interface.json"),
            "--num-requests", "100000",
        )  # fmt: skip
        wall = WallClock(tmp_path / "clock")
        enclave, port = stage.serve_enclave(environment=wall.environment)
        async with await aigovtool.connect_async(
            f"127.0.0.1:{port}",
            manifest=stage.data / "manifest.toml",
            api_key=(stage.data / "consumer.key").read_text().strip(),
        ) as client:
            for _ in range(20):
                await until_served(client)
            enclave.popen.send_signal(signal.SIGSTOP)
            custodian.popen.send_signal(signal.SIGSTOP)
            waiting = [asyncio.create_task(served(client)) for _ in range(10)]
            await asyncio.sleep(LEASE_S + 0.1)
            wall.set(f"{-LEASE_S}")
            enclave.popen.send_signal(signal.SIGCONT)
            assert not any(await asyncio.gather(*waiting))
            assert not await served(client)
            custodian.popen.send_signal(signal.SIGCONT)
            await until_served(client)
