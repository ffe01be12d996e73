"""
Is a quote signed by this key, and is the key one that signs only what the TPM itself made?

Rule 1: the key is *restricted*: such a key signs nothing from outside that begins with
        TPM_GENERATED, so what begins so was made by the TPM (Part 1, section 23.3).
Rule 2: SHA-1 and RSA keys under 2048 bits are refused.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from aigovtool.attestation.tpm2.layout import (
    MALFORMED,
    Attribute,
    Hash,
    PublicArea,
    RsaKey,
    Scheme,
    Signature,
)
from aigovtool.errors import MalformedError, VerificationError
from aigovtool.ids import sha256

MIN_RSA_BITS = 2048
ATTESTATION_KEY = (
    Attribute.FIXED_TPM
    | Attribute.FIXED_PARENT
    | Attribute.SENSITIVE_DATA_ORIGIN
    | Attribute.RESTRICTED
    | Attribute.SIGN
)
_HASHES: dict[Hash, hashes.HashAlgorithm] = {
    Hash.SHA256: hashes.SHA256(),
    Hash.SHA384: hashes.SHA384(),
    Hash.SHA512: hashes.SHA512(),
}
_CURVES: dict[str, ec.EllipticCurve] = {
    "secp256r1": ec.SECP256R1(),
    "secp384r1": ec.SECP384R1(),
    "secp521r1": ec.SECP521R1(),
}

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


def attestation_key(area: PublicArea) -> PublicKey:
    """
    Return the key of *area*, which must be one that only ever signs what its TPM made.

    Raises:
        MalformedError: the numbers are not a key.
        VerificationError: the key is not restricted to signing, or may leave its TPM.
    """
    if area.attributes & ATTESTATION_KEY != ATTESTATION_KEY or area.attributes & Attribute.DECRYPT:
        raise VerificationError(
            "the key that signed the quote is not an attestation key",
            code="tpm2.ak_attributes",
            expected=f"{ATTESTATION_KEY:#x} set (restricted, sign, fixed), decrypt clear",
            came=f"{area.attributes:#x}",
        )
    if isinstance(area.key, RsaKey):
        return rsa_key(area.key)
    numbers = ec.EllipticCurvePublicNumbers(area.key.x, area.key.y, _CURVES[area.key.curve])
    try:
        return numbers.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise MalformedError("attestation key is not on its curve", code=MALFORMED) from None


def rsa_key(key: RsaKey) -> rsa.RSAPublicKey:
    """Return the RSA key of these numbers; raises MalformedError when they are none."""
    try:
        return rsa.RSAPublicNumbers(key.e, key.n).public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise MalformedError("attestation key is not an RSA key", code=MALFORMED) from None


def spki_sha256(key: PublicKey) -> bytes:
    """Return the 32-byte SHA-256 of the key's SubjectPublicKeyInfo: its name in policies."""
    return sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def verify_signature(key: PublicKey, signature: Signature, message: bytes) -> None:
    """
    Check *signature* over the exact bytes of a TPMS_ATTEST.

    Raises:
        VerificationError: another key, other bytes, or an algorithm that is not accepted.
    """
    algorithm = _HASHES.get(signature.hash)
    if algorithm is None or (isinstance(key, rsa.RSAPublicKey) and key.key_size < MIN_RSA_BITS):
        raise VerificationError(
            "the quote is signed with an algorithm that is not accepted",
            code="tpm2.algorithm",
            expected=f"SHA-256 or better, RSA of {MIN_RSA_BITS} bits or more",
            came=f"{signature.hash}, {key.key_size} bits",
        )
    try:
        _verify(key, signature, message, algorithm)
    except (InvalidSignature, ValueError):
        raise VerificationError(
            "the quote is not signed by the attestation key",
            code="tpm2.signature",
            expected=f"signed by the key with SHA-256 {spki_sha256(key).hex()}",
        ) from None


def _verify(
    key: PublicKey, signature: Signature, message: bytes, algorithm: hashes.HashAlgorithm
) -> None:
    value = signature.value
    if isinstance(key, rsa.RSAPublicKey) and isinstance(value, bytes):
        pad: padding.AsymmetricPadding = padding.PKCS1v15()
        if signature.scheme is Scheme.RSAPSS:
            pad = padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO)
        key.verify(value, message, pad, algorithm)
    elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(value, tuple):
        key.verify(encode_dss_signature(*value), message, ec.ECDSA(algorithm))
    else:
        raise InvalidSignature  # a scheme that this kind of key cannot have used
