"""What genuine evidence of an Azure confidential VM says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aigovtool.attestation.dcap.claims import TdxClaims
from aigovtool.attestation.snp.claims import SnpClaims
from aigovtool.attestation.tpm2.layout import Hash
from aigovtool.attestation.tpm2.verify import qualifying_data

PARAVISOR_WARNING = (
    "the hardware vouches for Azure's paravisor and not for the guest: Microsoft's paravisor, its"
    " vTPM included, is trusted with everything in the guest"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureClaims:
    """
    What the paravisor and its vTPM say; the hardware's word for the paravisor is in subclasses.

    Args:
        report_data: extraData of the vTPM's quote; see `commitment_to`.
        hcl_version: of the HCL report, 1 or 2.
        vm_id: unique name of the virtual machine, lower case.
        secure_boot: UEFI secure boot is on, by the paravisor's word.
        console: a serial console is enabled.
        user_data: 64 bytes that the guest wrote into the HCL report, at any time before.
        pcrs: values of the vTPM's SHA-256 bank, covered by the quote; empty when none were given.
        ak_certified: the attestation key has a certificate from Azure's pinned root besides.
    """

    report_data: bytes
    hcl_version: int
    vm_id: str
    secure_boot: bool
    console: bool
    user_data: bytes
    pcrs: Mapping[Hash, Mapping[int, bytes]]
    ak_certified: bool

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is trusted besides the hardware, whatever a policy says."""
        return (PARAVISOR_WARNING,)

    def commitment_to(self, report_data: bytes) -> bytes:
        """Return what `report_data` must be when the evidence commits to these 64 bytes."""
        return qualifying_data(report_data)


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureSnpClaims(AzureClaims):
    """
    An Azure VM on SEV-SNP.

    Args:
        hardware: AMD's word for the paravisor, at VMPL 0.
    """

    hardware: SnpClaims

    @property
    def measurement(self) -> str:
        """Launch digest of the paravisor; the guest is in `pcrs`."""
        return self.hardware.measurement

    @property
    def platform_id(self) -> str | None:
        """The chip, in hex; None when Azure masks it."""
        return self.hardware.platform_id

    @property
    def debug(self) -> bool:
        """Whether the host may read and write the memory of paravisor and guest."""
        return self.hardware.debug


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureTdxClaims(AzureClaims):
    """
    An Azure VM on TDX.

    Args:
        hardware: Intel's word for the trust domain that the paravisor runs in.
    """

    hardware: TdxClaims

    @property
    def measurement(self) -> str:
        """MRTD of the paravisor's trust domain; the guest is in `pcrs`."""
        return self.hardware.measurement

    @property
    def platform_id(self) -> str | None:
        """The PPID in hex."""
        return self.hardware.platform_id

    @property
    def debug(self) -> bool:
        """Whether the host may read and write the memory of paravisor and guest."""
        return self.hardware.debug
