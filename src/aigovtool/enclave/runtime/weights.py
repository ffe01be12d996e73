"""
Weights that stay where they were decrypted.

onnxruntime copies a model that it is given as bytes, and the weights in it once more. What it is
given as a file of external data in memory it can use in place. So a model is split: a small graph,
which is copied, and its weights, which the graph names by their places in the entry file's memory.

Rule 1: a tensor is lent only when nothing about it is unusual: in the model's one graph, its
        bytes in one piece of at least `LENT_BYTES`. All others stay in the graph, as they came.
Rule 2: a lent tensor begins at a multiple of `ALIGNMENT`, else onnxruntime would copy it: its bytes
        are moved down over the end of its own header, which always has room for that.
"""

from __future__ import annotations

from aigovtool.sealing.protobuf import DELIMITED, VARINT, delimited, fields, head, varint

LENT_BYTES = 64 * 1024  # four bytes of length: with the tags, a header of at least 8 bytes
ALIGNMENT = 8  # of onnxruntime's largest element that has raw bytes and is common

# onnx.proto3, IR 13
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_SEGMENT, _TENSOR_RAW, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 3, 9, 13, 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_LOCATION_EXTERNAL = 1


def lend_weights(entry: memoryview, name: str) -> tuple[bytes, int]:
    """
    Split the model in *entry* into a graph and weights that stay in *entry*.

    Args:
        entry: the whole ONNX file in writable memory, which begins at a multiple of `ALIGNMENT`;
            the lent weights are moved in it by a few bytes.
        name: of the external data file as which onnxruntime is given *entry*.

    Returns:
        The model without the lent weights, in new memory, and how many bytes are lent.

    Raises:
        MalformedError: not a protobuf.
    """
    graphs = [one for one in fields(entry) if one.number == _MODEL_GRAPH]
    if len(graphs) != 1 or graphs[0].wire != DELIMITED:
        return bytes(entry), 0
    (graph,) = graphs
    body = entry[graph.value : graph.end]
    parts: list[bytes | memoryview] = []
    lent = 0
    for field in fields(body):
        if field.number == _GRAPH_INITIALIZER and field.wire == DELIMITED:
            tensor, size = _lend(entry, graph.value + field.value, graph.value + field.end, name)
            if size:
                parts.append(delimited(_GRAPH_INITIALIZER, tensor))
                lent += size
                continue
        parts.append(body[field.start : field.end])
    size = sum(len(part) for part in parts)
    before, after = entry[: graph.start], entry[graph.end :]
    return b"".join((before, head(_MODEL_GRAPH, size), *parts, after)), lent


def _lend(entry: memoryview, start: int, end: int, name: str) -> tuple[bytes, int]:
    """Return the tensor at *start* without its bytes, and how many these are; 0 if it stays."""
    tensor = entry[start:end]
    if len(tensor) < LENT_BYTES:
        return b"", 0
    kept: list[memoryview] = []
    raw = []
    for field in fields(tensor):
        if field.number in (_TENSOR_SEGMENT, _TENSOR_EXTERNAL):
            return b"", 0
        if field.number == _TENSOR_RAW:
            raw.append(field)
        elif field.number != _TENSOR_LOCATION:
            kept.append(tensor[field.start : field.end])
    if len(raw) != 1 or raw[0].wire != DELIMITED or raw[0].end - raw[0].value < LENT_BYTES:
        return b"", 0
    (field,) = raw
    size = field.end - field.value
    place = (start + field.value) // ALIGNMENT * ALIGNMENT
    described = b"".join(
        (
            *kept,
            _about(b"location", name.encode()),
            _about(b"offset", str(place).encode()),
            _about(b"length", str(size).encode()),
            varint(_TENSOR_LOCATION << 3 | VARINT),
            varint(_LOCATION_EXTERNAL),
        )
    )
    entry[place : place + size] = tensor[field.value : field.end]  # the two overlap: a memmove
    return described, size


def _about(key: bytes, value: bytes) -> bytes:
    return delimited(_TENSOR_EXTERNAL, delimited(_ENTRY_KEY, key) + delimited(_ENTRY_VALUE, value))
