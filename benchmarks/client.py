"""
What the client costs: the SDK beside the bare socket, and the proxy beside asking directly.

One enclave on one core. From the other core, in turn (A B C A B C …), one call after the other: the
same bytes over TLS by a protocol that reads no more than Content-Length, the SDK, and the SDK
without asyncio. Then queries of 2.7 MB by wrk, directly and through the proxy, which shares the
core of wrk.

    python -m benchmarks.client [--rounds 5] [--seconds 2] [--connections 4] [--json]

Needs wrk (apt-get install wrk).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from aigovtool.client.blocking import connect
from aigovtool.client.session import connect_async
from aigovtool.demo.stage import Stage, free_port
from aigovtool.demo.story import ASSETS
from benchmarks.load import load
from benchmarks.metering import LOAD_CORE, request_for, start
from benchmarks.serving import models, wrk
from benchmarks.serving.servers import BINARY, CREDITS, pinned, targets

SOCKET, SDK, BLOCKING = "the socket", "AsyncClient", "Client"
WARM_CALLS = 20
Call = tuple[float, float]  # CPU and wall time of one call, ms


def by_socket(stage: Stage, port: int, seconds: float) -> Call:
    request = request_for(stage)
    cpu_s = time.process_time()
    seen = load(port, request, connections=1, seconds=seconds)
    cpu_s = time.process_time() - cpu_s
    assert set(seen.statuses) == {200}, seen.statuses
    return cpu_s / seen.statuses[200] * 1e3, seen.seconds / seen.statuses[200] * 1e3


def by_sdk(stage: Stage, port: int, seconds: float) -> Call:
    async def run() -> Call:
        async with await connect_async(**how(stage, port)) as client:
            inputs = {"image": np.zeros((1, 8, 8), np.float32)}
            for _ in range(WARM_CALLS):
                await client.infer(inputs)
            calls, begin_s, cpu_s = 0, time.perf_counter(), time.process_time()
            while (wall_s := time.perf_counter() - begin_s) < seconds:
                await client.infer(inputs)
                calls += 1
            return (time.process_time() - cpu_s) / calls * 1e3, wall_s / calls * 1e3

    return uvloop.run(run())


def by_blocking_sdk(stage: Stage, port: int, seconds: float) -> Call:
    with connect(**how(stage, port)) as client:
        inputs = {"image": np.zeros((1, 8, 8), np.float32)}
        for _ in range(WARM_CALLS):
            client.infer(inputs)
        calls, begin_s, cpu_s = 0, time.perf_counter(), time.process_time()
        while (wall_s := time.perf_counter() - begin_s) < seconds:
            client.infer(inputs)
            calls += 1
        return (time.process_time() - cpu_s) / calls * 1e3, wall_s / calls * 1e3


def how(stage: Stage, port: int) -> dict[str, Any]:
    return {
        "address": f"127.0.0.1:{port}",
        "manifest": stage.data / "manifest.toml",
        "api_key": (stage.data / "consumer.key").read_text().strip(),
        "receipts": stage.folder / "receipts",
    }


def calls(stage: Stage, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure single calls of a small model."""
    port = start(stage, "enclave", "")
    ways: dict[str, Callable[[Stage, int, float], Call]] = {
        SOCKET: by_socket, SDK: by_sdk, BLOCKING: by_blocking_sdk,
    }  # fmt: skip
    seen: dict[str, list[Call]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):
        for name, way in ways.items():
            found = way(stage, port, options.seconds)
            if number:  # the first round warms up
                seen[name].append(found)
    return [
        {
            "by": name,
            "cpu_ms": round(statistics.median(cpu for cpu, _ in found), 3),
            "wall_ms": round(statistics.median(wall for _, wall in found), 3),
            "cpu_beyond_socket_ms": round(
                statistics.median(
                    a - b for (a, _), (b, _) in zip(found, seen[SOCKET], strict=True)
                ),
                3,
            ),
        }
        for name, found in seen.items()
    ]


def bodies(stage: Stage, model: models.Served, options: argparse.Namespace) -> dict[str, Any]:
    """Measure queries of 2.7 MB through the proxy and directly."""
    port, proxy = start(stage, "enclave", ""), free_port()
    arguments = stage.client("proxy", port, "--listen", f"127.0.0.1:{proxy}")
    pinned(stage, "proxy", [sys.executable, "-m", "aigovtool", *arguments], proxy, core=LOAD_CORE)
    path = f"/v2/models/{model.name}/infer"
    bearer = f"Bearer {how(stage, port)['api_key']}"
    ways = {
        "directly": targets(f"https://127.0.0.1:{port}{path}", model, Authorization=bearer),
        "by the proxy": targets(f"http://127.0.0.1:{proxy}{path}", model),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):
        for name, target in ways.items():
            seen = wrk.load(
                target[BINARY], connections=options.connections, seconds=options.seconds
            )
            if number:
                rates[name].append(seen.per_second)
    ratios = [a / b for a, b in zip(rates["by the proxy"], rates["directly"], strict=True)]
    return {
        **{name: round(statistics.median(found), 1) for name, found in rates.items()},
        "ratio": round(statistics.median(ratios), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    wrk.check_installed()
    os.sched_setaffinity(0, {LOAD_CORE})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = models.make(folder / "models")
        with Stage(folder / "calls") as stage:
            assert stage.init().code == 0
            digits = str(ASSETS / "digits.onnx")
            stage.serve_custodian("--upload", digits, "--num-requests", str(CREDITS))
            small = calls(stage, options)
        with Stage(folder / "bodies") as stage:
            assert stage.init().code == 0
            covid = made["covid"]
            stage.serve_custodian("--upload", str(covid.path), "--num-requests", str(CREDITS))
            large = bodies(stage, covid, options)
    if options.json:
        print(json.dumps({"calls": small, "bodies": large}, indent=2))
        return
    print(f"{'one call by':16}{'CPU ms':>9}{'wall ms':>9}{'CPU beyond the socket, ms':>28}")
    for row in small:
        print(
            f"{row['by']:16}{row['cpu_ms']:>9}{row['wall_ms']:>9}{row['cpu_beyond_socket_ms']:>28}"
        )
    print(f"\n2.7 MB, {options.connections} connections, queries/s: {large}")


if __name__ == "__main__":
    main()
