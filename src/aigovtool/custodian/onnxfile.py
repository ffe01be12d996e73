"""
What a custodian must know of an ONNX model before sealing it: its tensors, and its other files.

The tensors are what onnxruntime says. The names of external data files are read from the model's
own protobuf, of which the few fields that can hold a tensor are walked (onnx.proto3, IR 13).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import onnxruntime

from aigovtool.errors import ConfigurationError, MalformedError
from aigovtool.sealing.interface import ModelInterface
from aigovtool.sealing.manifest import ModelSignature, TensorSpec
from aigovtool.sealing.protobuf import DELIMITED, fields
from aigovtool.sealing.seal import SourceFile
from aigovtool.sealing.signature import derive_interface, onnx_datatype, onnx_shape

MAX_DEPTH = 64  # graphs within nodes within graphs

# message -> field number -> message that it holds
_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _ENTRY, _SPARSE, _FUNCTION, _TRAINING = range(9)
_CHILDREN: dict[int, dict[int, int]] = {
    _MODEL: {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {
        5: _TENSOR,
        6: _GRAPH,
        10: _TENSOR,
        11: _GRAPH,
        22: _SPARSE,
        23: _SPARSE,
    },
    _TENSOR: {13: _ENTRY},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
    _ENTRY: {},
}


def read_signature(path: Path) -> tuple[ModelSignature, ModelInterface]:
    """
    Load the model once and return its tensors, and the plainest interface for them.

    Raises:
        ConfigurationError: no such file.
        MalformedError: not an ONNX model that onnxruntime loads, or of types that are not served.
    """
    if not path.is_file():
        raise ConfigurationError(
            f"there is no model {path}", code="model.file", mend="name an ONNX file"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its complaints come as an exception; stderr is for people
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(
            path, sess_options=options, providers=["CPUExecutionProvider"]
        )
    # onnxruntime's exceptions share no base but Exception
    except Exception as error:  # noqa: BLE001
        raise MalformedError(
            f"{path} is not an ONNX model that onnxruntime can load",
            code="model.onnx",
            came=type(error).__name__,
            mend="check it with onnx.checker, and that its external data lies beside it",
        ) from None
    inputs, outputs = session.get_inputs(), session.get_outputs()
    signature = ModelSignature(
        inputs=tuple(
            TensorSpec(name=one.name, datatype=onnx_datatype(one), shape=onnx_shape(one))
            for one in inputs
        ),
        outputs=tuple(
            TensorSpec(name=one.name, datatype=onnx_datatype(one), shape=onnx_shape(one))
            for one in outputs
        ),
    )
    return signature, derive_interface(inputs, outputs, title=path.stem)


def source_files(path: Path) -> list[SourceFile]:
    """
    Return the model's file and those that hold its external data, each by its plain name.

    Raises:
        ConfigurationError: a file cannot be read.
        MalformedError: not a protobuf, or external data outside the model's folder.
    """
    try:
        with path.open("rb") as file:
            body = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        names = sorted(set(_locations(memoryview(body), _MODEL, 0)))
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the model file {path}", code="model.file", came=error.strerror
        ) from None
    except (ValueError, MalformedError):
        raise MalformedError(f"{path} is not an ONNX model", code="model.onnx") from None
    for name in names:
        if Path(name).name != name:
            raise MalformedError(
                "external data of the model lies outside its folder",
                code="model.external_data",
                expected="a plain file name",
                came=ascii(name[:80]),
                mend="save the model again with its data beside it",
            )
    return [SourceFile(name=name, path=path.with_name(name)) for name in [path.name, *names]]


def _locations(message: memoryview, kind: int, depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        raise ValueError
    children = _CHILDREN[kind]
    for number, value in _values(message):
        child = children.get(number)
        if child == _ENTRY:
            entry = dict(_values(value))
            if bytes(entry.get(1, b"")) == b"location":
                yield bytes(entry.get(2, b"")).decode()
        elif child is not None:
            yield from _locations(value, child, depth + 1)


def _values(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the length-delimited fields of a message; skip the others."""
    for field in fields(message):
        if field.wire == DELIMITED:
            yield field.number, message[field.value : field.end]
