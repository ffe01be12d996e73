"""
Peak memory of an enclave while it fetches, unseals and loads a model, in a fresh process.

Models are random weights of the given sizes: in the ONNX file itself below 1 GiB, else in a file of
external data. Beside it, in turns, bare onnxruntime that loads the plain file. The peak is the
kernel's own (VmHWM of /proc/PID/status), which counts every page of the process: anonymous, shared
memory, and files.

    python -m benchmarks.memory [--size-mib 64 256 3072] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from aigovtool.demo.stage import Stage
from benchmarks.ready import LOAD_PLAIN, make_model

MIB = 1 << 20
EXTERNAL_FROM_MIB = 1024
BARE = LOAD_PLAIN + "; print(open('/proc/self/status').read())"


def status(text: str) -> dict[str, int]:
    """Return the sizes in a /proc/PID/status, in MiB."""
    sizes = (line.split() for line in text.splitlines() if line.endswith(" kB"))
    return {name.rstrip(":"): int(size) // 1024 for name, size, _ in sizes}


def measure(size_mib: int, rounds: int) -> dict[str, float]:
    """Return median peaks in MiB: of a first start, a cached start, and bare onnxruntime."""
    with tempfile.TemporaryDirectory() as folder, Stage(Path(folder)) as stage:
        model = stage.folder / "model.onnx"
        make_model(model, size_mib, external=size_mib >= EXTERNAL_FROM_MIB)
        size = sum(path.stat().st_size for path in stage.folder.glob("model.*")) / MIB
        assert stage.init().code == 0
        stage.serve_custodian("--upload", str(model), "--num-requests", "10")
        peaks: dict[str, list[float]] = {"first": [], "cached": [], "settled": [], "bare": []}
        for number in range(rounds):
            for which in ("first", "cached"):
                process, _ = stage.serve_enclave(f"e{number}")
                seen = status(Path(f"/proc/{process.popen.pid}/status").read_text())
                peaks[which].append(seen["VmHWM"])
                peaks["settled"].append(seen["VmRSS"])
                process.terminate()
            bare = subprocess.run(
                [sys.executable, "-c", BARE, str(model)],
                check=True,
                capture_output=True,
                text=True,
            )
            peaks["bare"].append(status(bare.stdout)["VmHWM"])
            time.sleep(0.1)
    medians = {name: statistics.median(values) for name, values in peaks.items()}
    return {
        "size_mib": round(size),
        **{f"{name}_mib": value for name, value in medians.items()},
        "allowed_mib": round(1.3 * size + 200e6 / MIB),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mib", type=int, nargs="+", default=[64, 256, 3072])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [measure(size, options.rounds) for size in options.size_mib]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print("model MiB   first start   cached start   when ready   bare onnxruntime   goal: at most")
    for row in rows:
        print(
            f"{row['size_mib']:>9}{row['first_mib']:>14.0f}{row['cached_mib']:>15.0f}"
            f"{row['settled_mib']:>13.0f}{row['bare_mib']:>19.0f}{row['allowed_mib']:>16.0f}"
        )


if __name__ == "__main__":
    main()
