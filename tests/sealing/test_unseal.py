"""What a mirror, a disk, a wrong key or a dishonest custodian can do to a sealed body."""

from __future__ import annotations

import io
import itertools
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigovtool.errors import MalformedError, PromiseBrokenError, VerificationError
from aigovtool.ids import sha256
from aigovtool.sealing import chunked
from aigovtool.sealing.chunked import CHUNK_BYTES, HEADER_BYTES, SEALED_CHUNK_BYTES
from aigovtool.sealing.manifest import FileEntry, VerifiedManifest, sign_manifest, verify_manifest
from aigovtool.sealing.memory import anonymous_memory
from aigovtool.sealing.unseal import UnsealedModel, check_body, unseal_into
from tests.sealing.models import CUSTODIAN, OTHER_CUSTODIAN, Sealed, make_sealed

RANDOM = random.Random(20251123)
WEIGHTS = {
    "model.onnx": RANDOM.randbytes(1000),
    "weights.bin": RANDOM.randbytes(3 * CHUNK_BYTES + 17),
    "more.bin": RANDOM.randbytes(CHUNK_BYTES),
}


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    return make_sealed(tmp_path_factory.mktemp("sealed"), WEIGHTS)


class Allocator:
    """Gives memory, and remembers it for a look at what was left behind."""

    def __init__(self) -> None:
        self.given: list[bytearray] = []

    def __call__(self, file: FileEntry) -> bytearray:
        self.given.append(bytearray(b"\xaa" * file.size))
        return self.given[-1]


def refuse(
    sealed: Sealed,
    body: bytes,
    *,
    key: bytes | None = None,
    verified: VerifiedManifest | None = None,
) -> str:
    """Unseal, expect a refusal that leaves not one byte behind, and return its code."""
    allocator = Allocator()
    with pytest.raises(VerificationError) as caught:
        unseal_into(
            io.BytesIO(body),
            verified or sealed.verified,
            key or sealed.content_key,
            allocate=allocator,
        )
    for memory in allocator.given:
        assert not any(memory), "plaintext was left behind after a refusal"
        memory.append(0)  # raises BufferError while anybody still holds a view of it
    return caught.value.reasons[0].code


def test_files_come_out_as_they_went_in(sealed: Sealed) -> None:
    with sealed.body_path.open("rb", buffering=0) as body:
        model = unseal_into(body, sealed.verified, sealed.content_key)
    assert {name: bytes(view) for name, view in model.files.items()} == WEIGHTS
    assert bytes(model.entry) == WEIGHTS["model.onnx"]
    assert model.confirm() == sealed.verified.digest
    assert all(view.readonly for view in model.files.values())


SIZES = sorted(
    {
        max(1, border + delta)
        for border in (0, CHUNK_BYTES, 2 * CHUNK_BYTES, 5 * CHUNK_BYTES)
        for delta in (-1, 0, 1)
    }
)


@given(
    sizes=st.lists(st.sampled_from(SIZES) | st.integers(1, 3000), min_size=1, max_size=5),
    pieces=st.lists(st.integers(1, 40_000), min_size=1, max_size=20),
    block_chunks=st.sampled_from([1, 2, 3, 128]),
)
def test_round_trip_of_any_files_through_any_pieces(
    sizes: list[int], pieces: list[int], block_chunks: int
) -> None:
    files = {f"file-{number}": RANDOM.randbytes(size) for number, size in enumerate(sizes)}
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        # Small blocks put many file and block borders into few bytes.
        patch.setattr(chunked, "BLOCK_BYTES", block_chunks * CHUNK_BYTES)
        patch.setattr(chunked, "SEALED_BLOCK_BYTES", block_chunks * SEALED_CHUNK_BYTES)
        sealed = make_sealed(Path(folder), files, entry="file-0")
        body = sealed.body
        model = unseal_into(_cut(body, pieces), sealed.verified, sealed.content_key)
    assert {name: bytes(view) for name, view in model.files.items()} == files
    assert model.confirm() == sealed.verified.digest


def _cut(body: bytes, sizes: list[int]) -> Iterator[bytes]:
    at = 0
    for size in itertools.cycle(sizes):
        if at >= len(body):
            return
        yield body[at : at + size]
        at += size


def _borders(body: bytes) -> set[int]:
    whole = range(HEADER_BYTES, len(body), SEALED_CHUNK_BYTES)
    return {
        cut
        for border in (0, 24, *whole, len(body))
        for cut in (border - 1, border, border + 1)
        if 0 <= cut < len(body)
    }


def test_a_body_cut_at_any_border_is_refused(sealed: Sealed) -> None:
    body = sealed.body
    for cut in _borders(body):
        assert refuse(sealed, body[:cut]) in ("sealing.truncated", "sealing.header")


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 16, b"\0" * SEALED_CHUNK_BYTES])
def test_bytes_after_the_last_chunk_are_refused(sealed: Sealed, tail: bytes) -> None:
    assert refuse(sealed, sealed.body + tail) == "sealing.trailing"


def test_a_flipped_bit_anywhere_in_the_header_is_refused_before_anything_is_allocated(
    sealed: Sealed,
) -> None:
    for at in range(HEADER_BYTES):
        body = bytearray(sealed.body)
        body[at] ^= 1 << RANDOM.randrange(8)
        allocator = Allocator()
        with pytest.raises(VerificationError, match="not the one that this manifest names"):
            unseal_into(io.BytesIO(body), sealed.verified, sealed.content_key, allocate=allocator)
        assert not allocator.given


def test_a_flipped_bit_in_any_chunk_is_refused(sealed: Sealed) -> None:
    body = sealed.body
    places = {
        at + offset
        for at in range(HEADER_BYTES, len(body), SEALED_CHUNK_BYTES)
        for offset in (0, 1, 777, CHUNK_BYTES, SEALED_CHUNK_BYTES - 1)
        if at + offset < len(body)
    } | {len(body) - 1}
    for at in places:
        flipped = bytearray(body)
        flipped[at] ^= 1 << RANDOM.randrange(8)
        assert refuse(sealed, bytes(flipped)) == "sealing.chunk"


def test_chunks_that_changed_places_are_refused(sealed: Sealed) -> None:
    body = sealed.body
    header, chunks = body[:HEADER_BYTES], body[HEADER_BYTES:]
    parts = [
        chunks[at : at + SEALED_CHUNK_BYTES] for at in range(0, len(chunks), SEALED_CHUNK_BYTES)
    ]
    for one, other in itertools.combinations(range(len(parts) - 1), 2):
        swapped = list(parts)
        swapped[one], swapped[other] = swapped[other], swapped[one]
        assert refuse(sealed, header + b"".join(swapped)) == "sealing.chunk"
    doubled = [parts[0], parts[0], *parts[2:]]
    assert refuse(sealed, header + b"".join(doubled)) == "sealing.chunk"


def test_another_content_key_is_refused(sealed: Sealed) -> None:
    assert refuse(sealed, sealed.body, key=b"\x07" * 32) == "sealing.commitment"


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_content_key_of_another_size_is_refused(sealed: Sealed, size: int) -> None:
    with pytest.raises(MalformedError) as caught:
        unseal_into(io.BytesIO(sealed.body), sealed.verified, b"\x5a" * size)
    assert "5a5a" not in str(caught.value)
    assert "ZZ" not in str(caught.value)


def test_the_body_of_another_model_is_refused(sealed: Sealed, tmp_path: Path) -> None:
    other = make_sealed(tmp_path, WEIGHTS, content_key=sealed.content_key)
    assert refuse(sealed, other.body) == "sealing.header"


@pytest.mark.parametrize(
    "changes", [{"name": "other"}, {"version": "2.1"}, {"signing_key": OTHER_CUSTODIAN}]
)
def test_a_body_does_not_open_as_another_model_even_when_a_manifest_names_it(
    sealed: Sealed, tmp_path: Path, changes: dict[str, object]
) -> None:
    """A custodian's mix-up: the manifest of one model with the body of another, and its key."""
    other = make_sealed(tmp_path, WEIGHTS, content_key=sealed.content_key, **changes)  # type: ignore[arg-type]  # a test's keyword arguments
    mixed = msgspec.structs.replace(sealed.verified.manifest, body=other.verified.manifest.body)
    verified = verify_manifest(sign_manifest(mixed, CUSTODIAN), CUSTODIAN.public_key)
    assert refuse(sealed, other.body, verified=verified) == "sealing.commitment"


def test_another_plaintext_under_the_same_key_and_header_is_not_confirmed(
    sealed: Sealed, tmp_path: Path
) -> None:
    """
    Whoever knows the content key can make chunks that authenticate: AES-GCM binds them to the key,
    not to the manifest. Here the custodian swaps the weights after it signed.
    """
    swapped = dict(WEIGHTS, **{"weights.bin": RANDOM.randbytes(len(WEIGHTS["weights.bin"]))})
    other = make_sealed(tmp_path, swapped, content_key=sealed.content_key)
    entry = msgspec.structs.replace(
        sealed.verified.manifest.body, header=other.verified.manifest.body.header
    )
    manifest = msgspec.structs.replace(sealed.verified.manifest, body=entry)
    verified = verify_manifest(sign_manifest(manifest, CUSTODIAN), CUSTODIAN.public_key)

    allocator = Allocator()
    model = unseal_into(io.BytesIO(other.body), verified, sealed.content_key, allocate=allocator)
    with pytest.raises(VerificationError) as caught:
        model.confirm()
    reason = caught.value.reasons[0]
    assert reason.code == "sealing.file"
    assert reason.expected == sha256(WEIGHTS["weights.bin"]).hex()
    assert reason.came == sha256(swapped["weights.bin"]).hex()
    assert not any(any(memory) for memory in allocator.given)
    assert not model.files
    with pytest.raises(PromiseBrokenError):
        model.confirm()


def test_wiping_leaves_nothing_and_may_be_repeated(sealed: Sealed) -> None:
    allocator = Allocator()
    model = unseal_into(
        io.BytesIO(sealed.body), sealed.verified, sealed.content_key, allocate=allocator
    )
    view = model.files["weights.bin"]
    model.wipe()
    model.wipe()
    assert not any(any(memory) for memory in allocator.given)
    with pytest.raises(ValueError, match="released"):
        view.tobytes()


def test_wiping_does_not_wait_for_a_runtime_that_still_holds_the_weights(sealed: Sealed) -> None:
    model = unseal_into(io.BytesIO(sealed.body), sealed.verified, sealed.content_key)
    held = [np.frombuffer(view, dtype=np.uint8) for view in model.files.values()]
    assert all(array.any() for array in held)
    model.wipe()
    assert not any(array.any() for array in held)
    assert not model.files


class BrokenLineError(Exception):
    """Stands for whatever a download may raise."""


def _broken_download(body: bytes) -> Iterator[bytes]:
    yield body[: HEADER_BYTES + 2 * SEALED_CHUNK_BYTES]
    raise BrokenLineError


def _broken_progress(_: int) -> None:
    raise KeyboardInterrupt


def _broken_allocator(keep: Allocator) -> Callable[[FileEntry], bytearray]:
    def allocate(file: FileEntry) -> bytearray:
        if keep.given:
            raise MemoryError
        return keep(file)

    return allocate


def test_what_breaks_on_the_way_is_passed_on_after_a_wipe(sealed: Sealed) -> None:
    body, keep = sealed.body, Allocator()
    with pytest.raises(BrokenLineError):
        unseal_into(_broken_download(body), sealed.verified, sealed.content_key, allocate=keep)
    with pytest.raises(KeyboardInterrupt):
        unseal_into(
            io.BytesIO(body),
            sealed.verified,
            sealed.content_key,
            allocate=keep,
            progress=_broken_progress,
        )
    with pytest.raises(MemoryError):
        unseal_into(
            io.BytesIO(body),
            sealed.verified,
            sealed.content_key,
            allocate=_broken_allocator(Allocator()),
        )
    assert len(keep.given) == 2 * len(WEIGHTS)
    assert not any(any(memory) for memory in keep.given)


@pytest.mark.parametrize(
    "unfit",
    [
        lambda file: bytearray(file.size - 1),
        lambda file: bytearray(file.size + 1),
        lambda file: memoryview(bytes(file.size)),
    ],
)
def test_unfit_memory_is_our_own_fault(
    sealed: Sealed, unfit: Callable[[FileEntry], bytearray]
) -> None:
    with pytest.raises(PromiseBrokenError):
        unseal_into(io.BytesIO(sealed.body), sealed.verified, sealed.content_key, allocate=unfit)


def test_progress_ends_at_the_size_of_all_files(sealed: Sealed) -> None:
    told: list[int] = []
    unseal_into(io.BytesIO(sealed.body), sealed.verified, sealed.content_key, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == sealed.verified.manifest.plaintext_size


def test_a_mirror_checks_its_copy_without_a_key(sealed: Sealed) -> None:
    body, entry = sealed.body, sealed.verified.manifest.body
    check_body(io.BytesIO(body), entry)
    check_body([body[:100], b"", body[100:]], entry)
    for bad in (body[:-1], body + b"\0", body[:-1] + bytes([body[-1] ^ 1]), b""):
        with pytest.raises(VerificationError):
            check_body(io.BytesIO(bad), entry)


def test_nothing_that_is_printed_shows_a_key_or_a_weight(sealed: Sealed) -> None:
    model = unseal_into(io.BytesIO(sealed.body), sealed.verified, sealed.content_key)
    decryptor = chunked.new_decryptor(sealed.content_key, b"")
    shown = f"{model!r} {model.files!r} {sealed.verified!r} {decryptor!r}"
    for secret in (sealed.content_key, WEIGHTS["model.onnx"][:32]):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown
    assert isinstance(model, UnsealedModel)


def test_anonymous_memory_is_zero_and_writable() -> None:
    memory = anonymous_memory(12345)
    assert len(memory) == 12345
    assert not any(memory)
    memory[:5] = b"hello"
