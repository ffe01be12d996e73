"""The description of a model is bounded data, and says the same after a trip through JSON."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigovtool.errors import AIGovToolError, MalformedError, TooLargeError
from aigovtool.sealing.interface import (
    MAX_INTERFACE_BYTES,
    ClassificationOutput,
    ImageInput,
    ModelInterface,
    TensorInput,
    TensorOutput,
    TextInput,
    decode_interface,
    encode_interface,
)
from aigovtool.sealing.signature import derive_interface

FULL = ModelInterface(
    title="t",
    notice="n",
    inputs=(
        ImageInput(
            name="i", width=480, height=320, channels="bgr", crop_top=0.08, centre_crop=True,
            resize="opencv-linear", invert=True, scale=1 / 255, mean=(0.1, 0.2, 0.3),
            std=(1.0, 2.0, 3.0), layout="NCHW", datatype="FP16",
        ),
        TextInput(name="s", encoding="latin-1", shape=(1, 1), max_bytes=7),
        TensorInput(name="t", datatype="INT64", shape=(-1, 3)),
    ),
    outputs=(
        ClassificationOutput(name="c", labels=("a", "b"), softmax=True, top_k=1),
        TensorOutput(name="t"),
    ),
)  # fmt: skip


def test_an_interface_survives_json() -> None:
    assert decode_interface(encode_interface(FULL)) == FULL


def test_shapes_are_those_of_one_picture() -> None:
    image = FULL.inputs[0]
    assert image.shape == (1, 3, 320, 480)
    assert [tensor.datatype for tensor in FULL.inputs] == ["FP16", "BYTES", "INT64"]


def change(path: tuple[Any, ...], value: Any) -> bytes:
    document = json.loads(encode_interface(FULL))
    inner = document
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return json.dumps(document).encode()


IMAGE, TEXT, TENSOR = ("inputs", 0), ("inputs", 1), ("inputs", 2)
LABELS = ("outputs", 0)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("version",), 2),
        (("unknown",), 1),
        (("title",), "x" * 201),
        (("inputs",), []),
        (("outputs",), []),
        ((*IMAGE, "kind"), "script"),
        ((*IMAGE, "python"), "import os"),
        ((*IMAGE, "name"), ""),
        ((*IMAGE, "name"), "t"),
        ((*IMAGE, "width"), 0),
        ((*IMAGE, "width"), 8193),
        ((*IMAGE, "width"), 1.5),
        ((*IMAGE, "height"), -1),
        ((*IMAGE, "crop_top"), 1.0),
        ((*IMAGE, "crop_top"), -0.1),
        ((*IMAGE, "scale"), 0),
        ((*IMAGE, "scale"), 1e7),
        ((*IMAGE, "mean"), [0.5]),
        ((*IMAGE, "std"), [1, 0, 1]),
        ((*IMAGE, "std"), [1, 1, 1, 1]),
        ((*IMAGE, "layout"), "NHW"),
        ((*IMAGE, "layout"), "HWC"),
        ((*IMAGE, "resize"), "magic"),
        ((*IMAGE, "datatype"), "BYTES"),
        ((*IMAGE, "datatype"), "BF16"),
        ((*TEXT, "shape"), [2]),
        ((*TEXT, "max_bytes"), 0),
        ((*TEXT, "encoding"), "rot13"),
        ((*TENSOR, "shape"), [-2]),
        ((*TENSOR, "shape"), [1] * 17),
        ((*TENSOR, "shape"), [2**30, 2**30]),
        ((*LABELS, "labels"), []),
        ((*LABELS, "labels"), ["a", "a"]),
        ((*LABELS, "labels"), ["a", ""]),
        ((*LABELS, "top_k"), 0),
        ((*LABELS, "softmax"), 1),
        ((*LABELS, "name"), "t"),
    ],
)
def test_what_is_unknown_or_out_of_bounds_is_refused(path: tuple[Any, ...], value: Any) -> None:
    with pytest.raises(MalformedError):
        decode_interface(change(path, value))


def test_an_interface_larger_than_its_limit_is_refused_unread() -> None:
    with pytest.raises(TooLargeError):
        decode_interface(b" " * (MAX_INTERFACE_BYTES + 1))


@given(data=st.data())
def test_only_our_errors_leave_whatever_comes(data: st.DataObject) -> None:
    body = bytearray(encode_interface(FULL))
    for _ in range(data.draw(st.integers(0, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = decode_interface(bytes(body[: data.draw(st.integers(0, len(body)))]))
    except AIGovToolError:
        return
    assert decode_interface(encode_interface(read)) == read


def onnx_tensor(name: str, kind: str, shape: list[Any]) -> Any:
    return SimpleNamespace(name=name, type=kind, shape=shape)


def test_a_model_without_a_description_gets_that_of_its_tensors() -> None:
    derived = derive_interface(
        [onnx_tensor("x", "tensor(float)", ["N", None, 3])],
        [onnx_tensor("y", "tensor(int64)", [])],
        title="m",
    )
    assert derived == ModelInterface(
        title="m",
        inputs=(TensorInput(name="x", datatype="FP32", shape=(-1, -1, 3)),),
        outputs=(TensorOutput(name="y"),),
    )
    assert decode_interface(encode_interface(derived)) == derived


def test_a_model_of_other_types_than_the_protocol_s_is_refused() -> None:
    good = onnx_tensor("x", "tensor(float)", [1])
    for bad in ("tensor(bfloat16)", "seq(map(int64,tensor(float)))"):
        odd = onnx_tensor("z", bad, [1])
        for inputs, outputs in (([odd], [good]), ([good], [odd])):
            with pytest.raises(MalformedError) as caught:
                derive_interface(inputs, outputs)
            assert caught.value.reasons[0].came == bad
