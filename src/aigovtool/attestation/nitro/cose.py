"""
COSE_Sign1 with ES384, as the Nitro hypervisor makes it, and CBOR read without mercy.

Source: RFC 9052, sections 4.2 and 4.4; RFC 9053, section 2.1 (ES384); RFC 8949 (CBOR).
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from aigovtool.errors import MalformedError, TooLargeError, VerificationError

MAX_MESSAGE_BYTES = 0x3000  # NSM_RESPONSE_MAX_SIZE: the device cannot answer with more
MAX_DEPTH = 4  # a document is a map of maps and arrays
ES384_HEADER = b"\xa1\x01\x38\x22"  # {1 (alg): -35 (ES384)}, and nothing else
SIGNATURE_BYTES = 96  # r and s, 48 each, big-endian

_TAG_COSE_SIGN1 = b"\xd2"  # tag 18, optional


@dataclass(frozen=True, slots=True, kw_only=True)
class CoseSign1:
    """The signed bytes, exactly as they came, and their signature. Nothing has been checked."""

    payload: bytes
    signature: bytes


def decode_cbor(data: bytes) -> object:
    """
    Decode one CBOR item. Indefinite lengths are allowed: the hypervisor's own documents have them.

    Raises:
        MalformedError: not one whole item, a key twice, or nested too deep.
    """
    stream = BytesIO(data)
    decoder = cbor2.CBORDecoder(stream, max_depth=MAX_DEPTH, allow_duplicate_keys=False)
    try:
        item: object = decoder.decode()
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise MalformedError("CBOR cannot be read", code="cbor.malformed") from error
    if stream.tell() != len(data):
        raise MalformedError(
            "CBOR with bytes after its end",
            code="cbor.malformed",
            expected=f"{stream.tell()} bytes",
            came=f"{len(data)} bytes",
        )
    return item


def parse_sign1(data: bytes) -> CoseSign1:
    """
    Read the envelope, tagged or untagged.

    Raises:
        MalformedError: not COSE_Sign1 with exactly the header {alg: ES384}, or encoded in another
            way than the one every encoder agrees on: the envelope is not signed, so two
            spellings of it would both verify.
        TooLargeError: larger than `MAX_MESSAGE_BYTES`.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise TooLargeError(
            "COSE message too large",
            expected=f"at most {MAX_MESSAGE_BYTES} bytes",
            came=f"{len(data)} bytes",
        )
    untagged = data.removeprefix(_TAG_COSE_SIGN1)
    item = decode_cbor(untagged)
    if not isinstance(item, list) or len(item) != 4:
        raise _malformed("is not an array of 4")
    protected, unprotected, payload, signature = item
    if protected != ES384_HEADER:
        raise _malformed("has another protected header than {alg: ES384}")
    if unprotected != {}:
        raise _malformed("has an unprotected header")
    if not isinstance(payload, bytes) or not isinstance(signature, bytes):
        raise _malformed("has no payload or signature")
    if len(signature) != SIGNATURE_BYTES:
        raise _malformed("has a signature of a wrong length")
    if cbor2.dumps([ES384_HEADER, {}, payload, signature]) != untagged:
        raise _malformed("is not encoded in the shortest way")
    return CoseSign1(payload=payload, signature=signature)


def verify_sign1(message: CoseSign1, key: ec.EllipticCurvePublicKey) -> None:
    """
    Check the signature.

    Args:
        key: on P-384; the caller has seen to that.

    Raises:
        VerificationError: *key* did not sign this.
    """
    half = SIGNATURE_BYTES // 2
    r = int.from_bytes(message.signature[:half], "big")
    s = int.from_bytes(message.signature[half:], "big")
    to_be_signed = cbor2.dumps(["Signature1", ES384_HEADER, b"", message.payload])
    try:
        key.verify(encode_dss_signature(r, s), to_be_signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise VerificationError(
            "the COSE signature is not by the certified key", code="cose.signature"
        ) from None


def _malformed(problem: str) -> MalformedError:
    return MalformedError(f"the COSE_Sign1 message {problem}", code="cose.malformed")
