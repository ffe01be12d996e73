"""
A file becomes the model's inputs.

1. ``.npy``, ``.npz`` and ``.json`` hold tensors, and are taken as they are.
2. Any other file is a picture or a text, as the model's interface says.
3. Whatever was read is held against the model's signature before anything is sent.

The JSON may be a request of the Open Inference Protocol, an object of nested lists by input name,
or, for a model of one input, the nested list alone. A flat list takes the shape that the model's
signature leaves no doubt about.
"""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from aigovtool.client.preprocess import image_tensor
from aigovtool.errors import BadTensorError, ConfigurationError, MalformedError, TooLargeError
from aigovtool.sealing.interface import ImageInput, ModelInterface, TextInput
from aigovtool.wire.oip import (
    DEFAULT_LIMITS,
    Limits,
    ModelMetadata,
    TensorSignature,
    check_signature,
    decode_infer_request,
)
from aigovtool.wire.tensors import (
    BYTES,
    DTYPES,
    MAX_RANK,
    Array,
    count_elements,
    datatype_of,
    from_json,
)

TENSOR_SUFFIXES = (".npy", ".npz", ".json")

# What numpy raises for files that are not its own, or that lie about their size.
_NUMPY_ERRORS = (
    ValueError,
    EOFError,
    OSError,
    MemoryError,
    TypeError,
    LookupError,
    NotImplementedError,
    OverflowError,
    SyntaxError,
    RuntimeError,  # zipfile, of an encrypted member
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_inputs(
    path: Path,
    *,
    model: ModelMetadata,
    interface: ModelInterface | None,
    limits: Limits = DEFAULT_LIMITS,
) -> dict[str, Array]:
    """
    Read *path* into the inputs of *model*, by name.

    Args:
        interface: the custodian's description; None when the model came without one.

    Raises:
        ConfigurationError: there is no such file, or it cannot be read.
        MalformedError: it is not what its name or the interface says.
        BadTensorError: its tensors are not what the model takes.
        TooLargeError: larger than *limits*.
    """
    data = _read(path, limits)
    match path.suffix.lower():
        case ".npy":
            arrays = {_only_input(model).name: _load_numpy(data)}
        case ".npz":
            arrays = _load_archive(data, limits)
        case ".json":
            arrays = _load_json(data, model, limits)
        case _:
            arrays = _load_described(data, model, interface)
    return fit_inputs(arrays, model)


def fit_inputs(arrays: dict[str, Array], model: ModelMetadata) -> dict[str, Array]:
    """
    Return *arrays* in the model's datatypes, each checked against its signature.

    Floats are rounded to the model's precision; everything else must be held exactly.

    Raises:
        BadTensorError: an input is unknown or missing, or is not what the model takes.
    """
    wanted = {signature.name: signature for signature in model.inputs}
    if set(arrays) != set(wanted):
        raise BadTensorError(
            "these are not the model's inputs",
            code="bad_tensor.missing",
            expected=", ".join(map(repr, wanted)),
            came=", ".join(map(repr, arrays)) or "none",
        )
    fitted = {}
    for name, signature in wanted.items():
        array = _cast(name, arrays[name], signature.datatype)
        check_signature(signature, datatype=datatype_of(name, array), shape=array.shape)
        fitted[name] = array
    return fitted


def _read(path: Path, limits: Limits) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limits.max_body_bytes + 1)
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the input {path}: {error.strerror or type(error).__name__}",
            code="input.unreadable",
        ) from None
    if len(data) > limits.max_body_bytes:
        raise TooLargeError(
            f"the input {path} is too large", expected=f"at most {limits.max_body_bytes} bytes"
        )
    return data


# --- pictures and text -----------------------------------------------------------------------


def _load_described(
    data: bytes, model: ModelMetadata, interface: ModelInterface | None
) -> dict[str, Array]:
    """Read a file of the one kind that the interface asks for."""
    if interface is None or len(interface.inputs) != 1:
        raise BadTensorError(
            "the model has no description that says how such a file becomes its inputs"
            if interface is None
            else "one file cannot fill the several inputs of this model",
            code="input.undescribed",
            expected=" or ".join(TENSOR_SUFFIXES) + " with " + _describe(model.inputs),
        )
    (spec,) = interface.inputs
    if isinstance(spec, ImageInput):
        return {spec.name: image_tensor(data, spec)}
    if isinstance(spec, TextInput):
        return {spec.name: text_tensor(data, spec)}
    raise BadTensorError(
        "this model takes tensors, not pictures or text",
        code="input.undescribed",
        expected=" or ".join(TENSOR_SUFFIXES) + " with " + _describe(model.inputs),
    )


def text_tensor(data: bytes, spec: TextInput) -> Array:
    """
    Turn a UTF-8 text file into a tensor of one element.

    Raises:
        MalformedError: not UTF-8.
        BadTensorError: a character that the model's encoding lacks.
        TooLargeError: longer than the interface allows.
    """
    try:
        element = data.decode().encode(spec.encoding)
    except UnicodeDecodeError:
        raise MalformedError("the input is not UTF-8 text", code="input.not_text") from None
    except UnicodeEncodeError:
        raise BadTensorError(
            "the text has characters that the model's encoding lacks",
            code="input.encoding",
            expected=spec.encoding,
        ) from None
    if len(element) > spec.max_bytes:
        raise TooLargeError(
            "the text is too long for the model",
            expected=f"at most {spec.max_bytes} bytes",
            came=f"{len(element)} bytes",
        )
    array = np.empty(1, object)
    array[0] = element
    return array.reshape(spec.shape)


# --- tensors ---------------------------------------------------------------------------------


def _load_numpy(data: bytes) -> Array:
    try:
        array: Any = np.load(io.BytesIO(data), allow_pickle=False)
    except _NUMPY_ERRORS:
        raise MalformedError(
            "the input is not an array that can be read",
            code="input.not_numpy",
            expected="a .npy file, without Python objects",
        ) from None
    if not isinstance(array, np.ndarray):  # an archive under a wrong name
        raise MalformedError("the input is an archive", code="input.not_numpy", expected=".npz")
    return array


def _load_archive(data: bytes, limits: Limits) -> dict[str, Array]:
    """Read a ``.npz``, after its members say how large they become."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            size = sum(member.file_size for member in members)
            if size > limits.max_body_bytes or len(members) > limits.max_tensors:
                raise TooLargeError(
                    "the archive is too large",
                    expected=f"at most {limits.max_body_bytes} bytes "
                    f"in {limits.max_tensors} arrays",
                    came=f"{size} bytes in {len(members)}",
                )
            # zipfile reads no more of a member than its stated size
            return {
                member.filename.removesuffix(".npy"): _load_numpy(archive.read(member))
                for member in members
            }
    except _NUMPY_ERRORS:
        raise MalformedError(
            "the input is not an archive of arrays", code="input.not_numpy", expected=".npz"
        ) from None


def _load_json(data: bytes, model: ModelMetadata, limits: Limits) -> dict[str, Array]:
    try:
        parsed = msgspec.json.decode(data)
        if isinstance(parsed, list):
            signature = _only_input(model)
            return {signature.name: _from_list(signature, msgspec.Raw(data), parsed, limits)}
        raws = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise MalformedError(
            "the input is not JSON with tensors",
            code="input.not_json",
            expected="an inference request, lists by input name, or one list",
        ) from None
    signatures = {signature.name: signature for signature in model.inputs}
    if "inputs" in raws and "inputs" not in signatures:
        return decode_infer_request(data, header_length=None, model=model, limits=limits).inputs
    arrays = {}
    for name, raw in raws.items():
        if name not in signatures:
            raise BadTensorError(
                "the model has no such input",
                code="bad_tensor.unknown",
                expected=_describe(model.inputs),
                came=repr(name),
            )
        arrays[name] = _from_list(signatures[name], raw, parsed[name], limits)
    return arrays


def _from_list(signature: TensorSignature, raw: msgspec.Raw, parsed: Any, limits: Limits) -> Array:
    """Read a list whose shape is not stated: it is that of its nesting, or the model's."""
    shape: list[int] = []
    inner = parsed
    while isinstance(inner, list) and len(shape) <= MAX_RANK:
        shape.append(len(inner))
        inner = inner[0] if inner else None
    if len(shape) == 1 and len(signature.shape) != 1:
        shape = _reshaped(shape[0], signature.shape)
    count_elements(signature.name, shape, max_elements=limits.max_elements)
    return from_json(signature.name, raw, signature.datatype, shape)


def _reshaped(count: int, shape: tuple[int, ...]) -> list[int]:
    """Return *shape* for *count* elements when at most one length is open and it fits."""
    known = math.prod(one for one in shape if one != -1)
    if shape.count(-1) > 1 or known == 0 or count == 0 or count % known:
        return [count]
    return [count // known if one == -1 else one for one in shape]


def _cast(name: str, array: Array, datatype: str) -> Array:
    """Convert to *datatype* where that changes no value (a float may lose digits)."""
    came = datatype_of(name, array)
    if BYTES in (came, datatype) or datatype not in DTYPES:
        return array
    dtype = DTYPES[datatype]
    if "b" in (array.dtype.kind, dtype.kind) or (array.dtype.kind == "f" and dtype.kind != "f"):
        return array  # the signature's check says what is wrong
    with np.errstate(all="ignore"):
        converted: Array = array.astype(dtype)
    exact = (
        np.isfinite(converted) == np.isfinite(array)
        if array.dtype.kind == "f"
        # compared as Python's integers: numpy would round both sides to floats
        else converted.astype(object) == array.astype(object)
    )
    if not np.all(exact):
        raise BadTensorError(
            f"the input {name!r} has a number that {datatype} cannot hold", code="bad_tensor.value"
        )
    return converted


def _only_input(model: ModelMetadata) -> TensorSignature:
    if len(model.inputs) != 1:
        raise BadTensorError(
            "one array cannot fill the several inputs of this model",
            code="input.several",
            expected=".npz or .json with " + _describe(model.inputs),
        )
    return model.inputs[0]


def _describe(signatures: tuple[TensorSignature, ...]) -> str:
    return ", ".join(f"{one.name!r} {one.datatype} {list(one.shape)}" for one in signatures)
