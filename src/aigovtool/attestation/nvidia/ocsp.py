"""
Is a certificate revoked? OCSP responses that came along, judged at a stated time.

Rule 1: a response counts for a certificate when issuer name, issuer key and serial number are its.
Rule 2: it is signed by the issuer, or by a responder that the issuer certified for OCSP signing;
        one that is not is untrue and refused, not passed over.
Rule 3: ``good`` holds from thisUpdate to nextUpdate and not a second longer.
Rule 4: ``revoked`` outlives its response: nobody is un-revoked by an answer growing old. A
        certificate on hold may come back, and is named apart, but is not good either.
Rule 5: no response is an answer too: `Revocation.UNKNOWN`, which a policy accepts or not.

Source: RFC 6960, sections 3.2 (requirements), 4.2.2 (responders).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from aigovtool.attestation.x509chain import fingerprint, name_of, verify_chain
from aigovtool.errors import MalformedError, VerificationError

MALFORMED = "nvidia.ocsp_malformed"
UNTRUE = "nvidia.ocsp_signature"
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


class Revocation(StrEnum):
    """What is known of a certificate or a chain, the worst first."""

    REVOKED = "revoked"
    ON_HOLD = "on hold"
    UNKNOWN = "unknown"
    EXPIRED = "expired"
    NOT_YET_VALID = "not yet valid"
    GOOD = "good"


# The same certificate can have several answers: what stands first here is believed.
_PRECEDENCE = (
    Revocation.REVOKED,
    Revocation.ON_HOLD,
    Revocation.GOOD,
    Revocation.EXPIRED,
    Revocation.NOT_YET_VALID,
    Revocation.UNKNOWN,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An OCSP response as read; `answers` are about certificates of any issuer."""

    whole: ocsp.OCSPResponse
    answers: tuple[ocsp.OCSPSingleResponse, ...]


def parse_response(data: bytes) -> Response:
    """Read a DER response; raises MalformedError when it is none, or carries no answer."""
    try:
        response = ocsp.load_der_ocsp_response(data)
        if response.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL:
            return Response(whole=response, answers=tuple(response.responses))
    except _UNREADABLE:
        raise MalformedError("OCSP response cannot be read", code=MALFORMED) from None
    raise MalformedError(
        "OCSP response without an answer", code=MALFORMED, came=response.response_status.name
    )


def revocation_of_chain(
    certificates: Sequence[x509.Certificate], responses: Iterable[Response], *, now: datetime
) -> Revocation:
    """
    Return the worst that *responses* say of any certificate of a chain but its root.

    Args:
        certificates: in order, each signed by the next, the chain already checked.
        responses: of which any may be about other certificates.
        now: aware time for which the answer is given.

    Raises:
        MalformedError: a response about one of these certificates has unreadable fields.
        VerificationError: a response about one of these certificates is not genuine.
    """
    responses = list(responses)
    found = [
        _revocation(certificate, issuer, responses, now)
        for certificate, issuer in pairwise(certificates)
    ]
    return min(found, key=list(Revocation).index, default=Revocation.UNKNOWN)


def _revocation(
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    responses: Iterable[Response],
    now: datetime,
) -> Revocation:
    found = [Revocation.UNKNOWN]
    for response in responses:
        for answer in response.answers:
            try:
                if _is_about(answer, certificate, issuer):
                    _verify_response(response.whole, answer, issuer, now)
                    found.append(_judge(answer, now))
            except _UNREADABLE:
                raise MalformedError(
                    f"OCSP response for {name_of(certificate)} cannot be read", code=MALFORMED
                ) from None
    return min(found, key=_PRECEDENCE.index)


def _is_about(
    answer: ocsp.OCSPSingleResponse, certificate: x509.Certificate, issuer: x509.Certificate
) -> bool:
    algorithm = answer.hash_algorithm.name
    return (
        answer.serial_number == certificate.serial_number
        and answer.issuer_name_hash == _digest(algorithm, issuer.subject.public_bytes())
        and answer.issuer_key_hash == _digest(algorithm, _key_bits(issuer))
    )


def _judge(answer: ocsp.OCSPSingleResponse, now: datetime) -> Revocation:
    if answer.certificate_status is ocsp.OCSPCertStatus.REVOKED:
        since = answer.revocation_time_utc
        if since is None or since <= now:
            held = answer.revocation_reason is x509.ReasonFlags.certificate_hold
            return Revocation.ON_HOLD if held else Revocation.REVOKED
    if now < answer.this_update_utc:
        return Revocation.NOT_YET_VALID
    if answer.next_update_utc is None or now > answer.next_update_utc:
        return Revocation.EXPIRED
    if answer.certificate_status is ocsp.OCSPCertStatus.GOOD:
        return Revocation.GOOD
    return Revocation.UNKNOWN


def _verify_response(
    response: ocsp.OCSPResponse,
    answer: ocsp.OCSPSingleResponse,
    issuer: x509.Certificate,
    now: datetime,
) -> None:
    responder = next(
        (found for found in (*response.certificates, issuer) if _is_responder(response, found)),
        None,
    )
    if responder is None:
        raise VerificationError("OCSP response without its responder's certificate", code=UNTRUE)
    if responder != issuer:
        # An answer that is out of date is judged for when it was given: it counts only if it
        # revokes, and must be genuine for that too.
        current = answer.next_update_utc is not None and (
            answer.this_update_utc <= now <= answer.next_update_utc
        )
        _check_delegation(responder, issuer, now if current else answer.this_update_utc)
    key, algorithm = responder.public_key(), response.signature_hash_algorithm
    try:
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(algorithm, _HASHES):
            raise InvalidSignature
        key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(algorithm))
    except InvalidSignature:
        raise VerificationError(
            f"OCSP response is not signed by {name_of(responder)}", code=UNTRUE
        ) from None


def _check_delegation(responder: x509.Certificate, issuer: x509.Certificate, at: datetime) -> None:
    verify_chain([responder, issuer], root_fingerprints=frozenset({fingerprint(issuer)}), now=at)
    try:
        usage = responder.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        usage = x509.ExtendedKeyUsage([])
    if ExtendedKeyUsageOID.OCSP_SIGNING not in usage:
        raise VerificationError(
            f"{name_of(responder)} may not answer for {name_of(issuer)}", code=UNTRUE
        )


def _is_responder(response: ocsp.OCSPResponse, certificate: x509.Certificate) -> bool:
    if response.responder_name is not None:
        return response.responder_name == certificate.subject
    return response.responder_key_hash == _digest("sha1", _key_bits(certificate))


def _key_bits(certificate: x509.Certificate) -> bytes:
    """The key as it stands in SubjectPublicKeyInfo, without the algorithm (RFC 6960, 4.1.1)."""
    key = certificate.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return key.public_bytes(Encoding.DER, PublicFormat.PKCS1)


def _digest(algorithm: str, data: bytes) -> bytes:
    # SHA-1 only names keys here, and what it names is checked by a signature
    return hashlib.new(algorithm, data, usedforsecurity=False).digest()
