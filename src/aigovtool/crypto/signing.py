"""
Ed25519 signatures with a purpose.

What is signed is ``label || 0x00 || payload`` (RFC 8032 Ed25519 over it), so a signature made
for one purpose never verifies for another. Labels hold no zero byte.

The one exception are the envelopes of other people's formats, JWS and COSE_Sign1, whose signed
bytes are fixed by their RFCs. Those begin with ``eyJ`` or ``84 6a "Signature1"`` and no label does,
so an envelope never verifies as a message with a label, nor the other way round.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from aigovtool.crypto.labels import Label
from aigovtool.errors import MalformedError, PromiseBrokenError, VerificationError

PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64
KEYS_READ = 1024
_PREFIX = "ed25519:"
_ENVELOPES = (
    b"eyJ",  # RFC 7515, 5.1: base64url of a header, and so of '{"'
    b"\x84\x6aSignature1",  # RFC 9052, 4.4: Sig_structure, an array of 4 that begins so
)


class SigningKey:
    """An Ed25519 private key. Never printed; `seed` leaves only to be encrypted at rest."""

    __slots__ = ("_key", "public_key")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key: bytes = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @classmethod
    def generate(cls) -> SigningKey:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKey:
        """Load the 32-byte seed that `seed` returned; raises MalformedError on another length."""
        try:
            return cls(Ed25519PrivateKey.from_private_bytes(seed))
        except ValueError:
            raise MalformedError(
                "not an Ed25519 seed", expected="32 bytes", came=f"{len(seed)} bytes"
            ) from None

    def seed(self) -> bytes:
        return self._key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())

    def sign(self, label: Label, payload: bytes) -> bytes:
        """Return the 64-byte signature of *payload* for the purpose *label*."""
        return self._key.sign(label.value + b"\0" + payload)

    def sign_envelope(self, to_be_signed: bytes) -> bytes:
        """
        Return the 64-byte signature of a JWS signing input or a COSE_Sign1 Sig_structure.

        Raises:
            PromiseBrokenError: it is neither, and might be taken for a message with a label.
        """
        if not to_be_signed.startswith(_ENVELOPES):
            raise PromiseBrokenError("only the signing inputs of JWS and COSE go without a label")
        return self._key.sign(to_be_signed)

    def x509_key(self) -> Ed25519PrivateKey:
        """The same key as pyca/cryptography knows it, to sign the custodian's own certificate."""
        return self._key


def verify_signature(public_key: bytes, label: Label, payload: bytes, signature: bytes) -> None:
    """
    Check that *signature* over *payload* was made by *public_key* for the purpose *label*.

    Raises:
        MalformedError: *public_key* is not 32 bytes of an Ed25519 point.
        VerificationError: the signature does not hold.
    """
    _verify(public_key, label.value + b"\0" + payload, signature, what=label.value.decode())


def verify_envelope(public_key: bytes, to_be_signed: bytes, signature: bytes) -> None:
    """
    Check a signature that `SigningKey.sign_envelope` made.

    Raises:
        MalformedError: *public_key* is not 32 bytes of an Ed25519 point.
        VerificationError: the signature does not hold, or is over neither JWS nor COSE.
    """
    if not to_be_signed.startswith(_ENVELOPES):
        raise VerificationError("what was signed is neither JWS nor COSE", code="signature")
    _verify(public_key, to_be_signed, signature, what="a token")


def _verify(public_key: bytes, to_be_signed: bytes, signature: bytes, *, what: str) -> None:
    try:
        key = _public_key(public_key)
    except ValueError:
        raise MalformedError("not an Ed25519 public key") from None
    try:
        key.verify(signature, to_be_signed)
    except InvalidSignature:
        raise VerificationError(
            f"signature for {what} does not verify",
            code="signature",
            expected=f"signed by {format_public_key(public_key)}",
        ) from None


@lru_cache(maxsize=KEYS_READ)  # a peer signs again and again with one key
def _public_key(public_key: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(public_key)


def format_public_key(public_key: bytes) -> str:
    """Write a public key as ``ed25519:<base64url without padding>``."""
    return _PREFIX + base64.urlsafe_b64encode(public_key).rstrip(b"=").decode()


def parse_public_key(text: str) -> bytes:
    """Read what `format_public_key` wrote; raises MalformedError on anything else."""
    if not text.startswith(_PREFIX):
        raise MalformedError("not a public key", expected=f"{_PREFIX}…", came=f"{text[:12]!r}")
    body = text.removeprefix(_PREFIX)
    try:
        key = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise MalformedError("a public key is not base64url") from None
    if len(key) != PUBLIC_KEY_BYTES or format_public_key(key) != text:
        raise MalformedError("a public key is not 32 bytes in canonical base64url")
    return key


def fingerprint(public_key: bytes) -> str:
    """Return the first 16 hex digits of the key's SHA-256, for people to compare."""
    return hashlib.sha256(public_key).hexdigest()[:16]
