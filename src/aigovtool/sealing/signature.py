"""
A model's interface and its ONNX signature: the one derived from the other, or held against it.

Takes what onnxruntime says of a loaded model (`OnnxTensor`); nothing here loads one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from aigovtool.errors import MalformedError
from aigovtool.sealing.interface import (
    ClassificationOutput,
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

    Raises:
        MalformedError: a tensor of a type that the protocol cannot carry.
    """
    outputs = tuple(outputs)
    for tensor in outputs:
        onnx_datatype(tensor)
    return ModelInterface(
        title=title,
        inputs=tuple(
            TensorInput(name=one.name, datatype=onnx_datatype(one), shape=onnx_shape(one))
            for one in inputs
        ),
        outputs=tuple(TensorOutput(name=one.name) for one in outputs),
    )


def check_interface(
    interface: ModelInterface, inputs: Iterable[OnnxTensor], outputs: Iterable[OnnxTensor]
) -> None:
    """
    Check a description against the model that it is to describe, before the two are sealed.

    Raises:
        MalformedError: an input is missing, unknown, or of another type or shape; an output is
            unknown, or has another number of scores than there are labels.
    """
    wanted = {tensor.name: tensor for tensor in inputs}
    given = {tensor.name: tensor for tensor in outputs}
    described = {tensor.name for tensor in interface.inputs}
    if described != set(wanted):
        raise _unlike("the interface does not describe the model's inputs", wanted, described)
    for one in interface.inputs:
        tensor = wanted[one.name]
        datatype, shape = onnx_datatype(tensor), onnx_shape(tensor)
        if one.datatype != datatype or not _meet(one.shape, shape):
            raise MalformedError(
                f"the interface and the model differ on the input {one.name!r}",
                code="interface.unlike",
                expected=f"{datatype} {list(shape)}",
                came=f"{one.datatype} {list(one.shape)}",
            )
    for output in interface.outputs:
        if output.name not in given:
            raise _unlike("the interface describes no output of the model", given, {output.name})
        if isinstance(output, ClassificationOutput):
            scores = onnx_shape(given[output.name])[-1:]
            # onnxruntime gives no shape for an output whose shape the model leaves out
            if scores not in ((), (-1,), (len(output.labels),)):
                raise MalformedError(
                    f"the labels of output {output.name!r} are not as many as its scores",
                    code="interface.unlike",
                    expected=str(list(scores)),
                    came=f"{len(output.labels)} labels",
                )


def _meet(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether some tensor has both shapes."""
    return len(one) == len(other) and all(
        a == b or -1 in (a, b) for a, b in zip(one, other, strict=True)
    )


def _unlike(message: str, expected: Iterable[str], came: Iterable[str]) -> MalformedError:
    return MalformedError(
        message,
        code="interface.unlike",
        expected=", ".join(map(repr, expected)),
        came=", ".join(map(repr, sorted(came))),
    )
