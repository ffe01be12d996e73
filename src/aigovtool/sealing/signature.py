"""
A model's ONNX signature in the protocol's words, and the interface of a model that has no other.

Takes what onnxruntime says of a loaded model (`OnnxTensor`); nothing here loads one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import msgspec

from aigovtool.errors import MalformedError
from aigovtool.sealing.interface import (
    Datatype,
    ModelInterface,
    TensorInput,
    TensorOutput,
)

_ONNX_DATATYPES: dict[str, Datatype] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


class OnnxTensor(Protocol):
    """What onnxruntime's ``get_inputs()`` and ``get_outputs()`` give (its NodeArg)."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def shape(self) -> list[int | str | None]: ...


def onnx_datatype(tensor: OnnxTensor) -> Datatype:
    """Return the protocol's datatype of an ONNX tensor; raises MalformedError for other types."""
    try:
        return _ONNX_DATATYPES[tensor.type]
    except KeyError:
        raise MalformedError(
            f"tensor {tensor.name!r} of the model has a type that cannot be served",
            code="model.datatype",
            expected=", ".join(_ONNX_DATATYPES),
            came=tensor.type,
        ) from None


def onnx_shape(tensor: OnnxTensor) -> tuple[int, ...]:
    """Return the shape with -1 where the model leaves the length open (None, or a word)."""
    return tuple(one if isinstance(one, int) and one >= 0 else -1 for one in tensor.shape)


def derive_interface(
    inputs: Iterable[OnnxTensor], outputs: Iterable[OnnxTensor], *, title: str = ""
) -> ModelInterface:
    """
    Describe a model by its ONNX signature alone: tensors in, tensors out.

    First dimensions that the model names differently ("batch" here, "length" there) are no batch.

    Raises:
        MalformedError: a tensor of a type that the protocol cannot carry.
    """
    inputs, outputs = tuple(inputs), tuple(outputs)
    words = {one.shape[0] for one in inputs if one.shape and isinstance(one.shape[0], str)}
    for tensor in outputs:
        onnx_datatype(tensor)
    return ModelInterface(
        title=title,
        inputs=tuple(
            TensorInput(name=one.name, datatype=onnx_datatype(one), shape=onnx_shape(one))
            for one in inputs
        ),
        outputs=tuple(TensorOutput(name=one.name) for one in outputs),
        batch=None if len(words) > 1 else msgspec.UNSET,
    )
