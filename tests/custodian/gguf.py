"""GGUF files as small as can be, made by the format's description."""

from __future__ import annotations

import struct
from collections.abc import Sequence

UINT8, INT32, UINT32, TEXT, ARRAY, UINT64 = 0, 5, 4, 8, 9, 10
_FORMS = {UINT8: "<B", INT32: "<i", UINT32: "<I", UINT64: "<Q"}

Pair = tuple[str, int, object]

LLAMA: tuple[Pair, ...] = (
    ("general.architecture", TEXT, "llama"),
    ("general.name", TEXT, "Tiny"),
    ("llama.context_length", UINT32, 2048),
    ("tokenizer.ggml.tokens", ARRAY, (TEXT, ["a", "b", "c"])),
    ("tokenizer.ggml.scores", ARRAY, (UINT32, [1, 2, 3])),
    ("tokenizer.chat_template", TEXT, "{{ messages }}"),
)


def text(value: str) -> bytes:
    """Return a text with its length before it."""
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(kind: int, what: object) -> bytes:
    """Return a value without its type."""
    if kind == TEXT:
        assert isinstance(what, str)
        return text(what)
    if kind == ARRAY:
        assert isinstance(what, tuple)
        inner, items = what
        head = struct.pack("<IQ", inner, len(items))
        return head + b"".join(value(inner, item) for item in items)
    return struct.pack(_FORMS[kind], what)


def gguf(pairs: Sequence[Pair] = LLAMA, *, version: int = 3, tail: bytes = b"weights") -> bytes:
    """Return a file with this metadata and no tensor."""
    body = b"".join(text(key) + struct.pack("<I", kind) + value(kind, what)
                    for key, kind, what in pairs)  # fmt: skip
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(pairs)) + body + tail
