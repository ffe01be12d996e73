"""Every published case of c2sp.org/chunked-encryption, read by the code that opens models."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.cobblestone import Cobblestone128Decryptor

from aigovtool.errors import MalformedError, VerificationError
from aigovtool.sealing.chunked import (
    CHUNK_BYTES,
    HEADER_BYTES,
    SEALED_CHUNK_BYTES,
    TAG_BYTES,
    Decryptor,
    fill,
    new_decryptor,
    open_chunks,
    open_header,
    seal_message,
    sealed_size,
)
from tests.shared_data import shared

FLAGS = {
    "ChunkReordering",
    "CounterRollover",
    "HeaderFailure",
    "InvalidKeySize",
    "ModifiedCiphertext",
    "PartialPlaintext",
    "TrailingData",
    "Truncation",
    "ValidFinalChunk",
    "WrongContext",
    "WrongKey",
}
REQUIRED = {"tcId", "comment", "key", "ctx", "ct", "result", "flags"}
OPTIONAL = {"aeadKey", "baseNonce", "msgLength", "msgSha512"}


def _cases() -> list[Any]:
    cases = []
    for bits in (128, 256):
        path = shared(
            "vectors",
            "c2sp_chunked_encryption",
            f"c2sp_chunked_encryption_aes_{bits}_gcm_test.json",
        )
        document = json.loads(path.read_bytes())
        groups = document["testGroups"]
        assert sum(len(group["tests"]) for group in groups) == document["numberOfTests"] == 35
        for group in groups:
            for case in group["tests"]:
                assert REQUIRED <= case.keys() <= REQUIRED | OPTIONAL
                assert set(case["flags"]) <= FLAGS
                assert case["result"] in ("valid", "invalid")
                case["aead"] = group["aead"]
                for field in ("key", "ctx"):
                    case[field] = bytes.fromhex(case[field])
                case["ct"] = zlib.decompress(bytes.fromhex(case["ct"]))
                cases.append(pytest.param(case, id=f"aes{bits}-{case['tcId']}"))
    return cases


CASES = _cases()


def _decryptor(case: dict[str, Any]) -> Decryptor:
    if case["aead"] == "AEAD_AES_256_GCM":
        return new_decryptor(case["key"], case["ctx"])
    # Never used by the product; its vectors go through the product's framing all the same.
    try:
        return Cobblestone128Decryptor(case["key"], case["ctx"])
    except ValueError as error:
        raise MalformedError(str(error)) from None


def _open(case: dict[str, Any], plaintext: bytearray) -> int:
    source = io.BytesIO(case["ct"])
    decryptor = _decryptor(case)
    header = bytearray(HEADER_BYTES)
    size = fill(source, memoryview(header))
    open_header(decryptor, bytes(header[:size]))

    @contextlib.contextmanager
    def lend(offset: int, size: int) -> Iterator[memoryview]:
        with memoryview(plaintext)[offset : offset + size] as view:
            yield view

    return open_chunks(decryptor, source, lend)


@pytest.mark.parametrize("case", CASES)
def test_vector(case: dict[str, Any]) -> None:
    plaintext = bytearray(len(case["ct"]))
    if case["result"] == "valid":
        size = _open(case, plaintext)
        assert size == case["msgLength"]
        assert sealed_size(size) == len(case["ct"])
        assert hashlib.sha512(plaintext[:size]).hexdigest() == case["msgSha512"]
        return
    wrong_size = "InvalidKeySize" in case["flags"]
    with pytest.raises(MalformedError if wrong_size else VerificationError) as caught:
        _open(case, plaintext)
    code = caught.value.reasons[0].code
    if "HeaderFailure" in case["flags"]:
        assert code in ("malformed", "sealing.truncated", "sealing.commitment")
        assert not any(plaintext), "a chunk was opened under a header that does not hold"
    else:
        assert code in ("sealing.chunk", "sealing.truncated")


@pytest.mark.parametrize("case", [case for case in CASES if case.values[0]["result"] == "valid"])
def test_what_is_sealed_has_the_published_size_and_opens_again(case: dict[str, Any]) -> None:
    plaintext = bytearray(len(case["ct"]))
    message = bytes(plaintext[: _open(case, plaintext)])
    key, out = case["key"].ljust(32, b"\0"), io.BytesIO()
    seal_message(key, case["ctx"], io.BytesIO(message), out.write)
    assert len(out.getvalue()) == len(case["ct"])
    again = {"key": key, "ctx": case["ctx"], "ct": out.getvalue(), "aead": "AEAD_AES_256_GCM"}
    opened = bytearray(len(case["ct"]))
    assert bytes(opened[: _open(again, opened)]) == message


def test_a_message_cut_at_any_border_is_refused_by_the_format_alone() -> None:
    """No manifest says here how long the message should be."""
    key, out = b"\x01" * 32, io.BytesIO()
    seal_message(key, b"", io.BytesIO(bytes(2 * CHUNK_BYTES)), out.write)
    message = out.getvalue()
    for border in (0, 24, HEADER_BYTES, *range(HEADER_BYTES, len(message), SEALED_CHUNK_BYTES)):
        for cut in (border - 1, border, border + 1, border + TAG_BYTES):
            if 0 <= cut < len(message):
                case = {"key": key, "ctx": b"", "ct": message[:cut], "aead": "AEAD_AES_256_GCM"}
                with pytest.raises(VerificationError):
                    _open(case, bytearray(len(message)))
