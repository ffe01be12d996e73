"""An enclave server on a real socket, against the custodian of `custodian.py`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import msgspec
import pytest

from aigovtool.clock import SystemClock
from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.app import Ready, serve
from aigovtool.enclave.attester.base import Attester
from aigovtool.enclave.config import EnclaveConfig, Limits
from aigovtool.enclave.progress import LoggedProgress

from . import models
from .custodian import Consumer, FakeAttester, FakeCustodian

INFER = "/v2/models/tiny/infer"
# fewer than may shake hands at one time: on a busy machine the server takes the oldest of a crowd
# for one that only holds its place
MAX_CONNECTIONS = 200


class JumpingClock(SystemClock):
    """The machine's clocks, whose monotonic one can be moved, as after SIGSTOP or a suspend."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.ahead_s


@dataclass
class RunningEnclave:
    """A running server, and a plain HTTP client of it (what the client must check is not here)."""

    custodian: FakeCustodian
    clock: JumpingClock
    http: aiohttp.ClientSession
    stop: asyncio.Event
    task: asyncio.Task[None]
    ready: asyncio.Event
    address: str = ""
    readies: list[Ready] = field(default_factory=list)
    grpc_address: str = ""

    async def infer(
        self,
        *,
        consumer: Consumer | None = None,
        value: float = 1.0,
        body: dict | bytes | None = None,
        **headers: str,
    ) -> tuple[int, dict, aiohttp.typedefs.LooseHeaders]:
        """Query the doubling model; returns status, decoded body and headers."""
        if body is None:
            body = query([[value, value]])
        names = {name.replace("_", "-"): text for name, text in headers.items()}
        async with self.http.post(
            INFER,
            data=json.dumps(body) if isinstance(body, dict) else body,
            headers=(consumer or self.custodian.alice).authorization | names,
        ) as answer:
            return answer.status, json.loads(await answer.read()), answer.headers

    async def get(
        self, path: str, consumer: Consumer | None = None
    ) -> tuple[int, dict, aiohttp.typedefs.LooseHeaders]:
        headers = {} if consumer is None else consumer.authorization
        async with self.http.get(path, headers=headers) as answer:
            return answer.status, json.loads(await answer.read()), answer.headers


def query(
    data: list, *, name: str = "x", datatype: str = "FP32", shape: list | None = None
) -> dict:
    shape = [len(data), 2] if shape is None else shape
    return {"inputs": [{"name": name, "datatype": datatype, "shape": shape, "data": data}]}


StartEnclave = Callable[..., contextlib.AbstractAsyncContextManager[RunningEnclave]]


@contextlib.asynccontextmanager
async def running_enclave(
    custodian: FakeCustodian,
    *,
    cache: Path | None = None,
    limits: Limits | None = None,
    wait_ready: bool = True,
    compute_threads: int = 2,
    attester: Attester | None = None,
    pccs: str | None = None,
    metrics_listen: str | None = None,
    metrics_token: Path | None = None,
    grpc_listen: str | None = None,
    beside: Sequence[FakeCustodian] = (),
    max_model_bytes: int | None = None,
) -> AsyncIterator[RunningEnclave]:
    clock, stop, ready = JumpingClock(), asyncio.Event(), asyncio.Event()
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    readies: list[Ready] = []
    grpc_addresses: list[str] = []

    def on_ready(now: Ready) -> None:
        readies.append(now)
        ready.set()

    task = asyncio.create_task(
        serve(
            EnclaveConfig(
                listen="127.0.0.1:0",
                cache=cache,
                compute_threads=compute_threads,
                intra_op_threads=1,
                max_model_bytes=max_model_bytes,
                pccs=pccs,
                grpc_listen=grpc_listen,
                metrics_listen=metrics_listen,
                metrics_token=metrics_token,
                limits=msgspec.structs.replace(limits or Limits(), drain_s=1.0, goodbye_s=1.0),
            ),
            [one.ticket for one in (custodian, *beside)],
            attester or FakeAttester(),
            clock=clock,
            progress=LoggedProgress(),
            stop=stop,
            on_listening=listening.set_result,
            on_ready=on_ready,
            on_grpc=grpc_addresses.append,
        )
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    try:
        async with asyncio.timeout(30):
            address = await listening
        async with aiohttp.ClientSession(
            f"https://{address}",
            connector=aiohttp.TCPConnector(ssl=tls, limit=MAX_CONNECTIONS),
            timeout=aiohttp.ClientTimeout(total=30),
        ) as http:
            if wait_ready:
                async with asyncio.timeout(30):
                    await ready.wait()
            yield RunningEnclave(
                custodian, clock, http, stop, task, ready, address, readies, "".join(grpc_addresses)
            )
    finally:
        stop.set()
        await asyncio.wait({task}, timeout=20)
        assert task.done()
        if not task.cancelled():
            task.result()


@pytest.fixture
def key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture
async def custodian(key: SigningKey, tmp_path: Path) -> AsyncIterator[FakeCustodian]:
    """A custodian of the doubling model with ten credits."""
    folder = tmp_path / "custodian"
    folder.mkdir()
    async with FakeCustodian(
        key, models.sealed(folder, key, models.doubling()), budget=10
    ) as running:
        yield running


@pytest.fixture
async def enclave(custodian: FakeCustodian) -> AsyncIterator[RunningEnclave]:
    async with running_enclave(custodian) as running:
        yield running
