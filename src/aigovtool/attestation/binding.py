"""
What the evidence commits to: one digest over everything that must not be swapped.

Report data = SHA-512 over the label and, each with its length before it, the nonce of whoever asks,
the enclave's TLS, signing and HPKE keys, the custodian's key and the loan. Relayed evidence names
another TLS key, diverted evidence another custodian or loan, replayed evidence another nonce.

The label says who asked: what a consumer is given for its nonce is worthless to the custodian, so
nobody can enrol with evidence that a genuine enclave made for any caller.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum

from aigovtool.crypto.labels import Label
from aigovtool.errors import MalformedError
from aigovtool.ids import LoanId

NONCE_BYTES = 32
REPORT_DATA_BYTES = 64


class AskedBy(Enum):
    """Whose nonce it is."""

    CUSTODIAN = Label.BINDING_TO_CUSTODIAN
    CONSUMER = Label.BINDING_TO_CONSUMER


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveKeys:
    """
    The public keys that an enclave made for itself.

    Args:
        tls_spki_sha256: 32 bytes, SHA-256 of the TLS key's SubjectPublicKeyInfo.
        signing_key: 32 bytes, Ed25519.
        hpke_key: 1216 bytes, ML-KEM-768 || X25519.
    """

    tls_spki_sha256: bytes
    signing_key: bytes
    hpke_key: bytes


def report_data(
    asked_by: AskedBy, *, nonce: bytes, keys: EnclaveKeys, custodian_key: bytes, loan_id: LoanId
) -> bytes:
    """
    Return the 64 bytes that the evidence must carry.

    Raises:
        MalformedError: the nonce is not `NONCE_BYTES` long.
    """
    if len(nonce) != NONCE_BYTES:
        raise MalformedError(
            "nonce of a wrong length", expected=f"{NONCE_BYTES} bytes", came=f"{len(nonce)} bytes"
        )
    digest = hashlib.sha512(asked_by.value.value + b"\0")
    for part in (
        nonce,
        keys.tls_spki_sha256,
        keys.signing_key,
        keys.hpke_key,
        custodian_key,
        loan_id.encode(),
    ):
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    return digest.digest()
