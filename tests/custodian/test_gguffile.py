"""What is read of a GGUF file before it is sealed, and what hostile ones are told."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigovtool.custodian.gguffile import (
    MAX_ITEMS,
    MAX_PAIRS,
    GgufModel,
    is_gguf,
    parse_gguf,
    read_gguf,
)
from aigovtool.errors import AIGovToolError, ConfigurationError, MalformedError, TooLargeError
from tests.custodian.gguf import ARRAY, INT32, LLAMA, TEXT, UINT8, UINT32, UINT64, Pair, gguf, text


def parse(data: bytes) -> GgufModel:
    return parse_gguf(memoryview(data))


def without(key: str, *more: Pair) -> tuple[Pair, ...]:
    return (*(pair for pair in LLAMA if pair[0] != key), *more)


@pytest.mark.parametrize("version", [2, 3])
def test_what_is_told_of_a_model_is_read(tmp_path: Path, version: int) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(gguf(version=version))
    assert is_gguf(path)
    assert read_gguf(path) == GgufModel(architecture="llama", name="Tiny", context=2048, chats=True)


def test_a_model_without_name_and_template_is_one_for_completions() -> None:
    pairs = [pair for pair in LLAMA if pair[0] not in ("general.name", "tokenizer.chat_template")]
    assert parse(gguf(pairs)) == GgufModel(architecture="llama", name="", context=2048, chats=False)


@pytest.mark.parametrize("kind", [UINT32, UINT64, INT32])
def test_the_context_is_any_whole_number(kind: int) -> None:
    pairs = without("llama.context_length", ("llama.context_length", kind, 77))
    assert parse(gguf(pairs)).context == 77


@pytest.mark.parametrize(
    "pairs",
    [
        without("general.architecture"),
        without("general.architecture", ("general.architecture", UINT8, 1)),
        without("general.architecture", ("general.architecture", TEXT, "")),
        without("general.name", ("general.name", UINT8, 1)),
        without("llama.context_length"),
        without("llama.context_length", ("llama.context_length", UINT32, 0)),
        without("llama.context_length", ("llama.context_length", INT32, -1)),
        without("llama.context_length", ("llama.context_length", UINT64, 1 << 40)),
        without("llama.context_length", ("llama.context_length", TEXT, "2048")),
        (*LLAMA, ("general.architecture", TEXT, "other")),
        (*LLAMA, ("nested", ARRAY, (ARRAY, []))),
    ],
)
def test_metadata_that_does_not_say_what_it_must_is_malformed(pairs: tuple[Pair, ...]) -> None:
    with pytest.raises(MalformedError) as caught:
        parse(gguf(pairs))
    assert caught.value.reasons[0].code == "model.gguf"


def test_one_part_of_a_split_model_is_refused_with_what_mends_it() -> None:
    with pytest.raises(MalformedError) as caught:
        parse(gguf((*LLAMA, ("split.count", UINT32, 3))))
    assert caught.value.reasons[0].code == "model.gguf_split"
    assert "llama-gguf-split --merge" in str(caught.value)
    assert parse(gguf((*LLAMA, ("split.count", UINT32, 1)))).context == 2048


@pytest.mark.parametrize("version", [0, 1, 4, 0x03000000])
def test_another_version_or_byte_order_is_refused(version: int) -> None:
    with pytest.raises(MalformedError):
        parse(gguf(version=version))


def test_sizes_that_no_model_has_are_refused_before_anything_is_made_of_them() -> None:
    head = b"GGUF" + struct.pack("<IQ", 3, 0)
    with pytest.raises(TooLargeError):
        parse(head + struct.pack("<Q", MAX_PAIRS + 1))
    with pytest.raises(TooLargeError):
        parse(head + struct.pack("<QQ", 1, 1 << 63))
    array = head + struct.pack("<Q", 1) + text("k") + struct.pack("<I", ARRAY)
    with pytest.raises(TooLargeError):
        parse(array + struct.pack("<IQ", TEXT, MAX_ITEMS + 1))
    for kind, count in ((UINT64, 1 << 62), (UINT8, 1 << 63), (TEXT, 1000)):
        with pytest.raises(MalformedError):
            parse(array + struct.pack("<IQ", kind, count))


@pytest.mark.parametrize("size", range(len(gguf(tail=b""))))
def test_a_file_cut_short_is_malformed(size: int) -> None:
    with pytest.raises(MalformedError):
        parse(gguf(tail=b"")[:size])


def test_texts_that_are_not_utf_8_are_malformed() -> None:
    with pytest.raises(MalformedError):
        parse(gguf().replace(b"Tiny", b"T\xffny"))


@given(st.data())
def test_changed_bytes_give_a_model_or_a_typed_error(data: st.DataObject) -> None:
    body = bytearray(gguf())
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(AIGovToolError):
        assert parse(bytes(body)).context >= 1


def test_what_cannot_be_read_is_no_gguf(tmp_path: Path) -> None:
    assert not is_gguf(tmp_path / "none")
    with pytest.raises(ConfigurationError):
        read_gguf(tmp_path / "none")
    empty = tmp_path / "empty.gguf"
    empty.write_bytes(b"")
    assert not is_gguf(empty)
    with pytest.raises(MalformedError):
        read_gguf(empty)
