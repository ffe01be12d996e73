"""
EAR tokens: a claims-set signed with Ed25519, as JWT (compact JWS) or as CWT (COSE_Sign1).

Rule 1: one algorithm. The protected header is one fixed string of bytes, compared and never read,
        so there is no ``alg`` to choose, no key to fetch, nothing to leave out.
Rule 2: one way to write each token: canonical base64url, deterministic CBOR, nothing around it.
Rule 3: the signature is checked before a claim is read.
Rule 4: a token without a time of issue and of expiry is none, and time is an argument.

A JOSE or COSE library would have brought what rule 1 keeps out: both formats, with one header, are
three byte strings. The signature itself is pyca/cryptography's (`crypto.signing`).

Source: RFC 7515, 7.1 (compact JWS); RFC 8037 (EdDSA in JOSE); RFC 9052, 4.2 and 4.4 (COSE_Sign1);
RFC 9053, 2.2 (EdDSA in COSE); RFC 9596 (typ in COSE); RFC 9782 (media types of EAT).
"""

from __future__ import annotations

import hmac
from datetime import datetime, timedelta
from enum import StrEnum
from io import BytesIO

import cbor2

from aigovtool.attestation.ear.claims import (
    MALFORMED,
    Ear,
    decode_base64url,
    encode_base64url,
    from_cbor,
    from_json,
    to_cbor,
    to_json,
)
from aigovtool.crypto.signing import SIGNATURE_BYTES, SigningKey, verify_envelope
from aigovtool.errors import MalformedError, TooLargeError, VerificationError

MAX_TOKEN_BYTES = 256 << 10  # a refusal lists all reasons, each with all that was expected
MAX_ENVELOPE_DEPTH = 2  # an array, and in it an empty map
CLOCK_SKEW = timedelta(seconds=60)  # the issuer's clock may be ahead of ours by so much

MEDIA_TYPE_JWT = 'application/eat+jwt; eat_profile="tag:github.com,2023:veraison/ear"'
MEDIA_TYPE_CWT = 'application/eat+cwt; eat_profile="tag:github.com,2023:veraison/ear"'

_JWT_HEADER = encode_base64url(b'{"alg":"EdDSA","typ":"eat+jwt"}').encode()
_CWT_HEADER = cbor2.dumps({1: -8, 16: "application/eat+cwt"}, canonical=True)  # alg EdDSA, typ
_TAG_COSE_SIGN1 = b"\xd2"


class EarForm(StrEnum):
    """How a token is written."""

    JWT = "jwt"
    CWT = "cwt"


def sign_ear(ear: Ear, key: SigningKey, *, form: EarForm) -> bytes:
    """
    Return the token: for JWT its ASCII text, for CWT a tagged COSE_Sign1.

    Raises:
        TooLargeError: larger than `MAX_TOKEN_BYTES`, so that no verifier would read it.
    """
    if form is EarForm.JWT:
        signed = _JWT_HEADER + b"." + encode_base64url(to_json(ear)).encode()
        token = signed + b"." + encode_base64url(key.sign_envelope(signed)).encode()
    else:
        payload = to_cbor(ear)
        token = _envelope(payload, key.sign_envelope(_to_be_signed(payload)))
    _check_size(token)
    return token


def verify_ear(
    token: bytes, public_key: bytes, *, now: datetime, nonce: bytes | None = None
) -> Ear:
    """
    Check a token of either form and return its claims.

    Args:
        public_key: 32 bytes, Ed25519, of the verifier whose word is relied on.
        now: aware time.
        nonce: what the token must carry; None when no nonce was asked with.

    Raises:
        MalformedError: not such a token, in any detail of its form, or no EAR.
        VerificationError: not signed by *public_key*, not valid at *now*, or for another nonce.
    """
    if now.tzinfo is None:
        raise MalformedError("a time without a time zone", code="time.naive", came=now.isoformat())
    _check_size(token)
    if token.startswith(_TAG_COSE_SIGN1):
        payload, signature = _open_cwt(token)
        verify_envelope(public_key, _to_be_signed(payload), signature)
        ear = from_cbor(payload)
    else:
        signed, payload, signature = _open_jwt(token)
        verify_envelope(public_key, signed, signature)
        ear = from_json(payload)
    _check_times(ear, now)
    if nonce is not None and not hmac.compare_digest(ear.nonce or "", encode_base64url(nonce)):
        raise VerificationError(
            "the token answers another question",
            code="ear.nonce",
            expected=nonce.hex(),
            came=ear.nonce or "no nonce",
            mend="ask the verifier with this nonce",
        )
    return ear


def _open_jwt(token: bytes) -> tuple[bytes, bytes, bytes]:
    """Return what was signed, the payload, and the signature."""
    parts = token.split(b".")
    if len(parts) != 3 or parts[0] != _JWT_HEADER:
        raise MalformedError(
            "not an EAR token",
            code=MALFORMED,
            expected='a JWT with the header {"alg":"EdDSA","typ":"eat+jwt"}, or a tagged CWT',
            came=f"{len(parts)} parts" if len(parts) != 3 else "another header",
        )
    payload, signature = (decode_base64url(part.decode("latin-1")) for part in parts[1:])
    return b".".join(parts[:2]), payload, _checked_signature(signature)


def _open_cwt(token: bytes) -> tuple[bytes, bytes]:
    """Return the payload and the signature."""
    decoder = cbor2.CBORDecoder(BytesIO(token[1:]), max_depth=MAX_ENVELOPE_DEPTH)
    try:
        item = decoder.decode()
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError):
        item = None
    match item:
        case [header, _, bytes(payload), bytes(signature)] if header == _CWT_HEADER:
            # the envelope is not signed: a second spelling of it must not verify too
            if token == _envelope(payload, signature):
                return payload, _checked_signature(signature)
    raise MalformedError(
        "not an EAR token",
        code=MALFORMED,
        expected="COSE_Sign1 with the header {alg: EdDSA, typ: application/eat+cwt}, and no other",
    )


def _envelope(payload: bytes, signature: bytes) -> bytes:
    return _TAG_COSE_SIGN1 + cbor2.dumps([_CWT_HEADER, {}, payload, signature])


def _to_be_signed(payload: bytes) -> bytes:
    return cbor2.dumps(["Signature1", _CWT_HEADER, b"", payload])


def _checked_signature(signature: bytes) -> bytes:
    if len(signature) != SIGNATURE_BYTES:
        raise MalformedError(
            "a signature of a wrong length",
            code=MALFORMED,
            expected=f"{SIGNATURE_BYTES} bytes",
            came=f"{len(signature)} bytes",
        )
    return signature


def _check_size(token: bytes) -> None:
    if len(token) > MAX_TOKEN_BYTES:
        raise TooLargeError(
            "EAR token too large",
            expected=f"at most {MAX_TOKEN_BYTES} bytes",
            came=f"{len(token)} bytes",
        )


def _check_times(ear: Ear, now: datetime) -> None:
    if ear.expires_s <= ear.issued_s:
        raise MalformedError("a token that expires before it is issued", code=MALFORMED)
    if ear.issued > now + CLOCK_SKEW:
        raise VerificationError(
            "the token is from the future",
            code="ear.issued",
            expected=f"issued by {now:%FT%TZ}",
            came=f"{ear.issued:%FT%TZ}",
            mend="set the clocks of this machine and of the verifier",
        )
    if ear.expires <= now:
        raise VerificationError(
            "the token has expired",
            code="ear.expired",
            came=f"{ear.expires:%FT%TZ}, now {now:%FT%TZ}",
            mend="ask the verifier for a new one",
        )
