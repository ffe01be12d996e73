"""
The certificate of the key that signs reports: a VCEK (of one chip) or a VLEK (of one cloud).

It is read with a declared ASN.1 structure and not with `cryptography.x509`: these certificates
have the serial number 0, which RFC 5280 forbids, which `cryptography` warns of today and will
refuse one day. Silencing the warning would change global state under other threads. Only what
this product needs is read; all of it is under the signature that `verify_signed_by` checks.

Source: AMD 57230, VCEK and VLEK Certificate and KDS Interface Specification, section 3.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from aigovtool.attestation.snp.layout import SigningKey
from aigovtool.attestation.snp.product import Product, Tcb
from aigovtool.errors import MalformedError, VerificationError

PSS_SALT_BYTES = 48

_ARC = "1.3.6.1.4.1.3704.1."
_PRODUCT_NAME = _ARC + "2"
_BOOT_LOADER, _TEE, _SNP = _ARC + "3.1", _ARC + "3.2", _ARC + "3.3"
_RESERVED = tuple(f"{_ARC}3.{component}" for component in (4, 5, 6, 7))
_MICROCODE, _FMC = _ARC + "3.8", _ARC + "3.9"
_HWID = _ARC + "4"
_CSP_ID = _ARC + "5"
_X509_V3 = 2
_MAX_COMPONENT = 255
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END CERTIFICATE-----")


@asn1.sequence
class _Certificate:
    tbs: asn1.TLV
    algorithm: asn1.TLV
    signature: asn1.BitString


@asn1.sequence
class _Validity:
    not_before: asn1.UTCTime | asn1.GeneralizedTime
    not_after: asn1.UTCTime | asn1.GeneralizedTime


@asn1.sequence
class _Extension:
    oid: x509.ObjectIdentifier
    critical: Annotated[bool, asn1.Default(False)]
    value: bytes


@asn1.sequence
class _TbsCertificate:
    version: Annotated[int, asn1.Explicit(0)]
    serial: int
    algorithm: asn1.TLV
    issuer: asn1.TLV
    validity: _Validity
    subject: asn1.TLV
    public_key: asn1.TLV
    extensions: Annotated[list[_Extension], asn1.Explicit(3)]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndorsementKey:
    """
    A VCEK or VLEK certificate as read; genuine only after `verify_signed_by`.

    Args:
        kind: VCEK when it names a chip, VLEK when it names a cloud.
        issuer: the issuer's name as DER.
        product_name: such as ``Milan-B0`` or ``Turin``.
        components: security version numbers by OID.
        hwid: 64 bytes, on Turin 8; None in a VLEK.
        csp_id: the cloud provider; None in a VCEK.
        signed: the exact bytes under the signature.
    """

    kind: SigningKey
    issuer: bytes
    not_before: datetime
    not_after: datetime
    product_name: str
    components: Mapping[str, int]
    hwid: bytes | None
    csp_id: str | None
    public_key: ec.EllipticCurvePublicKey
    signed: bytes
    signature: bytes

    def tcb(self, product: Product) -> Tcb:
        """Return the TCB for which this key was derived; raises MalformedError if incomplete."""
        try:
            return Tcb(
                fmc=self.components[_FMC] if product is Product.TURIN else None,
                boot_loader=self.components[_BOOT_LOADER],
                tee=self.components[_TEE],
                snp=self.components[_SNP],
                microcode=self.components[_MICROCODE],
            )
        except KeyError:
            raise _malformed("lacks a TCB component") from None


def parse_endorsement_key(data: bytes) -> EndorsementKey:
    """
    Read a VCEK or VLEK certificate: DER, or the first of a PEM file (Azure appends the chain).

    Raises:
        MalformedError: not such a certificate.
    """
    der = _der(data)
    try:
        certificate = asn1.decode_der(_Certificate, der)
        tbs = certificate.tbs.parse(_TbsCertificate)
        key = load_der_public_key(asn1.encode_der(tbs.public_key))
        extensions = {extension.oid.dotted_string: extension for extension in tbs.extensions}
        name = asn1.decode_der(asn1.IA5String, extensions[_PRODUCT_NAME].value).as_str()
        components = {
            oid: asn1.decode_der(int, extension.value)
            for oid, extension in extensions.items()
            if oid.startswith(_ARC + "3.")
        }
        csp_id = (
            asn1.decode_der(asn1.IA5String, extensions[_CSP_ID].value).as_str()
            if _CSP_ID in extensions
            else None
        )
    except (ValueError, TypeError, KeyError, UnsupportedAlgorithm) as error:
        raise _malformed("cannot be read") from error
    hwid = extensions[_HWID].value if _HWID in extensions else None
    if (hwid is None) == (csp_id is None):
        raise _malformed("names neither a chip nor a cloud, or both")
    if len(extensions) != len(tbs.extensions) or tbs.version != _X509_V3:
        raise _malformed("has an extension twice, or is not of version 3")
    if any(extension.critical for extension in extensions.values()):
        raise _malformed("has a critical extension, which AMD does not define")
    if not all(0 <= value <= _MAX_COMPONENT for value in components.values()):
        raise _malformed("has a TCB component that is not a byte")
    if any(components.get(oid) for oid in _RESERVED):
        raise _malformed("sets a reserved TCB component")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise _malformed("has no P-384 key")
    if asn1.encode_der(certificate.algorithm) != asn1.encode_der(tbs.algorithm):
        raise _malformed("names two algorithms")  # the outer one is not signed, RFC 5280, 4.1.1.2
    if certificate.signature.padding_bits():
        raise _malformed("has a signature that is not whole bytes")
    return EndorsementKey(
        kind=SigningKey.VLEK if hwid is None else SigningKey.VCEK,
        issuer=asn1.encode_der(tbs.issuer),
        not_before=tbs.validity.not_before.as_datetime(),
        not_after=tbs.validity.not_after.as_datetime(),
        product_name=name,
        components=components,
        hwid=hwid,
        csp_id=csp_id,
        public_key=key,
        # DER has one encoding, and the parser refuses any other: these are the bytes as they came.
        signed=asn1.encode_der(certificate.tbs),
        signature=certificate.signature.as_bytes(),
    )


def verify_signed_by(key: EndorsementKey, issuer: x509.Certificate) -> None:
    """
    Check issuer name and signature: RSASSA-PSS with SHA-384, MGF1-SHA-384 and a salt of 48.

    The algorithm identifier in the certificate is not consulted: there is one algorithm.

    Raises:
        VerificationError: *issuer* did not sign it.
    """
    public = issuer.public_key()
    try:
        if issuer.subject.public_bytes() == key.issuer and isinstance(public, rsa.RSAPublicKey):
            public.verify(
                key.signature,
                key.signed,
                padding.PSS(padding.MGF1(hashes.SHA384()), PSS_SALT_BYTES),
                hashes.SHA384(),
            )
            return
    except InvalidSignature:
        pass
    raise VerificationError(
        f"the {key.kind.upper()} certificate is not signed by AMD's intermediate",
        code="certificate.signature",
    )


def _malformed(problem: str) -> MalformedError:
    return MalformedError(
        f"SEV-SNP endorsement certificate {problem}", code="certificate.malformed"
    )


def _der(data: bytes) -> bytes:
    pem = _PEM.search(data)
    if pem is None:
        return data
    try:
        return base64.b64decode(b"".join(pem[1].split()), validate=True)
    except binascii.Error as error:
        raise _malformed("cannot be read") from error
