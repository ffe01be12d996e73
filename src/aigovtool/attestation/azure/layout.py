"""
What the bytes of an HCL report say: Azure's paravisor speaking, read from the vTPM (NV 0x01400001).

    header    "HCLA" | version 4 | report size 4 | request type 4 | status 4 | reserved 12
    hardware  1184 bytes: the SEV-SNP report; for TDX a TDREPORT, which only its machine can check
    request   size 4 | version 4 | report type 4 | hash type 4 | runtime data size 4
    runtime   JSON: the vTPM's public keys, the VM's configuration, the user's data
    zeros     up to the size of the NV index

Rule 1: all integers are little-endian, all sizes must agree, and only zeros may follow.
Rule 2: runtime data counts as its exact bytes: their hash is in the hardware report.
Rule 3: of the JSON, what is needed is read and what Azure may add is passed over: it is one
        statement, signed as a whole. Keys that come twice under one name are refused.
Rule 4: nothing here is checked for truth.

Source: Microsoft, "Azure Confidential VM guest attestation design", HCL data format; OpenHCL,
openhcl_attestation_protocol (IGVM_ATTEST). Versions 1 and 2 differ in nothing that is read here.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from enum import IntEnum

import msgspec

from aigovtool.attestation.reader import Reader
from aigovtool.attestation.tpm2.layout import RsaKey
from aigovtool.errors import MalformedError

MALFORMED = "azure.malformed"

MAGIC = b"HCLA"
VERSIONS = (1, 2)
REQUEST_CERTIFICATE = 2
HARDWARE_REPORT_BYTES = 1184
REQUEST_DATA_VERSION = 1
HASH_SHA256 = 1
USER_DATA_BYTES = 64
ATTESTATION_KEY = "HCLAkPub"

_HEADER_BYTES = 32
_REQUEST_BYTES = 20


class ReportType(IntEnum):
    """Which hardware vouches for the paravisor."""

    SNP = 2
    TDX = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class HclReport:
    """
    An HCL report.

    Args:
        version: 1 or 2.
        report_type: which hardware.
        hardware_report: 1184 bytes; for SNP the report itself.
        runtime_data: the exact JSON, whose SHA-256 the hardware report carries.
    """

    version: int
    report_type: ReportType
    hardware_report: bytes
    runtime_data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeData:
    """
    What the paravisor says of its guest.

    Args:
        attestation_key: the vTPM's, which signs quotes.
        vm_id: unique name of the virtual machine, lower case.
        secure_boot: UEFI secure boot is on.
        console: a serial console is enabled.
        user_data: 64 bytes that the guest wrote; zeros when it wrote none.
    """

    attestation_key: RsaKey
    vm_id: str
    secure_boot: bool
    console: bool
    user_data: bytes


class _Key(msgspec.Struct, frozen=True):
    kid: str
    kty: str
    n: str | None = None
    e: str | None = None


class _VmConfiguration(msgspec.Struct, frozen=True):
    console: bool = msgspec.field(name="console-enabled")
    secure_boot: bool = msgspec.field(name="secure-boot")
    vm_id: str = msgspec.field(name="vmUniqueId")


class _RuntimeJson(msgspec.Struct, frozen=True):
    keys: tuple[_Key, ...]
    configuration: _VmConfiguration = msgspec.field(name="vm-configuration")
    user_data: str = msgspec.field(name="user-data")


_decoder = msgspec.json.Decoder(_RuntimeJson)


def parse_hcl_report(data: bytes) -> HclReport:
    """
    Read an HCL report.

    Raises:
        MalformedError: another magic, version, type or hash, or sizes that do not agree.
    """
    reader = Reader(data, what="HCL report", code=MALFORMED, byteorder="little")
    magic = reader.take(len(MAGIC))
    version, report_size, request_type, status = (reader.uint(4) for _ in range(4))
    reserved = reader.take(12)
    if (
        magic != MAGIC
        or version not in VERSIONS
        or request_type != REQUEST_CERTIFICATE
        or status
        or any(reserved)
    ):
        raise reader.malformed(
            "has an unexpected header",
            expected=f"{MAGIC.decode()}, version 1 or 2, request type {REQUEST_CERTIFICATE}",
            came=data[:_HEADER_BYTES].hex(),
        )
    hardware_report = reader.take(HARDWARE_REPORT_BYTES)
    data_size, data_version, report_type, hash_type, runtime_size = (
        reader.uint(4) for _ in range(5)
    )
    runtime_data = reader.take(runtime_size)
    whole_size = _HEADER_BYTES + HARDWARE_REPORT_BYTES + _REQUEST_BYTES + runtime_size
    if (data_size, report_size) != (_REQUEST_BYTES + runtime_size, whole_size):
        raise reader.malformed(
            "has sizes that do not agree",
            expected=f"{_REQUEST_BYTES + runtime_size} and {whole_size} bytes",
            came=f"{data_size} and {report_size}",
        )
    if (
        data_version != REQUEST_DATA_VERSION
        or report_type not in set(ReportType)
        or hash_type != HASH_SHA256
    ):
        raise reader.malformed(
            "is of an unknown kind",
            expected=f"version 1, type {[kind.value for kind in ReportType]}, hash {HASH_SHA256}",
            came=f"version {data_version}, type {report_type}, hash {hash_type}",
        )
    if any(reader.take(reader.left)):
        raise reader.malformed("has bytes after its end", expected="zeros")
    return HclReport(
        version=version,
        report_type=ReportType(report_type),
        hardware_report=hardware_report,
        runtime_data=runtime_data,
    )


def parse_runtime_data(data: bytes) -> RuntimeData:
    """Read the paravisor's JSON; raises MalformedError when what is needed is not there."""
    try:
        parsed = _decoder.decode(data)
        user_data = bytes.fromhex(parsed.user_data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise MalformedError("HCL runtime data cannot be read", code=MALFORMED) from None
    keys = [key for key in parsed.keys if key.kid == ATTESTATION_KEY]
    if len(keys) != 1 or keys[0].kty != "RSA" or len(user_data) != USER_DATA_BYTES:
        raise MalformedError(
            "HCL runtime data without what it must hold",
            code=MALFORMED,
            expected=f"one RSA key {ATTESTATION_KEY}, {USER_DATA_BYTES} bytes of user data",
            came=f"{len(keys)} such keys, {len(user_data)} bytes",
        )
    return RuntimeData(
        attestation_key=RsaKey(n=_number(keys[0].n), e=_number(keys[0].e)),
        vm_id=parsed.configuration.vm_id.lower(),
        secure_boot=parsed.configuration.secure_boot,
        console=parsed.configuration.console,
        user_data=user_data,
    )


def _number(text: str | None) -> int:
    """Read a base64url number without padding (RFC 7518, Base64urlUInt)."""
    try:
        padded = (text or "").encode("ascii") + b"=" * (-len(text or "") % 4)
        return int.from_bytes(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        raise MalformedError("HCL key that is not base64url", code=MALFORMED) from None
