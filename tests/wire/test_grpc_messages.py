"""gRPC messages: made of their text, numbered as the protocol has them, never half understood."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

import aigovtool
from aigovtool.errors import AIGovToolError, BadTensorError, MalformedError
from aigovtool.wire.grpc import oip_pb2 as pb
from aigovtool.wire.grpc.translate import METHODS, HttpAnswer, from_http, is_answer, to_http
from aigovtool.wire.oip import (
    HEADER_LENGTH,
    ModelMetadata,
    TensorSignature,
    decode_infer_request,
    encode_infer_response,
)
from aigovtool.wire.tensors import BYTES, DTYPES

SOURCE = Path(aigovtool.__file__).parent.parent
PROTO = "aigovtool/wire/grpc/oip.proto"
LISTS = {
    "BOOL": ("bool_contents", [True, False]),
    "INT8": ("int_contents", [-128, 127]),
    "INT16": ("int_contents", [-(2**15), 2**15 - 1]),
    "INT32": ("int_contents", [-(2**31), 2**31 - 1]),
    "INT64": ("int64_contents", [-(2**63), 2**63 - 1]),
    "UINT8": ("uint_contents", [0, 255]),
    "UINT16": ("uint_contents", [0, 2**16 - 1]),
    "UINT32": ("uint_contents", [0, 2**32 - 1]),
    "UINT64": ("uint64_contents", [0, 2**64 - 1]),
    "FP32": ("fp32_contents", [0.5, -1.5]),
    "FP64": ("fp64_contents", [0.1, -1e300]),
    BYTES: ("bytes_contents", [b"", b"\xff\x00"]),
}


def test_what_is_checked_in_is_what_the_text_makes(tmp_path: Path) -> None:
    made = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi")]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{SOURCE}", *made, PROTO],
        cwd=SOURCE,
        check=True,
        timeout=60,
    )
    for name in ("oip_pb2.py", "oip_pb2.pyi"):
        part = Path(PROTO).with_name(name)
        assert (tmp_path / part).read_text() == (SOURCE / part).read_text(), "run `make protos`"


def test_every_field_has_the_number_and_the_type_that_other_clients_give_it() -> None:
    def same(ours: object, theirs: object) -> None:
        assert ours.name == theirs.name
        numbers = {field.number: field for field in theirs.fields}
        for field in ours.fields:
            other = numbers.pop(field.number)
            assert (field.name, field.type, field.is_repeated) == (
                other.name, other.type, other.is_repeated,
            )  # fmt: skip
            if field.message_type is not None:
                same(field.message_type, other.message_type)
        assert not numbers, f"{ours.name} lacks fields"

    for name, ours in pb.DESCRIPTOR.message_types_by_name.items():
        same(ours, service_pb2.DESCRIPTOR.message_types_by_name[name])


def model_of(*inputs: tuple[str, str, tuple[int, ...]]) -> ModelMetadata:
    tensors = tuple(TensorSignature(name=n, datatype=d, shape=s) for n, d, s in inputs)
    return ModelMetadata(
        name="m", platform="onnx", versions=("1",), inputs=tensors, outputs=tensors
    )


def tensor(name: str, datatype: str, shape: list[int], **contents: object) -> object:
    made = pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    if contents:
        made.contents.CopyFrom(pb.InferTensorContents(**contents))
    return made


def asked(request: object) -> object:
    return to_http("ModelInfer", request.SerializeToString())


def header_length(headers: object) -> int:
    return int(dict(headers)[HEADER_LENGTH.lower()])


@pytest.mark.parametrize("datatype", sorted(LISTS))
def test_typed_contents_are_the_tensor_and_come_back_raw(datatype: str) -> None:
    field, values = LISTS[datatype]
    http = asked(
        pb.ModelInferRequest(
            model_name="m", id="7", inputs=[tensor("x", datatype, [2], **{field: values})]
        )
    )
    model = model_of(("x", datatype, (2,)))
    query = decode_infer_request(http.body, header_length=header_length(http.headers), model=model)
    assert query.inputs["x"].tolist() == values
    encoded = encode_infer_response(query, query.inputs, model_name="m", model_version="1")
    answer = HttpAnswer(
        status=200,
        headers={name.lower(): text for name, text in encoded.headers.items()},
        body=b"".join(encoded.chunks),
    )
    response = pb.ModelInferResponse.FromString(from_http("ModelInfer", answer))
    assert (response.id, response.outputs[0].datatype) == ("7", datatype)
    size = (
        sum(4 + len(one) for one in values) if datatype == BYTES else 2 * DTYPES[datatype].itemsize
    )
    assert len(response.raw_output_contents[0]) == size


@pytest.mark.parametrize(
    ("datatype", "value"), [("INT8", 128), ("INT8", -129), ("UINT8", 256), ("UINT16", 1 << 16)]
)
def test_a_number_is_never_bent_to_fit(datatype: str, value: int) -> None:
    field, _ = LISTS[datatype]
    request = pb.ModelInferRequest(
        model_name="m", inputs=[tensor("x", datatype, [1], **{field: [value]})]
    )
    with pytest.raises(BadTensorError):
        asked(request)


def test_half_precision_has_raw_contents_only() -> None:
    inputs = [tensor("x", "FP16", [1])]
    with pytest.raises(MalformedError):
        asked(pb.ModelInferRequest(model_name="m", inputs=inputs))
    raw = np.array([0.5], np.float16).tobytes()
    assert asked(pb.ModelInferRequest(model_name="m", inputs=inputs, raw_input_contents=[raw]))


def test_scalars_and_empty_tensors() -> None:
    model = model_of(("a", "FP32", ()), ("b", "INT64", (0, 3)))
    inputs = [tensor("a", "FP32", []), tensor("b", "INT64", [0, 3])]
    raw = [np.float32(7).tobytes(), b""]
    http = asked(pb.ModelInferRequest(model_name="m", inputs=inputs, raw_input_contents=raw))
    query = decode_infer_request(http.body, header_length=header_length(http.headers), model=model)
    assert (query.inputs["a"].shape, query.inputs["a"].item()) == ((), 7.0)
    assert query.inputs["b"].shape == (0, 3)


def test_not_to_be_ready_is_an_answer_and_no_error() -> None:
    gone = HttpAnswer(status=503, headers={}, body=b"")
    assert is_answer("ServerReady", 503)
    assert not pb.ServerReadyResponse.FromString(from_http("ServerReady", gone)).ready
    assert is_answer("ModelReady", 404)
    assert not is_answer("ModelReady", 401)
    assert not is_answer("ModelInfer", 404)


@given(method=st.sampled_from(METHODS), data=st.binary(max_size=200))
def test_no_bytes_make_more_than_an_error_of_ours(method: str, data: bytes) -> None:
    try:
        http = to_http(method, data)
    except AIGovToolError:
        return
    assert http.path.startswith("/v2")
    assert ".." not in http.path


@given(
    name=st.text(max_size=20),
    version=st.text(max_size=20),
    size=st.integers(-(2**63), 2**63 - 1),
    raw=st.lists(st.binary(max_size=8), max_size=3),
)
def test_no_message_makes_more_than_an_error_of_ours(
    name: str, version: str, size: int, raw: list[bytes]
) -> None:
    request = pb.ModelInferRequest(
        model_name=name,
        model_version=version,
        inputs=[tensor(name, "FP32", [size])],
        raw_input_contents=raw,
    )
    request.parameters["binary_data_output"].bool_param = False
    request.inputs[0].parameters["binary_data_size"].int64_param = size
    try:
        http = asked(request)
    except AIGovToolError:
        return
    assert http.body.endswith(b"".join(raw))
    assert http.path.count("/") == (6 if version else 4)
