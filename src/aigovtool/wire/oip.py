"""
The Open Inference Protocol v2 with the binary tensor extension: both sides of ``/v2``.

A message is a JSON object; tensors may follow it as bytes, in the order in which the object names
them, and then the header ``Inference-Header-Content-Length`` gives the length of the object.

Rule 1: what is not understood is refused. Shared memory, sequences and raw-binary requests change
        what an answer means, so that they are an error and not ignored.
Rule 2: broken framing is `MalformedError` (400); a tensor that does not fit the model is
        `BadTensorError` (422); what passes a limit is `TooLargeError` (413).
Rule 3: what we encode puts the bytes of its first binary tensor at a multiple of `ALIGNMENT`,
        by spaces after the object, so that the reader needs no copy.

Sources: kserve/open-inference-protocol, `inference_rest.md`; triton-inference-server,
`extension_binary_data.md`, `extension_classification.md`, `extension_sequence.md`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Final, Generic, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from aigovtool.errors import AIGovToolError, BadTensorError, MalformedError, TooLargeError
from aigovtool.wire.classification import (
    CLASSIFICATION,
    best_classes,
    check_classes,
    has_scores,
)
from aigovtool.wire.coarse import rounded
from aigovtool.wire.codec import Message, decode
from aigovtool.wire.simd import LEAST_BYTES, MARK, DoubtError, Numbers
from aigovtool.wire.tensors import (
    BYTES,
    Array,
    count_elements,
    datatype_of,
    from_binary,
    from_json,
    to_binary,
    to_json,
)

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
BINARY_EXTENSION: Final = "binary_tensor_data"
JSON_TYPE: Final = "application/json"
BINARY_TYPE: Final = "application/octet-stream"
ALIGNMENT = 64  # bytes; the widest vector registers, and more than any element needs
KEPT_HEADS = 64  # of each `RequestReader`, and of answers
MAX_KEPT_BYTES = 4 << 10  # of a head that is kept

_REFUSED_PARAMETERS = {"shared_memory_region": "an enclave shares no memory with its consumers"}
_SEQUENCE = "sequence_id"
_SIZE = "binary_data_size"
_BINARY_OUTPUT = "binary_data_output"
_FRAMING = frozenset({_BINARY_OUTPUT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """
    What one message may be. The defaults take four COVID-Net images at once as JSON.

    Args:
        max_body_bytes: of the whole message.
        max_json_bytes: of its JSON object, which takes up to 16 times that while it is read.
        max_tensors: inputs, or outputs.
        max_elements: of one tensor.
    """

    max_body_bytes: int = 256 << 20
    max_json_bytes: int = 64 << 20
    max_tensors: int = 64
    max_elements: int = 1 << 28


DEFAULT_LIMITS = Limits()

# --- messages --------------------------------------------------------------------------------

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Parameters = dict[Annotated[str, Meta(max_length=256)], str | int | float | bool]


class TensorSignature(Message, frozen=True, kw_only=True):
    """``$metadata_tensor``: a tensor that a model takes or gives; -1 is any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(Message, frozen=True, kw_only=True):
    """``$metadata_model_response``, the answer to ``GET /v2/models/NAME``."""

    name: str
    versions: tuple[str, ...] = ()
    platform: str
    inputs: tuple[TensorSignature, ...]
    outputs: tuple[TensorSignature, ...]


class ServerMetadata(Message, frozen=True, kw_only=True):
    """``$metadata_server_response``, the answer to ``GET /v2``."""

    name: str
    version: str
    extensions: tuple[str, ...] = (BINARY_EXTENSION, CLASSIFICATION)


class ServerLive(Message, frozen=True, kw_only=True):
    """``$live_server_response``, the answer to ``GET /v2/health/live``."""

    live: bool


class ServerReady(Message, frozen=True, kw_only=True):
    """``$ready_server_response``, the answer to ``GET /v2/health/ready``."""

    ready: bool


class ModelReady(Message, frozen=True, kw_only=True):
    """``$ready_model_response``, the answer to ``GET /v2/models/NAME/ready``."""

    name: str
    ready: bool


class IndexRequest(Message, frozen=True, kw_only=True):
    """``$repository_index_request``: only the models that are ready, or all."""

    ready: bool = False


class IndexEntry(Message, frozen=True, kw_only=True):
    """An entry of ``$repository_index_response``; the reason is empty when it is ready."""

    name: str
    version: str
    state: str
    reason: str


class _Tensor(Message, frozen=True, kw_only=True, omit_defaults=True):
    """``$request_input`` and ``$response_output``."""

    name: Name
    shape: tuple[int, ...]
    datatype: str
    parameters: Parameters | None = None
    data: msgspec.Raw | UnsetType = UNSET


class _Wanted(Message, frozen=True, kw_only=True, omit_defaults=True):
    """``$request_output``."""

    name: Name
    parameters: Parameters | None = None


class _Request(Message, frozen=True, kw_only=True, omit_defaults=True):
    """``$inference_request``. Some clients repeat the model of the URL in it; the URL decides."""

    id: str | None = None
    model_name: str | None = None
    model_version: str | None = None
    parameters: Parameters | None = None
    inputs: tuple[_Tensor, ...]
    outputs: tuple[_Wanted, ...] | None = None


class _Response(Message, frozen=True, kw_only=True, omit_defaults=True):
    """``$inference_response``."""

    model_name: str
    model_version: str | None = None
    id: str | None = None
    parameters: Parameters | None = None
    outputs: tuple[_Tensor, ...]


# --- what the program works with --------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedOutput:
    """
    An output that is asked for.

    Args:
        binary: whether it goes back as binary data.
        classes: how many of its best classes go back in its place (`classification`); 0 for it.
    """

    name: str
    binary: bool
    classes: int = 0


class InferRequest(msgspec.Struct, frozen=True, kw_only=True, eq=False):  # quicker to make
    """
    A request whose tensors fit the model.

    Args:
        id: to be given back; empty for none.
        parameters: as sent; those that are not refused have no meaning here.
        inputs: every input of the model, views of the body where they came as binary data.
        outputs: what to give back, in this order; all outputs when the request names none.
    """

    id: str
    parameters: Mapping[str, str | int | float | bool]
    inputs: dict[str, Array]
    outputs: tuple[RequestedOutput, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InferResponse:
    """An answer: the model's own name for itself, and the outputs in their order."""

    model_name: str
    model_version: str
    id: str
    outputs: dict[str, Array]


class EncodedBody(msgspec.Struct, frozen=True, kw_only=True):
    """
    A message ready to be sent.

    Args:
        header_length: of the JSON object, when binary data follows it.
        chunks: to be sent one after the other; those of tensors are views, so keep the arrays
            as they are until all is sent.
    """

    header_length: int | None
    chunks: tuple[bytes | memoryview, ...]

    @property
    def content_length(self) -> int:
        """Bytes in all chunks."""
        return sum(len(chunk) for chunk in self.chunks)

    @property
    def headers(self) -> dict[str, str]:
        """The HTTP headers that describe the body."""
        headers = {"Content-Length": str(self.content_length), "Content-Type": JSON_TYPE}
        if self.header_length is not None:
            headers |= {"Content-Type": BINARY_TYPE, HEADER_LENGTH: str(self.header_length)}
        return headers


# --- the enclave's directions -----------------------------------------------------------------


def decode_infer_request(
    body: bytes | bytearray | memoryview,
    *,
    header_length: int | None,
    model: ModelMetadata,
    limits: Limits = DEFAULT_LIMITS,
) -> InferRequest:
    """
    Read a request for *model*.

    Args:
        body: of the HTTP request; it must not change while the tensors are in use.
        header_length: value of `HEADER_LENGTH` (see `parse_header_length`), None without it.

    Raises:
        MalformedError: not such a message, or lengths that do not add up.
        BadTensorError: a tensor unknown, missing, given twice, or unlike the model's.
        TooLargeError: past one of the *limits*.
    """
    return RequestReader(model, limits).read(body, header_length=header_length)


class RequestReader:
    """
    Reads requests for one model.

    Clients say one thing over and over, and only the data changes: bytes behind a head, or numbers
    that can be cut out of the text (`Numbers`). So what was found of a head, or of such a text, is
    kept, and not looked for again: where nothing in it is of one query, no id, no number, no
    parameter but those of the framing. The checks of the data are as ever.
    """

    __slots__ = ("_kept", "_kept_texts", "_limits", "_model")

    def __init__(self, model: ModelMetadata, limits: Limits = DEFAULT_LIMITS) -> None:
        self._model = model
        self._limits = limits
        self._kept: dict[bytes, _Head[int]] = {}
        self._kept_texts: dict[bytes, _Head[bytes]] = {}

    def read(
        self, body: bytes | bytearray | memoryview, *, header_length: int | None
    ) -> InferRequest:
        """Read a request; arguments and errors are those of `decode_infer_request`."""
        text, binary = _split(body, header_length, self._limits)
        if header_length is None:
            return self._read_json(text, binary)
        if header_length > MAX_KEPT_BYTES:
            return self._read(text, binary)[1]
        key = bytes(text)
        if (head := self._kept.get(key)) is not None:
            request = head.request(
                lambda name, size, datatype, shape: from_binary(
                    name, binary.take(name, size), datatype, shape
                )
            )
            binary.finish()
            return request
        message, request = self._read(text, binary)
        _keep(self._kept, key, _Head.of(message, request, _size))
        return request

    def _read_json(self, text: memoryview, binary: _Reader) -> InferRequest:
        if LEAST_BYTES <= len(text) <= self._limits.max_json_bytes:
            with contextlib.suppress(DoubtError, AIGovToolError):
                numbers = Numbers(text)
                if (head := self._kept_texts.get(numbers.rest)) is not None:
                    request = head.request(lambda _, *where: numbers.take_marked(*where))
                    numbers.check_all_taken()
                    return request
                message, request = self._read(numbers.rest, binary, numbers)
                numbers.check_all_taken()
                if len(numbers.rest) <= MAX_KEPT_BYTES:
                    head = _Head.of(message, request, _mark)
                    _keep(self._kept_texts, numbers.rest, head)
                return request
        return self._read(text, binary)[1]

    def _read(
        self, text: bytes | memoryview, binary: _Reader, numbers: Numbers | None = None
    ) -> tuple[_Request, InferRequest]:
        message = decode(text, _Request, max_bytes=self._limits.max_json_bytes)
        _refuse_sequence(message.parameters)
        inputs = _read_tensors(
            message.inputs, binary, self._limits, expected=self._model.inputs, numbers=numbers
        )
        for signature in self._model.inputs:
            if signature.name not in inputs:
                raise BadTensorError(
                    f"the input {signature.name!r} is missing",
                    code="bad_tensor.missing",
                    expected=_names(self._model.inputs),
                    came=", ".join(map(repr, inputs)) or "no input",
                )
        return message, InferRequest(
            id=message.id or "",
            parameters=message.parameters or {},
            inputs=inputs,
            outputs=_requested_outputs(message, self._model, self._limits),
        )


_Where = TypeVar("_Where", int, bytes)


@dataclass(frozen=True, slots=True)
class _Head(Generic[_Where]):
    """
    A head, or a text without its numbers, that was found good: its tensors, and what it asks.

    Args:
        tensors: of each its name, where its data is (their size, or the mark in their place),
            datatype and shape.
    """

    tensors: tuple[tuple[str, _Where, str, tuple[int, ...]], ...]
    parameters: Mapping[str, str | int | float | bool]
    outputs: tuple[RequestedOutput, ...]

    @classmethod
    def of(
        cls,
        message: _Request,
        request: InferRequest,
        where: Callable[[_Tensor], _Where | None],
    ) -> _Head[_Where] | None:
        """Return what is to be kept of a request that was read, None for nothing of it."""
        if message.id is not None or not _FRAMING.issuperset(request.parameters):
            return None
        tensors = []
        for one in message.inputs:
            if (at := where(one)) is None:
                return None
            tensors.append((one.name, at, one.datatype, one.shape))
        return cls(tuple(tensors), request.parameters, request.outputs)

    def request(self, read: Callable[[str, _Where, str, tuple[int, ...]], Array]) -> InferRequest:
        """Return another request with this head, whose data *read* gives."""
        inputs = {tensor[0]: read(*tensor) for tensor in self.tensors}
        return InferRequest(id="", parameters=self.parameters, inputs=inputs, outputs=self.outputs)


def _size(tensor: _Tensor) -> int | None:
    """Return the size of a tensor's binary data, None where its head says anything else of it."""
    size = (tensor.parameters or {}).get(_SIZE)
    return size if isinstance(size, int) and len(tensor.parameters or {}) == 1 else None


def _mark(tensor: _Tensor) -> bytes | None:
    """Return what stands for a tensor's numbers, None where they stand there themselves."""
    if isinstance(tensor.data, UnsetType) or tensor.parameters:
        return None
    mark = bytes(tensor.data)
    return mark if mark.startswith(MARK) else None


def _keep(kept: dict[bytes, _Head[_Where]], key: bytes, head: _Head[_Where] | None) -> None:
    if head is not None:
        if len(kept) >= KEPT_HEADS:
            kept.clear()  # and not one by one: threads may read here, too
        kept[key] = head


def encode_infer_response(
    request: InferRequest,
    outputs: Mapping[str, Array],
    *,
    model_name: str,
    model_version: str | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
    digits: int | None = None,
) -> EncodedBody:
    """
    Write the answer to *request*: the outputs that it asked for, in the form it asked for.

    Args:
        labels: of the classes of an output, by its name.
        digits: significant ones of floating-point numbers, None for all.

    Raises:
        BadTensorError: an output that the form asked for cannot carry.
    """

    def form(wanted: RequestedOutput) -> Array:
        array, name = outputs[wanted.name], wanted.name
        if digits is not None:
            array = rounded(array, digits)
        if not wanted.classes:
            return array
        return best_classes(name, array, wanted.classes, (labels or {}).get(name, ()))

    formed = [(wanted.name, form(wanted), wanted.binary) for wanted in request.outputs]
    if not request.id and (alike := _alike(formed)) is not None:
        head = _head_of(model_name, model_version, alike)
        chunks = (to_binary(name, array) for name, array, _ in formed)
        return EncodedBody(header_length=len(head), chunks=(head, *chunks))
    tensors, binary = _write_tensors(formed)
    return _join(_response(model_name, model_version, tensors, request.id), binary)


_Described = tuple[str, str, tuple[int, ...], int]  # name, datatype, shape and bytes


def _alike(formed: Iterable[tuple[str, Array, bool]]) -> tuple[_Described, ...] | None:
    """Return what alone decides the head of an answer, None where its numbers do so, too."""
    described = []
    for name, array, as_binary in formed:
        datatype = datatype_of(name, array)
        if not as_binary or datatype == BYTES:
            return None
        described.append((name, datatype, array.shape, array.nbytes))
    return tuple(described)


@lru_cache(maxsize=KEPT_HEADS)
def _head_of(
    model_name: str, model_version: str | None, described: tuple[_Described, ...]
) -> bytes:
    """Write the head of an answer in binary; models give few, over and over."""
    tensors = tuple(
        _Tensor(name=name, shape=shape, datatype=datatype, parameters={_SIZE: size})
        for name, datatype, shape, size in described
    )
    return _aligned(_response(model_name, model_version, tensors))


def _response(
    model_name: str, model_version: str | None, tensors: tuple[_Tensor, ...], id: str = ""
) -> _Response:
    return _Response(
        model_name=model_name, model_version=model_version, id=id or None, outputs=tensors
    )


def only_best(request: InferRequest, model: ModelMetadata, count: int) -> InferRequest:
    """
    Return *request* with every output as its *count* best classes at the most, asked for or not.

    Raises:
        BadTensorError: an output that is asked for holds no scores.
    """
    known = {one.name: one for one in model.outputs}
    outputs = []
    for wanted in request.outputs:
        output = known[wanted.name]
        if not has_scores(output.datatype, len(output.shape)):
            raise BadTensorError(
                f"of this model only the best classes are given, and the output {wanted.name!r} "
                "holds no scores",
                code="extraction.labels",
                mend="name the outputs that hold scores, and no other",
            )
        classes = min(wanted.classes or count, count)
        outputs.append(dataclasses.replace(wanted, classes=classes))
    return msgspec.structs.replace(request, outputs=tuple(outputs))


# --- the client's directions ------------------------------------------------------------------


def encode_infer_request(
    inputs: Mapping[str, Array],
    *,
    outputs: Sequence[str] = (),
    id: str = "",
    parameters: Mapping[str, str | int | float | bool] | None = None,
    binary: bool = True,
) -> EncodedBody:
    """
    Write a request.

    Args:
        inputs: the tensors by name.
        outputs: names of those wanted; all when empty.
        binary: whether tensors travel as binary data, both ways.

    Raises:
        BadTensorError: an array that the form cannot carry.
    """
    tensors, data = _write_tensors((name, array, binary) for name, array in inputs.items())
    all_parameters = dict(parameters or {})
    if binary:
        all_parameters[_BINARY_OUTPUT] = True
    request = _Request(
        id=id or None,
        parameters=all_parameters or None,
        inputs=tensors,
        outputs=tuple(_Wanted(name=name) for name in outputs) or None,
    )
    return _join(request, data)


def decode_infer_response(
    body: bytes | bytearray | memoryview,
    *,
    header_length: int | None,
    limits: Limits = DEFAULT_LIMITS,
) -> InferResponse:
    """
    Read an answer. Arrays are views of *body* where they came as binary data.

    Raises:
        MalformedError, BadTensorError, TooLargeError: as `decode_infer_request`.
    """
    head, binary = _split(body, header_length, limits)
    response = decode(head, _Response, max_bytes=limits.max_json_bytes)
    return InferResponse(
        model_name=response.model_name,
        model_version=response.model_version or "",
        id=response.id or "",
        outputs=_read_tensors(response.outputs, binary, limits, expected=None),
    )


def parse_header_length(value: str | bytes | None) -> int | None:
    """Read the value of `HEADER_LENGTH`; raises MalformedError."""
    if value is None:
        return None
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    # str.isdigit alone lets through digits of other scripts, int() alone "+1" and "1_0"
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise MalformedError(f"{HEADER_LENGTH} is not a length", expected="decimal digits")
    return int(text)


# --- framing ----------------------------------------------------------------------------------


class _Reader:
    """The binary data after the object, taken piece by piece."""

    __slots__ = ("_data", "_offset")

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._offset = 0

    def take(self, name: str, size: object) -> memoryview:
        """Return the next *size* bytes, which belong to tensor *name*."""
        left = len(self._data) - self._offset
        if type(size) is not int or not 0 <= size <= left:
            raise MalformedError(
                f"the binary data of tensor {name!r} is not there",
                expected=f"binary_data_size from 0 to {left}",
                came=repr(size) if isinstance(size, int | float) else type(size).__name__,
            )
        start, self._offset = self._offset, self._offset + size
        return self._data[start : self._offset]

    def finish(self) -> None:
        """Refuse bytes that belong to no tensor."""
        if self._offset != len(self._data):
            raise MalformedError(
                "there is binary data that no tensor names",
                expected=f"{self._offset} bytes after the JSON object",
                came=f"{len(self._data)} bytes",
            )


def _split(
    body: bytes | bytearray | memoryview, header_length: int | None, limits: Limits
) -> tuple[memoryview, _Reader]:
    """Part the JSON object from the binary data."""
    if len(body) > limits.max_body_bytes:
        raise TooLargeError(
            "message too large",
            expected=f"at most {limits.max_body_bytes} bytes",
            came=f"{len(body)} bytes",
        )
    view = memoryview(body)
    length = len(view) if header_length is None else header_length
    if header_length == 0:
        raise MalformedError(
            "raw binary requests are not served",
            expected=f"a JSON object, its length in {HEADER_LENGTH}",
        )
    if not 0 < length <= len(view):
        raise MalformedError(
            f"{HEADER_LENGTH} and the body differ",
            expected=f"1 to {len(view)} bytes",
            came=f"{length} bytes",
        )
    return view[:length], _Reader(view[length:])


def _join(message: msgspec.Struct, binary: Sequence[bytes | memoryview]) -> EncodedBody:
    """Put the binary data after the object, aligned."""
    if not binary:
        return EncodedBody(header_length=None, chunks=(msgspec.json.encode(message),))
    head = _aligned(message)
    return EncodedBody(header_length=len(head), chunks=(head, *binary))


def _aligned(message: msgspec.Struct) -> bytes:
    head = msgspec.json.encode(message)
    return head + b" " * (-len(head) % ALIGNMENT)


def _read_tensors(
    tensors: Sequence[_Tensor],
    binary: _Reader,
    limits: Limits,
    *,
    expected: Sequence[TensorSignature] | None,
    numbers: Numbers | None = None,
) -> dict[str, Array]:
    """
    Read all tensors of a message, each once, and each as *expected* says when it is given.

    Args:
        numbers: that were cut out of the message.
    """
    _limit_count(tensors, limits)
    signatures = None if expected is None else {one.name: one for one in expected}
    arrays: dict[str, Array] = {}
    for tensor in tensors:
        _refuse_parameters(tensor.name, tensor.parameters)
        if tensor.name in arrays:
            raise BadTensorError(
                f"the tensor {tensor.name!r} is given twice", code="bad_tensor.duplicate"
            )
        if signatures is not None:
            _check_input(tensor, signatures)
        count_elements(tensor.name, tensor.shape, max_elements=limits.max_elements)
        size = (tensor.parameters or {}).get(_SIZE)
        if (size is None) == (tensor.data is UNSET):
            raise MalformedError(
                f"the tensor {tensor.name!r} has "
                + ("no data" if size is None else "both JSON and binary data"),
                expected='either "data" or the parameter "binary_data_size"',
            )
        if isinstance(tensor.data, UnsetType):
            arrays[tensor.name] = from_binary(
                tensor.name, binary.take(tensor.name, size), tensor.datatype, tensor.shape
            )
        else:
            array = None
            if numbers is not None:
                array = numbers.take(bytes(tensor.data), tensor.datatype, tensor.shape)
            if array is None:
                array = from_json(tensor.name, tensor.data, tensor.datatype, tensor.shape)
            arrays[tensor.name] = array
    binary.finish()
    return arrays


def _write_tensors(
    arrays: Iterable[tuple[str, Array, bool]],
) -> tuple[tuple[_Tensor, ...], list[bytes | memoryview]]:
    """Write (name, array, as binary data?) in order; the bytes of binary ones come separately."""
    tensors: list[_Tensor] = []
    chunks: list[bytes | memoryview] = []
    for name, array, as_binary in arrays:
        parameters: Parameters | None = None
        data: msgspec.Raw | UnsetType = UNSET
        if as_binary:
            chunks.append(to_binary(name, array))
            parameters = {_SIZE: len(chunks[-1])}
        else:
            data = msgspec.Raw(msgspec.json.encode(to_json(name, array)))
        tensors.append(
            _Tensor(
                name=name,
                shape=array.shape,
                datatype=datatype_of(name, array),
                parameters=parameters,
                data=data,
            )
        )
    return tuple(tensors), chunks


# --- the model's signature --------------------------------------------------------------------


def check_signature(signature: TensorSignature, *, datatype: str, shape: Sequence[int]) -> None:
    """Raise BadTensorError unless a tensor of *datatype* and *shape* is what the model takes."""
    fits = len(shape) == len(signature.shape) and all(
        wanted in (-1, came) for wanted, came in zip(signature.shape, shape, strict=True)
    )
    if datatype != signature.datatype or not fits:
        raise BadTensorError(
            f"the input {signature.name!r} is not what the model takes",
            code="bad_tensor.signature",
            expected=f"{signature.datatype} {list(signature.shape)} (-1 is any length)",
            came=f"{datatype} {list(shape)}",
        )


def _check_input(tensor: _Tensor, signatures: Mapping[str, TensorSignature]) -> None:
    try:
        signature = signatures[tensor.name]
    except KeyError:
        raise BadTensorError(
            "the model has no such input",
            code="bad_tensor.unknown",
            expected=_names(signatures.values()),
            came=repr(tensor.name),
        ) from None
    check_signature(signature, datatype=tensor.datatype, shape=tensor.shape)


def _requested_outputs(
    request: _Request, model: ModelMetadata, limits: Limits
) -> tuple[RequestedOutput, ...]:
    binary = _flag(request.parameters, _BINARY_OUTPUT, default=False)
    if not request.outputs:
        return tuple(RequestedOutput(name=one.name, binary=binary) for one in model.outputs)
    _limit_count(request.outputs, limits)
    known = {one.name: one for one in model.outputs}
    requested: dict[str, RequestedOutput] = {}
    for wanted in request.outputs:
        _refuse_parameters(wanted.name, wanted.parameters)
        if wanted.name not in known or wanted.name in requested:
            raise BadTensorError(
                "an output is asked for twice"
                if wanted.name in requested
                else "the model has no such output",
                code="bad_tensor.output",
                expected=_names(model.outputs),
                came=repr(wanted.name),
            )
        requested[wanted.name] = RequestedOutput(
            name=wanted.name,
            binary=_flag(wanted.parameters, "binary_data", default=binary),
            classes=_classes(wanted.parameters, known[wanted.name]),
        )
    return tuple(requested.values())


def _flag(parameters: Parameters | None, name: str, *, default: bool) -> bool:
    value = (parameters or {}).get(name, default)
    if not isinstance(value, bool):
        raise MalformedError(f"the parameter {name!r} is not a boolean", came=type(value).__name__)
    return value


def _classes(parameters: Parameters | None, output: TensorSignature) -> int:
    if not parameters or CLASSIFICATION not in parameters:
        return 0
    count = parameters[CLASSIFICATION]
    return check_classes(output.name, count, datatype=output.datatype, rank=len(output.shape))


def _refuse_sequence(parameters: Parameters | None) -> None:
    if parameters and parameters.get(_SEQUENCE, 0) not in (0, ""):
        raise BadTensorError(
            f"the parameter {_SEQUENCE!r} is not served",
            code="bad_tensor.parameter",
            mend="the model keeps no state between queries: ask without a sequence",
        )


def _refuse_parameters(name: str, parameters: Parameters | None) -> None:
    for parameter, why in _REFUSED_PARAMETERS.items():
        if parameters and parameter in parameters:
            raise BadTensorError(
                f"the parameter {parameter!r} of tensor {name!r} is not served",
                code="bad_tensor.parameter",
                mend=why,
            )


def _limit_count(tensors: Sequence[object], limits: Limits) -> None:
    if len(tensors) > limits.max_tensors:
        raise TooLargeError(
            "too many tensors",
            expected=f"at most {limits.max_tensors}",
            came=str(len(tensors)),
        )


def _names(signatures: Iterable[TensorSignature]) -> str:
    return ", ".join(repr(one.name) for one in signatures)
