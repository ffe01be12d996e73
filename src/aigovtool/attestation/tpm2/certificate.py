"""
Attestation key certificates: who says that a key lives in a TPM.

Rule 1: the chain ends in a root pinned here by fingerprint. TPMs store their certificate and its
        intermediates but never the root, so the root is a file of this package (`roots/`); the
        pin, and not the file, is what is trusted.
Rule 2: the certificate is for attestation keys (extended key usage tcg-kp-AIKCertificate), and its
        key is the one that signs the quotes.

Source: TCG EK Credential Profile 2.5 and TCG Platform Certificate OIDs (2.23.133.8.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from importlib import resources

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from aigovtool.attestation.tpm2.signature import PublicKey, spki_sha256
from aigovtool.attestation.x509chain import (
    MAX_CHAIN_CERTIFICATES,
    fingerprint,
    load_certificates,
    name_of,
    verify_chain,
)
from aigovtool.errors import MalformedError, VerificationError

AK_ROOTS = frozenset(
    {
        # Azure Virtual TPM Root Certificate Authority 2023, valid until 2048-06-01
        bytes.fromhex("e6c596b17f8ffefba5c300f714cfb1260c6028704ecf7becc4ab5018efb00e95"),
    }
)
ROOT_FILES = ("azure_virtual_tpm_root_2023.pem",)
AIK_CERTIFICATE = x509.ObjectIdentifier("2.23.133.8.3")  # tcg-kp-AIKCertificate


def verify_ak_certificate(
    certificate: bytes, intermediates: bytes | None, *, key: PublicKey, now: datetime
) -> str:
    """
    Check that *key* is certified as an attestation key.

    Args:
        certificate: of the key, DER or PEM.
        intermediates: PEM, in any order, with or without the root.
        key: the key that signed the quote.
        now: aware time at which the whole chain must be valid.

    Returns:
        The fingerprint of the root, in hex.

    Raises:
        MalformedError: a document is not a certificate.
        VerificationError: another key, no attestation key, or no chain to a pinned root.
    """
    leaf, *more = load_certificates(certificate, what="ak_certificate")
    if more:
        raise MalformedError("ak_certificate holds more than one certificate", code="tpm2.ak")
    if spki_sha256_of(leaf) != spki_sha256(key):
        raise VerificationError(
            "the AK certificate is for another key than the one that signed the quote",
            code="tpm2.ak",
            expected=spki_sha256(key).hex(),
            came=spki_sha256_of(leaf).hex(),
        )
    pool = load_certificates(intermediates, what="ak_intermediates") if intermediates else []
    chain = order_chain(leaf, [*pool, *_roots()])
    verify_chain(chain, root_fingerprints=AK_ROOTS, now=now)
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        usage = x509.ExtendedKeyUsage([])
    if AIK_CERTIFICATE not in usage:
        raise VerificationError(
            f"{name_of(leaf)} is not for an attestation key",
            code="tpm2.ak",
            expected=f"extended key usage {AIK_CERTIFICATE.dotted_string}",
        )
    return fingerprint(chain[-1]).hex()


def order_chain(leaf: x509.Certificate, pool: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """Follow issuer names from *leaf* up; what does not belong is left out, not trusted."""
    chain = [leaf]
    while chain[-1].issuer != chain[-1].subject and len(chain) <= MAX_CHAIN_CERTIFICATES:
        issuer = next((found for found in pool if found.subject == chain[-1].issuer), None)
        if issuer is None:
            break
        chain.append(issuer)
    return chain


def spki_sha256_of(certificate: x509.Certificate) -> bytes:
    """Return the 32-byte SHA-256 of a certificate's SubjectPublicKeyInfo; raises MalformedError."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise MalformedError("a certificate holds an unknown key", code="tpm2.ak") from None
    if not isinstance(key, PublicKey):
        raise MalformedError("a certificate holds a key that is not RSA or ECC", code="tpm2.ak")
    return spki_sha256(key)


@cache
def _roots() -> tuple[x509.Certificate, ...]:
    folder = resources.files(__package__).joinpath("roots")
    return tuple(
        x509.load_pem_x509_certificate(folder.joinpath(name).read_bytes()) for name in ROOT_FILES
    )
