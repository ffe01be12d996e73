"""
Fields of a Nitro attestation document, with AWS's limits on each.

Source: AWS, ``aws-nitro-enclaves-nsm-api``, docs/attestation_process.md, section 3.1 (CDDL) and
3.2.2 (checks).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeGuard

from aigovtool.attestation.nitro.cose import decode_cbor
from aigovtool.errors import MalformedError

DIGEST = "SHA384"
PCR_BYTES = 48
FIXED_PCRS = range(16)  # always present: 0 to 15 belong to the hypervisor
MAX_PCRS = 32
MAX_CERTIFICATE_BYTES = 1024
MAX_CABUNDLE = 8  # AWS sets no limit; its chains have 4
MAX_PUBLIC_KEY_BYTES = 1024
MAX_USER_DATA_BYTES = 512
MAX_NONCE_BYTES = 512
MAX_MODULE_ID_CHARACTERS = 256  # AWS sets no limit; theirs have 39
MAX_TIMESTAMP_MS = 253_402_300_799_999  # the end of the year 9999

_FIELDS = frozenset(
    {
        "module_id",
        "digest",
        "timestamp",
        "pcrs",
        "certificate",
        "cabundle",
        "public_key",
        "user_data",
        "nonce",
    }
)
_OPTIONAL = frozenset({"public_key", "user_data", "nonce"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """
    A document as read.

    Args:
        timestamp_ms: milliseconds since 1970, UTC, by the hypervisor's clock.
        pcrs: 48 bytes by index; 0 to 15 always, 16 to 31 when the enclave uses them.
        certificate: DER of the certificate whose key signed the document.
        cabundle: DER, root first, the issuer of *certificate* last.
    """

    module_id: str
    timestamp_ms: int
    pcrs: Mapping[int, bytes]
    certificate: bytes
    cabundle: tuple[bytes, ...]
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None


def parse_document(payload: bytes) -> Document:
    """
    Read the payload of the COSE message.

    Raises:
        MalformedError: not such a document, or a field outside AWS's limits.
    """
    fields = decode_cbor(payload)
    if not isinstance(fields, dict):
        raise _malformed("document", "a map")
    if not _FIELDS - _OPTIONAL <= fields.keys() <= _FIELDS:
        raise _malformed("document", f"the fields {', '.join(sorted(_FIELDS))}, and no others")
    module_id, timestamp_ms = fields["module_id"], fields["timestamp"]
    if not isinstance(module_id, str) or not 0 < len(module_id) <= MAX_MODULE_ID_CHARACTERS:
        raise _malformed("module_id", f"1 to {MAX_MODULE_ID_CHARACTERS} characters")
    if fields["digest"] != DIGEST:
        raise _malformed("digest", DIGEST)
    if not _is_int(timestamp_ms) or not 0 < timestamp_ms <= MAX_TIMESTAMP_MS:
        raise _malformed("timestamp", "milliseconds since 1970")
    certificates = fields["cabundle"]
    if not isinstance(certificates, list) or not 0 < len(certificates) <= MAX_CABUNDLE:
        raise _malformed("cabundle", f"1 to {MAX_CABUNDLE} certificates")
    return Document(
        module_id=module_id,
        timestamp_ms=timestamp_ms,
        pcrs=_pcrs(fields["pcrs"]),
        certificate=_bytes("certificate", fields["certificate"], 1, MAX_CERTIFICATE_BYTES),
        cabundle=tuple(
            _bytes("cabundle", certificate, 1, MAX_CERTIFICATE_BYTES)
            for certificate in certificates
        ),
        public_key=_optional("public_key", fields.get("public_key"), 1, MAX_PUBLIC_KEY_BYTES),
        user_data=_optional("user_data", fields.get("user_data"), 0, MAX_USER_DATA_BYTES),
        nonce=_optional("nonce", fields.get("nonce"), 0, MAX_NONCE_BYTES),
    )


def _pcrs(value: object) -> Mapping[int, bytes]:
    if not isinstance(value, dict) or not set(FIXED_PCRS) <= value.keys():
        raise _malformed("pcrs", "a map that has at least PCR 0 to 15")
    for index, digest in value.items():
        if not _is_int(index) or not 0 <= index < MAX_PCRS:
            raise _malformed("pcrs", f"indices from 0 to {MAX_PCRS - 1}")
        _bytes("pcrs", digest, PCR_BYTES, PCR_BYTES)
    return MappingProxyType(value)


def _optional(field: str, value: object, at_least: int, at_most: int) -> bytes | None:
    return None if value is None else _bytes(field, value, at_least, at_most)


def _bytes(field: str, value: object, at_least: int, at_most: int) -> bytes:
    if not isinstance(value, bytes) or not at_least <= len(value) <= at_most:
        raise _malformed(field, f"{at_least} to {at_most} bytes")
    return value


def _is_int(value: object) -> TypeGuard[int]:
    # True and 1 are one key to a dict and one number to a comparison, but not to CBOR.
    return isinstance(value, int) and not isinstance(value, bool)


def _malformed(field: str, expected: str) -> MalformedError:
    return MalformedError(
        f"the Nitro attestation document has an unusable {field}",
        code="nitro.malformed",
        expected=expected,
    )
