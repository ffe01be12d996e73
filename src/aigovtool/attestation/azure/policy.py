"""
Is a genuine Azure confidential VM acceptable? The hardware's rules, and those for what it runs.

Rule 1: every field must be given; what is free is said with the word ``any``.
Rule 2: the measurement in ``hardware`` is the paravisor's. Without it any trust domain or SNP guest
        that writes an HCL report of its own passes for an Azure VM.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from aigovtool.attestation.azure.claims import AzureClaims, AzureSnpClaims, AzureTdxClaims
from aigovtool.attestation.dcap.policy import TdxPolicy, appraise_tdx
from aigovtool.attestation.snp.policy import SnpPolicy
from aigovtool.attestation.snp.policy import appraise as appraise_snp
from aigovtool.attestation.tpm2.policy import PcrPolicy, appraise_pcrs
from aigovtool.errors import PromiseBrokenError, Reason


class AzureRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    What is accepted of the guest, whichever hardware it runs on.

    Args:
        vm_ids: names of the virtual machines accepted (vmUniqueId, lower case); or ``any``.
        pcrs: by bank and index, such as ``"sha256:4"``, the accepted values in hex; or ``any``,
            which accepts whatever the guest booted.
        secure_boot: ``required`` or ``any``.
        console: ``refused`` refuses a VM with a serial console; or ``any``.
        attestation_key: ``certified`` demands Azure's certificate for the vTPM's key besides the
            hardware's word for it; or ``any``.
    """

    vm_ids: tuple[str, ...] | Literal["any"]
    pcrs: PcrPolicy
    secure_boot: Literal["required", "any"]
    console: Literal["refused", "any"]
    attestation_key: Literal["certified", "any"]


class AzureSnpPolicy(
    AzureRules,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="tee",
    tag="azure-snp",
):
    """
    What is accepted of an Azure VM on SEV-SNP.

    Args:
        hardware: a table as for ``tee = "snp"``, about the paravisor.
    """

    hardware: SnpPolicy


class AzureTdxPolicy(
    AzureRules,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="tee",
    tag="azure-tdx",
):
    """
    What is accepted of an Azure VM on TDX.

    Args:
        hardware: a table as for ``tee = "tdx"``, about the paravisor.
    """

    hardware: TdxPolicy


def appraise(
    claims: AzureSnpClaims | AzureTdxClaims, policy: AzureSnpPolicy | AzureTdxPolicy
) -> list[Reason]:
    """Return every reason why *policy* refuses *claims*; an empty list accepts."""
    match claims, policy:
        case AzureSnpClaims(), AzureSnpPolicy():
            hardware = appraise_snp(claims.hardware, policy.hardware)
        case AzureTdxClaims(), AzureTdxPolicy():
            hardware = appraise_tdx(claims.hardware, policy.hardware)
        case _:
            raise PromiseBrokenError("claims and policy of different hardware")
    return [*hardware, *_appraise_guest(claims, policy)]


def _appraise_guest(claims: AzureClaims, policy: AzureRules) -> Iterator[Reason]:
    if policy.vm_ids != "any" and claims.vm_id not in policy.vm_ids:
        yield Reason(
            code="azure.vm_id",
            message="the virtual machine is not one of those accepted",
            expected=" or ".join(policy.vm_ids) or "none at all",
            came=claims.vm_id,
            mend="list the machine in vm_ids, if it is to be accepted",
        )
    if policy.secure_boot == "required" and not claims.secure_boot:
        yield Reason(
            code="azure.secure_boot",
            message="secure boot is off",
            expected="on",
            came="off",
            mend="create the virtual machine with secure boot",
        )
    if policy.console == "refused" and claims.console:
        yield Reason(
            code="azure.console",
            message="the serial console is enabled",
            expected="disabled",
            came="enabled",
            mend="disable boot diagnostics and the serial console of the virtual machine",
        )
    if policy.attestation_key == "certified" and not claims.ak_certified:
        yield Reason(
            code="azure.ak",
            message="the vTPM's attestation key came without Azure's certificate",
            expected="a certificate from a pinned root",
            came="none",
            mend="read the certificate from the vTPM (NV 0x01c101d0) and send it",
        )
    yield from appraise_pcrs(claims.pcrs, policy.pcrs, prefix="azure")
