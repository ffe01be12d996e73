"""Small models to seal: real files, a real custodian key, a real body on disk."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aigovtool.crypto.signing import SigningKey
from aigovtool.sealing.manifest import ModelSignature, TensorSpec, VerifiedManifest
from aigovtool.sealing.seal import ModelDescription, SourceFile, new_content_key, seal

CREATED = datetime(2025, 11, 23, 12, 0, tzinfo=UTC)
CUSTODIAN = SigningKey.from_seed(b"\x01" * 32)
OTHER_CUSTODIAN = SigningKey.from_seed(b"\x02" * 32)
SIGNATURE = ModelSignature(
    inputs=(TensorSpec(name="image", datatype="FP32", shape=(-1, 4, 4, 3)),),
    outputs=(TensorSpec(name="scores", datatype="FP32", shape=(-1, 2)),),
)


@dataclass(frozen=True)
class Sealed:
    """A sealed model with everything that a test may want to break."""

    files: dict[str, bytes]
    body_path: Path
    verified: VerifiedManifest
    content_key: bytes

    @property
    def body(self) -> bytes:
        return self.body_path.read_bytes()


def describe(**changes: Any) -> ModelDescription:
    fields: dict[str, Any] = {
        "name": "covid-net",
        "version": "2.0",
        "format": "onnx",
        "entry": "model.onnx",
        "signature": SIGNATURE,
        "licence": "lent, not given",
    }
    return ModelDescription(**fields | changes)


def write_files(folder: Path, files: dict[str, bytes]) -> list[SourceFile]:
    folder.mkdir(exist_ok=True)
    sources = []
    for number, (name, content) in enumerate(files.items()):
        path = folder / f"source-{number}"
        path.write_bytes(content)
        sources.append(SourceFile(name=name, path=path))
    return sources


def make_sealed(
    folder: Path,
    files: dict[str, bytes],
    *,
    content_key: bytes | None = None,
    signing_key: SigningKey = CUSTODIAN,
    **changes: Any,
) -> Sealed:
    content_key = content_key or new_content_key()
    body_path = folder / "model.sealed"
    verified = seal(
        write_files(folder / "sources", files),
        body_path,
        description=describe(**changes),
        content_key=content_key,
        signing_key=signing_key,
        created=CREATED,
    )
    return Sealed(files, body_path, verified, content_key)
