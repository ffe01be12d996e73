"""
Unseal a model: from ciphertext anywhere, straight into memory that the caller gives.

Rule 1: nothing is allocated before the body's header is the one that the signed manifest names and
        the content key is the one that the header commits to.
Rule 2: plaintext is decrypted to its final place; beside it there are a few blocks of ciphertext.
Rule 3: on any failure everything written is overwritten before the error leaves.
Rule 4: files are only handed out together, when the last chunk has authenticated.
Rule 5: only `UnsealedModel.confirm` gives the model digest that receipts name. It hashes the
        files, so what somebody sealed who knows the content key, but is not this model, never
        answers under its digest. It may run beside the loading of the model, and must have
        returned before the first query.
"""

from __future__ import annotations

import contextlib
import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType

from aigovtool.errors import PromiseBrokenError, VerificationError
from aigovtool.sealing.chunked import (
    HEADER_BYTES,
    SEALED_BLOCK_BYTES,
    Progress,
    Source,
    fill,
    new_decryptor,
    open_chunks,
    open_header,
)
from aigovtool.sealing.manifest import BodyEntry, FileEntry, VerifiedManifest
from aigovtool.sealing.memory import WritableBuffer, anonymous_memory, wipe

Allocate = Callable[[FileEntry], WritableBuffer]
"""Gives writable memory of exactly the file's size."""


def allocate_anonymous(file: FileEntry) -> memoryview:
    """Give each file anonymous memory of its own; see `anonymous_memory`."""
    return anonymous_memory(file.size)


class UnsealedModel:
    """The files of a model in memory, decrypted and authenticated; made by `unseal_into`."""

    __slots__ = ("_memory", "_verified", "files")

    def __init__(self, verified: VerifiedManifest, memory: _Memory) -> None:
        self._verified = verified
        self._memory = memory
        self.files: Mapping[str, memoryview] = MappingProxyType(memory.read_only())

    @property
    def entry(self) -> memoryview:
        """The file that a runtime loads first."""
        return self.files[self._verified.manifest.entry]

    def confirm(self) -> bytes:
        """
        Hash every file and return the 32-byte model digest; other threads run meanwhile.

        Raises:
            VerificationError: a file is not the one that the manifest names; all are wiped.
        """
        if not self.files:
            raise PromiseBrokenError("a model was to be confirmed after it was wiped")
        for file in self._verified.manifest.files:
            came = hashlib.sha256(self.files[file.name]).hexdigest()
            if came != file.sha256:
                self.wipe()
                raise VerificationError(
                    f"file {file.name!r} of the model is not the one that its manifest names",
                    code="sealing.file",
                    expected=file.sha256,
                    came=came,
                    mend="somebody who has the content key sealed another model: ask the custodian",
                )
        return self._verified.digest

    def wipe(self) -> None:
        """Overwrite all files, whoever still looks at them, and let go; may be called again."""
        self._memory.wipe()
        for view in self.files.values():
            _release(view)
        self.files = MappingProxyType({})


def unseal_into(
    source: Source | Iterable[bytes],
    verified: VerifiedManifest,
    content_key: bytes,
    *,
    allocate: Allocate = allocate_anonymous,
    progress: Progress | None = None,
) -> UnsealedModel:
    """
    Decrypt the body that *source* gives into memory that *allocate* gives.

    Args:
        source: a binary file at its start, or an iterable of pieces of any size. A thread reads it
            while this one decrypts; it is never read by two at once.
        verified: the manifest of this body.
        content_key: 32 bytes, as the custodian released it.
        progress: told how many bytes of plaintext are ready.

    Raises:
        MalformedError: the content key has a wrong length.
        VerificationError: another body or key, or the body is altered, reordered, truncated or
            longer than it should be.

    Whatever *source*, *allocate* or *progress* raises is passed on. In every case, what was
    written is wiped first.
    """
    manifest = verified.manifest
    decryptor = new_decryptor(content_key, verified.context)
    body = _Body(source, manifest.body)
    header = bytearray(HEADER_BYTES)
    size = fill(body, memoryview(header))
    if header[:size].hex() != manifest.body.header:
        raise VerificationError(
            "the sealed body is not the one that this manifest names",
            code="sealing.header",
            expected=manifest.body.header,
            came=header[:size].hex(),
            mend="fetch the body that belongs to this manifest",
        )
    open_header(decryptor, bytes(header))
    memory = _Memory()
    try:
        for file in manifest.files:
            memory.add(file, allocate(file))
        open_chunks(decryptor, body, memory.lend, progress)
    except BaseException:
        memory.wipe()
        raise
    return UnsealedModel(verified, memory)


def check_body(source: Source | Iterable[bytes], body: BodyEntry) -> None:
    """
    Check a copy of a body without any key, by its size and digest: for mirrors and caches.

    Raises:
        VerificationError: not the body that the manifest names.
    """
    stream = _Body(source, body)
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(SEALED_BLOCK_BYTES))
    while count := fill(stream, buffer):
        digest.update(buffer[:count])
    if digest.hexdigest() != body.sha256:
        raise VerificationError(
            "a copy of the sealed body is not the one that the manifest names",
            code="sealing.body",
            expected=body.sha256,
            came=digest.hexdigest(),
            mend="fetch the sealed model again",
        )


class _Body:
    """A source that must end exactly where the manifest says."""

    def __init__(self, source: Source | Iterable[bytes], entry: BodyEntry) -> None:
        self._source = source if hasattr(source, "readinto") else _Pieces(source)
        self._size = entry.size
        self._read = 0

    def readinto(self, buffer: memoryview) -> int:
        count = self._source.readinto(buffer) or 0
        self._read += count
        if self._read > self._size or (count == 0 and self._read < self._size):
            raise VerificationError(
                "the sealed body is not as long as its manifest says",
                code="sealing.truncated" if count == 0 else "sealing.trailing",
                expected=f"{self._size} bytes",
                came=f"{self._read} bytes" if count == 0 else f"{self._read} bytes or more",
                mend="fetch the sealed model again",
            )
        return count


class _Pieces:
    """An iterable of pieces, read like a file."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")

    def readinto(self, buffer: memoryview) -> int:
        while not self._rest:
            try:
                self._rest = memoryview(next(self._pieces))
            except StopIteration:
                return 0
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class _Memory:
    """Where the files lie: one address space over several buffers."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._views: list[memoryview] = []
        self._starts: list[int] = []
        self._end = 0

    def add(self, file: FileEntry, buffer: WritableBuffer) -> None:
        view = memoryview(buffer).cast("B")
        if len(view) != file.size or view.readonly:
            raise PromiseBrokenError(
                f"unfit memory was allocated for {file.name!r}",
                expected=f"{file.size} writable bytes",
                came=f"{len(view)} {'read-only' if view.readonly else 'writable'} bytes",
            )
        self._names.append(file.name)
        self._views.append(view)
        self._starts.append(self._end)
        self._end += file.size

    @contextlib.contextmanager
    def lend(self, offset: int, size: int) -> Iterator[memoryview]:
        """Lend the bytes at *offset*: those of the file itself, or a scratch over several files."""
        index = bisect_right(self._starts, offset) - 1
        start = offset - self._starts[index]
        if start + size <= len(self._views[index]):
            with self._views[index][start : start + size] as view:
                yield view
            return
        scratch = bytearray(size)
        try:
            with memoryview(scratch) as view:
                yield view
                self._scatter(index, start, view)
        finally:
            wipe(scratch)

    def _scatter(self, index: int, start: int, data: memoryview) -> None:
        while data:
            part = self._views[index][start : start + len(data)]
            part[:] = data[: len(part)]
            data = data[len(part) :]
            index, start = index + 1, 0

    def read_only(self) -> dict[str, memoryview]:
        return {
            name: view.toreadonly() for name, view in zip(self._names, self._views, strict=True)
        }

    def wipe(self) -> None:
        for view in self._views:
            wipe(view)
        for view in self._views:
            _release(view)
        self._views.clear()


def _release(view: memoryview) -> None:
    with contextlib.suppress(BufferError):  # a runtime looks at it still, and sees zeros
        view.release()
