"""
How fast an enclave fetches a sealed model: its client beside curl, from one custodian over TLS.

    python -m benchmarks.download [--size-mib 512] [--rounds 5] [--json]

Needs curl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import uvloop

from aigovtool.demo.stage import Stage
from aigovtool.enclave.custodian_client import CustodianClient
from aigovtool.wire.headers import BODY_PATH
from aigovtool.wire.ticket import Ticket, read_ticket
from benchmarks.ready import make_model


def by_curl(ticket: Ticket, digest: str, size: int) -> None:
    url = f"https://{ticket.custodian}{BODY_PATH.format(digest=digest)}"
    authorization = f"Authorization: Bearer {ticket.token}"
    done = subprocess.run(
        ["curl", "-sk", "-H", authorization, "-o", "/dev/null", "-w", "%{size_download}", url],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == size, done.stdout


def by_enclave(ticket: Ticket, digest: str, size: int) -> None:
    async def fetch() -> int:
        async with CustodianClient(ticket) as client:
            pieces = client.body(bytes.fromhex(digest), offset=0, size=size)
            return sum([len(piece) async for piece in pieces])

    assert uvloop.run(fetch()) == size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rates: dict[str, list[float]] = {"curl": [], "the enclave's client": []}
    with tempfile.TemporaryDirectory() as folder, Stage(Path(folder)) as stage:
        model = stage.folder / "model.onnx"
        make_model(model, options.size_mib)
        assert stage.init().code == 0
        stage.serve_custodian("--upload", str(model), "--num-requests", "1")
        ticket = read_ticket(stage.data / "loan.toml")
        (kept,) = stage.custodian("model", "list").json()
        for number in range(options.rounds + 1):
            for name, fetch in zip(rates, (by_curl, by_enclave), strict=True):
                begin_s = time.perf_counter()
                fetch(ticket, kept["model"], kept["body_bytes"])
                if number:  # the first round warms up
                    rates[name].append(kept["body_bytes"] / 1e6 / (time.perf_counter() - begin_s))
    ratio = statistics.median(ours / curl for curl, ours in zip(*rates.values(), strict=True))
    found = {name: round(statistics.median(values)) for name, values in rates.items()}
    if options.json:
        print(json.dumps({"mb_per_second": found, "ratio": round(ratio, 2)}, indent=2))
        return
    for name, rate in found.items():
        print(f"{name:24}{rate:>6} MB/s")
    print(f"{'of curl':24}{ratio:>6.2f}")


if __name__ == "__main__":
    main()
