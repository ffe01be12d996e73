"""
HPKE (RFC 9180) with the hybrid KEM ML-KEM-768 + X25519, HKDF-SHA256 and AES-256-GCM.

A recorded session stays closed to a later quantum computer, and to whoever terminates TLS:
secrets are sealed to the attested key. A public key travels as
``ML-KEM-768 encapsulation key (1184 bytes) || X25519 public key (32 bytes)``.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from aigovtool.crypto.labels import Label
from aigovtool.errors import MalformedError, VerificationError

MLKEM_PUBLIC_BYTES = 1184
X25519_PUBLIC_BYTES = 32
PUBLIC_KEY_BYTES = MLKEM_PUBLIC_BYTES + X25519_PUBLIC_BYTES

_SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


class HpkeKey:
    """A hybrid private key, born in memory and never written anywhere."""

    __slots__ = ("_key", "public_key")

    def __init__(self) -> None:
        mlkem, x25519 = MLKEM768PrivateKey.generate(), X25519PrivateKey.generate()
        self._key = hpke.MLKEM768X25519PrivateKey(mlkem, x25519)
        self.public_key: bytes = (
            mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
        )

    def open(self, sealed: bytes, label: Label, context: bytes) -> bytes:
        """
        Return the plaintext that `seal` put in *sealed* for this key, purpose and context.

        Raises:
            VerificationError: sealed to another key, or for another purpose or context, or altered.
        """
        try:
            return _SUITE.decrypt(sealed, self._key, info=_info(label, context))
        except (InvalidTag, ValueError):
            raise VerificationError(
                "cannot open what was sealed to this key", code="hpke.open"
            ) from None


def seal(public_key: bytes, plaintext: bytes, label: Label, context: bytes) -> bytes:
    """
    Encrypt *plaintext* to *public_key* (1216 bytes) for one purpose and context.

    Raises:
        MalformedError: *public_key* is not such a key.
    """
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise MalformedError(
            "not an ML-KEM-768 + X25519 public key",
            expected=f"{PUBLIC_KEY_BYTES} bytes",
            came=f"{len(public_key)} bytes",
        )
    try:
        key = hpke.MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(public_key[:MLKEM_PUBLIC_BYTES]),
            X25519PublicKey.from_public_bytes(public_key[MLKEM_PUBLIC_BYTES:]),
        )
        return _SUITE.encrypt(plaintext, key, info=_info(label, context))
    except ValueError:
        raise MalformedError("not an ML-KEM-768 + X25519 public key") from None


def _info(label: Label, context: bytes) -> bytes:
    return label.value + b"\0" + context
