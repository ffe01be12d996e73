"""The three models that are served, made here with fixed weights, and a query for each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

SEED = 2026
IR_VERSION, OPSET = 8, 17

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Served:
    """A model, and one query for it: FP32, a batch of one of `shape`."""

    name: str
    what: str
    path: Path
    input: str
    output: str
    shape: tuple[int, ...]

    @cached_property
    def query(self) -> Floats:
        return np.random.default_rng(SEED).random(self.shape, np.float32).round(4)

    @cached_property
    def answer(self) -> Floats:
        """What onnxruntime says to `query`."""
        found = session(self.path).run([self.output], {self.input: self.query})[0]
        return np.asarray(found, np.float32)

    @cached_property
    def json_body(self) -> bytes:
        return json.dumps({"inputs": [self._tensor(data=self.query.ravel().tolist())]}).encode()

    @cached_property
    def binary_body(self) -> tuple[bytes, int]:
        """The body with binary tensors both ways, and the length of its JSON part."""
        tensor = self._tensor(parameters={"binary_data_size": self.query.nbytes})
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        return head + self.query.tobytes(), len(head)

    def _tensor(self, **more: Any) -> dict[str, Any]:
        return {"name": self.input, "shape": list(self.shape), "datatype": "FP32", **more}


def session(path: Path) -> ort.InferenceSession:
    """Load a model as every server here does that is ours to set up: on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def make(folder: Path) -> dict[str, Served]:
    """Write the models into *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    return {one.name: one for one in (_mlp(folder), _convnet(folder), _covid(folder))}


def _mlp(folder: Path) -> Served:
    """64 → 64 → 10: what is measured is everything but the model."""
    rng = np.random.default_rng(SEED)
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["l"]),
        helper.make_node("Softmax", ["l"], ["y"], axis=1),
    ]
    weights = {
        "w1": _normal(rng, 64, 64), "b1": _normal(rng, 64),
        "w2": _normal(rng, 64, 10), "b2": _normal(rng, 10),
    }  # fmt: skip
    path = _write(folder / "tiny.onnx", nodes, weights, x=(-1, 64), y=(-1, 10))
    return Served("tiny", "MLP 64→64→10", path, "x", "y", (1, 64))


def _convnet(folder: Path) -> Served:
    """Some 10 ms of convolutions over (1, 3, 224, 224)."""
    rng = np.random.default_rng(SEED)
    nodes, weights, last, channels = [], {}, "x", 3
    for index, wide in enumerate((24, 48, 96, 128)):
        weights[f"k{index}"] = _kernel(rng, wide, channels)
        nodes += [
            helper.make_node(
                "Conv", [last, f"k{index}"], [f"c{index}"], pads=[1, 1, 1, 1], strides=[2, 2]
            ),
            helper.make_node("Relu", [f"c{index}"], [f"r{index}"]),
        ]
        last, channels = f"r{index}", wide
    weights["deep"] = _kernel(rng, channels, channels)
    for depth in range(3):
        nodes.append(helper.make_node("Conv", [last, "deep"], [f"d{depth}"], pads=[1, 1, 1, 1]))
        last = f"d{depth}"
    weights["w"] = _normal(rng, channels, 10)
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["l"]),
        helper.make_node("Softmax", ["l"], ["y"], axis=1),
    ]
    path = _write(folder / "convnet.onnx", nodes, weights, x=(-1, 3, 224, 224), y=(-1, 10))
    return Served("convnet", "convolutions, (1, 3, 224, 224)", path, "x", "y", (1, 3, 224, 224))


def _covid(folder: Path) -> Served:
    """COVID-Net-CXR-2's signature, 2.7 MB a query, and hardly any computation."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[1, 2], keepdims=0),
        helper.make_node("Gemm", ["m", "w", "b"], ["l"]),
        helper.make_node("Softmax", ["l"], ["y"], axis=1),
    ]
    weights = {
        "w": np.array([[-4, 4]] * 3, np.float32) / 3, "b": np.array([2, -2], np.float32),
    }  # fmt: skip
    path = _write(folder / "covid.onnx", nodes, weights, x=(1, 480, 480, 3), y=(1, 2))
    return Served("covid", "COVID-Net's signature, 2.7 MB", path, "x", "y", (1, 480, 480, 3))


def _normal(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape).astype(np.float32) / 8


def _kernel(rng: np.random.Generator, wide: int, channels: int) -> Floats:
    """3 by 3, and scaled so that what goes through stays of one size (He initialisation)."""
    scale = np.sqrt(2 / (9 * channels))
    return (rng.standard_normal((wide, channels, 3, 3)) * scale).astype(np.float32)


def _write(
    path: Path, nodes: list[Any], weights: dict[str, Floats], **tensors: tuple[int, ...]
) -> Path:
    def described(name: str) -> Any:
        shape = [None if size < 0 else size for size in tensors[name]]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        path.stem,
        [described("x")],
        [described("y")],
        initializer=[numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
    return path
