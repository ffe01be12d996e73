"""What the simulation's authority signs about its platform: lists, TCB info, QE identity."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from aigovtool.ids import sha256
from aigovtool.simulation.authority import FMSPC, PCE_ID, PCE_SVN, Identity

QE_MRSIGNER = sha256(b"aigovtool simulated quoting enclave")
QE_PRODUCT = 2
QE_SVN = 4
TCB_EVALUATION_NUMBER = 1
TEE_TCB_SVN = bytes([1, 0]) + bytes(14)  # [1] = 0: the module has no identity of its own
TCB_DATE = "2026-01-01T00:00:00Z"


def sign_p256(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """Return the ECDSA P-256 SHA-256 signature as r||s, 64 bytes."""
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def make_tcb_info(*, issued: datetime, expires: datetime, newest_svn: int) -> bytes:
    """
    Return the text of a TCB info of version 3.

    Args:
        newest_svn: what an up-to-date platform has in every SGX component. The platform has 1; with
            more here it reaches only the second level, which is out of date.
    """
    levels = [_level(newest_svn, "UpToDate")]
    if newest_svn > 1:
        levels.append(_level(1, "OutOfDate"))
    return _text(
        {
            "id": "TDX",
            "version": 3,
            "issueDate": _time(issued),
            "nextUpdate": _time(expires),
            "fmspc": FMSPC.hex().upper(),
            "pceId": PCE_ID.hex(),
            "tcbType": 0,
            "tcbEvaluationDataNumber": TCB_EVALUATION_NUMBER,
            "tdxModule": {
                "mrsigner": "00" * 48,
                "attributes": "00" * 8,
                "attributesMask": "FF" * 8,
            },
            "tcbLevels": levels,
        }
    )


def _level(svn: int, status: str) -> dict[str, object]:
    return {
        "tcb": {
            "sgxtcbcomponents": [{"svn": svn}] * 16,
            "pcesvn": PCE_SVN,
            "tdxtcbcomponents": [{"svn": number} for number in TEE_TCB_SVN],
        },
        "tcbDate": TCB_DATE,
        "tcbStatus": status,
        "advisoryIDs": [] if status == "UpToDate" else ["SIMULATED-SA-00001"],
    }


def make_qe_identity(*, issued: datetime, expires: datetime, mr_signer: bytes) -> bytes:
    """Return the text of a QE identity of version 2 that stands for *mr_signer* (32 bytes)."""
    return _text(
        {
            "id": "TD_QE",
            "version": 2,
            "issueDate": _time(issued),
            "nextUpdate": _time(expires),
            "tcbEvaluationDataNumber": TCB_EVALUATION_NUMBER,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "11000000000000000000000000000000",
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": mr_signer.hex().upper(),
            "isvprodid": QE_PRODUCT,
            "tcbLevels": [
                {"tcb": {"isvsvn": QE_SVN}, "tcbDate": TCB_DATE, "tcbStatus": "UpToDate"}
            ],
        }
    )


def make_crl(
    issuer: Identity, *, issued: datetime, expires: datetime, revoked: Sequence[x509.Certificate]
) -> bytes:
    """Return a complete CRL of *issuer* as DER."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(issued)
        .next_update(expires)
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()),
            critical=False,
        )
    )
    for certificate in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(certificate.serial_number)
            .revocation_date(issued)
            .build()
        )
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.DER)


def chain_pem(*identities: Identity) -> bytes:
    """Return certificates as concatenated PEM, in the order given."""
    return b"".join(identity.certificate.public_bytes(Encoding.PEM) for identity in identities)


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _text(members: dict[str, object]) -> bytes:
    return json.dumps(members, separators=(",", ":")).encode()
