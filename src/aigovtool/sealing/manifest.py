"""
The signed manifest of a sealed model: what it is, what is in it, and which body belongs to it.

Rule 1: the custodian signs the exact bytes that are stored and sent; they are verified as they came
        and never written anew.
Rule 2: the *model digest*, which clients check and receipts name, is SHA-256 of those bytes.
Rule 3: only a `VerifiedManifest` opens a body, and only `verify_manifest` makes one.
Rule 4: the body is bound twice. Its encryption context names custodian, model and version, so its
        key opens it as nothing else; the manifest names the body's header, which commits to
        that key, and the digest of every file.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import (
    PUBLIC_KEY_BYTES,
    SIGNATURE_BYTES,
    SigningKey,
    format_public_key,
    parse_public_key,
    verify_signature,
)
from aigovtool.errors import MalformedError, TooLargeError, VerificationError
from aigovtool.ids import DIGEST_BYTES, sha256
from aigovtool.sealing.chunked import HEADER_BYTES, sealed_size
from aigovtool.sealing.interface import Batch, Datatype, ModelInterface, Name, Shape

MAX_PAYLOAD_BYTES = 3 << 20  # 4,096 files or 100,000 labels fit; nothing sensible is larger
MAX_SIGNED_BYTES = MAX_PAYLOAD_BYTES // 3 * 4 + 1024  # the payload in base64, and its envelope
MAX_FILES = 4096  # one for each tensor, in a model with external data
MAX_SIGNATURE_TENSORS = 1024  # a decoder with its cache has two for each layer, in and out
MAX_FILE_NAME_BYTES = 255  # what every file system takes
MAX_MODEL_BYTES = 1 << 42
MAX_LICENCE_CHARS = 256 * 1024

HexDigest = Annotated[str, Meta(pattern=f"^[0-9a-f]{{{2 * DIGEST_BYTES}}}\\Z")]
HexHeader = Annotated[str, Meta(pattern=f"^[0-9a-f]{{{2 * HEADER_BYTES}}}\\Z")]
Size = Annotated[int, Meta(ge=1, le=MAX_MODEL_BYTES)]
# Both stand in URL paths (``/v2/models/NAME/versions/VERSION``) and in file names.
ModelName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")]
ModelVersion = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
# of which a runtime has the name: `onnx` and `gguf` here, others may be added to an enclave
ModelFormat = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}\Z")]


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tensor as the model declares it; a dimension of -1 is free."""

    name: Name
    datatype: Datatype
    shape: Shape


class ModelSignature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tensors that the model takes and gives, in its own order; none for a language model."""

    inputs: Annotated[tuple[TensorSpec, ...], Meta(max_length=MAX_SIGNATURE_TENSORS)] = ()
    outputs: Annotated[tuple[TensorSpec, ...], Meta(max_length=MAX_SIGNATURE_TENSORS)] = ()

    def __post_init__(self) -> None:
        for side, tensors in (("input", self.inputs), ("output", self.outputs)):
            _all_different([tensor.name for tensor in tensors], f"{side} of the model")


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of the model: its plain name, its size in bytes and SHA-256 of its plaintext."""

    name: str
    size: Size
    sha256: HexDigest

    def __post_init__(self) -> None:
        check_file_name(self.name)


class BodyEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    The ciphertext, which may lie anywhere.

    Args:
        size: bytes, header included.
        header: its first 56 bytes, salt and key commitment.
        sha256: of all of it, for whoever keeps a copy and has no key.
    """

    size: Annotated[int, Meta(ge=sealed_size(1), le=sealed_size(MAX_MODEL_BYTES))]
    header: HexHeader
    sha256: HexDigest


class SealedManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    What the custodian says of a sealed model.

    Args:
        manifest_version: of this format.
        name, version: of the model; the name is the one in the enclave's API.
        format: of the entry file.
        files: in the order in which the body holds them, one after the other.
        entry: the name of the file that a runtime loads first.
        body: the ciphertext.
        signature: the model's tensors; an ``onnx`` model has at least one input and output.
        interface: how to ask the model and read its answer, when the custodian described it.
        licence: under which the model is lent; text for people.
        created: aware UTC.
    """

    manifest_version: Literal[1]
    name: ModelName
    version: ModelVersion
    format: ModelFormat
    files: Annotated[tuple[FileEntry, ...], Meta(min_length=1, max_length=MAX_FILES)]
    entry: str
    body: BodyEntry
    signature: ModelSignature
    interface: ModelInterface | None
    licence: Annotated[str, Meta(max_length=MAX_LICENCE_CHARS)]
    created: Annotated[datetime, Meta(tz=True)]

    def __post_init__(self) -> None:
        names = [file.name for file in self.files]
        _all_different(names, "file of the model")
        if self.entry not in names:
            raise _malformed(
                "the entry file is not one of the model's files",
                expected=f"one of {names[:8]}",
                came=repr(self.entry),
            )
        if self.body.size != sealed_size(self.plaintext_size):
            raise _malformed(
                "the body's size does not fit its files",
                expected=f"{sealed_size(self.plaintext_size)} bytes",
                came=f"{self.body.size} bytes",
            )
        if self.created.utcoffset() != timedelta(0):
            raise _malformed("the time of sealing is not UTC")
        if self.format == "onnx" and not (self.signature.inputs and self.signature.outputs):
            raise _malformed("an ONNX model without an input or an output")
        if self.interface is not None:
            _check_interface(self.interface, self.signature)

    @property
    def plaintext_size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedManifest:
    """
    A manifest whose signature held, made by `verify_manifest`.

    Args:
        manifest: what it says.
        digest: the 32-byte model digest.
        custodian_key: who signed it.
        signed: the bytes as they came, to store and to pass on.
    """

    manifest: SealedManifest
    digest: bytes
    custodian_key: bytes
    signed: bytes

    @property
    def context(self) -> bytes:
        """The encryption context of this manifest's body."""
        return body_context(self.custodian_key, self.manifest.name, self.manifest.version)


class _Envelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    payload: bytes
    signature: Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
    public_key: str


_envelope_decoder = msgspec.json.Decoder(_Envelope)
_payload_decoder = msgspec.json.Decoder(SealedManifest)


def sign_manifest(manifest: SealedManifest, key: SigningKey) -> bytes:
    """
    Return the signed manifest, as it is stored and sent: JSON with the payload in base64.

    Raises:
        TooLargeError, MalformedError: see `encode_payload`.
    """
    payload = encode_payload(manifest)
    return msgspec.json.encode(
        _Envelope(
            payload=payload,
            signature=key.sign(Label.SEALED_MANIFEST, payload),
            public_key=format_public_key(key.public_key),
        )
    )


def verify_manifest(signed: bytes, custodian_key: bytes) -> VerifiedManifest:
    """
    Check that *custodian_key* (32 bytes, Ed25519) signed *signed*, then read it.

    Raises:
        TooLargeError: more than `MAX_SIGNED_BYTES`.
        VerificationError: signed by another key, or altered.
        MalformedError: not a signed manifest, or one whose parts contradict each other.
    """
    _check_size("signed manifest", signed, MAX_SIGNED_BYTES)
    try:
        envelope = _envelope_decoder.decode(signed)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(f"not a signed manifest: {error}") from None
    if parse_public_key(envelope.public_key) != custodian_key:
        raise VerificationError(
            "the model's manifest is signed by another custodian",
            code="sealing.custodian",
            expected=format_public_key(custodian_key),
            came=envelope.public_key,
            mend="ask the custodian that you trust for this model's manifest",
        )
    verify_signature(custodian_key, Label.SEALED_MANIFEST, envelope.payload, envelope.signature)
    return VerifiedManifest(
        manifest=decode_payload(envelope.payload),
        digest=sha256(envelope.payload),
        custodian_key=custodian_key,
        signed=signed,
    )


def encode_payload(manifest: SealedManifest) -> bytes:
    """
    Return the bytes that are signed.

    Raises:
        TooLargeError: more than `MAX_PAYLOAD_BYTES`, which nobody would read.
        MalformedError: a text is not Unicode.
    """
    try:
        payload = msgspec.json.encode(manifest)
    except UnicodeEncodeError:
        raise _malformed("a text of the manifest is not Unicode") from None
    _check_size("manifest", payload, MAX_PAYLOAD_BYTES)
    return payload


def decode_payload(payload: bytes) -> SealedManifest:
    """
    Read the signed part of a manifest, whoever signed it.

    Raises:
        MalformedError: unknown or missing fields, values out of bounds, or parts that contradict
            each other.
    """
    try:
        return _payload_decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(f"not the manifest of a sealed model: {error}") from None


def body_context(custodian_key: bytes, name: str, version: str) -> bytes:
    """
    Return the encryption context of a body: label, 0x00, custodian's key, then name and version.

    Each of the last two has its length in two bytes before it, so no two models share a context.
    """
    if len(custodian_key) != PUBLIC_KEY_BYTES:
        raise _malformed("not a custodian's public key")
    context = Label.SEALED_BODY.value + b"\0" + custodian_key
    for part in (name.encode(), version.encode()):
        context += len(part).to_bytes(2, "big") + part
    return context


def check_file_name(name: str) -> None:
    """
    Accept only a name that is one plain file name, everywhere and in one spelling.

    Raises:
        MalformedError: empty, too long, a path, not NFC, or with characters that nobody sees.
    """
    plain = (
        name not in ("", ".", "..")
        and name.isprintable()
        and not set(name) & set('/\\:*?"<>|')
        and name == name.strip()
        and unicodedata.is_normalized("NFC", name)
        and len(name.encode("utf-8", "surrogatepass")) <= MAX_FILE_NAME_BYTES
    )
    if not plain:
        raise _malformed(
            "not a safe file name",
            expected=f"one plain NFC name of at most {MAX_FILE_NAME_BYTES} bytes, no path",
            came=ascii(name[:64]),
        )


def _check_interface(interface: ModelInterface, signature: ModelSignature) -> None:
    described = [(tensor.name, tensor.datatype, tensor.shape) for tensor in interface.inputs]
    declared = [(tensor.name, tensor.datatype, tensor.shape) for tensor in signature.inputs]
    fits = len(described) == len(declared) and all(
        mine[:2] == theirs[:2] and _shapes_fit(mine[2], theirs[2])
        for mine, theirs in zip(described, declared, strict=True)
    )
    if not fits:
        raise _malformed(
            "the interface does not describe the model's inputs",
            expected=_brief(declared),
            came=_brief(described),
            mend="describe the inputs in the model's order, with its datatypes and shapes",
        )
    if isinstance(interface.batch, Batch):
        _check_batch(interface.batch, signature)
    known = {tensor.name for tensor in signature.outputs}
    for output in interface.outputs:
        if output.name not in known:
            raise _malformed(
                "the interface describes an output that the model does not have",
                expected=f"one of {sorted(known)[:8]}",
                came=repr(output.name),
            )


def _check_batch(batch: Batch, signature: ModelSignature) -> None:
    shapes = {tensor.name: tensor.shape for tensor in signature.inputs}
    for name, axis in batch.axes.items():
        if axis >= len(shapes.get(name, ())):
            raise _malformed(
                "the interface puts a batch where the model has no axis",
                expected=_brief([(one.name, one.datatype, one.shape) for one in signature.inputs]),
                came=f"axis {axis} of {name!r}",
            )


def _shapes_fit(one: Sequence[int], other: Sequence[int]) -> bool:
    return len(one) == len(other) and all(
        a == b or -1 in (a, b) for a, b in zip(one, other, strict=True)
    )


def _brief(tensors: list[tuple[str, Datatype, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {datatype} {list(shape)}" for name, datatype, shape in tensors[:8])


def _all_different(names: list[str], what: str) -> None:
    if len(set(names)) != len(names):
        raise _malformed(f"a {what} is named twice")


def _check_size(what: str, data: bytes, limit: int) -> None:
    if len(data) > limit:
        raise TooLargeError(
            f"{what} too large", expected=f"at most {limit} bytes", came=f"{len(data)} bytes"
        )


def _malformed(
    message: str,
    *,
    expected: str | None = None,
    came: str | None = None,
    mend: str | None = None,
) -> MalformedError:
    return MalformedError(message, code="sealing.manifest", expected=expected, came=came, mend=mend)
