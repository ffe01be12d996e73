"""
From when to when does a document count? Read from the document itself, by its name.

Nothing is proven here: a span only says when to fetch again, and within which time a bundle can be
verified. A document that says nothing of time (a signature, a report) counts for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from cryptography import x509

from aigovtool.attestation import simulated
from aigovtool.attestation.dcap import collateral as dcap
from aigovtool.attestation.dcap.chain import Span
from aigovtool.attestation.dcap.quote import parse_quote
from aigovtool.attestation.dcap.verify import QUOTE
from aigovtool.attestation.evidence import Tee
from aigovtool.attestation.nitro import verify as nitro
from aigovtool.attestation.nitro.cose import parse_sign1
from aigovtool.attestation.nitro.layout import parse_document
from aigovtool.attestation.nvidia import verify as nvidia
from aigovtool.attestation.nvidia.ocsp import parse_response
from aigovtool.attestation.nvidia.xmldsig import verify_signed_document
from aigovtool.attestation.snp import verify as snp
from aigovtool.attestation.snp.endorsement_key import parse_endorsement_key
from aigovtool.attestation.tpm2 import verify as tpm2
from aigovtool.attestation.x509chain import load_certificates
from aigovtool.errors import MalformedError, VerificationError

ALWAYS = Span(datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
_UNREADABLE = (ValueError, TypeError, UserWarning, x509.InvalidVersion, x509.DuplicateExtension)


def contains(span: Span, moment: datetime) -> bool:
    """Say whether *moment* lies in the closed span."""
    return span.start <= moment <= span.end


def is_empty(span: Span) -> bool:
    """Say whether no moment lies in the span."""
    return span.start > span.end


def common_span(documents: Mapping[str, bytes]) -> Span:
    """
    Return the time in which all *documents* count together; it may be empty.

    Raises:
        MalformedError: a document of a known name cannot be read.
    """
    span = ALWAYS
    for name, body in documents.items():
        one = span_of(name, body)
        span = span.within(one.start, one.end)
    return span


def span_of(name: str, body: bytes) -> Span:
    """
    Return the time in which one document counts.

    Args:
        name: as in `Evidence` or `Endorsements`; of a composite, with the kind before it.
        body: the document.

    Raises:
        MalformedError: a document of this name cannot be read.
    """
    kind, dot, rest = name.partition(".")
    if dot and kind in list(Tee):
        name = rest
    if name.startswith(nvidia.RIM_PREFIX):
        return _of_rim(body)
    if name.startswith(nvidia.OCSP_PREFIX):
        return _of_ocsp(body)
    if name.startswith("device.") and name.endswith(".certificates"):
        return _of_certificates(body)
    return _READERS.get(name, _of_anything)(body)


def _of_anything(_body: bytes) -> Span:
    return ALWAYS


def _of_certificates(body: bytes) -> Span:
    return ALWAYS.within_all(load_certificates(body, what="certificates"))


def _of_crl(body: bytes) -> Span:
    try:
        crl = x509.load_der_x509_crl(body)
        start, end = crl.last_update_utc, crl.next_update_utc
    except _UNREADABLE:
        raise MalformedError("CRL cannot be read", code="crl.malformed") from None
    if end is None:
        raise MalformedError("CRL without a next update", code="crl.malformed")
    return Span(start, end)


def _of_tcb_info(body: bytes) -> Span:
    info = dcap.read_tcb_info(body)
    return Span(info.issue_date, info.next_update)


def _of_qe_identity(body: bytes) -> Span:
    identity = dcap.read_qe_identity(body)
    return Span(identity.issue_date, identity.next_update)


def _of_endorsement_key(body: bytes) -> Span:
    key = parse_endorsement_key(body)
    return Span(key.not_before, key.not_after)


def _of_quote(body: bytes) -> Span:
    pem = parse_quote(body).pck_chain_pem
    return ALWAYS if pem is None else _of_certificates(pem)


def _of_nitro_document(body: bytes) -> Span:
    document = parse_document(parse_sign1(body).payload)
    span = ALWAYS
    for der in (document.certificate, *document.cabundle):
        span = span.within_all(load_certificates(der, what="certificate"))
    return span


def _of_rim(body: bytes) -> Span:
    try:
        return ALWAYS.within_all(verify_signed_document(body).certificates)
    except VerificationError as error:
        raise MalformedError(
            "a RIM was changed after it was signed", code=error.reasons[0].code
        ) from None


def _of_ocsp(body: bytes) -> Span:
    span = ALWAYS
    try:
        for answer in parse_response(body).answers:
            start, end = answer.this_update_utc, answer.next_update_utc
            # Without a next update there is always newer information (RFC 6960, 4.2.2.1).
            span = span.within(start, start if end is None else end)
    except _UNREADABLE:
        raise MalformedError("OCSP response cannot be read", code="nvidia.ocsp_malformed") from None
    return span


_READERS: Mapping[str, Callable[[bytes], Span]] = {
    QUOTE: _of_quote,
    nitro.DOCUMENT: _of_nitro_document,
    dcap.TCB_INFO: _of_tcb_info,
    dcap.QE_IDENTITY: _of_qe_identity,
    dcap.ROOT_CA_CRL: _of_crl,
    dcap.PCK_CRL: _of_crl,
    dcap.PCK_CRL_ISSUER_CHAIN: _of_certificates,
    dcap.TCB_INFO_ISSUER_CHAIN: _of_certificates,
    dcap.QE_IDENTITY_ISSUER_CHAIN: _of_certificates,
    dcap.PCK_CERTIFICATE_CHAIN: _of_certificates,
    simulated.ROOT_CA: _of_certificates,
    snp.VCEK: _of_endorsement_key,
    snp.VLEK: _of_endorsement_key,
    snp.CA_CHAIN: _of_certificates,
    snp.CRL: _of_crl,
    tpm2.AK_CERTIFICATE: _of_certificates,
    tpm2.AK_INTERMEDIATES: _of_certificates,
}
