"""
How fast the enclave serves, beside what is below it and beside other servers.

For each model and encoding all servers run, each in a process of its own on one core, and are
loaded in turn (A B C … A B C …) by wrk from the other core. Before that each is asked once, and its
answer held against onnxruntime's. The first round warms up. Ratios are medians over rounds of what
was measured in one round.

    python -m benchmarks.serving [--models tiny convnet covid] [--connections 8 32] [--rounds 5]
        [--seconds 3] [--no-peers] [--output FOLDER]

Needs wrk (apt-get install wrk). Other servers are installed into environments of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from aigovtool.demo.stage import Stage
from benchmarks.serving import models, servers, wrk
from benchmarks.serving.models import Served
from benchmarks.serving.peers.launch import PEERS, served
from benchmarks.serving.servers import BINARY, JSON, SERVER_CORE, Server

TOLERANCE = 1e-4
FLOOR = "floor with TLS"
LIMIT = "onnxruntime, in process"
VERSIONS = ("onnxruntime", "numpy", "uvicorn", "httptools", "uvloop", "cryptography")


@dataclass
class Row:
    """What was measured of one server, a value a round."""

    server: str
    per_second: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    failed: str | None = None


def check(server: Server, encoding: str, model: Served) -> None:
    """Raise unless the server's answer is onnxruntime's."""
    answer = server.answer(encoding)
    np.testing.assert_allclose(
        answer.ravel(), model.answer.ravel(), rtol=TOLERANCE, atol=TOLERANCE, err_msg=server.name
    )


def in_process(model: Served, seconds: float) -> float:
    """Return how often a second onnxruntime alone computes, on the servers' core."""
    code = (
        "import sys,time,numpy as np\n"
        "from pathlib import Path\n"
        "from benchmarks.serving.models import session\n"
        "s=session(Path(sys.argv[1]));x=np.load(sys.argv[2]);n=0;t=time.perf_counter()\n"
        "while time.perf_counter()-t<float(sys.argv[4]): s.run(None,{sys.argv[3]:x});n+=1\n"
        "print(n/(time.perf_counter()-t))\n"
    )
    with tempfile.NamedTemporaryFile(suffix=".npy") as query:
        np.save(query, model.query)
        query.flush()
        done = subprocess.run(
            [
                "taskset", "-c", str(SERVER_CORE), sys.executable, "-c", code,
                str(model.path), query.name, model.input, str(seconds),
            ],
            capture_output=True,
            text=True,
            check=True,
        )  # fmt: skip
    return float(done.stdout)


def measure(
    model: Served, encoding: str, connections: int, running: list[Server], options: Any
) -> list[Row]:
    """Load the servers in turn."""
    asked = [one for one in running if encoding in one.targets]
    rows = {one.name: Row(one.name) for one in asked}
    limit = Row(LIMIT)
    for number in range(options.rounds + 1):
        for one in asked:
            if rows[one.name].failed is not None:
                continue
            try:
                seen = wrk.load(
                    one.targets[encoding], connections=connections, seconds=options.seconds
                )
            except wrk.NothingError as error:
                rows[one.name].failed = str(error)
                continue
            if number:
                rows[one.name].per_second.append(seen.per_second)
                rows[one.name].p50_ms.append(seen.p50_ms)
                rows[one.name].p99_ms.append(seen.p99_ms)
        if number:
            limit.per_second.append(in_process(model, min(1.0, options.seconds)))
    return [limit, *rows.values()]


def summary(rows: list[Row]) -> list[dict[str, Any]]:
    """Return medians, and ratios to the floor within each round."""
    floor = next(row for row in rows if row.server == FLOOR)
    found = []
    for row in rows:
        if row.failed is not None:
            found.append({"server": row.server, "failed": row.failed})
            continue
        ratios = []
        if floor.failed is None:
            ratios = [a / b for a, b in zip(row.per_second, floor.per_second, strict=True)]
        found.append(
            {
                "server": row.server,
                "per_second": round(statistics.median(row.per_second), 1),
                "ratio": round(statistics.median(ratios), 3) if ratios else None,
                "p50_ms": round(statistics.median(row.p50_ms), 2) if row.p50_ms else None,
                "p99_ms": round(statistics.median(row.p99_ms), 2) if row.p99_ms else None,
            }
        )
    return found


def table(results: list[dict[str, Any]]) -> str:
    """Write the results in Markdown."""
    lines = []
    for one in results:
        lines += [
            f"\n### {one['model']}, {one['encoding']}, {one['connections']} connections\n",
            "| | requests/s | of the TLS floor | p50 ms | p99 ms |",
            "|---|---|---|---|---|",
        ]
        for row in one["rows"]:
            if "failed" in row:
                lines.append(f"| {row['server']} | {row['failed']} | | | |")
                continue
            cells = [row["server"], row["per_second"], row["ratio"], row["p50_ms"], row["p99_ms"]]
            lines.append("| " + " | ".join("" if c is None else str(c) for c in cells) + " |")
    return "\n".join(lines) + "\n"


def surroundings() -> dict[str, Any]:
    """Return what the numbers depend on."""
    processor = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "commit": commit.stdout.strip(),
        "processor": processor,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
        **{name: version(name) for name in VERSIONS},
    }


def serve_and_measure(model: Served, folder: Path, options: Any) -> list[dict[str, Any]]:
    """Start every server with *model*, and measure them all."""
    results = []
    with contextlib.ExitStack() as stack:
        stage = stack.enter_context(Stage(folder / f"stage-{model.name}"))
        running = [*servers.floors(stage, model), *servers.ours(stage, model)]
        for peer in () if options.no_peers else PEERS:
            try:
                running.append(
                    stack.enter_context(served(peer, model, folder / f"{peer.name} {model.name}"))
                )
            except (RuntimeError, subprocess.CalledProcessError) as error:
                print(f"without {peer.name}: {error}", file=sys.stderr)
        for encoding in (BINARY, JSON):
            for one in running:
                if encoding in one.targets:
                    check(one, encoding, model)
            for connections in options.connections:
                rows = measure(model, encoding, connections, running, options)
                result = {
                    "model": f"{model.name} ({model.what})",
                    "encoding": encoding,
                    "connections": connections,
                    "rows": summary(rows),
                }
                print(table([result]), flush=True)
                results.append(result)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["tiny", "convnet", "covid"])
    parser.add_argument("--connections", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("bench-results"))
    options = parser.parse_args()
    wrk.check_installed()
    begin_s = time.monotonic()
    options.output.mkdir(parents=True, exist_ok=True)
    found = {"environment": surroundings(), "results": []}
    with tempfile.TemporaryDirectory() as folder:
        made = models.make(Path(folder) / "models")
        for name in options.models:
            found["results"] += serve_and_measure(made[name], Path(folder), options)
            found["minutes"] = round((time.monotonic() - begin_s) / 60, 1)
            # after each model: what was measured is not lost with what comes
            (options.output / "serving.json").write_text(json.dumps(found, indent=2))
            (options.output / "serving.md").write_text(table(found["results"]))
    print(json.dumps(found["environment"]))


if __name__ == "__main__":
    main()
