"""Tiny ONNX models, sealed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from aigovtool.crypto.signing import SigningKey
from aigovtool.sealing.interface import ModelInterface
from aigovtool.sealing.manifest import ModelSignature, TensorSpec, VerifiedManifest
from aigovtool.sealing.seal import ModelDescription, SourceFile, new_content_key, seal

SEALED_AT = datetime(2026, 1, 1, tzinfo=UTC)

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


@dataclass(frozen=True)
class Sealed:
    """A sealed model on disk, and what only the custodian knows of it."""

    body: Path
    verified: VerifiedManifest
    content_key: bytes


def _model(nodes: list, inputs: list, outputs: list, initializers: list | None = None) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers or [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


def doubling() -> tuple[dict[str, bytes], ModelSignature]:
    """y = x + x, on FP32 [N, 2]."""
    value = helper.make_tensor_value_info
    model = _model(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [value("x", TensorProto.FLOAT, [None, 2])],
        [value("y", TensorProto.FLOAT, [None, 2])],
    )
    return {"model.onnx": model}, _signature({"x": ("FP32", (-1, 2))}, {"y": ("FP32", (-1, 2))})


def tripling() -> tuple[dict[str, bytes], ModelSignature]:
    """y = x + x + x, on FP32 [N, 2]: what may take the place of `doubling`."""
    value = helper.make_tensor_value_info
    model = _model(
        [helper.make_node("Sum", ["x", "x", "x"], ["y"])],
        [value("x", TensorProto.FLOAT, [None, 2])],
        [value("y", TensorProto.FLOAT, [None, 2])],
    )
    return {"model.onnx": model}, _signature({"x": ("FP32", (-1, 2))}, {"y": ("FP32", (-1, 2))})


def adding() -> tuple[dict[str, bytes], ModelSignature]:
    """y = a + b, on FP32 [N, 2] each; onnxruntime broadcasts a single row over many."""
    value = helper.make_tensor_value_info
    model = _model(
        [helper.make_node("Add", ["a", "b"], ["y"])],
        [value(name, TensorProto.FLOAT, [None, 2]) for name in "ab"],
        [value("y", TensorProto.FLOAT, [None, 2])],
    )
    both = {"a": ("FP32", (-1, 2)), "b": ("FP32", (-1, 2))}
    return {"model.onnx": model}, _signature(both, {"y": ("FP32", (-1, 2))})


def failing() -> tuple[dict[str, bytes], ModelSignature]:
    """y = the squares of 0 to 2 at x, on INT64 [N]; any other x fails in the computation."""
    value = helper.make_tensor_value_info
    model = _model(
        [helper.make_node("Gather", ["squares", "x"], ["y"])],
        [value("x", TensorProto.INT64, [None])],
        [value("y", TensorProto.INT64, [None])],
        [helper.make_tensor("squares", TensorProto.INT64, [3], [0, 1, 4])],
    )
    return {"model.onnx": model}, _signature({"x": ("INT64", (-1,))}, {"y": ("INT64", (-1,))})


def every_type() -> tuple[dict[str, bytes], ModelSignature]:
    """Gives every input back, one of each type."""
    value = helper.make_tensor_value_info
    types = ONNX_TYPES.items()
    model = _model(
        [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in ONNX_TYPES],
        [value(f"in_{name}", kind, [None]) for name, kind in types],
        [value(f"out_{name}", kind, [None]) for name, kind in types],
    )
    return {"model.onnx": model}, _signature(
        {f"in_{name}": (name, (-1,)) for name in ONNX_TYPES},
        {f"out_{name}": (name, (-1,)) for name in ONNX_TYPES},
    )


def external(folder: Path, *, rows: int = 512) -> tuple[dict[str, bytes], ModelSignature]:
    """y = x @ w, where w lies in a file of its own and sums up each input `rows` times."""
    value = helper.make_tensor_value_info
    weights = numpy_helper.from_array(np.ones((2, rows), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, [None, 2])],
        [value("y", TensorProto.FLOAT, [None, rows])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(
        model,
        str(folder / "model.onnx"),
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    files = {name: (folder / name).read_bytes() for name in ("model.onnx", "weights.bin")}
    return files, _signature({"x": ("FP32", (-1, 2))}, {"y": ("FP32", (-1, rows))})


def slow(*, steps: int = 2_000_000) -> tuple[dict[str, bytes], ModelSignature]:
    """y = x, after a loop that takes long and can be terminated between its steps."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["more"], ["more_out"]),
            helper.make_node("Neg", ["v"], ["v_out"]),
        ],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("more", TensorProto.BOOL, []),
            value("v", TensorProto.FLOAT, [1]),
        ],
        [value("more_out", TensorProto.BOOL, []), value("v_out", TensorProto.FLOAT, [1])],
    )
    model = _model(
        [helper.make_node("Loop", ["steps", "go", "x"], ["y"], body=body)],
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
        [
            helper.make_tensor("steps", TensorProto.INT64, [], [steps]),
            helper.make_tensor("go", TensorProto.BOOL, [], [True]),
        ],
    )
    return {"model.onnx": model}, _signature({"x": ("FP32", (1,))}, {"y": ("FP32", (1,))})


def sealed(
    folder: Path,
    key: SigningKey,
    model: tuple[dict[str, bytes], ModelSignature],
    *,
    name: str = "tiny",
    version: str = "1",
    interface: ModelInterface | None = None,
    format: str = "onnx",
    entry: str = "model.onnx",
) -> Sealed:
    """Seal the files of a model."""
    files, signature = model
    sources = []
    for file, content in files.items():
        (folder / file).write_bytes(content)
        sources.append(SourceFile(name=file, path=folder / file))
    content_key = new_content_key()
    verified = seal(
        sources,
        folder / "body",
        description=ModelDescription(
            name=name,
            version=version,
            format=format,
            entry=entry,
            signature=signature,
            interface=interface,
        ),
        content_key=content_key,
        signing_key=key,
        created=SEALED_AT,
    )
    for file in files:
        (folder / file).unlink()  # from here on, plaintext on this disk would be the enclave's
    return Sealed(folder / "body", verified, content_key)


def _signature(inputs: dict, outputs: dict) -> ModelSignature:
    def specs(tensors: dict) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name=name, datatype=datatype, shape=shape)
            for name, (datatype, shape) in tensors.items()
        )

    return ModelSignature(inputs=specs(inputs), outputs=specs(outputs))
