"""
What it costs to authorise every query before it runs: leases of duration 0 against leases of 5 s.

Two custodians, each with an enclave that serves the demo's model, loaded in turn (A B A B …). The
enclaves share a core with their custodians, the load has the other.

    python -m benchmarks.lease_zero [--rounds 4] [--seconds 3] [--connections 8 64] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from aigovtool.demo.stage import Process, Stage
from aigovtool.demo.story import ASSETS
from benchmarks.load import Seen, load
from benchmarks.metering import BUDGET, LOAD_CORE, SERVER_CORE, request_for, start

DURATIONS_S = ("0", "5")


def pin(process: Process) -> None:
    """Keep every thread of a process on the servers' core."""
    for thread in Path(f"/proc/{process.popen.pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), {SERVER_CORE})


def measure(connections: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Load both in turn; the first round warms up."""
    seen: dict[str, list[Seen]] = {duration: [] for duration in DURATIONS_S}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        asked: dict[str, tuple[int, bytes]] = {}
        for duration in DURATIONS_S:
            stage = stack.enter_context(Stage(Path(folder) / duration))
            assert stage.init().code == 0
            custodian = stage.serve_custodian(
                "--upload", str(ASSETS / "digits.onnx"), "--num-requests", str(BUDGET),
                "--lease-duration", duration, "--log-level", "warning",
            )  # fmt: skip
            pin(custodian)
            asked[duration] = start(stage, "enclave", ""), request_for(stage)
        for number in range(rounds + 1):
            for duration, (port, request) in asked.items():
                found = load(port, request, connections=connections, seconds=seconds)
                assert set(found.statuses) == {200}, found.statuses
                if number:
                    seen[duration].append(found)
    return [
        {
            "lease_s": float(duration),
            "connections": connections,
            "per_second": round(statistics.median(one.per_second for one in runs)),
            "p50_ms": round(statistics.median(one.percentile_ms(50) for one in runs), 1),
            "p99_ms": round(statistics.median(one.percentile_ms(99) for one in runs), 1),
        }
        for duration, runs in seen.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.sched_setaffinity(0, {LOAD_CORE})
    rows = [
        row
        for connections in options.connections
        for row in measure(connections, options.rounds, options.seconds)
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'lease s':>8}{'connections':>13}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}")
    for row in rows:
        print(
            f"{row['lease_s']:>8g}{row['connections']:>13}{row['per_second']:>12}"
            f"{row['p50_ms']:>9}{row['p99_ms']:>9}"
        )


if __name__ == "__main__":
    main()
