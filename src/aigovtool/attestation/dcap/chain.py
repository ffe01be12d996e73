"""
Whose signatures are under a quote and its collateral, from the root down.

`verify_pck_chain` and `verify_quote_signatures` need the quote alone; `verify_collateral` does the
rest. What they return is signed by somebody the root stands for, and valid at the stated time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from aigovtool.attestation.dcap import collateral as names
from aigovtool.attestation.dcap.collateral import QeIdentity, TcbInfo, check_span, verify_p256
from aigovtool.attestation.dcap.quote import Quote
from aigovtool.attestation.evidence import Endorsements
from aigovtool.attestation.x509chain import (
    REMEMBERED_DOCUMENTS,
    REMEMBERED_LISTS,
    RevocationList,
    fingerprint,
    load_certificates,
    name_of,
    verify_chain,
    verify_crl,
)
from aigovtool.errors import MalformedError, VerificationError

ENDORSEMENT_MISSING = "endorsement.missing"


@dataclass(frozen=True, slots=True)
class Span:
    """The time in which everything seen so far is valid together."""

    start: datetime
    end: datetime

    def within(self, start: datetime, end: datetime) -> Span:
        return Span(max(self.start, start), min(self.end, end))

    def within_all(self, certificates: Iterable[x509.Certificate]) -> Span:
        span = self
        for certificate in certificates:
            span = span.within(certificate.not_valid_before_utc, certificate.not_valid_after_utc)
        return span


@dataclass(frozen=True, slots=True)
class Chain:
    """
    Certificates of one document.

    Args:
        certificates: from the leaf up.
        pem: the same, in this order.
    """

    certificates: tuple[x509.Certificate, ...]
    pem: bytes


@dataclass(frozen=True, slots=True)
class PckChain:
    """PCK certificate, the CA that issued it, and the root, checked against each other."""

    pck: x509.Certificate
    ca: x509.Certificate
    root: x509.Certificate
    pem: bytes

    def __iter__(self) -> Iterator[x509.Certificate]:
        return iter((self.pck, self.ca, self.root))


@dataclass(frozen=True, slots=True)
class Collateral:
    """
    What Intel signed about the platform.

    Args:
        span: when all of it, chains and lists too, is valid.
        issuer_chains: by document name, each as PEM from the leaf up.
    """

    tcb_info: TcbInfo
    qe_identity: QeIdentity
    span: Span
    issuer_chains: Mapping[str, bytes]


def verify_pck_chain(pem: bytes, *, root_sha256: bytes, now: datetime) -> PckChain:
    """
    Check the chain of the PCK certificate; it may come in any order.

    Raises:
        MalformedError: not certificates.
        VerificationError: not leaf, CA and root, or a rule of `x509chain` is broken.
    """
    chain = _load(pem, "PCK certificate chain")
    certificates = chain.certificates
    verify_chain(certificates, root_fingerprints=frozenset({root_sha256}), now=now)
    if len(certificates) != 3:
        raise VerificationError(
            "a PCK chain is a leaf, a CA and the root",
            code="dcap.pck.chain",
            came=f"{len(certificates)} certificates",
        )
    return PckChain(*certificates, chain.pem)


def _load(data: bytes, what: str) -> Chain:
    try:
        return _read_chain(data)
    except MalformedError as error:
        # A certificate that does not parse any more has been altered: it proves nothing.
        raise VerificationError(f"{what} is corrupted", code="dcap.chain.corrupted") from error


@lru_cache(REMEMBERED_DOCUMENTS)
def _read_chain(data: bytes) -> Chain:
    certificates = tuple(in_order(load_certificates(data, what="certificate chain")))
    return Chain(certificates, b"".join(one.public_bytes(Encoding.PEM) for one in certificates))


def in_order(certificates: list[x509.Certificate]) -> list[x509.Certificate]:
    """Return the chain from the leaf up, by names; what does not fit is left out."""
    issuers = {certificate.issuer for certificate in certificates if not _self_issued(certificate)}
    leaves = [certificate for certificate in certificates if certificate.subject not in issuers]
    if len(leaves) != 1:
        return certificates  # the order that came is as good as any; `verify_chain` judges it
    chain = leaves
    while not _self_issued(chain[-1]) and len(chain) <= len(certificates):
        above = [other for other in certificates if other.subject == chain[-1].issuer]
        if not above:
            break
        chain.append(above[0])
    return chain


def _self_issued(certificate: x509.Certificate) -> bool:
    return certificate.subject == certificate.issuer


def verify_quote_signatures(quote: Quote, pck: x509.Certificate) -> None:
    """
    Check PCK → quoting enclave's report → attestation key → header and body.

    Raises:
        VerificationError: one of the two signatures, or the commitment between them, fails.
    """
    verify_p256(
        pck.public_key(), quote.qe_signature, quote.qe_report_raw, what="the quoting enclave report"
    )
    commitment = hashlib.sha256(quote.attestation_key + quote.qe_auth_data).digest() + bytes(32)
    if quote.qe_report.report_data != commitment:
        raise VerificationError(
            "the quoting enclave does not vouch for this attestation key",
            code="dcap.attestation_key",
            expected=commitment.hex(),
            came=quote.qe_report.report_data.hex(),
        )
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(
            ec.SECP256R1(), b"\x04" + quote.attestation_key
        )
    except (ValueError, UnsupportedAlgorithm):
        raise VerificationError(
            "the attestation key is no point of P-256", code="dcap.attestation_key"
        ) from None
    verify_p256(key, quote.signature, quote.signed, what="the quote")


def verify_collateral(
    endorsements: Endorsements, pck_chain: PckChain, *, root_sha256: bytes, now: datetime
) -> Collateral:
    """
    Check lists, TCB info and QE identity, and that no certificate used is revoked.

    Raises:
        MalformedError: a document is missing or cannot be read.
        VerificationError: not signed under the root, not current, or a certificate is revoked.
    """
    crl_chain = _issuer_chain(endorsements, names.PCK_CRL_ISSUER_CHAIN)
    tcb_chain = _issuer_chain(endorsements, names.TCB_INFO_ISSUER_CHAIN)
    qe_chain = _issuer_chain(endorsements, names.QE_IDENTITY_ISSUER_CHAIN)
    roots = frozenset({root_sha256})
    verify_chain(crl_chain.certificates, root_fingerprints=roots, now=now, first_is_issuer=True)
    # one certificate signs both, as a rule
    for chain in (tcb_chain,) if tcb_chain is qe_chain else (tcb_chain, qe_chain):
        verify_chain(chain.certificates, root_fingerprints=roots, now=now, first_is_shared=True)
        if len(chain.certificates) != 2:
            raise VerificationError(
                "a TCB signing certificate stands directly under the root",
                code="dcap.tcb_signing",
                came=f"{len(chain.certificates)} certificates",
            )
    tcb_signer, qe_signer = tcb_chain.certificates[0], qe_chain.certificates[0]
    lists = _check_revocation(
        endorsements, pck_chain, crl_chain.certificates[0], (tcb_signer, qe_signer), now=now
    )

    tcb_info = _signed_tcb_info(
        tcb_signer,
        document(endorsements, names.TCB_INFO_SIGNATURE),
        document(endorsements, names.TCB_INFO),
    )
    qe_identity = _signed_qe_identity(
        qe_signer,
        document(endorsements, names.QE_IDENTITY_SIGNATURE),
        document(endorsements, names.QE_IDENTITY),
    )
    check_span(tcb_info.issue_date, tcb_info.next_update, now=now, what="TCB info")
    check_span(qe_identity.issue_date, qe_identity.next_update, now=now, what="QE identity")
    span = (
        Span(tcb_info.issue_date, tcb_info.next_update)
        .within(qe_identity.issue_date, qe_identity.next_update)
        .within_all(pck_chain)
        .within_all(crl_chain.certificates)
        .within_all(tcb_chain.certificates)
        .within_all(qe_chain.certificates)
    )
    for crl in lists:
        span = span.within(crl.last_update, crl.next_update)
    chains = {
        names.PCK_CRL_ISSUER_CHAIN: crl_chain.pem,
        names.TCB_INFO_ISSUER_CHAIN: tcb_chain.pem,
        names.QE_IDENTITY_ISSUER_CHAIN: qe_chain.pem,
    }
    return Collateral(tcb_info, qe_identity, span, chains)


def document(endorsements: Endorsements, name: str) -> bytes:
    """Return one document; raises MalformedError when it is missing, with a code that says so."""
    try:
        return endorsements.document(name)
    except MalformedError as error:
        raise MalformedError(
            error.reasons[0].message,
            code=ENDORSEMENT_MISSING,
            came=error.reasons[0].came,
            mend="fetch the collateral of this platform and give it as endorsements",
        ) from None


def _issuer_chain(endorsements: Endorsements, name: str) -> Chain:
    return _load(document(endorsements, name), name)


# Both remember what a signer signed; when it is valid is asked each time.


@lru_cache(REMEMBERED_LISTS)
def _signed_tcb_info(signer: x509.Certificate, signature: bytes, text: bytes) -> TcbInfo:
    verify_p256(signer.public_key(), signature, text, what="the TCB info")
    return names.read_tcb_info(text)


@lru_cache(REMEMBERED_LISTS)
def _signed_qe_identity(signer: x509.Certificate, signature: bytes, text: bytes) -> QeIdentity:
    verify_p256(signer.public_key(), signature, text, what="the QE identity")
    return names.read_qe_identity(text)


def _check_revocation(
    endorsements: Endorsements,
    pck_chain: PckChain,
    crl_issuer: x509.Certificate,
    signers: tuple[x509.Certificate, ...],
    *,
    now: datetime,
) -> tuple[RevocationList, RevocationList]:
    """Check that no certificate used is revoked, and return the root's list and the CA's."""
    if (crl_issuer.subject, crl_issuer.public_key()) != (
        pck_chain.ca.subject,
        pck_chain.ca.public_key(),
    ):
        # Processor and Platform CA have lists of their own; the other one proves nothing.
        raise VerificationError(
            "the PCK revocation list is of another CA",
            code="dcap.crl.issuer",
            expected=name_of(pck_chain.ca),
            came=name_of(crl_issuer),
            mend="fetch the list of the CA that issued this platform's certificate",
        )
    by_root = verify_crl(document(endorsements, names.ROOT_CA_CRL), issuer=pck_chain.root, now=now)
    by_ca = verify_crl(document(endorsements, names.PCK_CRL), issuer=crl_issuer, now=now)
    for certificate, crl in (
        (pck_chain.root, by_root),
        (pck_chain.ca, by_root),
        (crl_issuer, by_root),
        *((signer, by_root) for signer in signers),
        (pck_chain.pck, by_ca),
    ):
        if certificate.serial_number in crl.revoked:
            raise VerificationError(
                f"{name_of(certificate)} is revoked",
                code="dcap.revoked",
                came=fingerprint(certificate).hex(),
                mend="this platform or its signer cannot be trusted any more",
            )
    return by_root, by_ca
