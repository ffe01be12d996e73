"""
What a custodian must know of a GGUF file before sealing it, read from the file's own metadata.

Only the header and its key/value pairs are read, and of these only what is told of a language
model; nothing is loaded. Rule 1: no number of the file sizes an allocation, and none is believed
beyond the file's end.

Source: ggml-org/ggml, `docs/gguf.md`, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from aigovtool.errors import ConfigurationError, MalformedError, TooLargeError

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # version 1 had other lengths, and no model of today is one
MAX_PAIRS = 65_536
MAX_KEY_BYTES = 65_535  # of the specification
MAX_TEXT_BYTES = 1 << 20  # of a value that is read; templates for conversations have some 10 KiB
MAX_ITEMS = 1 << 22  # of all arrays of texts together; large vocabularies have some 300,000
MAX_CONTEXT = 1 << 30  # tokens

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_NUMBERS = {  # of the metadata's types of whole numbers
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: _U32,
    5: struct.Struct("<i"),
    10: _U64,
    11: struct.Struct("<q"),
}
_SIZES = {**{kind: one.size for kind, one in _NUMBERS.items()}, 6: 4, 7: 1, 12: 8}  # bytes
_TEXT, _ARRAY = 8, 9

_ARCHITECTURE = "general.architecture"
_NAME = "general.name"
_TEMPLATE = "tokenizer.chat_template"
_PARTS = "split.count"
_CONTEXT = ".context_length"  # after the architecture's name


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufModel:
    """
    What a GGUF file says of itself.

    Args:
        architecture: as llama.cpp names it.
        name: for people; empty when the file has none.
        context: tokens that input and output of one query may have together.
        chats: whether it has a template for conversations.
    """

    architecture: str
    name: str
    context: int
    chats: bool


def is_gguf(path: Path) -> bool:
    """Return whether *path* begins as a GGUF file; False for one that cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_gguf(path: Path) -> GgufModel:
    """
    Read the metadata of a GGUF file.

    Raises:
        ConfigurationError: the file cannot be read.
        MalformedError: not such a file, one of another version, or one of several parts.
        TooLargeError: its metadata is larger than any model's.
    """
    try:
        with path.open("rb") as file:
            body = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the model file {path}", code="model.file", came=error.strerror
        ) from None
    except ValueError:  # an empty file
        raise _malformed("it is empty") from None
    with body, memoryview(body) as view:
        return parse_gguf(view)


def parse_gguf(data: memoryview) -> GgufModel:
    """As `read_gguf`, of the bytes of a file, or of as many as hold its metadata."""
    reader = _Reader(data)
    if bytes(reader.take(len(MAGIC))) != MAGIC:
        raise _malformed("it does not begin as one", expected="GGUF")
    version = reader.number(_U32)
    if version not in VERSIONS:
        raise _malformed(
            "it is of a version that is not read",
            expected=" or ".join(map(str, VERSIONS)) + ", little-endian",
            came=str(version),
            mend="convert the model anew, with llama.cpp's convert_hf_to_gguf.py",
        )
    reader.number(_U64)  # tensors
    pairs = reader.number(_U64)
    if pairs > MAX_PAIRS:
        raise _too_large("pairs", MAX_PAIRS, pairs)
    values: dict[str, str | int | None] = {}
    for _ in range(pairs):
        key = reader.text(MAX_KEY_BYTES)
        if key in values:
            raise _malformed("a key stands in it twice", came=ascii(key[:64]))
        values[key] = _value(reader, key)
    return _described(values)


def _described(values: dict[str, str | int | None]) -> GgufModel:
    parts = values.get(_PARTS)
    if isinstance(parts, int) and parts > 1:
        raise MalformedError(
            "the file is one part of a model that was split",
            code="model.gguf_split",
            expected="a model in one file",
            came=f"{parts} parts",
            mend="join them: llama-gguf-split --merge MODEL-00001-of-….gguf MODEL.gguf",
        )
    architecture, name = values.get(_ARCHITECTURE), values.get(_NAME, "")
    if not isinstance(architecture, str) or not architecture:
        raise _malformed("it does not say its architecture", expected=f"a text {_ARCHITECTURE}")
    if not isinstance(name, str):
        raise _malformed("its name is no text", expected=f"a text {_NAME}")
    context = values.get(architecture + _CONTEXT)
    if not isinstance(context, int) or not 1 <= context <= MAX_CONTEXT:
        raise _malformed(
            "it does not say how long its context is",
            expected=f"1 to {MAX_CONTEXT} tokens in {architecture[:64]!a}{_CONTEXT}",
            came=None if context is None else ascii(str(context)[:24]),
            mend="lend a model that goes on from text",
        )
    return GgufModel(
        architecture=architecture,
        name=name,
        context=context,
        chats=isinstance(values.get(_TEMPLATE), str),
    )


def _value(reader: _Reader, key: str) -> str | int | None:
    """Read a value; what is neither a text that is told nor a whole number is passed over."""
    kind = reader.number(_U32)
    if kind in _NUMBERS:
        return reader.number(_NUMBERS[kind])
    if kind == _TEXT:
        if key in (_ARCHITECTURE, _NAME, _TEMPLATE):
            return reader.text(MAX_TEXT_BYTES)
        reader.take(reader.number(_U64))
    elif kind == _ARRAY:
        _skip_array(reader)
    else:
        reader.take(_size_of(kind))
    return None


def _skip_array(reader: _Reader) -> None:
    kind, count = reader.number(_U32), reader.number(_U64)
    if kind != _TEXT:
        reader.take(count * _size_of(kind))  # an array of arrays is of no known size
        return
    reader.items += count
    if reader.items > MAX_ITEMS:
        raise _too_large("texts in arrays", MAX_ITEMS, reader.items)
    for _ in range(count):
        reader.take(reader.number(_U64))


def _size_of(kind: int) -> int:
    try:
        return _SIZES[kind]
    except KeyError:
        raise _malformed("a value is of a type that is not known", came=str(kind)) from None


class _Reader:
    """Takes bytes from the front; raises MalformedError where there are no more."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0
        self.items = 0
        """Texts in arrays, up to here."""

    def take(self, size: int) -> memoryview:
        if size > len(self._data) - self._at:
            raise _malformed("it ends within its metadata")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, form: struct.Struct) -> int:
        value: int = form.unpack(self.take(form.size))[0]
        return value

    def text(self, max_bytes: int) -> str:
        size = self.number(_U64)
        if size > max_bytes:
            raise _too_large("bytes of a text", max_bytes, size)
        try:
            return bytes(self.take(size)).decode()
        except UnicodeDecodeError:
            raise _malformed("a text in it is not UTF-8") from None


def _malformed(
    problem: str, *, expected: str | None = None, came: str | None = None, mend: str | None = None
) -> MalformedError:
    return MalformedError(
        f"the model file is no GGUF file that can be lent: {problem}",
        code="model.gguf",
        expected=expected,
        came=came,
        mend=mend,
    )


def _too_large(what: str, limit: int, came: int) -> TooLargeError:
    return TooLargeError(
        f"the metadata of the model file has too many {what}",
        code="model.gguf",
        expected=f"at most {limit}",
        came=str(came),
    )
