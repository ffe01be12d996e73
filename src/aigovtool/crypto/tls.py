"""
TLS identities that are pinned, not named.

No server here is trusted by its name: the enclave's certificate is self-signed and its key is in
the evidence; the custodian's is signed by the custodian's key, which the ticket carries. A client
context therefore has exactly one trust anchor and nothing else. With a wrong peer the handshake
fails, so the peer gets not one byte of a request.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from aigovtool.crypto.signing import SigningKey
from aigovtool.errors import MalformedError
from aigovtool.ids import sha256

CLOCK_SKEW = timedelta(minutes=10)
ENCLAVE_CERTIFICATE_LIFE = timedelta(days=90)  # a session dies with the process, long before
CUSTODIAN_LEAF_LIFE = timedelta(days=90)  # made anew at every start of the server
CUSTODIAN_ROOT_LIFE = timedelta(days=20 * 365)
TLS_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """A private key with its certificate chain (leaf first), both in memory only."""

    key_pem: bytes
    certificate_pem: bytes
    spki_sha256: bytes


def make_enclave_identity(
    *, now: datetime, extensions: Callable[[bytes], Iterable[x509.ExtensionType]] | None = None
) -> TlsIdentity:
    """
    Make a P-256 key and a self-signed certificate for it; the evidence will name the key.

    Args:
        now: the certificate is valid from then, less `CLOCK_SKEW`.
        extensions: given the SHA-256 of the key's SubjectPublicKeyInfo, returns what else to put
            into the certificate, not critical.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "AIGovTool enclave")])
    builder = _builder(name, name, key.public_key(), now, ENCLAVE_CERTIFICATE_LIFE)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    if extensions is not None:
        spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for extension in extensions(sha256(spki)):
            builder = builder.add_extension(extension, critical=False)
    return _identity(key, builder.sign(key, hashes.SHA256()))


def make_custodian_root(key: SigningKey, *, now: datetime) -> bytes:
    """Make the self-signed certificate (PEM) of the custodian's key; it goes into every ticket."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "AIGovTool custodian")])
    private = key.x509_key()
    return (
        _builder(name, name, private.public_key(), now, CUSTODIAN_ROOT_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True), critical=True)
        .sign(private, None)
        .public_bytes(Encoding.PEM)
    )


def make_custodian_identity(key: SigningKey, root_pem: bytes, *, now: datetime) -> TlsIdentity:
    """Make a P-256 TLS key and a leaf certificate for it, signed by the custodian's key."""
    leaf = ec.generate_private_key(ec.SECP256R1())
    root = x509.load_pem_x509_certificate(root_pem)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "AIGovTool custodian server")])
    certificate = (
        _builder(name, root.subject, leaf.public_key(), now, CUSTODIAN_LEAF_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key.x509_key(), None)
    )
    return _identity(leaf, certificate)


def server_context(identity: TlsIdentity) -> ssl.SSLContext:
    """Return a TLS 1.3-or-1.2 server context; the key goes through a memory file, never a disk."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(TLS_CIPHERS)
    descriptor = os.memfd_create("tls-identity", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, identity.key_pem + identity.certificate_pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context


def pinned_client_context(anchor_pem: bytes) -> ssl.SSLContext:
    """
    Return a client context that accepts only a server certified by *anchor_pem*.

    Raises:
        MalformedError: *anchor_pem* is not a certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # the key is the name
    try:
        context.load_verify_locations(cadata=anchor_pem.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError):
        raise MalformedError("the pinned certificate cannot be read") from None
    return context


def spki_sha256_of(certificate: bytes) -> bytes:
    """
    Return the SHA-256 of the public key (SubjectPublicKeyInfo) in *certificate* (DER or PEM).

    Raises:
        MalformedError: not a certificate.
    """
    return sha256(_public_bytes(_load(certificate)))


def certificate_pem(certificate: bytes) -> bytes:
    """Return *certificate* (DER or PEM) as PEM; raises MalformedError when it is none."""
    return _load(certificate).public_bytes(Encoding.PEM)


def public_key_of_root(root_pem: bytes) -> bytes:
    """Return the raw 32-byte Ed25519 key of a custodian's root; raises MalformedError."""
    spki = _public_bytes(_load(root_pem))
    raw = spki[-32:]
    # RFC 8410: an Ed25519 SubjectPublicKeyInfo is this fixed prefix and the 32-byte key
    if len(spki) != 44 or spki[:12] != bytes.fromhex("302a300506032b6570032100"):
        raise MalformedError("the custodian's certificate does not hold an Ed25519 key")
    return raw


def _load(certificate: bytes) -> x509.Certificate:
    try:
        if certificate.lstrip().startswith(b"-----BEGIN"):
            return x509.load_pem_x509_certificate(certificate)
        return x509.load_der_x509_certificate(certificate)
    except ValueError:
        raise MalformedError("not an X.509 certificate") from None


def _public_bytes(certificate: x509.Certificate) -> bytes:
    try:
        key = certificate.public_key()
    except ValueError:
        raise MalformedError("a certificate holds a key of an unknown kind") from None
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _identity(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> TlsIdentity:
    return TlsIdentity(
        key_pem=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        certificate_pem=certificate.public_bytes(Encoding.PEM),
        spki_sha256=sha256(_public_bytes(certificate)),
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: CertificatePublicKeyTypes,
    now: datetime,
    life: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + life)
    )


def _key_usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
