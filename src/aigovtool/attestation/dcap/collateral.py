"""
Intel's signed documents about a platform: TCB info and QE identity, as PCS API versions 3 and 4.

Rule 1: the signature is checked over the exact text that came; nothing is re-encoded.
Rule 2: each document counts only inside its own span, issueDate to nextUpdate.
Rule 3: TCB info version 3 (and version 2, which has no id and knows SGX alone) and QE identity
        version 2 are read; any other version is refused, never taken for one of these.

Documents in `Endorsements` carry the names that the PCS and every PCCS use.

Source: Intel PCS API, "Get TCB Info" and "Get Enclave Identity", response models.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from msgspec import Meta, Struct

from aigovtool.errors import MalformedError, VerificationError

PCK_CRL_ISSUER_CHAIN = "pck_crl_issuer_chain"
ROOT_CA_CRL = "root_ca_crl"
PCK_CRL = "pck_crl"
TCB_INFO_ISSUER_CHAIN = "tcb_info_issuer_chain"
TCB_INFO = "tcb_info"
TCB_INFO_SIGNATURE = "tcb_info_signature"
QE_IDENTITY_ISSUER_CHAIN = "qe_identity_issuer_chain"
QE_IDENTITY = "qe_identity"
QE_IDENTITY_SIGNATURE = "qe_identity_signature"
PCK_CERTIFICATE_CHAIN = "pck_certificate_chain"
"""Only for quotes that name their PCK instead of carrying it (certification data 1 to 4)."""

REQUIRED_DOCUMENTS = (
    PCK_CRL_ISSUER_CHAIN,
    ROOT_CA_CRL,
    PCK_CRL,
    TCB_INFO_ISSUER_CHAIN,
    TCB_INFO,
    TCB_INFO_SIGNATURE,
    QE_IDENTITY_ISSUER_CHAIN,
    QE_IDENTITY,
    QE_IDENTITY_SIGNATURE,
)
_BINARY_DOCUMENTS = frozenset({ROOT_CA_CRL, PCK_CRL, TCB_INFO_SIGNATURE, QE_IDENTITY_SIGNATURE})

Svn = Annotated[int, Meta(ge=0, le=255)]
Svn16 = Annotated[int, Meta(ge=0, le=65535)]
EvaluationNumber = Annotated[int, Meta(ge=0)]
Utc = Annotated[datetime, Meta(tz=True)]
Hex4 = Annotated[str, Meta(pattern="^[0-9A-Fa-f]{8}$")]
Hex8 = Annotated[str, Meta(pattern="^[0-9A-Fa-f]{16}$")]
Hex16 = Annotated[str, Meta(pattern="^[0-9A-Fa-f]{32}$")]
Hex32 = Annotated[str, Meta(pattern="^[0-9A-Fa-f]{64}$")]
Hex48 = Annotated[str, Meta(pattern="^[0-9A-Fa-f]{96}$")]

PlatformStatus = Literal[
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
]
IdentityStatus = Literal["UpToDate", "OutOfDate", "Revoked"]


class Component(Struct, frozen=True):
    """One of the 16 security version numbers of a TCB level, named for people."""

    svn: Svn
    category: str = ""
    type: str = ""


Components = Annotated[tuple[Component, ...], Meta(min_length=16, max_length=16)]


class PlatformTcb(Struct, frozen=True):
    sgxtcbcomponents: Components
    pcesvn: Svn16
    tdxtcbcomponents: Components | None = None


class PlatformLevel(Struct, frozen=True, rename={"tcb_date": "tcbDate", "status": "tcbStatus"}):
    tcb: PlatformTcb
    tcb_date: Utc
    status: PlatformStatus
    advisories: tuple[str, ...] = msgspec.field(default=(), name="advisoryIDs")


class IdentityTcb(Struct, frozen=True):
    isvsvn: Svn16


class IdentityLevel(Struct, frozen=True, rename={"tcb_date": "tcbDate", "status": "tcbStatus"}):
    tcb: IdentityTcb
    tcb_date: Utc
    status: IdentityStatus
    advisories: tuple[str, ...] = msgspec.field(default=(), name="advisoryIDs")


class TdxModule(Struct, frozen=True, rename="camel"):
    """Whoever may have signed the TDX module, when TEE_TCB_SVN names no module version."""

    mrsigner: Hex48
    attributes: Hex8
    attributes_mask: Hex8


class TdxModuleIdentity(Struct, frozen=True, rename="camel"):
    """The same for one major version of the TDX module, with its own TCB levels."""

    id: str
    mrsigner: Hex48
    attributes: Hex8
    attributes_mask: Hex8
    tcb_levels: tuple[IdentityLevel, ...]


class TcbInfo(Struct, frozen=True, rename="camel"):
    """TCB info version 3; `read_tcb_info` brings version 2 into the same shape."""

    id: Literal["SGX", "TDX"]
    issue_date: Utc
    next_update: Utc
    fmspc: Annotated[str, Meta(pattern="^[0-9A-Fa-f]{12}$")]
    pce_id: Annotated[str, Meta(pattern="^[0-9A-Fa-f]{4}$")]
    tcb_type: Literal[0]
    tcb_evaluation_data_number: EvaluationNumber
    tcb_levels: Annotated[tuple[PlatformLevel, ...], Meta(min_length=1)]
    tdx_module: TdxModule | None = None
    tdx_module_identities: tuple[TdxModuleIdentity, ...] = ()


class QeIdentity(Struct, frozen=True, rename="camel"):
    """Which quoting enclaves Intel stands for."""

    id: Literal["QE", "TD_QE"]
    version: Literal[2]
    issue_date: Utc
    next_update: Utc
    tcb_evaluation_data_number: EvaluationNumber
    miscselect: Hex4
    miscselect_mask: Hex4
    attributes: Hex16
    attributes_mask: Hex16
    mrsigner: Hex32
    isvprodid: Svn16
    tcb_levels: Annotated[tuple[IdentityLevel, ...], Meta(min_length=1)]


class _Version(Struct, frozen=True):
    version: int


class _LevelV2(Struct, frozen=True, rename={"tcb_date": "tcbDate", "status": "tcbStatus"}):
    tcb: dict[str, Svn16]
    tcb_date: Utc
    status: PlatformStatus
    advisories: tuple[str, ...] = msgspec.field(default=(), name="advisoryIDs")


class _TcbInfoV2(Struct, frozen=True, rename="camel"):
    issue_date: Utc
    next_update: Utc
    fmspc: Annotated[str, Meta(pattern="^[0-9A-Fa-f]{12}$")]
    pce_id: Annotated[str, Meta(pattern="^[0-9A-Fa-f]{4}$")]
    tcb_type: Literal[0]
    tcb_evaluation_data_number: EvaluationNumber
    tcb_levels: Annotated[tuple[_LevelV2, ...], Meta(min_length=1)]


# Made here, where nobody else runs: msgspec is not safe where two threads make it read a type's
# definition for the first time.
_version_decoder = msgspec.json.Decoder(_Version)
_tcb_info_decoder = msgspec.json.Decoder(TcbInfo)
_tcb_info_v2_decoder = msgspec.json.Decoder(_TcbInfoV2)
_qe_identity_decoder = msgspec.json.Decoder(QeIdentity)


def read_tcb_info(text: bytes) -> TcbInfo:
    """
    Read TCB info whose signature has been checked.

    Raises:
        MalformedError: not TCB info, or of a version other than 2 and 3 ("unsupported collateral").
    """
    try:
        version = _version_decoder.decode(text).version
        if version == 3:
            return _tcb_info_decoder.decode(text)
        if version == 2:
            return _from_version_2(_tcb_info_v2_decoder.decode(text))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MalformedError(
            "TCB info cannot be read", code="dcap.tcb_info.malformed", came=str(error)
        ) from None
    raise MalformedError(
        "unsupported collateral: TCB info of an unknown version",
        code="dcap.tcb_info.version",
        expected="version 2 or 3",
        came=f"version {version}",
        mend="fetch the collateral from the PCS API, version 4",
    )


def is_version_2(text: bytes) -> bool:
    """Say whether *text* is TCB info of version 2, which came before the quotes of TDX."""
    try:
        return _version_decoder.decode(text).version == 2
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False


def _from_version_2(info: _TcbInfoV2) -> TcbInfo:
    names = [f"sgxtcbcomp{number:02d}svn" for number in range(1, 17)]
    levels = []
    for level in info.tcb_levels:
        if set(level.tcb) != {*names, "pcesvn"} or any(level.tcb[name] > 255 for name in names):
            raise MalformedError(
                "TCB info of version 2 with other components than sgxtcbcomp01svn to 16",
                code="dcap.tcb_info.malformed",
            )
        components = tuple(Component(svn=level.tcb[name]) for name in names)
        tcb = PlatformTcb(sgxtcbcomponents=components, pcesvn=level.tcb["pcesvn"])
        levels.append(
            PlatformLevel(
                tcb=tcb, tcb_date=level.tcb_date, status=level.status, advisories=level.advisories
            )
        )
    return TcbInfo(
        id="SGX",
        issue_date=info.issue_date,
        next_update=info.next_update,
        fmspc=info.fmspc,
        pce_id=info.pce_id,
        tcb_type=info.tcb_type,
        tcb_evaluation_data_number=info.tcb_evaluation_data_number,
        tcb_levels=tuple(levels),
    )


def read_qe_identity(text: bytes) -> QeIdentity:
    """Read a QE identity whose signature has been checked; raises MalformedError."""
    try:
        return _qe_identity_decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MalformedError(
            "unsupported collateral: QE identity cannot be read",
            code="dcap.qe_identity.malformed",
            came=str(error),
        ) from None


def verify_p256(key: object, signature: bytes, data: bytes, *, what: str) -> None:
    """Check an ECDSA P-256 SHA-256 signature given as r||s; raises VerificationError."""
    if len(signature) != 64:
        raise MalformedError(
            f"signature of {what} of a wrong length",
            code="dcap.signature.malformed",
            expected="64 bytes",
            came=f"{len(signature)} bytes",
        )
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise VerificationError(f"{what} is signed with no P-256 key", code="dcap.signature.key")
    encoded = encode_dss_signature(
        int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    )
    try:
        key.verify(encoded, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise VerificationError(
            f"the signature of {what} does not verify", code="dcap.signature"
        ) from None


def check_span(issue: datetime, next_update: datetime, *, now: datetime, what: str) -> None:
    """Raise VerificationError unless *now* lies from issueDate to nextUpdate (rule 2)."""
    if now < issue:
        raise VerificationError(
            f"collateral not yet valid: {what}",
            code="dcap.collateral.not_yet_valid",
            expected=f"a time from {issue.astimezone(UTC).isoformat()}",
            came=now.isoformat(),
            mend="set the clock, or fetch the collateral of that time",
        )
    if now > next_update:
        raise VerificationError(
            f"collateral expired: {what}",
            code="dcap.collateral.expired",
            expected=f"a time until {next_update.astimezone(UTC).isoformat()}",
            came=now.isoformat(),
            mend="fetch current collateral for this platform",
        )


def documents_from_json(text: bytes) -> dict[str, bytes]:
    """
    Read collateral as one JSON object (the form of dcap-qvl): CRLs and signatures in hex.

    Raises:
        MalformedError: not such an object, an unknown or missing member, or not hexadecimal.
    """
    try:
        members = msgspec.json.decode(text, type=dict[str, str])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise MalformedError(
            "collateral is not a JSON object of strings", code="dcap.collateral.malformed"
        ) from None
    known = {*REQUIRED_DOCUMENTS, PCK_CERTIFICATE_CHAIN}
    if not set(REQUIRED_DOCUMENTS) <= set(members) <= known:
        raise MalformedError(
            "collateral with missing or unknown members",
            code="dcap.collateral.malformed",
            expected=", ".join(REQUIRED_DOCUMENTS),
            came=", ".join(sorted(members)),
        )
    documents = {}
    for name, value in members.items():
        try:
            documents[name] = (
                binascii.unhexlify(value) if name in _BINARY_DOCUMENTS else value.encode()
            )
        except ValueError:
            raise MalformedError(
                f"collateral member {name} cannot be read", code="dcap.collateral.malformed"
            ) from None
    return documents


def documents_to_json(documents: Mapping[str, bytes]) -> str:
    """Write what `documents_from_json` reads; raises MalformedError on text that is not UTF-8."""
    try:
        return msgspec.json.encode(
            {
                name: body.hex() if name in _BINARY_DOCUMENTS else body.decode()
                for name, body in documents.items()
            }
        ).decode()
    except UnicodeDecodeError:
        raise MalformedError(
            "collateral text is not UTF-8", code="dcap.collateral.malformed"
        ) from None
