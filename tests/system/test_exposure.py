"""
Real processes: what `exposure` says is never less than what is served after it was said.

The true worst case of a stop is one that the enclave does not hear of: the wire to the custodian is
frozen, or carries one direction only, or the enclave stands still and goes on later.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aigovtool
from aigovtool.client.session import AsyncClient
from aigovtool.demo.stage import Process, Stage
from aigovtool.demo.story import ASSETS
from aigovtool.drill.background import Background
from aigovtool.drill.proxy import Proxy, Wire
from aigovtool.errors import AIGovToolError
from aigovtool.wire.ticket import read_ticket, to_toml

IMAGE = np.zeros((1, 8, 8), np.float32)
PATIENCE_S = 90.0
ATTEMPTS = 3


@dataclass
class Scene:
    stage: Stage
    wire: Proxy
    enclave: Process
    port: int
    loan: str


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with Stage(tmp_path) as stage, Background() as background:
        assert stage.init().code == 0
        stage.serve_custodian(
            "--upload", str(ASSETS / "digits.onnx"),
            "--interface", str(ASSETS / "interface.json"),
            "--num-requests", "100000",
        )  # fmt: skip
        wire = Proxy(background, [stage.custodian_port])
        ticket = read_ticket(stage.data / "loan.toml")
        diverted = stage.folder / "diverted.toml"
        diverted.write_text(
            to_toml(ticket).replace(f'"{ticket.custodian}"', f'"127.0.0.1:{wire.port}"')
        )
        enclave, port = stage.serve_enclave(ticket=diverted)
        try:
            yield Scene(stage, wire, enclave, port, ticket.loan)
        finally:
            wire.close()


@dataclass
class Load:
    """Queries one after the other; of each that was served, when it was charged."""

    client: AsyncClient
    charged: list[datetime] = field(default_factory=list)

    async def run(self) -> None:
        while True:
            with contextlib.suppress(AIGovToolError):
                result = await self.client.infer({"image": IMAGE})
                self.charged.append(result.receipt.receipt.time)

    def since(self, moment: datetime) -> list[datetime]:
        return [one for one in self.charged if one > moment]

    async def until_served(self) -> None:
        begin, begun = time.monotonic(), datetime.now(UTC)
        while not self.since(begun):
            assert time.monotonic() - begin < PATIENCE_S, "it does not serve"
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def load_on(scene: Scene) -> AsyncIterator[Load]:
    client = await aigovtool.connect_async(
        f"127.0.0.1:{scene.port}",
        manifest=scene.stage.data / "manifest.toml",
        api_key=(scene.stage.data / "consumer.key").read_text().strip(),
        timeout_s=15.0,
    )
    async with client:
        load = Load(client)
        asking = asyncio.create_task(load.run())
        try:
            yield load
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)


def exposure(scene: Scene) -> tuple[int, float]:
    """Read what could still be used, in credits and seconds, as quickly as may be."""
    token = (scene.stage.data / "admin.token").read_text().strip()
    asked = urllib.request.Request(
        f"http://127.0.0.1:{scene.stage.admin_port}/api/v1/loans/{scene.loan}",
        headers={"Authorization": f"Bearer {token}"},
    )
    with urllib.request.urlopen(asked, timeout=30) as answer:
        told: Any = json.load(answer)["exposure"]
    return told["credits"], told["seconds"]


def command(scene: Scene, *arguments: str) -> None:
    outcome = scene.stage.custodian(*arguments)
    assert outcome.code == 0, outcome.stderr


@pytest.mark.slow
async def test_what_is_served_after_a_reading_is_never_more_than_it_said(scene: Scene) -> None:
    for how in (Wire.FROZEN, Wire.HALF_OPEN, Wire.CUT, "suspended", "suspended for long"):
        for _ in range(ATTEMPTS):
            showed = await stop_unheard(scene, how)
            scene.wire.set(Wire.PASSING)
            command(scene, "resume", scene.loan)
            scene.stage.wait_until_serving(scene.enclave, scene.port)
            if showed:
                break
        else:
            pytest.fail(f"{how}: each reading was made too late to show anything")


async def stop_unheard(scene: Scene, how: Wire | str) -> bool:
    """
    Stop the loan where the enclave does not hear of it, and hold what is served against the reading
    made before; return whether that showed anything: a busy machine may read when all is over.
    """
    async with load_on(scene) as load:
        await load.until_served()
        if isinstance(how, Wire):
            scene.wire.set(how)
        else:
            scene.enclave.popen.send_signal(signal.SIGSTOP)
        credits, seconds = await asyncio.to_thread(exposure, scene)
        read = datetime.now(UTC)  # the reading was made before this
        # "if you stop now": until the stop is made, leases may be renewed
        await asyncio.to_thread(command, scene, "stop", scene.loan, "--reason", str(how))
        if how == "suspended for long":
            await asyncio.sleep(left_of(seconds, read))
        if not isinstance(how, Wire):
            scene.enclave.popen.send_signal(signal.SIGCONT)
        # well past what was promised; what came too late is in the receipts' own times
        await asyncio.sleep(left_of(seconds, read) + 2)
        after = load.since(read)
    assert len(after) <= credits, how
    assert all(one <= read + timedelta(seconds=seconds) for one in after), how
    if how == "suspended for long":
        assert not after
    if how == Wire.FROZEN:  # so much could indeed be used: the reading is no empty bound
        return bool(after)
    return credits > 0 and seconds > 0


def left_of(seconds: float, since: datetime) -> float:
    return max(0.0, seconds - (datetime.now(UTC) - since).total_seconds())
