"""
Sealing a model and registering it.

Rule 1: the sealed body is whole and on disk before the ledger names it; what a crash leaves behind
        is ciphertext under a name that nothing refers to.
Rule 2: the content key exists in this process while it seals, and in the ledger wrapped.
Rule 3: the same model again is the model that is there; another one under its name and version is
        a conflict.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aigovtool.crypto.signing import SigningKey
from aigovtool.custodian.data import DataFolder
from aigovtool.custodian.gguffile import is_gguf, read_gguf
from aigovtool.custodian.ledger import Ledger
from aigovtool.custodian.onnxfile import read_signature, source_files
from aigovtool.custodian.records import Model
from aigovtool.errors import ConfigurationError, ConflictError, MalformedError
from aigovtool.ids import new_id
from aigovtool.sealing.chunked import Progress
from aigovtool.sealing.interface import ModelInterface, decode_interface
from aigovtool.sealing.manifest import ModelFormat, ModelSignature, verify_manifest
from aigovtool.sealing.seal import ModelDescription, SourceFile, new_content_key, seal

NO_TENSORS = ModelSignature()
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """
    What is to be sealed.

    Args:
        path: an ONNX file, whose external data lies beside it, or a GGUF file.
        name: of the model, None for the file's.
        interface: path of an ``interface.json``, None to derive one from the tensors.
    """

    path: Path
    name: str | None = None
    version: str = "1"
    interface: Path | None = None
    licence: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """
    A model as its files have it.

    Args:
        files: the first of them is the one that a runtime loads.
        context: tokens of a language model's context, None for one of tensors.
    """

    format: ModelFormat
    files: Sequence[SourceFile]
    signature: ModelSignature = NO_TENSORS
    interface: ModelInterface | None = None
    context: int | None = None


class Uploads:
    """Seals models into the data folder."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        folder: DataFolder,
        key: SigningKey,
        keep: Callable[[bytes, bytes], bytes],
    ) -> None:
        """`keep` wraps a content key for the model with a digest, as the vault does."""
        self._ledger = ledger
        self._folder = folder
        self._key = key
        self._keep = keep

    def upload(
        self, wanted: Upload, *, actor: str, progress: Callable[[int], Progress] | None = None
    ) -> Model:
        """
        Seal and register a model, or return it when it was before.

        Args:
            progress: given the number of bytes to seal, returns what is told of the way.

        Raises:
            ConfigurationError, MalformedError: a file cannot be read or is not what it must be.
            ConflictError: another model has this name and version.
            UnavailableError: the disk is full.
        """
        interface = None if wanted.interface is None else _read_interface(wanted.interface)
        found = _read_model(wanted.path)
        files = found.files
        if interface is not None and found.context is not None:
            raise MalformedError(
                "an interface describes tensors, and a language model has none",
                code="interface.language_model",
                mend="seal it without --interface",
            )
        name = wanted.name or model_name(wanted.path)
        source = _digest_files([file.path for file in files])
        with self._ledger.read() as tx:
            known = [
                model
                for model in tx.models()
                if (model.name, model.version) == (name, wanted.version)
            ]
        if known:
            return self._same(known[0], source, interface)
        content_key = new_content_key()
        draft = self._folder.models / f"{new_id('upload')}.sealed"
        total = sum(file.path.stat().st_size for file in files)
        sealed = seal(
            files,
            draft,
            description=ModelDescription(
                name=name,
                version=wanted.version,
                format=found.format,
                entry=files[0].name,
                signature=found.signature,
                interface=interface or found.interface,
                licence=wanted.licence,
            ),
            content_key=content_key,
            signing_key=self._key,
            created=self._ledger.clock.now(),
            progress=None if progress is None else progress(total),
        )
        try:
            draft.rename(self._folder.body(sealed.digest))
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        body = sealed.manifest.body
        with self._ledger.write() as entry:
            model = Model(
                digest=sealed.digest,
                name=name,
                version=wanted.version,
                manifest=sealed.signed,
                wrapped_key=self._keep(content_key, sealed.digest),
                body_bytes=body.size,
                body_sha256=bytes.fromhex(body.sha256),
                source_sha256=source,
                created=entry.now,
                context=found.context,
            )
            entry.tx.insert_model(model)
            entry.event(
                "model.sealed",
                actor=actor,
                model=sealed.digest.hex(),
                name=name,
                version=wanted.version,
                body_bytes=body.size,
            )
        return model

    def _same(self, model: Model, source: bytes, interface: ModelInterface | None) -> Model:
        described = verify_manifest(model.manifest, self._key.public_key).manifest.interface
        if model.source_sha256 != source or interface not in (None, described):
            raise ConflictError(
                f"there is another model {model.name!r} version {model.version!r} already",
                code="model.taken",
                mend="choose another --model-name or --model-version",
            )
        return model


def model_name(path: Path) -> str:
    """Return a usable model name out of a file's name."""
    return _NOT_IN_NAMES.sub("-", path.stem).strip("-._") or "model"


def _read_model(path: Path) -> _Source:
    """Read what *path* is by its first bytes, whatever its name says; raises as `upload`."""
    if is_gguf(path):
        return _Source(
            format="gguf",
            files=[SourceFile(name=path.name, path=path)],
            context=read_gguf(path).context,
        )
    files = source_files(path)
    signature, interface = read_signature(path)
    return _Source(format="onnx", files=files, signature=signature, interface=interface)


def _read_interface(path: Path) -> ModelInterface:
    try:
        return decode_interface(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the interface {path}", code="interface.file", came=error.strerror
        ) from None


def _digest_files(paths: list[Path]) -> bytes:
    """Return SHA-256 over the digests of the files, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise ConfigurationError(
                f"cannot read the model file {path}", code="model.file", came=error.strerror
            ) from None
    return digest.digest()
