"""
AMD and AWS as far as these tests need them: real formats, keys of their own.

A fake root is accepted only by a verifier that is told its fingerprint, which `verify` takes as
`roots`. Whatever a test wants to be wrong it says, everything else is right.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.snp.product import Product
from aigovtool.attestation.x509chain import fingerprint

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
AMD_ARC = "1.3.6.1.4.1.3704.1."

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def certificate(
    name: str,
    key: Key,
    issuer_name: str,
    issuer_key: Key,
    *,
    ca: bool | None = True,
    path_length: int | None = None,
    cert_sign: bool = True,
    crl_sign: bool = True,
    digital_signature: bool = False,
    key_usage: bool = True,
    not_before: datetime = NOW - DAY,
    not_after: datetime = NOW + DAY,
    serial: int = 7,
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (),
    algorithm: Any = None,
) -> x509.Certificate:
    """Sign one certificate; RSA keys sign with AMD's PSS, EC keys with ECDSA."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer_name))
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )
    if ca is not None:
        builder = builder.add_extension(
            x509.BasicConstraints(ca=ca, path_length=path_length if ca else None), critical=True
        )
    if key_usage:
        builder = builder.add_extension(
            x509.KeyUsage(
                digital_signature=digital_signature,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=cert_sign,
                crl_sign=crl_sign,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    hash_algorithm = algorithm or hashes.SHA384()
    if isinstance(issuer_key, rsa.RSAPrivateKey):
        return builder.sign(issuer_key, hash_algorithm, rsa_padding=PSS)
    return builder.sign(issuer_key, hash_algorithm)


def crl(
    name: str,
    key: Key,
    *,
    revoked: tuple[int, ...] = (),
    last_update: datetime = NOW - DAY,
    next_update: datetime = NOW + DAY,
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (),
) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(_name(name))
        .last_update(last_update)
        .next_update(next_update)
    )
    for serial in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(serial)
            .revocation_date(last_update)
            .build()
        )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    rsa_padding = PSS if isinstance(key, rsa.RSAPrivateKey) else None
    return builder.sign(key, hashes.SHA384(), rsa_padding=rsa_padding).public_bytes(Encoding.DER)


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(c.public_bytes(Encoding.PEM) for c in certificates)


def der(c: x509.Certificate) -> bytes:
    return c.public_bytes(Encoding.DER)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


CPUIDS = {
    Product.MILAN: (0x19, 0x01, 1),
    Product.GENOA: (0x19, 0x11, 1),
    Product.TURIN: (0x1A, 0x02, 1),
}


@dataclass
class FakeAmd:
    """An ARK, ASK and ASVK of one product line, one chip, and what it signs."""

    product: Product = Product.MILAN
    ark_key: Key = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))
    ask_key: Key = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))
    chip_key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP384R1())
    )

    def __post_init__(self) -> None:
        self.ark_name, self.ask_name = f"ARK-{self.product}", f"SEV-{self.product}"
        self.asvk_name = f"SEV-VLEK-{self.product}"
        self.ark = certificate(self.ark_name, self.ark_key, self.ark_name, self.ark_key)
        self.ask = self.intermediate(self.ask_name)
        self.asvk = self.intermediate(self.asvk_name)
        size = 8 if self.product is Product.TURIN else 64
        self.hwid = bytes(range(1, size + 1))
        self.roots = {fingerprint(self.ark): self.product}

    def intermediate(self, name: str, **wrong: Any) -> x509.Certificate:
        how = {"path_length": 0, "crl_sign": False, "serial": 65537} | wrong
        return certificate(name, self.ask_key, self.ark_name, self.ark_key, **how)

    def crl(self, **how: Any) -> bytes:
        return crl(self.ark_name, self.ark_key, **how)

    def endorsement_key(
        self,
        *,
        vlek: bool = False,
        issuer_name: str | None = None,
        product_name: bytes | None = None,
        without: tuple[str, ...] = (),
        change: dict[str, bytes] | None = None,
        critical: bool = False,
        key: Any = None,
        **wrong: Any,
    ) -> x509.Certificate:
        name = product_name or f"{self.product}-B0".encode()
        values = {
            "1": b"\x02\x01\x00",
            "2": b"\x16" + bytes([len(name)]) + name,
            "3.1": b"\x02\x01\x03",
            "3.2": b"\x02\x01\x00",
            "3.3": b"\x02\x01\x08",
            "3.5": b"\x02\x01\x00",
            "3.8": b"\x02\x02\x00\xd3",
        }
        if self.product is Product.TURIN:
            values["3.9"] = b"\x02\x01\x01"
        if vlek:
            values["5"] = b"\x16\x05cloud"
        else:
            values["4"] = self.hwid
        values |= change or {}
        extensions = tuple(
            (x509.UnrecognizedExtension(x509.ObjectIdentifier(AMD_ARC + oid), value), critical)
            for oid, value in values.items()
            if oid not in without
        )
        how = {"ca": None, "key_usage": False} | wrong
        return certificate(
            "SEV-VLEK" if vlek else "SEV-VCEK",
            key or self.chip_key,
            issuer_name or (self.asvk_name if vlek else self.ask_name),
            self.ask_key,
            extensions=extensions,
            **how,
        )

    def report(self, *, version: int = 5, vlek: bool = False, change: Any = None) -> bytes:
        """Sign a report; *change* maps offsets to bytes written before the signature."""
        data = bytearray(0x4A0)
        tcb = bytes.fromhex(
            "01030008000000d3" if self.product is Product.TURIN else "03000000000008d3"
        )
        writes = {
            0x000: version.to_bytes(4, "little"),
            0x004: b"\x02",
            0x008: (0x3001F).to_bytes(8, "little"),
            0x034: b"\x01",
            0x038: tcb,
            0x040: b"\x25",
            0x048: b"\x04" if vlek else b"\x00",
            0x050: b"\xaa" * 64,
            0x090: b"\xbb" * 48,
            0x180: tcb,
            0x1A0: b"" if vlek else self.hwid,
            0x1E0: tcb,
            0x1E8: bytes([10, 55, 1, 0, 10, 55, 1, 0]),
            0x1F0: tcb,
        }
        if version >= 3:
            writes[0x188] = bytes(CPUIDS[self.product])
        if version >= 5:
            writes[0x1F8] = b"\x07"
            writes[0x200] = b"\x03"
        for offset, value in (writes | (change or {})).items():
            data[offset : offset + len(value)] = value
        r, s = decode_dss_signature(
            self.chip_key.sign(bytes(data[:0x2A0]), ec.ECDSA(hashes.SHA384()))
        )
        data[0x2A0:0x330] = r.to_bytes(72, "little") + s.to_bytes(72, "little")
        return bytes(data)

    def evidence(self, report: bytes | None = None, **documents: bytes) -> Evidence:
        return Evidence(tee=Tee.SNP, documents={"report": report or self.report(), **documents})

    def endorsements(self, **documents: bytes | None) -> Endorsements:
        """Return what AMD would give; a document set to None is left out."""
        given = {
            "vcek": der(self.endorsement_key()),
            "ca_chain": pem(self.ask, self.ark),
        } | documents
        return Endorsements(
            tee=Tee.SNP, documents={k: v for k, v in given.items() if v is not None}
        )


@dataclass
class FakeAws:
    """A root, one intermediate and a hypervisor's certificate, and what it signs."""

    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP384R1())
    )

    def __post_init__(self) -> None:
        self.root_key = ec.generate_private_key(ec.SECP384R1())
        self.zonal_key = ec.generate_private_key(ec.SECP384R1())
        self.root = certificate(
            "fake.nitro-enclaves", self.root_key, "fake.nitro-enclaves", self.root_key
        )
        self.zonal = certificate(
            "zonal", self.zonal_key, "fake.nitro-enclaves", self.root_key, path_length=0
        )
        self.roots = frozenset({fingerprint(self.root)})

    def leaf(self, **wrong: Any) -> x509.Certificate:
        how = {"ca": False, "cert_sign": False, "crl_sign": False, "digital_signature": True}
        return certificate("hypervisor", self.key, "zonal", self.zonal_key, **(how | wrong))

    def fields(self, **change: Any) -> dict[str, Any]:
        """Return a document's fields; a field set to `...` is left out."""
        fields = {
            "module_id": "i-0123456789abcdef0-enc0123456789abcdef",
            "digest": "SHA384",
            "timestamp": int(NOW.timestamp() * 1000),
            "pcrs": {index: bytes([index + 1]) * 48 for index in range(16)},
            "certificate": der(self.leaf()),
            "cabundle": [der(self.root), der(self.zonal)],
            "public_key": None,
            "user_data": b"\xaa" * 64,
            "nonce": None,
        } | change
        return {name: value for name, value in fields.items() if value is not ...}

    def sign(
        self,
        payload: bytes,
        *,
        header: bytes = b"\xa1\x01\x38\x22",
        key: ec.EllipticCurvePrivateKey | None = None,
    ) -> bytes:
        to_be_signed = cbor2.dumps(["Signature1", header, b"", payload])
        signature = (key or self.key).sign(to_be_signed, ec.ECDSA(hashes.SHA384()))
        size = 48
        r, s = decode_dss_signature(signature)
        return cbor2.dumps([header, {}, payload, r.to_bytes(size, "big") + s.to_bytes(size, "big")])

    def document(self, **change: Any) -> bytes:
        return self.sign(cbor2.dumps(self.fields(**change)))


def nitro_evidence(document: bytes) -> Evidence:
    return Evidence(tee=Tee.NITRO, documents={"document": document})


NO_ENDORSEMENTS = Endorsements(tee=Tee.NITRO)
