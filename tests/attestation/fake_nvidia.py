"""An NVIDIA of our own: real formats under other roots, for what the recordings do not show."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from lxml import etree

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
SWID = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
HASH = "http://www.w3.org/2001/04/xmlenc#sha384"
DS = "http://www.w3.org/2000/09/xmldsig#"
FWID = hashlib.sha384(b"firmware").digest()
TCB_INFO = x509.ObjectIdentifier("2.23.133.5.4.1.1")
SHA384_OID = x509.ObjectIdentifier("2.16.840.1.101.3.4.2.2")


@asn1.sequence
class _Fwid:
    algorithm: x509.ObjectIdentifier
    digest: bytes


@asn1.sequence
class _TcbInfo:
    fwids: Annotated[list[_Fwid], asn1.Implicit(6)]


@dataclass(frozen=True)
class Holder:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make(
    name: str,
    issuer: Holder | None,
    *,
    ca: bool = True,
    serial_number: str | None = None,
    curve: ec.EllipticCurve | None = None,
    extensions: Sequence[x509.ExtensionType] = (),
    until: datetime = NOW + 365 * DAY,
) -> Holder:
    key = ec.generate_private_key(curve or ec.SECP384R1())
    attributes = [x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]
    if serial_number is not None:
        attributes.append(x509.NameAttribute(x509.NameOID.SERIAL_NUMBER, serial_number))
    subject = x509.Name(attributes)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - 365 * DAY)
        .not_valid_after(until)
        .add_extension(
            x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False), critical=True
        )
    )
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return Holder(builder.sign(issuer.key if issuer else key, hashes.SHA384()), key)


def pem(*holders: Holder) -> bytes:
    return b"".join(holder.certificate.public_bytes(Encoding.PEM) for holder in holders)


def raw_signature(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    size = (key.key_size + 7) // 8
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA384())))
    return r.to_bytes(size) + s.to_bytes(size)


def tcb_info(*fwids: bytes) -> x509.UnrecognizedExtension:
    value = asn1.encode_der(
        _TcbInfo(fwids=[_Fwid(algorithm=SHA384_OID, digest=fwid) for fwid in fwids])
    )
    return x509.UnrecognizedExtension(TCB_INFO, value)


def value_of(index: int) -> bytes:
    return hashlib.sha384(bytes([index])).digest()


MEASUREMENTS = {index: value_of(index) for index in range(1, 41)}
OPAQUE = {
    6: bytes.fromhex("009f009601000000"),
    3: b"550.1\0",
    20: FWID,
    36: b"\0\0",
}


@dataclass
class FakeNvidia:
    """Device and RIM authorities, one GPU, and what each can issue."""

    device_root: Holder = field(default_factory=lambda: make("device root", None))
    rim_root: Holder = field(default_factory=lambda: make("rim root", None))

    def __post_init__(self) -> None:
        self.device_ca = make("device ca", self.device_root)
        self.device = make("GH100 A01 GSP BROM", self.device_ca, serial_number="41AA")
        self.leaf = make("leaf", self.device, ca=False, extensions=[tcb_info(bytes(48), FWID)])
        self.rim_ca = make("rim ca", self.rim_root)
        self.rim_signer = make("rim signer", self.rim_ca, ca=False)

    def chain(self) -> bytes:
        return pem(self.leaf, self.device, self.device_ca, self.device_root)

    def report(
        self,
        *,
        nonce: bytes = bytes(32),
        measurements: Mapping[int, bytes] = MEASUREMENTS,
        opaque: Mapping[int, bytes] = OPAQUE,
        key: ec.EllipticCurvePrivateKey | None = None,
    ) -> bytes:
        blocks = b"".join(
            bytes([index, 1]) + _le(len(value) + 3) + b"\1" + _le(len(value)) + value
            for index, value in measurements.items()
        )
        fields = b"".join(_le(kind) + _le(len(value)) + value for kind, value in opaque.items())
        message = (
            bytes.fromhex("11e001ff") + nonce + b"\0" + bytes.fromhex("11600000")
            + bytes([len(measurements)]) + len(blocks).to_bytes(3, "little") + blocks
            + bytes(range(32)) + _le(len(fields)) + fields
        )  # fmt: skip
        return message + raw_signature(key or self.leaf.key, message)

    def driver_rim(self, **changes: object) -> bytes:
        values = {index: [value_of(index + 1)] for index in range(20, 40)}
        return self.sign_rim(swid(version="550.1", values=values, **changes))

    def vbios_rim(self, **changes: object) -> bytes:
        values = {index: [value_of(index + 1)] for index in range(10)}
        return self.sign_rim(swid(version="96.00.9F.00.01", values=values, **changes))

    def sign_rim(self, document: bytes, *chain: Holder, signer: Holder | None = None) -> bytes:
        holders = chain or (self.rim_signer, self.rim_ca, self.rim_root)
        return sign_document(document, holders, (signer or holders[0]).key)


def swid(
    *,
    version: str,
    values: Mapping[int, Sequence[bytes]],
    product: str = "GH100",
    extra: str = "",
    active: str = "True",
) -> bytes:
    resources = "".join(
        f'<Resource type="Measurement" index="{index}" active="{active}"'
        f' alternatives="{len(choices)}" size="48" '
        + " ".join(f'h:Hash{number}="{value.hex()}"' for number, value in enumerate(choices))
        + "/>\n"
        for index, choices in values.items()
    )
    return (
        f'<SoftwareIdentity xmlns="{SWID}" xmlns:h="{HASH}" tagId="tag-{version}">\n'
        f'<Meta colloquialVersion="{version}" product="{product}"/>\n'
        f"<Payload>\n{resources}</Payload>\n{extra}</SoftwareIdentity>"
    ).encode()


def sign_document(
    document: bytes, chain: Sequence[Holder], key: ec.EllipticCurvePrivateKey
) -> bytes:
    """Add the enveloped signature at the end of the root element."""
    root = etree.fromstring(document)
    digest = hashlib.sha384(etree.tostring(root, method="c14n")).digest()
    certificates = "".join(
        f"<X509Certificate>{_b64(holder.certificate.public_bytes(Encoding.DER))}</X509Certificate>"
        for holder in chain
    )
    more = "http://www.w3.org/2001/04/xmldsig-more"
    c14n = "http://www.w3.org/2006/12/xml-c14n11"
    signature = etree.fromstring(
        f'<Signature xmlns="{DS}"><SignedInfo><CanonicalizationMethod Algorithm="{c14n}"/>'
        f'<SignatureMethod Algorithm="{more}#ecdsa-sha384"/><Reference URI=""><Transforms>'
        f'<Transform Algorithm="{DS}enveloped-signature"/><Transform Algorithm="{c14n}"/>'
        f'</Transforms><DigestMethod Algorithm="{more}#sha384"/>'
        f"<DigestValue>{_b64(digest)}</DigestValue></Reference></SignedInfo>"
        f"<SignatureValue/><KeyInfo><X509Data>{certificates}</X509Data></KeyInfo></Signature>"
    )
    root.append(signature)
    message = etree.tostring(signature[0], method="c14n")
    signature[1].text = _b64(raw_signature(key, message))
    return etree.tostring(root)


def ocsp_response(
    holder: Holder,
    issuer: Holder,
    *,
    responder: Holder | None = None,
    certificates: Sequence[Holder] | None = None,
    status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD,
    this_update: datetime = NOW - DAY,
    next_update: datetime | None = NOW + DAY,
    revoked_at: datetime | None = None,
    reason: x509.ReasonFlags | None = None,
    by_name: bool = False,
) -> bytes:
    by = responder or issuer
    encoding = ocsp.OCSPResponderEncoding.NAME if by_name else ocsp.OCSPResponderEncoding.HASH
    builder = ocsp.OCSPResponseBuilder().add_response(
        cert=holder.certificate,
        issuer=issuer.certificate,
        algorithm=hashes.SHA384(),
        cert_status=status,
        this_update=this_update,
        next_update=next_update,
        revocation_time=revoked_at,
        revocation_reason=reason,
    ).responder_id(encoding, by.certificate)  # fmt: skip
    carried = certificates if certificates is not None else ([responder] if responder else [])
    if carried:
        builder = builder.certificates([found.certificate for found in carried])
    return builder.sign(by.key, hashes.SHA384()).public_bytes(Encoding.DER)


def _le(number: int) -> bytes:
    return number.to_bytes(2, "little")


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
