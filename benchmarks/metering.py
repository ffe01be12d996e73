"""
What metering costs: the real enclave server, as it is, without the meter, and without receipts too.

Three enclave processes serve the demo's model to the same load in turn (A B C A B C …), server and
load each on a core of its own. The variants that leave something out are made here, by replacing a
function in the process before it starts; the product has no switch for it.

    python -m benchmarks.metering [--rounds 5] [--seconds 4] [--connections 8] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from aigovtool.demo.stage import Stage, free_port
from aigovtool.demo.story import ASSETS
from aigovtool.wire.oip import encode_infer_request
from benchmarks.load import load

BUDGET = 100_000_000
SERVER_CORE, LOAD_CORE = 0, 1

NOT_METERED = """
from aigovtool.enclave import till
from aigovtool.enclave.meter import Charge
from aigovtool.ids import LeaseId
CHARGE = Charge(LeaseId("lease_none"), 1, 1, 0)
till.Till.pay = lambda self, consumer, cost, now_s: till.Paid(CHARGE, consumer, b"x" * 400, 1)
"""
NO_RECEIPTS = """
from aigovtool.enclave import receipts
receipts.Receipts.headers = lambda self, payloads: ["none"] * len(payloads)
"""
VARIANTS = {
    "as it is": "",
    "not metered": NOT_METERED,
    "neither metered nor receipted": NOT_METERED + NO_RECEIPTS,
}
RUN = "import sys\nsys.argv[0] = 'aigovtool'\nfrom aigovtool.cli import main\nmain()\n"


def start(stage: Stage, name: str, change: str) -> int:
    """Start one variant of the enclave, pinned to its core, and return its port."""
    port = free_port()
    log = (stage.folder / f"{name}.log").open("wb")
    popen = subprocess.Popen(
        [
            "taskset", "-c", str(SERVER_CORE), sys.executable, "-c", change + RUN,
            "enclave", "serve", "--ticket", str(stage.data / "loan.toml"),
            "--listen", f"127.0.0.1:{port}", "--log-level", "warning",
        ],
        env=stage.environment(),
        stdout=log,
        stderr=log,
    )  # fmt: skip
    process = stage.adopt(name, popen, stage.folder / f"{name}.log")
    stage.wait_until_serving(process, port)
    return port


def request_for(stage: Stage) -> bytes:
    """One query with a zero picture, in binary, as bytes on the wire."""
    body = encode_infer_request({"image": np.zeros((1, 8, 8), np.float32)})
    key = (stage.data / "consumer.key").read_text().strip()
    head = [
        "POST /v2/models/digits/infer HTTP/1.1",
        "Host: enclave",
        f"Authorization: Bearer {key}",
        *(f"{name}: {value}" for name, value in body.headers.items()),
    ]
    return "\r\n".join([*head, "", ""]).encode() + b"".join(bytes(x) for x in body.chunks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.sched_setaffinity(0, {LOAD_CORE})
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    p50s: dict[str, list[float]] = {name: [] for name in VARIANTS}
    p99s: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder, Stage(Path(folder)) as stage:
        assert stage.init().code == 0
        stage.serve_custodian(
            "--upload", str(ASSETS / "digits.onnx"), "--num-requests", str(BUDGET)
        )
        ports = {name: start(stage, name, change) for name, change in VARIANTS.items()}
        request = request_for(stage)
        for round_number in range(options.rounds + 1):
            for name, port in ports.items():
                seen = load(port, request, connections=options.connections, seconds=options.seconds)
                assert set(seen.statuses) == {200}, seen.statuses
                if round_number:  # the first round warms up
                    rates[name].append(seen.per_second)
                    p50s[name].append(seen.percentile_ms(50))
                    p99s[name].append(seen.percentile_ms(99))
    rows = [
        {
            "variant": name,
            "per_second": round(statistics.median(rates[name])),
            "p50_ms": round(statistics.median(p50s[name]), 2),
            "p99_ms": round(statistics.median(p99s[name]), 2),
            "ratio": round(
                statistics.median(
                    ours / bare for ours, bare in zip(rates["as it is"], rates[name], strict=True)
                ),
                3,
            ),
        }
        for name in VARIANTS
    ]
    if options.json:
        print(json.dumps({"connections": options.connections, "rows": rows}, indent=2))
        return
    print(f"{options.connections} connections, {options.rounds} rounds of {options.seconds:g} s")
    print(f"{'variant':32}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'as it is / this':>17}")
    for row in rows:
        print(
            f"{row['variant']:32}{row['per_second']:>12}{row['p50_ms']:>9}{row['p99_ms']:>9}"
            f"{row['ratio']:>17}"
        )


if __name__ == "__main__":
    main()
