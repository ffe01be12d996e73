"""
From ``enclave serve`` to ready: keys, evidence, appraisal, release, fetch, unseal, load.

Beside it, in the same run, a bare process that imports onnxruntime and loads the plain file. Models
are random weights of the given sizes (a chain of matrix products), so nothing compresses.

    python -m benchmarks.ready [--size-mib 0 256] [--rounds 5] [--json]
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

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from aigovtool.demo.stage import Stage

WIDTH = 2048  # a weight matrix of it is 16 MiB
LOAD_PLAIN = "import sys, onnxruntime; onnxruntime.InferenceSession(sys.argv[1])"


def make_model(path: Path, size_mib: int, *, external: bool = False) -> None:
    """Write a model of some *size_mib* MiB of weights, beside it if *external*; 0 is tiny."""
    dice = np.random.default_rng(1)
    layers = max(1, size_mib // 16)
    width = WIDTH if size_mib else 8
    names = [f"w{n}" for n in range(layers)]
    if external:
        weights = [_written(path.with_suffix(".bin"), name, width, dice) for name in names]
    else:
        weights = [
            numpy_helper.from_array(dice.random((width, width), np.float32), name) for name in names
        ]
    nodes = [helper.make_node("MatMul", [f"x{n}", f"w{n}"], [f"x{n + 1}"]) for n in range(layers)]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, [1, width])],
        [helper.make_tensor_value_info(f"x{layers}", TensorProto.FLOAT, [1, width])],
        weights,
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)


def _written(path: Path, name: str, width: int, dice: np.random.Generator) -> TensorProto:
    """Append a matrix to a file of external data; return the tensor that refers to it."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[width, width])
    tensor.data_location = TensorProto.EXTERNAL
    with path.open("ab") as file:
        places = {"location": path.name, "offset": file.tell(), "length": 4 * width * width}
        dice.random((width, width), np.float32).tofile(file)
    for key, value in places.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def measure(size_mib: int, rounds: int) -> dict[str, float]:
    """Return medians in seconds: first start, start with the ciphertext cached, bare load."""
    with tempfile.TemporaryDirectory() as folder, Stage(Path(folder)) as stage:
        model = stage.folder / "model.onnx"
        make_model(model, size_mib)
        assert stage.init().code == 0
        stage.serve_custodian("--upload", str(model), "--num-requests", "10")
        first, cached, bare = [], [], []
        for number in range(rounds):
            for times, name in ((first, f"e{number}"), (cached, f"e{number}")):
                begin = time.perf_counter()
                process, _ = stage.serve_enclave(name)
                times.append(time.perf_counter() - begin)
                process.terminate()
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", LOAD_PLAIN, str(model)], check=True)
            bare.append(time.perf_counter() - begin)
    return {
        "size_mib": size_mib,
        "first_s": round(statistics.median(first), 2),
        "cached_s": round(statistics.median(cached), 2),
        "bare_s": round(statistics.median(bare), 2),
        "cached_minus_bare_s": round(statistics.median(cached) - statistics.median(bare), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mib", type=int, nargs="+", default=[0, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [measure(size, options.rounds) for size in options.size_mib]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print("model MiB   first start s   cached start s   bare load s   cached - bare s")
    for row in rows:
        print(
            f"{row['size_mib']:>9}{row['first_s']:>16}{row['cached_s']:>17}"
            f"{row['bare_s']:>14}{row['cached_minus_bare_s']:>18}"
        )


if __name__ == "__main__":
    main()
