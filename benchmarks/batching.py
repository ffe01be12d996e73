"""
What joining queries gains: one model of large matrix products, sealed with and without that word.

Each variant is a custodian and an enclave of its own, served to the same load in turn (A B C A B
…), all servers on one core and the load on another. The load's key is one consumer's.

    python -m benchmarks.batching [--rounds 3] [--seconds 2] [--connections 8 32]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from aigovtool.demo.stage import Stage, free_port
from aigovtool.wire.oip import encode_infer_request
from benchmarks.load import load

BUDGET = 100_000_000
SERVER_CORE, LOAD_CORE = 0, 1
SIDE, LAYERS = 1024, 8  # 32 MiB of weights, which one row reads as often as many do
VARIANTS: dict[str, dict[str, Any] | None] = {
    "each by itself": None,
    "together": {"max_items": 32},
    "together, waiting up to 2 ms": {"max_items": 32, "max_delay_ms": 2},
}


def write_model(path: Path) -> None:
    random = np.random.default_rng(2026)
    nodes, weights, last = [], [], "x"
    for layer in range(LAYERS):
        matrix = random.standard_normal((SIDE, SIDE), np.float32) / np.float32(SIDE**0.5)
        weights.append(numpy_helper.from_array(matrix, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [f"m{layer}"]))
        last = "y" if layer == LAYERS - 1 else f"r{layer}"
        nodes.append(helper.make_node("Relu", [f"m{layer}"], [last]))
    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, SIDE]) for name in "xy"]
    graph = helper.make_graph(nodes, "products", rows[:1], rows[1:], weights)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))


def interface(together: dict[str, Any] | None) -> str:
    batch: dict[str, Any] = {"axes": {"x": 0}}
    if together is not None:
        batch["together"] = together
    return json.dumps(
        {
            "inputs": [{"kind": "tensor", "name": "x", "datatype": "FP32", "shape": [-1, SIDE]}],
            "outputs": [{"kind": "tensor", "name": "y"}],
            "batch": batch,
        }
    )


def serve(stage: Stage, model: Path, together: dict[str, Any] | None) -> tuple[int, bytes]:
    """Lend and serve the model; return the enclave's port, and a query as bytes on the wire."""
    assert stage.init().code == 0
    described = stage.folder / "interface.json"
    described.write_text(interface(together))
    stage.serve_custodian(
        "--upload", str(model), "--interface", str(described), "--num-requests", str(BUDGET)
    )
    port, log = free_port(), stage.folder / "enclave.log"
    with log.open("wb") as output:
        popen = subprocess.Popen(
            [
                "taskset", "-c", str(SERVER_CORE), sys.executable, "-m", "aigovtool",
                "enclave", "serve", "--ticket", str(stage.data / "loan.toml"),
                "--listen", f"127.0.0.1:{port}", "--log-level", "error", "--compute-threads", "1",
            ],
            env=stage.environment(),
            stdout=output,
            stderr=output,
        )  # fmt: skip
    stage.wait_until_serving(stage.adopt("enclave", popen, log), port)
    body = encode_infer_request({"x": np.ones((1, SIDE), np.float32)})
    key = (stage.data / "consumer.key").read_text().strip()
    head = [
        f"POST /v2/models/{model.stem}/infer HTTP/1.1",
        "Host: enclave",
        f"Authorization: Bearer {key}",
        *(f"{name}: {value}" for name, value in body.headers.items()),
    ]
    return port, "\r\n".join([*head, "", ""]).encode() + b"".join(map(bytes, body.chunks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32])
    options = parser.parse_args()
    os.sched_setaffinity(0, {LOAD_CORE})
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        model = Path(folder) / "products.onnx"
        write_model(model)
        served = {}
        for number, (name, together) in enumerate(VARIANTS.items()):
            place = Path(folder) / str(number)
            place.mkdir()
            served[name] = serve(stack.enter_context(Stage(place)), model, together)
        print(f"{'connections':12}{'variant':32}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}")
        for connections in options.connections:
            seen: dict[str, list[Any]] = {name: [] for name in VARIANTS}
            for round_number in range(options.rounds + 1):
                for name, (port, request) in served.items():
                    one = load(port, request, connections=connections, seconds=options.seconds)
                    assert set(one.statuses) == {200}, one.statuses
                    if round_number:  # the first round warms up
                        seen[name].append(one)
            for name, found in seen.items():
                rate, p50, p99 = (
                    statistics.median(of(one) for one in found)
                    for of in (
                        lambda one: one.per_second,
                        lambda one: one.percentile_ms(50),
                        lambda one: one.percentile_ms(99),
                    )
                )
                print(f"{connections:<12}{name:32}{rate:>12.0f}{p50:>9.1f}{p99:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
