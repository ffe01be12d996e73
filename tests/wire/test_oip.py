"""The Open Inference Protocol codec: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import json
import struct
from typing import Any, get_args

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aigovtool.errors import AIGovToolError, BadTensorError, MalformedError, TooLargeError
from aigovtool.sealing.interface import Datatype
from aigovtool.wire.oip import (
    ALIGNMENT,
    HEADER_LENGTH,
    KEPT_HEADS,
    InferRequest,
    Limits,
    ModelMetadata,
    RequestReader,
    TensorSignature,
    decode_infer_request,
    decode_infer_response,
    encode_infer_request,
    encode_infer_response,
    parse_header_length,
)
from aigovtool.wire.tensors import BYTES, DTYPES, Array, datatype_of

SMALL = Limits(max_body_bytes=4096, max_json_bytes=2048, max_tensors=4, max_elements=100)


def model_of(*inputs: tuple[str, str, tuple[int, ...]], outputs: Any = None) -> ModelMetadata:
    def signatures(tensors: Any) -> tuple[TensorSignature, ...]:
        return tuple(TensorSignature(name=n, datatype=d, shape=s) for n, d, s in tensors)

    return ModelMetadata(
        name="m",
        platform="onnx_onnxv1",
        inputs=signatures(inputs),
        outputs=signatures(outputs or [("y", "FP32", (-1,))]),
    )


X = model_of(("x", "FP32", (-1, 2)))


def decode_json(message: object, model: ModelMetadata = X, limits: Limits = SMALL) -> InferRequest:
    text = message if isinstance(message, bytes) else json.dumps(message).encode()
    return decode_infer_request(text, header_length=None, model=model, limits=limits)


def with_data(data: object, *, shape: Any = (1, 2), datatype: str = "FP32") -> dict[str, Any]:
    tensor = {"name": "x", "shape": shape, "datatype": datatype, "data": data}
    return {"inputs": [tensor]}


def with_binary(binary: bytes, *, shape: Any, datatype: str, size: Any = None) -> tuple[bytes, int]:
    tensor = {
        "name": "x",
        "shape": shape,
        "datatype": datatype,
        "parameters": {"binary_data_size": len(binary) if size is None else size},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + binary, len(head)


def decode_binary(binary: bytes, *, shape: Any, datatype: str, size: Any = None) -> Array:
    body, length = with_binary(binary, shape=shape, datatype=datatype, size=size)
    model = model_of(("x", datatype, (-1,) * len(shape)))
    return decode_infer_request(body, header_length=length, model=model, limits=SMALL).inputs["x"]


def same(one: Array, other: Array) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    datatype = draw(st.sampled_from(sorted(DTYPES)))
    shape = draw(shapes)
    if datatype == BYTES:
        return draw(hnp.arrays(object, shape, elements=st.binary(max_size=9), fill=st.nothing()))
    return draw(hnp.arrays(DTYPES[datatype], shape))


def without_infinities(array: Array) -> Array:
    """JSON has no infinities: `null` stands for them and for NaN, and is read as NaN."""
    if array.dtype.kind != "f":
        return array
    return np.where(np.isfinite(array), array, np.array(np.nan, array.dtype))


# --- round trips -------------------------------------------------------------------------------


@given(array=arrays())
@example(array=np.array([np.nan, np.inf, -np.inf, -0.0], np.float16))
@example(array=np.array([2**64 - 1, 0], np.uint64))
@example(array=np.array(7, np.int8))
@example(array=np.empty((0, 3), np.float32))
def test_every_tensor_survives_the_binary_form_both_ways(array: Array) -> None:
    datatype = datatype_of("x", array)
    model = model_of(("x", datatype, array.shape), outputs=[("y", datatype, array.shape)])
    sent = encode_infer_request({"x": array}, id="7")
    body = b"".join(sent.chunks)
    assert len(body) == sent.content_length == int(sent.headers["Content-Length"])

    request = decode_infer_request(body, header_length=sent.header_length, model=model)
    assert request.id == "7"
    assert same(request.inputs["x"], array)

    answer = encode_infer_response(request, {"y": request.inputs["x"]}, model_name="m")
    response = decode_infer_response(b"".join(answer.chunks), header_length=answer.header_length)
    assert (response.model_name, response.id) == ("m", "7")
    assert same(response.outputs["y"], array)


@given(array=arrays())
@example(array=np.array([2**64 - 1, 0], np.uint64))
@example(array=np.array([1e-45, 3.4e38], np.float32))
def test_every_tensor_that_json_can_carry_survives_it_both_ways(array: Array) -> None:
    datatype = datatype_of("x", array)
    if datatype == BYTES:
        array = np.array([e.hex().encode() for e in array.ravel()], object).reshape(array.shape)
    model = model_of(("x", datatype, array.shape), outputs=[("y", datatype, array.shape)])
    sent = encode_infer_request({"x": array}, outputs=["y"], binary=False)
    assert sent.header_length is None
    assert HEADER_LENGTH not in sent.headers

    request = decode_infer_request(b"".join(sent.chunks), header_length=None, model=model)
    assert same(request.inputs["x"], without_infinities(array))

    answer = encode_infer_response(request, {"y": array}, model_name="m", model_version="2")
    response = decode_infer_response(b"".join(answer.chunks), header_length=answer.header_length)
    assert response.model_version == "2"
    assert same(response.outputs["y"], without_infinities(array))


@given(array=hnp.arrays(np.int16, hnp.array_shapes(min_dims=1, max_dims=4, max_side=3)))
def test_nested_and_flat_json_are_the_same_tensor(array: Array) -> None:
    model = model_of(("x", "INT16", array.shape))
    for data in (array.tolist(), array.ravel().tolist()):
        message = with_data(data, shape=array.shape, datatype="INT16")
        assert same(decode_json(message, model).inputs["x"], array)


def test_binary_tensors_are_views_of_the_body_and_aligned() -> None:
    array = np.arange(1000, dtype=np.float64)
    sent = encode_infer_request({"x": array})
    assert sent.header_length is not None
    assert sent.header_length % ALIGNMENT == 0
    assert np.shares_memory(np.frombuffer(sent.chunks[1], np.float64), array)
    body = bytearray(b"".join(sent.chunks))
    model = model_of(("x", "FP64", (1000,)))
    got = decode_infer_request(body, header_length=sent.header_length, model=model).inputs["x"]
    assert np.shares_memory(got, np.frombuffer(body, np.uint8))
    assert got.flags.aligned


@given(st.binary(max_size=20))
def test_whoever_knows_a_head_says_of_its_data_what_others_say(tail: bytes) -> None:
    good, length = with_binary(np.float32([[1, 2]]).tobytes(), shape=(1, 2), datatype="FP32")
    knows, new = RequestReader(X, SMALL), RequestReader(X, SMALL)
    assert knows.read(good, header_length=length).inputs["x"].tolist() == [[1, 2]]

    def said(reader: RequestReader) -> object:
        try:
            return reader.read(good[:length] + tail, header_length=length).inputs["x"].tobytes()
        except AIGovToolError as error:
            return type(error), error.code, str(error)

    assert said(knows) == said(new)


def test_of_a_head_with_something_of_one_query_nothing_is_kept() -> None:
    reader, data = RequestReader(X, SMALL), np.float32([[1, 2]]).tobytes()
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32"}
    sized = {**tensor, "parameters": {"binary_data_size": 8}}
    for message in (
        {"id": "mine", "inputs": [sized]},
        {"inputs": [sized], "parameters": {"mine": "x"}},
        {"inputs": [{**sized, "parameters": {"binary_data_size": 8, "mine": 1}}]},
    ):
        head = json.dumps(message).encode()
        got = reader.read(head + data, header_length=len(head))
        assert (got.id, got.parameters) == (message.get("id", ""), message.get("parameters", {}))
    head = json.dumps({"inputs": [{**tensor, "data": [3, 4]}]}).encode()
    assert reader.read(head, header_length=len(head)).inputs["x"].tolist() == [[3, 4]]
    assert reader._kept == {}


def test_heads_that_are_kept_are_bounded() -> None:
    reader = RequestReader(X)
    for rows in range(1, 3 * KEPT_HEADS):
        body, length = with_binary(bytes(8 * rows), shape=(rows, 2), datatype="FP32")
        assert reader.read(body, header_length=length).inputs["x"].shape == (rows, 2)
        assert len(reader._kept) <= KEPT_HEADS


def test_binary_data_at_an_odd_place_is_copied_to_an_even_one() -> None:
    binary = np.arange(4, dtype=np.float32).tobytes()
    for pad in range(4):
        tensor = {"name": "x", "shape": [4], "datatype": "FP32"}
        head = (
            json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": 16}}]}).encode()
            + b" " * pad
        )
        model = model_of(("x", "FP32", (4,)))
        got = decode_infer_request(head + binary, header_length=len(head), model=model).inputs["x"]
        assert got.flags.aligned
        assert got.tolist() == [0, 1, 2, 3]


def test_big_endian_and_strided_arrays_are_sent_in_the_protocol_s_order() -> None:
    array = np.arange(12, dtype=">i4").reshape(3, 4)[:, ::2]
    sent = encode_infer_request({"x": array})
    assert bytes(sent.chunks[1]) == struct.pack("<6i", 0, 2, 4, 6, 8, 10)


def test_the_example_of_the_binary_extension_is_read_as_it_says() -> None:
    """triton-inference-server, extension_binary_data.md, Examples."""
    head = b"""{
      "model_name" : "mymodel",
      "inputs" : [
        { "name" : "input0", "shape" : [ 2, 2 ], "datatype" : "UINT32",
          "parameters" : { "binary_data_size" : 16 } },
        { "name" : "input1", "shape" : [ 3 ], "datatype" : "BOOL",
          "parameters" : { "binary_data_size" : 3 } }
      ],
      "outputs" : [ { "name" : "output0", "parameters" : { "binary_data" : true } } ]
    }"""
    model = model_of(
        ("input0", "UINT32", (2, 2)),
        ("input1", "BOOL", (3,)),
        outputs=[("output0", "FP32", (3, 2)), ("other", "FP32", (1,))],
    )
    body = head + struct.pack("<4I", 1, 2, 3, 2**32 - 1) + b"\x01\x00\x01"
    request = decode_infer_request(body, header_length=len(head), model=model)
    assert request.inputs["input0"].tolist() == [[1, 2], [3, 2**32 - 1]]
    assert request.inputs["input1"].tolist() == [True, False, True]
    answer = encode_infer_response(
        request, {"output0": np.zeros((3, 2), np.float32)}, model_name="mymodel"
    )
    assert answer.header_length is not None
    assert answer.content_length == answer.header_length + 24
    assert answer.headers[HEADER_LENGTH] == str(answer.header_length)
    assert json.loads(bytes(answer.chunks[0]))["outputs"] == [
        {
            "name": "output0",
            "shape": [3, 2],
            "datatype": "FP32",
            "parameters": {"binary_data_size": 24},
        }
    ]


def test_outputs_come_in_the_form_asked_for_one_by_one() -> None:
    model = model_of(("x", "FP32", (-1, 2)), outputs=[("a", "FP32", (1,)), ("b", "FP32", (1,))])
    message = with_data([1, 2]) | {
        "parameters": {"binary_data_output": True, "priority": 3},
        "outputs": [{"name": "b", "parameters": {"binary_data": False}}, {"name": "a"}],
    }
    request = decode_json(message, model)
    assert [(one.name, one.binary) for one in request.outputs] == [("b", False), ("a", True)]
    assert request.parameters["priority"] == 3
    one = np.ones(1, np.float32)
    answer = encode_infer_response(request, {"a": one, "b": one}, model_name="m")
    first, second = json.loads(bytes(answer.chunks[0]))["outputs"]
    assert first["data"] == [1.0]
    assert second["parameters"] == {"binary_data_size": 4}


def test_a_request_without_outputs_gets_all_of_them_as_json() -> None:
    request = decode_json(with_data([[1, 2]]) | {"id": None, "parameters": None, "outputs": None})
    assert [(one.name, one.binary) for one in request.outputs] == [("y", False)]
    assert request.id == ""


def test_null_is_nan_in_floats_and_nothing_elsewhere() -> None:
    assert np.isnan(decode_json(with_data([None, 1.5])).inputs["x"][0, 0])
    with pytest.raises(BadTensorError):
        decode_json(with_data([None], shape=[1], datatype="INT8"), model_of(("x", "INT8", (1,))))


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("INT32", [1.5]),
        ("INT32", [1.0]),
        ("INT32", [True]),
        ("INT32", ["1"]),
        ("FP32", [True]),
        ("FP32", ["1.5"]),
        ("FP32", [1e39]),
        ("FP16", [70000]),
        ("UINT8", [256]),
        ("UINT8", [-1]),
        ("INT64", [2**63]),
        ("INT64", [10**400]),
        ("BOOL", [1]),
        ("BYTES", [1]),
        ("BYTES", [None]),
        ("FP32", [[1.0]]),
        ("FP32", []),
        ("FP32", [1.0, 2.0]),
        ("FP32", 1.0),
        ("FP32", {"a": 1}),
        ("FP32", "AAAA"),
    ],
)
def test_a_value_is_never_bent_to_fit(datatype: str, data: object) -> None:
    model = model_of(("x", datatype, (1,)))
    with pytest.raises(BadTensorError):
        decode_json(with_data(data, shape=[1], datatype=datatype), model)


def test_rows_of_different_lengths_are_refused() -> None:
    for datatype, one in (("FP32", 1.0), ("BYTES", "a")):
        model = model_of(("x", datatype, (2, 2)))
        message = with_data([[one], [one, one, one]], shape=[2, 2], datatype=datatype)
        with pytest.raises(BadTensorError):
            decode_json(message, model)


@pytest.mark.parametrize("shape", [(1, 3), (2,), (1, 1, 2), ()])
def test_a_shape_unlike_the_model_s_is_refused_and_both_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadTensorError) as caught:
        decode_json(with_data([0.0] * int(np.prod(shape)), shape=shape))
    assert caught.value.reasons[0].expected == "FP32 [-1, 2] (-1 is any length)"
    assert caught.value.reasons[0].came == f"FP32 {list(shape)}"


@pytest.mark.parametrize(
    ("shape", "error"),
    [
        ([-1, 2], BadTensorError),
        ([2**62, 2], TooLargeError),
        ([2**64, 2], TooLargeError),
        ([1.0, 2], MalformedError),
        ([True, 2], MalformedError),
        (["1", 2], MalformedError),
        ([None, 2], MalformedError),
        ("12", MalformedError),
        ({}, MalformedError),
    ],
)
def test_sizes_that_are_not_sizes_are_refused(shape: object, error: type[AIGovToolError]) -> None:
    with pytest.raises(error):
        decode_json(with_data([1, 2], shape=shape))


def test_an_empty_tensor_with_a_huge_dimension_is_refused() -> None:
    """numpy and onnxruntime multiply dimensions in 64 bits, where [0, 2**62] wraps."""
    model = model_of(("x", "FP32", (-1, -1)))
    with pytest.raises(TooLargeError):
        decode_json(with_data([], shape=[0, 2**62]), model)
    assert decode_json(with_data([], shape=[0, 3]), model).inputs["x"].shape == (0, 3)
    with pytest.raises(BadTensorError):
        decode_json(with_data([1], shape=[0, 3]), model)


def test_a_tensor_of_many_more_numbers_than_it_states_is_refused_unread() -> None:
    with pytest.raises(BadTensorError) as caught:
        decode_json(with_data([0] * 500))
    assert caught.value.reasons[0].came == "500 elements"


@pytest.mark.parametrize("size", [7, 9, 0, -8, 2**70, 8.0, "8", True])
def test_binary_sizes_that_do_not_add_up_are_refused(size: object) -> None:
    with pytest.raises((MalformedError, BadTensorError)):
        decode_binary(bytes(8), shape=[2], datatype="FP32", size=size)


def test_binary_data_that_no_tensor_names_is_refused() -> None:
    body, length = with_binary(bytes(8), shape=[1, 2], datatype="FP32")
    for tail in (b"\0", bytes(8)):
        with pytest.raises(MalformedError):
            decode_infer_request(body + tail, header_length=length, model=X)


@pytest.mark.parametrize("delta", [-1, 1, 10_000])
def test_a_wrong_header_length_is_refused(delta: int) -> None:
    body, length = with_binary(bytes(8), shape=[1, 2], datatype="FP32")
    with pytest.raises(MalformedError):
        decode_infer_request(body, header_length=length + delta, model=X)
    with pytest.raises(MalformedError):
        decode_infer_request(body, header_length=None, model=X)
    with pytest.raises(MalformedError):
        decode_infer_request(body, header_length=0, model=X)


@pytest.mark.parametrize(
    "value", ["", "-1", "+1", "1.0", " 1", "1_0", "0x1", "٣", "9" * 19, b"\xff"]
)
def test_a_header_length_is_decimal_digits(value: str | bytes) -> None:
    with pytest.raises(MalformedError):
        parse_header_length(value)
    assert parse_header_length(b"120") == 120
    assert parse_header_length(None) is None


def test_a_boolean_of_two_is_refused() -> None:
    with pytest.raises(BadTensorError):
        decode_binary(b"\x00\x02", shape=[2], datatype="BOOL")


@pytest.mark.parametrize(
    "binary",
    [
        b"",
        b"\x01\x00\x00\x00",
        b"\x01\x00\x00\x00a",
        b"\x01\x00\x00\x00a\x00\x00\x00",
        b"\x01\x00\x00\x00a\xff\xff\xff\xff",
        b"\x01\x00\x00\x00a\x00\x00\x00\x00b",
        b"\x09\x00\x00\x00aaaaaa",
    ],
)
def test_lengths_of_elements_that_do_not_add_up_are_refused(binary: bytes) -> None:
    with pytest.raises(BadTensorError):
        decode_binary(binary, shape=[2], datatype="BYTES")


def test_both_or_neither_form_of_data_is_refused() -> None:
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32"}
    both = tensor | {"data": [1, 2], "parameters": {"binary_data_size": 8}}
    for one in (tensor, both):
        with pytest.raises(MalformedError):
            decode_json({"inputs": [one]})


def test_unknown_missing_and_repeated_tensors_are_refused() -> None:
    message = with_data([1, 2])
    (tensor,) = message["inputs"]
    for inputs, code in (
        ([], "bad_tensor.missing"),
        ([tensor, tensor], "bad_tensor.duplicate"),
        ([tensor | {"name": "z"}], "bad_tensor.unknown"),
        ([tensor | {"datatype": "FP64"}], "bad_tensor.signature"),
        ([tensor | {"datatype": "BF16"}], "bad_tensor.signature"),
    ):
        with pytest.raises(BadTensorError) as caught:
            decode_json({"inputs": inputs})
        assert caught.value.reasons[0].code == code
    for outputs in ([{"name": "z"}], [{"name": "y"}, {"name": "y"}]):
        with pytest.raises(BadTensorError):
            decode_json(message | {"outputs": outputs})


def test_a_model_with_an_unserved_datatype_is_refused_and_not_guessed() -> None:
    with pytest.raises(BadTensorError) as caught:
        decode_binary(bytes(4), shape=[2], datatype="BF16")
    assert caught.value.reasons[0].code == "bad_tensor.datatype"


def test_parameters_that_change_what_an_answer_means_are_refused() -> None:
    message = with_data([1, 2])
    (tensor,) = message["inputs"]
    shared = {"name": "x", "shape": [1, 2], "datatype": "FP32"} | {
        "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 8}
    }
    for refused in (
        {"inputs": [shared]},
        message | {"parameters": {"sequence_id": 7, "sequence_start": True}},
        message | {"outputs": [{"name": "y", "parameters": {"classification": 0}}]},
        message | {"outputs": [{"name": "y", "parameters": {"classification": True}}]},
    ):
        with pytest.raises(BadTensorError) as caught:
            decode_json(refused)
        assert caught.value.reasons[0].code == "bad_tensor.parameter"
    for broken in (
        message | {"parameters": {"binary_data_output": 1}},
        message | {"parameters": {"nested": {"a": 1}}},
        message | {"unknown": 1},
        {"inputs": [tensor | {"unknown": 1}]},
    ):
        with pytest.raises(MalformedError):
            decode_json(broken)


def test_each_limit_holds() -> None:
    big = np.zeros((51, 2), np.float32)
    sent = encode_infer_request({"x": big})
    with pytest.raises(TooLargeError):  # elements
        decode_infer_request(
            b"".join(sent.chunks), header_length=sent.header_length, model=X, limits=SMALL
        )
    with pytest.raises(TooLargeError):  # JSON
        decode_json(json.dumps(with_data([1, 2])).encode() + b" " * 2048)
    with pytest.raises(TooLargeError):  # body
        decode_infer_request(bytes(4097), header_length=1, model=X, limits=SMALL)
    with pytest.raises(TooLargeError):  # tensors
        decode_json({"inputs": with_data([1, 2])["inputs"] * 5})
    with pytest.raises(TooLargeError):  # outputs
        decode_json(with_data([1, 2]) | {"outputs": [{"name": "y"}] * 5})
    with pytest.raises(BadTensorError):  # dimensions
        decode_json(with_data([1], shape=[1] * 17), model_of(("x", "FP32", (1,) * 17)))


def test_bytes_that_are_not_text_do_not_go_into_json() -> None:
    with pytest.raises(BadTensorError) as caught:
        encode_infer_request({"x": np.array([b"\xff"], object)}, binary=False)
    assert caught.value.reasons[0].code == "bad_tensor.not_text"


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(1, np.complex64),
        np.zeros(1, "M8[s]"),
        np.array([object()], object),
        np.array([3], object),
        np.array(["\ud800"], object),
    ],
)
def test_arrays_that_the_protocol_cannot_carry_are_refused(array: Array) -> None:
    with pytest.raises(BadTensorError):
        encode_infer_request({"x": array})


# --- anything at all ---------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["name", "shape", "datatype", "parameters", "data", "binary_data_size"]
            ),
            inner,
        )
    ),
    max_leaves=12,
)
tensor_like = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("x") | json_values,
        "shape": st.lists(st.integers(-2, 5), max_size=3) | json_values,
        "datatype": st.sampled_from([*DTYPES, "BF16"]) | json_values,
        "data": st.lists(json_values, max_size=4) | json_values,
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "binary_data"]), st.integers(-1, 20)
        )
        | json_values,
    },
)


@given(
    message=st.fixed_dictionaries(
        {"inputs": st.lists(tensor_like, max_size=2) | json_values},
        optional={"outputs": json_values, "parameters": json_values, "id": json_values},
    ),
    tail=st.binary(max_size=20),
    datatype=st.sampled_from(sorted(DTYPES)),
    framed=st.booleans(),
)
def test_only_our_errors_leave_whatever_object_comes(
    message: object, tail: bytes, datatype: str, framed: bool
) -> None:
    head = json.dumps(message).encode()
    model = model_of(("x", datatype, (-1,)))
    length = len(head) if framed else None
    try:
        request = decode_infer_request(head + tail, header_length=length, model=model, limits=SMALL)
    except AIGovToolError:
        return
    assert set(request.inputs) == {"x"}
    assert request.inputs["x"].ndim == 1
    assert datatype_of("x", request.inputs["x"]) == datatype


@given(data=st.data())
def test_only_our_errors_leave_whatever_is_flipped_cut_or_added(data: st.DataObject) -> None:
    sent = encode_infer_request({"x": np.array([b"a", b"bc"], object)}, outputs=["y"])
    body = bytearray(b"".join(sent.chunks))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    damaged = bytes(body[:cut]) + data.draw(st.binary(max_size=5))
    model = model_of(("x", "BYTES", (-1,)))
    for length in (sent.header_length, None):
        for decode in (
            lambda: decode_infer_request(damaged, header_length=length, model=model, limits=SMALL),  # noqa: B023
            lambda: decode_infer_response(damaged, header_length=length, limits=SMALL),  # noqa: B023
        ):
            try:
                decode()
            except AIGovToolError:
                continue


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[" * 100_000,
        b'{"inputs":' + b"[" * 100_000,
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":' + b"[" * 100_000,
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[NaN,1]}]}',
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1e999,1]}]}',
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,"\xff"]}]}',
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,'
        + b"9" * 10_000
        + b"]}]}",
    ],
    ids=range(10),
)
def test_hostile_text_is_refused_by_our_errors(body: bytes) -> None:
    with pytest.raises(AIGovToolError):
        decode_infer_request(body, header_length=None, model=X)


def test_the_sealed_manifest_and_the_wire_know_the_same_datatypes() -> None:
    """`sealing` and `wire` may not import each other, so that a test holds them together."""
    assert set(get_args(Datatype)) == set(DTYPES)


# --- other people's clients ----------------------------------------------------------------------


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_and_we_understand_each_other(binary: bool) -> None:
    http = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    tensors = {
        "n": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([True, False]),
        "s": np.array([b"caf\xc3\xa9", b""], np.object_),
    }
    inputs = []
    for name, array in tensors.items():
        one = http.InferInput(name, list(array.shape), datatype_of(name, array))
        one.set_data_from_numpy(array, binary_data=binary)
        inputs.append(one)
    outputs = [http.InferRequestedOutput(f"{name}_out", binary_data=binary) for name in tensors]
    body, header_length = http.InferenceServerClient.generate_request_body(
        inputs, outputs=outputs, request_id="r1"
    )
    described = [(n, datatype_of(n, a), a.shape) for n, a in tensors.items()]
    model = model_of(*described, outputs=[(f"{n}_out", d, s) for n, d, s in described])
    request = decode_infer_request(body, header_length=header_length, model=model)
    assert request.id == "r1"
    for name, array in tensors.items():
        assert same(request.inputs[name], array)

    answer = encode_infer_response(
        request, {f"{n}_out": a for n, a in request.inputs.items()}, model_name="m"
    )
    result = http.InferenceServerClient.parse_response_body(
        b"".join(answer.chunks), header_length=answer.header_length
    )
    for name, array in tensors.items():
        expected = array.tolist()
        if name == "s" and not binary:  # tritonclient leaves JSON text as str
            expected = [element.decode() for element in expected]
        assert result.as_numpy(f"{name}_out").tolist() == expected
