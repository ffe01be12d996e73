"""
Seal a model: stream its files, once, into one encrypted body, and sign what was sealed.

Rule 1: every byte is read once: the same pass encrypts, hashes the plaintext and the ciphertext.
Rule 2: a body appears under its name whole or not at all: temporary file, fsync, rename, fsync of
        the folder. Whatever goes wrong, nothing is left beside it.
Rule 3: memory is bounded by `chunked`'s block, whatever the size of the model.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from io import FileIO
from pathlib import Path

import msgspec

from aigovtool.crypto.signing import SigningKey
from aigovtool.errors import AIGovToolError, ConfigurationError, UnavailableError
from aigovtool.ids import DIGEST_BYTES
from aigovtool.sealing.chunked import (
    HEADER_BYTES,
    KEY_BYTES,
    Progress,
    seal_message,
    sealed_size,
)
from aigovtool.sealing.interface import ModelInterface
from aigovtool.sealing.manifest import (
    BodyEntry,
    FileEntry,
    ModelFormat,
    ModelSignature,
    SealedManifest,
    VerifiedManifest,
    body_context,
    decode_payload,
    encode_payload,
    sign_manifest,
    verify_manifest,
)

NO_DIGEST = "0" * (2 * DIGEST_BYTES)  # stands where a digest will be, in a draft only

# A disk that is full now may have room later; anything else is the operator's to mend.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A file to seal, and the plain name that it gets in the manifest."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """What the manifest says of the model and nobody can read from its files; see there."""

    name: str
    version: str
    format: ModelFormat
    entry: str
    signature: ModelSignature
    interface: ModelInterface | None = None
    licence: str = ""


def new_content_key() -> bytes:
    """Return a fresh 32-byte content key. One key seals one body."""
    return secrets.token_bytes(KEY_BYTES)


def seal(
    files: Sequence[SourceFile],
    out: Path,
    *,
    description: ModelDescription,
    content_key: bytes,
    signing_key: SigningKey,
    created: datetime,
    progress: Progress | None = None,
) -> VerifiedManifest:
    """
    Seal *files* into the body *out*, replacing what was there, and return the signed manifest.

    Args:
        files: the entry file and what it needs, in the order in which they are to be loaded.
        content_key: 32 bytes from `new_content_key`, used for nothing else.
        signing_key: the custodian's.
        created: aware UTC time for the manifest.
        progress: told how many bytes of plaintext are read.

    Raises:
        MalformedError: an empty or unsafe file, or a description that contradicts itself.
        ConfigurationError: a file cannot be read, or *out* cannot be written.
        UnavailableError: the disk is full; names *out*.
    """
    with contextlib.closing(_Files(files, progress)) as source:
        draft = _draft(description, source.entries(), created)
        context = body_context(signing_key.public_key, draft.name, draft.version)
        with _new_file(out) as body:
            seal_message(content_key, context, source, body.write)
            manifest = msgspec.structs.replace(
                draft,
                files=source.entries(),
                body=BodyEntry(
                    size=body.size, header=body.header.hex(), sha256=body.digest.hexdigest()
                ),
            )
            return verify_manifest(sign_manifest(manifest, signing_key), signing_key.public_key)


def _draft(
    description: ModelDescription, files: tuple[FileEntry, ...], created: datetime
) -> SealedManifest:
    """Make the manifest without digests, so that what is wrong shows before hours of sealing."""
    draft = SealedManifest(
        manifest_version=1,
        name=description.name,
        version=description.version,
        format=description.format,
        files=files,
        entry=description.entry,
        body=BodyEntry(
            size=sealed_size(sum(file.size for file in files)),
            header=bytes(HEADER_BYTES).hex(),
            sha256=NO_DIGEST,
        ),
        signature=description.signature,
        interface=description.interface,
        licence=description.licence,
        created=created,
    )
    return decode_payload(encode_payload(draft))


class _Files:
    """The files, one after the other, as one source; each is hashed as it is read."""

    def __init__(self, files: Sequence[SourceFile], progress: Progress | None) -> None:
        self._files = files
        self._sizes = [_size(file) for file in files]
        self._progress = progress
        self._digests: list[str] = []
        self._total = 0
        self._stream: FileIO | None = None
        self._hash = hashlib.sha256()
        self._read = 0

    def entries(self) -> tuple[FileEntry, ...]:
        """Name, size and digest of each file; `NO_DIGEST` for those not yet read to their end."""
        missing = [NO_DIGEST] * (len(self._files) - len(self._digests))
        return tuple(
            FileEntry(name=file.name, size=size, sha256=digest)
            for file, size, digest in zip(
                self._files, self._sizes, self._digests + missing, strict=True
            )
        )

    def readinto(self, buffer: memoryview) -> int:
        while len(self._digests) < len(self._files):
            file = self._files[len(self._digests)]
            try:
                if self._stream is None:
                    self._stream = file.path.open("rb", buffering=0)
                count = self._stream.readinto(buffer)
            except OSError as error:
                raise _unreadable(file, error) from None
            if count:
                self._hash.update(buffer[:count])
                self._read += count
                self._total += count
                if self._progress is not None:
                    self._progress(self._total)
                return count
            self._end_of(file)
        return 0

    def _end_of(self, file: SourceFile) -> None:
        expected = self._sizes[len(self._digests)]
        if self._read != expected:
            raise ConfigurationError(
                f"{file.path} changed while it was being sealed",
                code="sealing.source",
                expected=f"{expected} bytes",
                came=f"{self._read} bytes",
            )
        self._digests.append(self._hash.hexdigest())
        self._hash = hashlib.sha256()
        self._read = 0
        self.close()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


class _BodyFile:
    """The body while it is written: its size, header and digest so far."""

    def __init__(self, path: Path, stream: FileIO) -> None:
        self._path = path
        self._stream = stream
        self.size = 0
        self.header = b""
        self.digest = hashlib.sha256()

    def write(self, data: memoryview) -> None:
        self.header += data[: HEADER_BYTES - len(self.header)]
        self.digest.update(data)
        self.size += len(data)
        with _explained(self._path):
            while data:  # a nearly full disk takes a part, and says so only the next time
                data = data[self._stream.write(data) :]


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[_BodyFile]:
    """
    Lend a way to write *path*, which appears there whole, and on disk, or not at all.

    Raises:
        UnavailableError: the disk is full.
        ConfigurationError: it cannot be written for another reason.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    with _explained(path):
        stream = FileIO(temporary, "xb", opener=_open_private)
    try:
        with stream:
            yield _BodyFile(path, stream)
            with _explained(path):
                os.fsync(stream.fileno())
        with _explained(path):
            temporary.rename(path)
            _fsync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unwritable(path, error) from None


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(file: SourceFile) -> int:
    try:
        return file.path.stat().st_size
    except OSError as error:
        raise _unreadable(file, error) from None


def _unreadable(file: SourceFile, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"cannot read the model file {file.path}",
        code="sealing.source",
        came=error.strerror,
    )


def _unwritable(path: Path, error: OSError) -> AIGovToolError:
    if error.errno in _FULL:
        return UnavailableError(
            f"no room to write the sealed model {path}",
            code="sealing.disk_full",
            came=error.strerror,
            mend="free space on that disk, or seal to another one",
        )
    return ConfigurationError(
        f"cannot write the sealed model {path}", code="sealing.output", came=error.strerror
    )
