"""What genuine NVIDIA reports say, device by device."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from aigovtool.attestation.nvidia.layout import NONCE_BYTES
from aigovtool.attestation.nvidia.ocsp import Revocation
from aigovtool.attestation.nvidia.rim import Validity


class Measurements(StrEnum):
    """The measurements of a device against NVIDIA's reference values."""

    MATCH = "match"  # every RIM that this kind of device needs was given, and every value agrees
    MISSING = "missing"  # a RIM was not given; those that were agree
    MISMATCH = "mismatch"  # a value disagrees


class Mode(StrEnum):
    """How GPUs of one host are joined (NVIDIA's feature flag)."""

    SINGLE = "spt"  # each GPU is passed through alone
    MULTI = "mpt"  # several, with NVLink encrypted
    PROTECTED_PCIE = "ppcie"  # several, with NVLink in the clear and the switches trusted


@dataclass(frozen=True, slots=True, kw_only=True)
class RimClaims:
    """A RIM that was used: which one, whether its signers are valid, and not revoked."""

    version: str
    tag_id: str
    validity: Validity
    revocation: Revocation


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceClaims:
    """
    One genuine device.

    Args:
        platform_id: serial number of the device certificate, which NVIDIA signed: the chip.
        product: such as ``GH100``, ``GB100`` or ``LS_10``.
        is_switch: an NVSwitch, which has a BIOS and no driver.
        driver_version: None for a switch.
        vbios_version: as RIMs write it, such as ``96.00.9F.00.01``; None when not reported.
        mode: None when the firmware does not report it.
        measurement: SHA-256 over the measurement record, in hex.
        fwid_bound: the report names the firmware that its certificate was made for.
        driver_rim: None when it was not given, and for a switch.
        vbios_rim: None when it was not given.
        measurements: the outcome.
        compared: how many values were compared.
        mismatched: RIM indices (from 0) at which they disagree.
        exempted: RIM indices that disagree and, as in NVIDIA's own verifier, do not count: 35 while
            the video decoder NVDEC0 is disabled.
        revocation: of the device's chain; the leaf is the device's own and has no OCSP.
    """

    platform_id: str
    product: str
    is_switch: bool
    driver_version: str | None
    vbios_version: str | None
    mode: Mode | None
    measurement: str
    fwid_bound: bool
    driver_rim: RimClaims | None
    vbios_rim: RimClaims | None
    measurements: Measurements
    compared: int
    mismatched: tuple[int, ...]
    exempted: tuple[int, ...]
    revocation: Revocation

    @property
    def rims(self) -> tuple[RimClaims, ...]:
        """The RIMs that were used."""
        return tuple(rim for rim in (self.driver_rim, self.vbios_rim) if rim is not None)


def gpu_nonce(report_data: bytes) -> bytes:
    """
    Return the 32-byte nonce for the GPUs of a session: the end of what its CPU commits to.

    Args:
        report_data: the CPU's 64 bytes, or the 32 of a TPM quote.
    """
    return report_data[-NONCE_BYTES:]


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaClaims:
    """
    All devices of one evidence.

    Args:
        report_data: the 32-byte nonce, the same for all.
        devices: in the order in which they came, no chip twice.
        verified_at: the time for which all of this holds.
    """

    report_data: bytes
    devices: tuple[DeviceClaims, ...]
    verified_at: datetime

    def commitment_to(self, report_data: bytes) -> bytes:
        """Return what `report_data` must be when the evidence commits to these 64 bytes."""
        return gpu_nonce(report_data)

    @property
    def measurement(self) -> str:
        """For people: the measurement digests, each once, in hex."""
        return ",".join(dict.fromkeys(device.measurement for device in self.devices))

    @property
    def platform_id(self) -> str:
        """The chips, in the order in which they came."""
        return ",".join(device.platform_id for device in self.devices)

    @property
    def debug(self) -> bool:
        """
        Always False: no field of a report says it.

        A GPU in developer mode, or with debugging fused on, has other measurements than its RIM,
        so it is `DeviceClaims.measurements` that a policy must ask.
        """
        return False
