"""
The simulation's keys and certificates: root, PCK CA, TCB signing, and one platform's PCK.

They are made once, by `create`, and only read afterwards: no start makes what should exist. The
directory holds for each a private key (mode 0600) and a certificate. Who can read the keys can say
anything in the platform's name; that is what "simulated" means.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from aigovtool.errors import ConfigurationError, ConflictError
from aigovtool.simulation.sgx_extension import OID as SGX_EXTENSION
from aigovtool.simulation.sgx_extension import encode_sgx_extension

FMSPC = b"SIMUL\0"  # no Intel platform has it
PCE_ID = b"\0\0"
PCE_SVN = 1
COMPONENTS = (1,) * 16
CERTIFICATE_LIFE = timedelta(days=10 * 365)
CLOCK_SKEW = timedelta(days=1)  # the custodian's clock may be behind the borrower's
_NAMES = ("root", "pck_ca", "tcb_signing", "pck")


@dataclass(frozen=True, slots=True)
class Identity:
    """A P-256 key and the certificate of it."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """Everything that signs for a simulated platform."""

    root: Identity
    pck_ca: Identity
    tcb_signing: Identity
    pck: Identity


def make_authority(*, now: datetime) -> Authority:
    """Make fresh keys and certificates, in memory."""
    root = _certify("root", issuer=None, path_length=1, now=now)
    pck_ca = _certify("PCK CA", issuer=root, path_length=0, now=now)
    extension = encode_sgx_extension(
        ppid=secrets.token_bytes(16),
        components=COMPONENTS,
        pce_svn=PCE_SVN,
        pce_id=PCE_ID,
        fmspc=FMSPC,
    )
    return Authority(
        root=root,
        pck_ca=pck_ca,
        tcb_signing=_certify("TCB signing", issuer=root, path_length=None, now=now),
        pck=_certify(
            "PCK",
            issuer=pck_ca,
            path_length=None,
            now=now,
            extension=x509.UnrecognizedExtension(SGX_EXTENSION, extension),
        ),
    )


def create_authority(directory: Path, *, now: datetime) -> Authority:
    """
    Make fresh keys and write them to *directory*, all or nothing.

    Raises:
        ConflictError: *directory* exists already; nothing was changed.
        ConfigurationError: it cannot be written.
    """
    authority = make_authority(now=now)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        # What is left of a failed attempt goes with this folder: it holds private keys.
        with tempfile.TemporaryDirectory(prefix=".simulated-", dir=directory.parent) as staging:
            written = Path(staging) / directory.name
            written.mkdir(mode=0o700)
            _write_authority(authority, written)
            # Renaming onto a directory with content fails, so nobody's keys are ever replaced.
            written.rename(directory)
    except OSError as error:
        if directory.exists():
            raise ConflictError(
                f"there is a simulated platform in {directory} already",
                code="simulation.exists",
                mend="use it, or remove it: policies that name its root will then refuse",
            ) from None
        raise ConfigurationError(
            f"the simulated platform cannot be written to {directory}",
            code="simulation.directory",
            came=error.strerror,
            mend="name a directory that can be made there",
        ) from None
    return authority


def _write_authority(authority: Authority, directory: Path) -> None:
    for name in _NAMES:
        identity: Identity = getattr(authority, name)
        _write(directory / f"{name}.pem", identity.certificate.public_bytes(Encoding.PEM), 0o644)
        key_pem = identity.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _write(directory / f"{name}.key", key_pem, 0o600)


def load_authority(directory: Path) -> Authority:
    """
    Read what `create_authority` wrote.

    Raises:
        ConfigurationError: nothing is there, something is missing or does not read, or a private
            key can be read by others.
    """
    if not directory.is_dir():
        raise ConfigurationError(
            f"there is no simulated platform in {directory}",
            code="simulation.missing",
            mend="make one with `aigovtool custodian init --simulated`, or copy the one whose root "
            "the policy names",
        )
    return Authority(**{name: _load(directory, name) for name in _NAMES})


def _load(directory: Path, name: str) -> Identity:
    key_path = directory / f"{name}.key"
    try:
        if key_path.stat().st_mode & 0o077:
            raise ConfigurationError(
                f"{key_path} can be read by others",
                code="simulation.key_mode",
                expected="mode 0600",
                came=f"mode {key_path.stat().st_mode & 0o777:04o}",
                mend=f"chmod 600 {key_path}",
            )
        key = load_pem_private_key(key_path.read_bytes(), password=None)
        certificate = x509.load_pem_x509_certificate((directory / f"{name}.pem").read_bytes())
        fits = isinstance(key, ec.EllipticCurvePrivateKey) and (
            key.public_key() == certificate.public_key()
        )
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"the simulated platform in {directory} cannot be read: {name}",
            code="simulation.unreadable",
            came=type(error).__name__,
            mend="restore the directory, or remove it and make a new one",
        ) from None
    if not fits or not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(
            f"key and certificate {name} in {directory} do not belong together",
            code="simulation.unreadable",
            mend="restore the directory, or remove it and make a new one",
        )
    return Identity(key, certificate)


def _write(path: Path, body: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())


def _certify(
    what: str,
    *,
    issuer: Identity | None,
    path_length: int | None,
    now: datetime,
    extension: x509.UnrecognizedExtension | None = None,
) -> Identity:
    """Make a key, and a certificate for it by *issuer*, or by itself; a CA has a path length."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(x509.NameOID.COMMON_NAME, f"Simulated platform {what}"),
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "AIGovTool simulation"),
        ]
    )
    signer = key if issuer is None else issuer.key
    is_ca = path_length is not None
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + CERTIFICATE_LIFE)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=path_length), critical=True)
        .add_extension(_usage(is_ca=is_ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if extension is not None:
        builder = builder.add_extension(extension, critical=False)
    return Identity(key, builder.sign(signer, hashes.SHA256()))


def _usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )
