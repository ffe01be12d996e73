"""
One file with everything that a verification needs, for those without a network.

    {"digest": "…", "endorsements": {…}, "evidence": {…}, "format": "aigovtool-attestation-bundle",
     "policy": "…", "tee": "tdx", "valid_from": "…", "valid_until": "…", "version": 1}

Rule 1: one encoding. The same content is the same bytes, and a file that is not the encoding of
        what it says is malformed: no white space, no other order, no second way to write base64.
Rule 2: the digest, SHA-256 over the file without it, says that nothing was damaged on the way. It
        proves nothing: genuine is what the signatures inside say.
Rule 3: the span is that in which all documents count together, and is computed again when read.
Rule 4: a policy inside is the word of whoever made the bundle. A reader with a policy of its own
        uses that.

JSON and not an archive: names in an archive are paths and sizes in it are claims, which is where
its attacks come from; base64 costs a third of some hundred kilobytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from aigovtool.attestation.dcap.chain import Span
from aigovtool.attestation.evidence import (
    MAX_ENDORSEMENTS_BYTES,
    MAX_EVIDENCE_BYTES,
    Endorsements,
    Evidence,
    Tee,
)
from aigovtool.attestation.policy import MAX_POLICY_BYTES
from aigovtool.endorsements.spans import common_span, is_empty
from aigovtool.errors import MalformedError, TooLargeError
from aigovtool.ids import sha256

MAX_BUNDLE_BYTES = 2 * (MAX_EVIDENCE_BYTES + MAX_ENDORSEMENTS_BYTES + MAX_POLICY_BYTES)
MAX_DOCUMENTS = 256  # NVIDIA's 16 devices, 32 RIMs and 64 OCSP answers are the most known
MALFORMED = "bundle.malformed"

_Name = Annotated[str, Meta(min_length=1, max_length=128, pattern="^[!-~]+$")]
_Documents = Annotated[dict[_Name, bytes], Meta(max_length=MAX_DOCUMENTS)]
_NO_DIGEST = ""


class _File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file; times are RFC 3339, and both None when all documents never count together."""

    digest: str
    endorsements: _Documents
    evidence: _Documents
    format: Literal["aigovtool-attestation-bundle"] = "aigovtool-attestation-bundle"
    policy: bytes | None
    tee: Tee
    valid_from: Annotated[datetime, Meta(tz=True)] | None
    valid_until: Annotated[datetime, Meta(tz=True)] | None
    version: Literal[1] = 1


# made here, where nobody else runs: see `wire.codec`
_file_decoder = msgspec.json.Decoder(_File)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """
    What is in a bundle; nothing of it is proven.

    Args:
        evidence: of one attester.
        endorsements: for it.
        policy: a manifest.toml as its maker wrote it, or None.
        span: in which all documents count together; None when there is no such time.
    """

    evidence: Evidence
    endorsements: Endorsements
    policy: bytes | None
    span: Span | None


def make_bundle(
    evidence: Evidence, endorsements: Endorsements, *, policy: bytes | None = None
) -> Bundle:
    """
    Put together a bundle.

    Raises:
        MalformedError: of different kinds, or a document cannot be read.
        TooLargeError: the policy is too large.
    """
    if evidence.tee is not endorsements.tee:
        raise MalformedError(
            "evidence and endorsements are of different kinds",
            code=MALFORMED,
            expected=evidence.tee,
            came=endorsements.tee,
        )
    if policy is not None and len(policy) > MAX_POLICY_BYTES:
        raise _too_large("policy", MAX_POLICY_BYTES, len(policy))
    span = common_span({**evidence.documents, **endorsements.documents})
    return Bundle(
        evidence=evidence,
        endorsements=endorsements,
        policy=policy,
        span=None if is_empty(span) else span,
    )


def write_bundle(bundle: Bundle) -> bytes:
    """Return the file; equal bundles are equal bytes."""
    span = bundle.span
    file = _File(
        digest=_NO_DIGEST,
        endorsements=dict(bundle.endorsements.documents),
        evidence=dict(bundle.evidence.documents),
        policy=bundle.policy,
        tee=bundle.evidence.tee,
        valid_from=None if span is None else span.start.astimezone(UTC),
        valid_until=None if span is None else span.end.astimezone(UTC),
    )
    return _encode(msgspec.structs.replace(file, digest=_digest(file)))


def read_bundle(data: bytes) -> Bundle:
    """
    Read a bundle.

    Raises:
        TooLargeError: longer than `MAX_BUNDLE_BYTES`.
        MalformedError: not a bundle, damaged, or any of this module's rules is broken.
    """
    if len(data) > MAX_BUNDLE_BYTES:
        raise _too_large("bundle", MAX_BUNDLE_BYTES, len(data))
    try:
        file = _file_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        # msgspec's text names a path and types, never a value
        raise MalformedError("not a bundle", code=MALFORMED, came=str(error)) from None
    if file.digest != _digest(file):
        raise MalformedError(
            "the bundle is damaged",
            code="bundle.digest",
            expected=_digest(file),
            came=file.digest[:64],
            mend="copy it again from where it was made",
        )
    if _encode(file) != data:
        raise MalformedError("the bundle is not in its one encoding", code=MALFORMED)
    bundle = make_bundle(
        Evidence(tee=file.tee, documents=file.evidence),
        Endorsements(tee=file.tee, documents=file.endorsements),
        policy=file.policy,
    )
    computed = (bundle.span.start, bundle.span.end) if bundle.span else (None, None)
    if (file.valid_from, file.valid_until) != computed:
        raise MalformedError(
            "the bundle states another span than its documents have",
            code="bundle.span",
            expected=" to ".join(str(moment) for moment in computed),
            came=f"{file.valid_from} to {file.valid_until}",
        )
    return bundle


def _encode(file: _File) -> bytes:
    return msgspec.json.encode(file, order="sorted")


def _digest(file: _File) -> str:
    return sha256(_encode(msgspec.structs.replace(file, digest=_NO_DIGEST))).hex()


def _too_large(what: str, limit: int, size: int) -> TooLargeError:
    return TooLargeError(
        f"{what} too large", code="bundle.size", expected=f"at most {limit} bytes", came=f"{size}"
    )
