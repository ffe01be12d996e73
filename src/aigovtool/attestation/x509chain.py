"""
Chains of X.509 certificates, judged at a stated time against pinned roots.

Rule 1: the root is one of those the caller pins by fingerprint; a root is never trusted because it
        came along, nor because the machine trusts it.
Rule 2: the caller says what time it is, and every certificate must be valid then, the root too.
Rule 3: who signs certificates must be allowed to: CA flag, key usage, path length.
Rule 4: a critical extension that nobody here understands refuses the chain.

Half of a verification would be the same certificates again: the vendors' authorities and lists.
What is true of their bytes alone, whatever the time, is remembered: that they parse, that one CA
signed another, which serials a list revokes. Never remembered: a refusal, anything about time, the
certificate of one machine. A link enters the memory only below a pinned root, so nobody can fill
it, and an entry is found by the whole certificates or bytes, not by a name or a short hash.

`cryptography.x509.verification` is not used: it is built for the web's profile, and refuses what
vendors' attestation certificates are (no names, RSASSA-PSS with a salt of 48, end-entity keys
that live to the year 9999, serial numbers of 0).

Source: RFC 5280, sections 4.2 (extensions), 5 (CRLs) and 6.1 (path validation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID, NameOID

from aigovtool.errors import MalformedError, VerificationError

MAX_CHAIN_CERTIFICATES = 8  # the longest known chain (NVIDIA devices) has 5
MIN_RSA_BITS = 2048  # vendors use 3072 and 4096; Azure's AK certificates 2048

MAX_COMMON_NAME = 64  # characters, RFC 5280 ub-common-name; a stranger's name ends in our messages

REMEMBERED_LINKS = 256  # all vendors together have some 30 authorities, AWS one a zone and day
REMEMBERED_LISTS = 32
REMEMBERED_DOCUMENTS = 128  # of certificates: anybody can send one, so 4 MB at most
MAX_CERTIFICATES_BYTES = 32 * 1024  # of one document; the largest known one has 8 kB

_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_UNDERSTOOD = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        # Whoever needs a certain purpose checks it; being critical does not make it more so.
        ExtensionOID.EXTENDED_KEY_USAGE,
    }
)
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    # What `cryptography` only warns of: a serial number of 0, a country of seven letters. Where
    # warnings are errors, such a certificate is malformed like any other.
    UserWarning,
)
_PEM_MARK = b"-----BEGIN"
_T = TypeVar("_T", bound=x509.ExtensionType)


def load_certificates(data: bytes, *, what: str) -> list[x509.Certificate]:
    """
    Read certificates in the order in which they stand.

    Args:
        data: one certificate as DER, or one or more as PEM.
        what: names the document in the message, such as ``ca_chain``.

    Raises:
        MalformedError: no certificate, not readable, more than `MAX_CHAIN_CERTIFICATES`, or larger
            than `MAX_CERTIFICATES_BYTES`.
    """
    if len(data) > MAX_CERTIFICATES_BYTES:
        raise MalformedError(
            f"{what} is too large",
            code="certificate.malformed",
            expected=f"at most {MAX_CERTIFICATES_BYTES} bytes",
            came=f"{len(data)} bytes",
        )
    try:
        certificates = list(_parse(data))
    except _UNREADABLE as error:
        raise MalformedError(
            f"{what} cannot be read as X.509", code="certificate.malformed"
        ) from error
    if len(certificates) > MAX_CHAIN_CERTIFICATES:
        raise MalformedError(
            f"{what} holds too many certificates",
            code="certificate.malformed",
            expected=f"at most {MAX_CHAIN_CERTIFICATES}",
            came=str(len(certificates)),
        )
    return certificates


@lru_cache(REMEMBERED_DOCUMENTS)
def _parse(data: bytes) -> tuple[x509.Certificate, ...]:
    if _PEM_MARK in data:
        certificates = x509.load_pem_x509_certificates(data)
    else:
        certificates = [x509.load_der_x509_certificate(data)]
    for certificate in certificates:
        # Names are decoded when first read: here a bad one is malformed, later a surprise.
        certificate.subject.public_bytes()
        certificate.issuer.public_bytes()
        # The one byte that is neither signed nor checked by `cryptography`: how many bits of
        # the signature do not count. With it, a certificate has one encoding.
        if certificate.public_bytes(Encoding.DER)[-len(certificate.signature) - 1]:
            raise ValueError("a signature that is not whole bytes")
    return tuple(certificates)


def fingerprint(certificate: x509.Certificate) -> bytes:
    """Return the 32-byte SHA-256 of the certificate's DER."""
    return certificate.fingerprint(hashes.SHA256())


def verify_chain(
    certificates: Sequence[x509.Certificate],
    *,
    root_fingerprints: frozenset[bytes],
    now: datetime,
    first_is_issuer: bool = False,
    first_is_shared: bool = False,
    understood_critical: frozenset[x509.ObjectIdentifier] = frozenset(),
) -> None:
    """
    Check a chain up to a pinned root.

    Args:
        certificates: the whole chain in order, leaf first, root last; a root alone is a chain.
        root_fingerprints: SHA-256 of the DER of each root that is accepted.
        now: aware time at which every certificate must be valid.
        first_is_issuer: the first certificate signs certificates itself (the leaf is verified
            elsewhere), so it must satisfy rule 3 with one certificate below it.
        first_is_shared: the first certificate is a vendor's and not one machine's, so that what is
            true of it is remembered too.
        understood_critical: critical extensions that the caller evaluates itself.

    Raises:
        MalformedError: an empty or too long chain, or extensions that cannot be read.
        VerificationError: any rule of this module is broken; the code says which.
    """
    if not 0 < len(certificates) <= MAX_CHAIN_CERTIFICATES:
        raise MalformedError(
            "certificate chain of an unusable length",
            code="certificate.malformed",
            expected=f"1 to {MAX_CHAIN_CERTIFICATES} certificates",
            came=str(len(certificates)),
        )
    root = certificates[-1]
    if fingerprint(root) not in root_fingerprints:
        raise VerificationError(
            "the chain does not end in a pinned root",
            code="certificate.root",
            expected=" or ".join(sorted(pin.hex() for pin in root_fingerprints)),
            came=fingerprint(root).hex(),
        )
    for certificate in certificates:
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not start <= now <= end:
            check_validity(start, end, now=now, what=name_of(certificate))
    # From the root down, so that what is remembered hangs under it. The root's signature on
    # itself adds nothing to its pin.
    understood = _UNDERSTOOD | understood_critical
    for position in reversed(range(len(certificates))):
        is_issuer = position > 0 or first_is_issuer
        issuers_below = position if first_is_issuer else position - 1
        check = _check_link_remembering if is_issuer or first_is_shared else _check_link
        check(
            certificates[position],
            certificates[position + 1] if position + 1 < len(certificates) else None,
            issuers_below if is_issuer else None,
            understood,
        )


def _check_link(
    certificate: x509.Certificate,
    issuer: x509.Certificate | None,
    issuers_below: int | None,
    understood: frozenset[x509.ObjectIdentifier],
) -> None:
    """
    Check all of one certificate but its time: rules 3 and 4, and its issuer's signature.

    Args:
        issuer: None for the root.
        issuers_below: None for a certificate that signs no others.
    """
    extensions = _extensions(certificate, understood)
    if issuers_below is None:
        _check_may_sign(certificate, extensions)
    else:
        _check_may_issue(certificate, extensions, issuers_below)
    if issuer is not None:
        verify_issued_by(certificate, issuer)


# Exceptions are not remembered, only that nothing was raised.
_check_link_remembering = lru_cache(REMEMBERED_LINKS)(_check_link)


def check_validity(not_before: datetime, not_after: datetime, *, now: datetime, what: str) -> None:
    """Raise VerificationError unless *now* lies in the closed span (RFC 5280, 4.1.2.5)."""
    if now < not_before:
        raise VerificationError(
            f"{what} is not yet valid",
            code="certificate.not_yet_valid",
            expected=f"a time from {not_before.isoformat()}",
            came=now.isoformat(),
        )
    if now > not_after:
        raise VerificationError(
            f"{what} has expired",
            code="certificate.expired",
            expected=f"a time until {not_after.isoformat()}",
            came=now.isoformat(),
            mend="send evidence with current certificates",
        )


def verify_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    """
    Check issuer name and signature of *certificate*, and that the algorithm is still sound.

    Raises:
        VerificationError: another name, another key, or an algorithm that is not accepted.
    """
    try:
        algorithm = certificate.signature_hash_algorithm
        key = issuer.public_key()
        sound = isinstance(algorithm, _HASHES) and (
            isinstance(key, ec.EllipticCurvePublicKey)
            or (isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA_BITS)
        )
        if sound:
            certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *_UNREADABLE) as error:
        raise VerificationError(
            f"{name_of(certificate)} is not signed by {name_of(issuer)}",
            code="certificate.signature",
        ) from error
    if not sound:
        raise VerificationError(
            f"{name_of(certificate)} is signed with an algorithm that is not accepted",
            code="certificate.algorithm",
            expected="ECDSA or RSA of 2048 bits or more, with SHA-256, SHA-384 or SHA-512",
            came=certificate.signature_algorithm_oid.dotted_string,
        )


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A genuine, complete CRL: the serial numbers it revokes, and the time it covers."""

    revoked: frozenset[int]
    last_update: datetime
    next_update: datetime


def verify_crl(crl_der: bytes, *, issuer: x509.Certificate, now: datetime) -> RevocationList:
    """
    Check a complete CRL.

    Args:
        crl_der: the CRL as DER.
        issuer: certificate whose key signed the CRL, its chain already checked.
        now: aware time at which the CRL must be current.

    Raises:
        MalformedError: not a readable CRL, or one without a next update.
        VerificationError: of another issuer, not current, or with a critical extension
            (a delta CRL, or one that covers only a part of what its issuer signed).
    """
    crl = _read_crl(crl_der, issuer)
    if not crl.last_update <= now <= crl.next_update:
        raise VerificationError(
            "the CRL is not current",
            code="crl.expired" if now > crl.next_update else "crl.not_yet_valid",
            expected=f"a time from {crl.last_update.isoformat()} to {crl.next_update.isoformat()}",
            came=now.isoformat(),
            mend="fetch the current CRL",
        )
    return crl


@lru_cache(REMEMBERED_LISTS)
def _read_crl(crl_der: bytes, issuer: x509.Certificate) -> RevocationList:
    """Check all of a CRL but whether it is current."""
    try:
        crl = x509.load_der_x509_crl(crl_der)
        critical = [extension.oid for extension in crl.extensions if extension.critical]
        key = issuer.public_key()
        signed = (
            isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey)
            and isinstance(crl.signature_hash_algorithm, _HASHES)
            and crl.issuer == issuer.subject
            and crl.is_signature_valid(key)
        )
        revoked = frozenset(entry.serial_number for entry in crl)
        last_update, next_update = crl.last_update_utc, crl.next_update_utc
    except _UNREADABLE as error:
        raise MalformedError("CRL cannot be read", code="crl.malformed") from error
    usage = _get(_extensions(issuer, _UNDERSTOOD), x509.KeyUsage)
    if not signed or usage is None or not usage.crl_sign:
        raise VerificationError(f"the CRL is not signed by {name_of(issuer)}", code="crl.signature")
    if critical:
        raise VerificationError(
            "the CRL has a critical extension, so it may not be complete",
            code="crl.critical_extension",
            came=", ".join(oid.dotted_string for oid in critical),
        )
    if next_update is None:
        raise MalformedError("CRL without a next update", code="crl.malformed")
    return RevocationList(revoked, last_update, next_update)


def common_name(certificate: x509.Certificate) -> str:
    """
    Return the subject's first common name, cut to `MAX_COMMON_NAME`.

    Empty when there is none or the name cannot be read, because messages are made of it.
    """
    try:
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except _UNREADABLE:
        return ""
    return str(names[0].value)[:MAX_COMMON_NAME] if names else ""


def name_of(certificate: x509.Certificate) -> str:
    """Return what to call the certificate in a message."""
    return f"certificate {common_name(certificate)!r}"


def _extensions(
    certificate: x509.Certificate, understood: frozenset[x509.ObjectIdentifier]
) -> x509.Extensions:
    try:
        extensions = certificate.extensions
    except _UNREADABLE as error:
        raise MalformedError(
            f"{name_of(certificate)} has extensions that cannot be read",
            code="certificate.malformed",
        ) from error
    for extension in extensions:
        if extension.critical and extension.oid not in understood:
            raise VerificationError(
                f"{name_of(certificate)} has a critical extension that is not understood",
                code="certificate.critical_extension",
                came=extension.oid.dotted_string,
            )
    return extensions


def _get(extensions: x509.Extensions, kind: type[_T]) -> _T | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _check_may_issue(
    certificate: x509.Certificate, extensions: x509.Extensions, issuers_below: int
) -> None:
    constraints = _get(extensions, x509.BasicConstraints)
    usage = _get(extensions, x509.KeyUsage)
    if constraints is None or not constraints.ca:
        problem = "is not a CA"
    elif usage is None or not usage.key_cert_sign:
        problem = "may not sign certificates"
    elif constraints.path_length is not None and constraints.path_length < issuers_below:
        problem = "does not allow a chain of this length"
    else:
        return
    raise VerificationError(f"{name_of(certificate)} {problem}", code="certificate.constraints")


def _check_may_sign(certificate: x509.Certificate, extensions: x509.Extensions) -> None:
    constraints = _get(extensions, x509.BasicConstraints)
    usage = _get(extensions, x509.KeyUsage)
    if (constraints is not None and constraints.ca) or (
        usage is not None and not usage.digital_signature
    ):
        raise VerificationError(
            f"{name_of(certificate)} is not for signing evidence", code="certificate.constraints"
        )
