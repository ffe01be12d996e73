"""
Every message of ``inference.GRPCInferenceService``, as the HTTP request that it is, and back.

gRPC is a second way to say the same. Both ends serve it by their HTTP side, so that a query is
admitted, charged, computed and receipted in one place, and needs no second TLS identity judged.

Rule 1: tensors become the binary data of one HTTP body, which is the one copy that this costs.
Rule 2: a query has raw contents for every input or for none, and typed contents only in the list
        of its datatype; a number that its datatype cannot hold is refused, not bent.
Rule 3: outputs go back as raw contents, all of them.

Sources: kserve/open-inference-protocol, `inference_grpc.md`; field numbers in `oip.proto`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from google.protobuf.message import DecodeError

from aigovtool.errors import BadTensorError, MalformedError, NotFoundError
from aigovtool.wire.codec import decode
from aigovtool.wire.grpc import oip_pb2 as pb
from aigovtool.wire.oip import (
    ALIGNMENT,
    BINARY_TYPE,
    HEADER_LENGTH,
    JSON_TYPE,
    IndexEntry,
    IndexRequest,
    ModelMetadata,
    ServerMetadata,
    parse_header_length,
)
from aigovtool.wire.tensors import BYTES, DTYPES, LENGTH_PREFIX

SERVICE: Final = "inference.GRPCInferenceService"

_LISTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # of any model that can be sealed
_OK = 200
_NOT_READY = {"ServerReady": (503,), "ModelReady": (404, 503)}
_BINARY_SIZE = "binary_data_size"
_MAX_ANSWER_HEAD_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """What to ask over HTTP; *headers* describe the body and nothing else."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """What came back; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Tensor(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, str | int | float | bool] = {}


class _Response(msgspec.Struct, frozen=True, kw_only=True):
    model_name: str
    model_version: str = ""
    id: str = ""
    outputs: tuple[_Tensor, ...]


# --- what is asked ------------------------------------------------------------------------------


def to_http(method: str, message: bytes) -> HttpRequest:
    """
    Return the HTTP request for a call of *method*, one of `METHODS`.

    Raises:
        MalformedError: *message* is not the method's request, or breaks Rule 2.
        BadTensorError: contents that their datatype cannot hold.
        NotFoundError: what it names is no name of a model.
    """
    kind, make = _ASK[method]
    try:
        request = kind.FromString(message)
    except DecodeError:
        raise MalformedError(f"not a {kind.DESCRIPTOR.name}") from None
    asked: HttpRequest = make(request)
    return asked


def _get(path: str) -> HttpRequest:
    return HttpRequest(method="GET", path=path)


def _model_path(name: str, version: str, rest: str = "") -> str:
    if not _NAME.fullmatch(name) or (version and not _NAME.fullmatch(version)):
        raise NotFoundError("no such model here")  # nor a path that could lead elsewhere
    return f"/v2/models/{name}" + (f"/versions/{version}" if version else "") + rest


def _index(request: Any) -> HttpRequest:
    body = msgspec.json.encode(IndexRequest(ready=request.ready))
    return HttpRequest(
        method="POST", path="/v2/repository/index", headers=_described(JSON_TYPE), body=body
    )


def _infer(request: Any) -> HttpRequest:
    raw = list(request.raw_input_contents)
    if not raw:
        raw = [_contents(tensor) for tensor in request.inputs]
    elif len(raw) != len(request.inputs) or any(one.HasField("contents") for one in request.inputs):
        raise MalformedError(
            "raw contents are not those of the inputs",
            expected="one for each input, and no other contents",
            came=f"{len(raw)} for {len(request.inputs)} inputs",
        )
    head: dict[str, Any] = {
        "id": request.id,
        "parameters": _parameters(request.parameters) | {"binary_data_output": True},
        "inputs": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "datatype": tensor.datatype,
                "parameters": _parameters(tensor.parameters) | {_BINARY_SIZE: len(data)},
            }
            for tensor, data in zip(request.inputs, raw, strict=True)
        ],
    }
    if request.outputs:
        head["outputs"] = [
            {
                "name": output.name,
                "parameters": _parameters(output.parameters) | {"binary_data": True},
            }
            for output in request.outputs
        ]
    first = msgspec.json.encode(head)
    first += b" " * (-len(first) % ALIGNMENT)
    return HttpRequest(
        method="POST",
        path=_model_path(request.model_name, request.model_version, "/infer"),
        headers=(*_described(BINARY_TYPE), (HEADER_LENGTH.lower(), str(len(first)))),
        body=b"".join([first, *raw]),
    )


def _described(kind: str) -> tuple[tuple[str, str], ...]:
    return (("content-type", kind),)


def _parameters(given: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    found = {}
    for name, parameter in given.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise MalformedError("a parameter has no value")
        found[name] = getattr(parameter, choice)
    return found


def _contents(tensor: Any) -> bytes:
    """Return the typed contents of *tensor* as binary data."""
    name = _LISTS.get(tensor.datatype)
    others = [field.name for field, _ in tensor.contents.ListFields() if field.name != name]
    if name is None or others:
        raise MalformedError(
            f"the input {tensor.name!r} has no contents for its datatype",
            expected=f"raw_input_contents, or {name or 'a datatype that has typed contents'}",
            came=tensor.datatype if name is None else ", ".join(others),
        )
    values = getattr(tensor.contents, name)
    if tensor.datatype == BYTES:
        return b"".join(part for one in values for part in (LENGTH_PREFIX.pack(len(one)), one))
    dtype = DTYPES[tensor.datatype]
    if dtype.kind in "fb":
        return np.array(values, dtype).tobytes()
    wide = np.array(values, np.uint64 if dtype.kind == "u" else np.int64)
    limits = np.iinfo(dtype)
    if wide.size and (wide.min() < limits.min or wide.max() > limits.max):
        raise BadTensorError(
            f"tensor {tensor.name!r} has a number that {tensor.datatype} cannot hold",
            code="bad_tensor.value",
        )
    return wide.astype(dtype).tobytes()


# --- what is answered ---------------------------------------------------------------------------


def from_http(method: str, answer: HttpAnswer) -> bytes:
    """
    Return the response of *method* that *answer* is, which `is_answer` says it is.

    Raises:
        MalformedError, TooLargeError: *answer* is not what such a server gives.
    """
    response: bytes = _ANSWER[method](answer).SerializeToString()
    return response


def is_answer(method: str, status: int) -> bool:
    """Whether an HTTP *status* is an answer of *method*: to be not ready is one, and no error."""
    return status == _OK or status in _NOT_READY.get(method, ())


def _server(answer: HttpAnswer) -> Any:
    found = decode(answer.body, ServerMetadata)
    return pb.ServerMetadataResponse(
        name=found.name, version=found.version, extensions=found.extensions
    )


def _model(answer: HttpAnswer) -> Any:
    found = decode(answer.body, ModelMetadata)
    tensor = pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=found.name,
        versions=found.versions,
        platform=found.platform,
        inputs=[tensor(name=x.name, datatype=x.datatype, shape=x.shape) for x in found.inputs],
        outputs=[tensor(name=x.name, datatype=x.datatype, shape=x.shape) for x in found.outputs],
    )


def _indexed(answer: HttpAnswer) -> Any:
    models = decode(answer.body, tuple[IndexEntry, ...])
    entry = pb.RepositoryIndexResponse.ModelIndex
    return pb.RepositoryIndexResponse(
        models=[
            entry(name=one.name, version=one.version, state=one.state, reason=one.reason)
            for one in models
        ]
    )


def _inferred(answer: HttpAnswer) -> Any:
    body = memoryview(answer.body)
    length = parse_header_length(answer.headers.get(HEADER_LENGTH.lower()))
    length = len(body) if length is None else length
    found = decode(body[:length], _Response, max_bytes=_MAX_ANSWER_HEAD_BYTES)
    tensor = pb.ModelInferResponse.InferOutputTensor
    return pb.ModelInferResponse(
        model_name=found.model_name,
        model_version=found.model_version,
        id=found.id,
        outputs=[tensor(name=x.name, datatype=x.datatype, shape=x.shape) for x in found.outputs],
        raw_output_contents=list(_raw(found.outputs, body[length:])),
    )


def _raw(outputs: Iterable[_Tensor], data: memoryview) -> Iterable[bytes]:
    start = 0
    for output in outputs:
        size = output.parameters.get(_BINARY_SIZE)
        if type(size) is not int or not 0 <= size <= len(data) - start:
            raise MalformedError(f"the answer has no binary data for output {output.name!r}")
        yield bytes(data[start : start + size])
        start += size


_ASK: dict[str, tuple[Any, Any]] = {
    "ServerLive": (pb.ServerLiveRequest, lambda _: _get("/v2/health/live")),
    "ServerReady": (pb.ServerReadyRequest, lambda _: _get("/v2/health/ready")),
    "ModelReady": (
        pb.ModelReadyRequest,
        lambda request: _get(_model_path(request.name, request.version, "/ready")),
    ),
    "ServerMetadata": (pb.ServerMetadataRequest, lambda _: _get("/v2")),
    "ModelMetadata": (
        pb.ModelMetadataRequest,
        lambda request: _get(_model_path(request.name, request.version)),
    ),
    "ModelInfer": (pb.ModelInferRequest, _infer),
    "RepositoryIndex": (pb.RepositoryIndexRequest, _index),
}
_ANSWER: dict[str, Any] = {
    "ServerLive": lambda _: pb.ServerLiveResponse(live=True),
    "ServerReady": lambda answer: pb.ServerReadyResponse(ready=answer.status == _OK),
    "ModelReady": lambda answer: pb.ModelReadyResponse(ready=answer.status == _OK),
    "ServerMetadata": _server,
    "ModelMetadata": _model,
    "ModelInfer": _inferred,
    "RepositoryIndex": _indexed,
}
METHODS: Final = tuple(_ASK)
