"""
An enclave at 80 % of what it can take, for a long time: flat memory and descriptors, no error.

The highest rate is measured first. Then queries come at 80 % of it, at times that were set before,
and beside them, again and again, a consumer that connects, verifies, asks once and leaves. Memory
(resident, without what is shared with files) and open descriptors of enclave and custodian are
read from /proc. The command fails when there was one error, or when either process has more memory
in the last quarter of the time than it had in the second, or more descriptors.

    python -m benchmarks.soak [--minutes 30] [--connections 8] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aigovtool.client.blocking import connect
from aigovtool.demo.stage import Stage
from aigovtool.demo.story import ASSETS
from aigovtool.errors import AIGovToolError
from benchmarks.load import Seen, load
from benchmarks.metering import BUDGET, LOAD_CORE, request_for, start

SHARE = 0.8
SAMPLE_S = 5.0
CALIBRATION_S = 5.0
PIECE_S = 30.0  # of load, after which what was seen is summed up
GROWTH = 1.02  # what memory may differ by, as a ratio and in MiB
GROWTH_MIB = 4.0
GROWTH_DESCRIPTORS = 8  # connections that happen to be open when one looks


@dataclass
class Watched:
    """A process, and what it held over time."""

    pid: int
    memory_mib: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def look(self) -> None:
        status = Path(f"/proc/{self.pid}/status").read_text()
        kib = int(status.partition("RssAnon:")[2].split()[0])
        self.memory_mib.append(kib / 1024)
        self.descriptors.append(len(os.listdir(f"/proc/{self.pid}/fd")))

    def verdict(self) -> dict[str, Any]:
        """Compare the last quarter of the time with the second."""
        quarter = len(self.memory_mib) // 4
        before, after = slice(quarter, 2 * quarter), slice(-quarter, None)
        memory = max(self.memory_mib[before]), max(self.memory_mib[after])
        descriptors = max(self.descriptors[before]), max(self.descriptors[after])
        return {
            "memory_mib": [round(one, 1) for one in memory],
            "descriptors": list(descriptors),
            "flat": memory[1] <= memory[0] * GROWTH + GROWTH_MIB
            and descriptors[1] <= descriptors[0] + GROWTH_DESCRIPTORS,
        }


class Visitor(threading.Thread):
    """Connects, verifies, asks once and leaves, again and again."""

    def __init__(self, stage: Stage, port: int) -> None:
        super().__init__(daemon=True)
        self.stage, self.port = stage, port
        self.visits = 0
        self.errors: list[str] = []
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(1.0):
            try:
                with connect(
                    f"127.0.0.1:{self.port}",
                    manifest=self.stage.data / "manifest.toml",
                    api_key=(self.stage.data / "consumer.key").read_text().strip(),
                    receipts=self.stage.folder / "receipts",
                ) as client:
                    client.infer({"image": np.zeros((1, 8, 8), np.float32)})
                self.visits += 1
            except (AIGovToolError, OSError) as error:
                self.errors.append(repr(error))


def soak(stage: Stage, minutes: float, connections: int) -> dict[str, Any]:
    """Run the soak on a custodian that serves already; return what was seen."""
    port = start(stage, "enclave", "")
    request = request_for(stage)
    load(port, request, connections=connections, seconds=CALIBRATION_S)  # warm
    most = load(port, request, connections=connections, seconds=CALIBRATION_S).per_second
    watched = {process.name: Watched(process.popen.pid) for process in stage.processes}
    visitor = Visitor(stage, port)
    visitor.start()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_S):
            for one in watched.values():
                one.look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    begin_s = time.monotonic()
    pieces: list[Seen] = []
    while (left_s := minutes * 60 - (time.monotonic() - begin_s)) > 0:
        pieces.append(
            load(
                port,
                request,
                connections=connections,
                seconds=min(PIECE_S, left_s),
                per_second=SHARE * most,
            )
        )
    ended.set()
    visitor.ended.set()
    for thread in (watcher, visitor):
        thread.join(60)
    served = sum(piece.statuses[200] for piece in pieces)
    seconds = sum(piece.seconds for piece in pieces)
    errors = sum(piece.statuses.total() for piece in pieces) - served + len(visitor.errors)
    verdicts = {name: one.verdict() for name, one in watched.items()}
    return {
        "minutes": round(seconds / 60, 1),
        "most_per_second": round(most),
        "per_second": round(served / seconds),
        "served": served,
        "visits": visitor.visits,
        "errors": errors,
        "error_texts": visitor.errors[:5],
        "p50_ms": [round(piece.percentile_ms(50), 2) for piece in (pieces[0], pieces[-1])],
        "p99_ms": [round(piece.percentile_ms(99), 2) for piece in (pieces[0], pieces[-1])],
        "processes": verdicts,
        "passed": not errors and all(one["flat"] for one in verdicts.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.sched_setaffinity(0, {LOAD_CORE})
    with tempfile.TemporaryDirectory() as folder, Stage(Path(folder)) as stage:
        assert stage.init().code == 0
        stage.serve_custodian(
            "--upload", str(ASSETS / "digits.onnx"), "--num-requests", str(BUDGET)
        )
        found = soak(stage, options.minutes, options.connections)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name:18} {value}")
    sys.exit(0 if found["passed"] else 1)


if __name__ == "__main__":
    main()
