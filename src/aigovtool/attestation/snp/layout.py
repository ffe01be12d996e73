"""
Bytes of an SEV-SNP attestation report, and of the certificate table that can come with it.

Nothing here is a judgement: every field is read where the specification puts it, and whatever the
specification reserves must be zero, because a byte that means nothing today will mean something in
a firmware that this code does not know.

Source: AMD 56860 revision 1.58, ATTESTATION_REPORT (table 23), GUEST_POLICY (9), signature (141);
AMD 56421 (GHCB), SNP Extended Guest Request, for the certificate table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from aigovtool.errors import MalformedError

REPORT_BYTES = 0x4A0
SIGNED_BYTES = 0x2A0
REPORT_VERSIONS = range(2, 6)
FIRST_VERSION_WITH_CPUID = 3
FIRST_VERSION_WITH_MITIGATIONS = 5
ECDSA_P384_SHA384 = 1
CHIP_ID_BYTES = 64
COMPONENT_BYTES = 72  # of r and of s, little-endian
HIGHEST_VMPL = 3

_POLICY_ALWAYS_ONE = 1 << 17
_POLICY_DEFINED_BITS = 26
_PLATFORM_DEFINED_BITS = 8
_TABLE_ENTRY_BYTES = 24
MAX_TABLE_ENTRIES = 16  # AMD 56421 defines 6 kinds


class SigningKey(StrEnum):
    """Which kind of key signed the report (bits 2 to 4 at offset 0x48)."""

    VCEK = "vcek"
    VLEK = "vlek"


_SIGNING_KEYS = {0: SigningKey.VCEK, 1: SigningKey.VLEK}


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestPolicy:
    """What the guest's owner allowed at launch; the firmware enforces it."""

    abi_major: int
    abi_minor: int
    smt: bool
    migrate_ma: bool
    debug: bool
    single_socket: bool
    cxl: bool
    aes_256_xts: bool
    rapl_disabled: bool
    ciphertext_hiding: bool
    page_swap_disabled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformInfo:
    """How the host is configured at the time of the report."""

    smt: bool
    tsme: bool
    ecc: bool
    rapl_disabled: bool
    ciphertext_hiding: bool
    alias_check: bool
    iommu_write_safe: bool
    tio: bool


@dataclass(frozen=True, slots=True, order=True)
class FirmwareVersion:
    """Version of the SEV firmware; compares as expected."""

    major: int
    minor: int
    build: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.build}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """
    A report as read. TCB versions stay raw (8 bytes): their layout depends on the product.

    Args:
        cpuid: combined family, combined model, stepping; None before version 3.
        launch_mitigations: bit vector at launch; None before version 5.
        current_mitigations: bit vector now; None before version 5.
        signed: the exact bytes under the signature.
        r: of the ECDSA signature.
        s: of the ECDSA signature.
    """

    version: int
    guest_svn: int
    policy: GuestPolicy
    family_id: bytes
    image_id: bytes
    vmpl: int
    current_tcb: bytes
    platform_info: PlatformInfo
    author_key_enabled: bool
    chip_key_masked: bool
    signing_key: SigningKey
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid: tuple[int, int, int] | None
    chip_id: bytes
    committed_tcb: bytes
    current_firmware: FirmwareVersion
    committed_firmware: FirmwareVersion
    launch_tcb: bytes
    launch_mitigations: int | None
    current_mitigations: int | None
    signed: bytes
    r: int
    s: int


def parse_report(data: bytes) -> Report:
    """
    Read a report of version 2 to 5.

    Raises:
        MalformedError: wrong length, unknown version, unknown value, or a reserved bit is set.
    """
    if len(data) != REPORT_BYTES:
        raise MalformedError(
            "SEV-SNP report of a wrong length",
            code="snp.length",
            expected=f"{REPORT_BYTES} bytes",
            came=f"{len(data)} bytes",
        )
    version = _number(data, 0x000, 4)
    if version not in REPORT_VERSIONS:
        raise MalformedError(
            "SEV-SNP report of an unknown version",
            code="snp.version",
            expected="version 2, 3, 4 or 5",
            came=f"version {version}",
        )
    has_cpuid = version >= FIRST_VERSION_WITH_CPUID
    has_mitigations = version >= FIRST_VERSION_WITH_MITIGATIONS
    for start, end in (
        (0x04C, 0x050),
        (0x18B if has_cpuid else 0x188, 0x1A0),
        (0x1EB, 0x1EC),
        (0x1EF, 0x1F0),
        (0x208 if has_mitigations else 0x1F8, SIGNED_BYTES),
        (SIGNED_BYTES + 2 * COMPONENT_BYTES, REPORT_BYTES),
    ):
        if any(data[start:end]):
            raise _reserved_is_set(start)
    algorithm = _number(data, 0x034, 4)
    if algorithm != ECDSA_P384_SHA384:
        raise _unknown_value("signature algorithm", f"{ECDSA_P384_SHA384}", algorithm)
    vmpl = _number(data, 0x030, 4)
    if vmpl > HIGHEST_VMPL:
        # The host can ask for a report about a guest; it then has VMPL -1 and speaks for nobody.
        raise _unknown_value("privilege level", f"0 to {HIGHEST_VMPL}", vmpl)
    flags = _number(data, 0x048, 4)
    if flags >> 5:
        raise _reserved_is_set(0x048)
    signing_key = _SIGNING_KEYS.get(flags >> 2 & 7)
    if signing_key is None:
        raise _unknown_value("signing key", "0 (VCEK) or 1 (VLEK)", flags >> 2 & 7)
    return Report(
        version=version,
        guest_svn=_number(data, 0x004, 4),
        policy=_policy(_number(data, 0x008, 8)),
        family_id=data[0x010:0x020],
        image_id=data[0x020:0x030],
        vmpl=vmpl,
        current_tcb=data[0x038:0x040],
        platform_info=_platform_info(_number(data, 0x040, 8)),
        author_key_enabled=bool(flags & 1),
        chip_key_masked=bool(flags & 2),
        signing_key=signing_key,
        report_data=data[0x050:0x090],
        measurement=data[0x090:0x0C0],
        host_data=data[0x0C0:0x0E0],
        id_key_digest=data[0x0E0:0x110],
        author_key_digest=data[0x110:0x140],
        report_id=data[0x140:0x160],
        report_id_ma=data[0x160:0x180],
        reported_tcb=data[0x180:0x188],
        cpuid=(data[0x188], data[0x189], data[0x18A]) if has_cpuid else None,
        chip_id=data[0x1A0:0x1E0],
        committed_tcb=data[0x1E0:0x1E8],
        current_firmware=FirmwareVersion(data[0x1EA], data[0x1E9], data[0x1E8]),
        committed_firmware=FirmwareVersion(data[0x1EE], data[0x1ED], data[0x1EC]),
        launch_tcb=data[0x1F0:0x1F8],
        launch_mitigations=_number(data, 0x1F8, 8) if has_mitigations else None,
        current_mitigations=_number(data, 0x200, 8) if has_mitigations else None,
        signed=data[:SIGNED_BYTES],
        r=_number(data, SIGNED_BYTES, COMPONENT_BYTES),
        s=_number(data, SIGNED_BYTES + COMPONENT_BYTES, COMPONENT_BYTES),
    )


def parse_certificate_table(data: bytes) -> dict[UUID, bytes]:
    """
    Read the certificate table of an extended report: each kind's GUID and its certificate.

    Args:
        data: entries of GUID (network order), offset and length (u32, little-endian), an entry of
            zeros, then the certificates; padding may follow.

    Raises:
        MalformedError: no end, an entry outside the table, or a GUID twice.
    """
    found: dict[UUID, bytes] = {}
    for index in range(MAX_TABLE_ENTRIES + 1):
        entry = data[index * _TABLE_ENTRY_BYTES : (index + 1) * _TABLE_ENTRY_BYTES]
        if len(entry) < _TABLE_ENTRY_BYTES:
            break
        if not any(entry):
            return found
        guid, offset, length = UUID(bytes=entry[:16]), _number(entry, 16, 4), _number(entry, 20, 4)
        if guid in found or offset + length > len(data):
            break
        found[guid] = data[offset : offset + length]
    raise MalformedError("SEV-SNP certificate table cannot be read", code="snp.certificate_table")


def _number(data: bytes, offset: int, size: int) -> int:
    return int.from_bytes(data[offset : offset + size], "little")


def _reserved_is_set(offset: int) -> MalformedError:
    return MalformedError(
        "reserved bits are set in an SEV-SNP report",
        code="snp.reserved",
        came=f"a bit in the field at offset {offset:#05x}",
        mend="a newer firmware may need a newer verifier",
    )


def _unknown_value(what: str, expected: str, came: int) -> MalformedError:
    return MalformedError(
        f"SEV-SNP report with an unknown {what}",
        code="snp.unknown_value",
        expected=expected,
        came=str(came),
    )


def _policy(value: int) -> GuestPolicy:
    if value >> _POLICY_DEFINED_BITS or not value & _POLICY_ALWAYS_ONE:
        raise _reserved_is_set(0x008)
    return GuestPolicy(
        abi_minor=value & 0xFF,
        abi_major=value >> 8 & 0xFF,
        smt=bool(value >> 16 & 1),
        migrate_ma=bool(value >> 18 & 1),
        debug=bool(value >> 19 & 1),
        single_socket=bool(value >> 20 & 1),
        cxl=bool(value >> 21 & 1),
        aes_256_xts=bool(value >> 22 & 1),
        rapl_disabled=bool(value >> 23 & 1),
        ciphertext_hiding=bool(value >> 24 & 1),
        page_swap_disabled=bool(value >> 25 & 1),
    )


def _platform_info(value: int) -> PlatformInfo:
    if value >> _PLATFORM_DEFINED_BITS:
        raise _reserved_is_set(0x040)
    return PlatformInfo(
        smt=bool(value & 1),
        tsme=bool(value >> 1 & 1),
        ecc=bool(value >> 2 & 1),
        rapl_disabled=bool(value >> 3 & 1),
        ciphertext_hiding=bool(value >> 4 & 1),
        alias_check=bool(value >> 5 & 1),
        iommu_write_safe=bool(value >> 6 & 1),
        tio=bool(value >> 7 & 1),
    )
