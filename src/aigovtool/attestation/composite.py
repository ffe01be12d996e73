"""
Evidence of a host in two parts: a confidential VM, and the GPUs it uses, in one session.

1. Each part is verified on its own, by the verifier of its kind.
2. The last 32 bytes of what the CPU part commits to are the nonce that all devices answered. The
   CPU commits to keys and nonce of the session (`binding`), so the GPUs answered for this session.

What this does not prove: that the GPUs are plugged into this machine. A GPU elsewhere can answer
the nonce as well. The guest's driver, which is measured by the CPU part, is trusted to have asked
its own GPUs, with which it shares an encrypted channel (SPDM session).

A document is named ``<kind>.<name>``, such as ``tdx.quote`` or ``nvidia.device.0.report``, in
evidence and endorsements alike.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

import msgspec

from aigovtool.attestation.azure import policy as azure_policy
from aigovtool.attestation.azure import verify as azure_verify
from aigovtool.attestation.azure.claims import AzureClaims, AzureSnpClaims, AzureTdxClaims
from aigovtool.attestation.azure.policy import AzureSnpPolicy, AzureTdxPolicy
from aigovtool.attestation.dcap.claims import TdxClaims
from aigovtool.attestation.dcap.policy import TdxPolicy, appraise_tdx
from aigovtool.attestation.dcap.verify import verify_tdx
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.nvidia import policy as nvidia_policy
from aigovtool.attestation.nvidia import verify as nvidia_verify
from aigovtool.attestation.nvidia.claims import NvidiaClaims, gpu_nonce
from aigovtool.attestation.nvidia.policy import NvidiaPolicy
from aigovtool.attestation.snp import policy as snp_policy
from aigovtool.attestation.snp import verify as snp_verify
from aigovtool.attestation.snp.claims import SnpClaims
from aigovtool.attestation.snp.policy import SnpPolicy
from aigovtool.errors import MalformedError, Reason, VerificationError

CpuClaims = TdxClaims | SnpClaims | AzureSnpClaims | AzureTdxClaims
CpuPolicy = TdxPolicy | SnpPolicy | AzureSnpPolicy | AzureTdxPolicy

_CPU_VERIFIERS: Mapping[Tee, Callable[..., CpuClaims]] = {
    Tee.TDX: verify_tdx,
    Tee.SNP: snp_verify.verify,
    Tee.AZURE_SNP: azure_verify.verify,
    Tee.AZURE_TDX: azure_verify.verify,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CompositeClaims:
    """
    What both parts say.

    Args:
        cpu: of the confidential VM.
        gpu: of all its GPUs and switches, bound to *cpu* by their nonce.
    """

    cpu: CpuClaims
    gpu: NvidiaClaims

    @property
    def report_data(self) -> bytes:
        """What the CPU part commits to; its last 32 bytes are the GPUs' nonce."""
        return self.cpu.report_data

    @property
    def measurement(self) -> str:
        """Of the CPU part; the GPUs' are in `gpu`."""
        return self.cpu.measurement

    @property
    def platform_id(self) -> str | None:
        """Of the CPU part; the GPUs' are in `gpu`."""
        return self.cpu.platform_id

    @property
    def debug(self) -> bool:
        """Whether the host may read the memory of the VM."""
        return self.cpu.debug

    def commitment_to(self, report_data: bytes) -> bytes:
        """Return what `report_data` must be when the evidence commits to these 64 bytes."""
        if isinstance(self.cpu, AzureClaims):
            return self.cpu.commitment_to(report_data)
        return report_data


def verify(evidence: Evidence, endorsements: Endorsements, *, now: datetime) -> CompositeClaims:
    """
    Check both parts and what binds them; the numbers are those of this module.

    Raises:
        ConfigurationError: a RIM came and lxml is not installed.
        MalformedError: not one CPU part and one GPU part, or a part cannot be read.
        VerificationError: a part is not genuine, or they are not bound to each other.
    """
    kinds = {name.partition(".")[0] for name in evidence.documents}
    cpus = [tee for tee in _CPU_VERIFIERS if tee in kinds]
    if len(cpus) != 1 or kinds != {cpus[0], Tee.NVIDIA}:
        raise MalformedError(
            "composite evidence without exactly one CPU part and one GPU part",
            code="composite.parts",
            expected=f"{Tee.NVIDIA}.* and one of {', '.join(f'{tee}.*' for tee in _CPU_VERIFIERS)}",
            came=", ".join(sorted(kinds)) or "nothing",
        )
    cpu = _CPU_VERIFIERS[cpus[0]](*_part(evidence, endorsements, cpus[0]), now=now)  # 1
    gpu = nvidia_verify.verify(*_part(evidence, endorsements, Tee.NVIDIA), now=now)
    if not hmac.compare_digest(gpu_nonce(cpu.report_data), gpu.report_data):  # 2
        raise VerificationError(
            "the GPUs did not answer the nonce to which the CPU part commits",
            code="composite.binding",
            expected=gpu_nonce(cpu.report_data).hex(),
            came=gpu.report_data.hex(),
            mend="ask the GPUs with the end of the report data as their nonce",
        )
    return CompositeClaims(cpu=cpu, gpu=gpu)


def _part(
    evidence: Evidence, endorsements: Endorsements, tee: Tee
) -> tuple[Evidence, Endorsements]:
    return (
        Evidence(tee=tee, documents=_named(evidence.documents, tee)),
        Endorsements(tee=tee, documents=_named(endorsements.documents, tee)),
    )


def _named(documents: Mapping[str, bytes], tee: Tee) -> dict[str, bytes]:
    prefix = f"{tee}."
    return {
        name.removeprefix(prefix): body
        for name, body in documents.items()
        if name.startswith(prefix)
    }


class CompositePolicy(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="tee",
    tag="composite",
):
    """
    What is accepted of a confidential VM with GPUs.

    Args:
        cpu: a table as for ``tee = "tdx"``, ``"snp"``, ``"azure-snp"`` or ``"azure-tdx"``.
        gpu: a table as for ``tee = "nvidia"``.
    """

    cpu: CpuPolicy
    gpu: NvidiaPolicy


def appraise(claims: CompositeClaims, policy: CompositePolicy) -> list[Reason]:
    """Return every reason why *policy* refuses *claims*; an empty list accepts."""
    return [
        *_appraise_cpu(claims.cpu, policy.cpu),
        *nvidia_policy.appraise(claims.gpu, policy.gpu),
    ]


def _appraise_cpu(claims: CpuClaims, policy: CpuPolicy) -> list[Reason]:
    match claims, policy:
        case TdxClaims(), TdxPolicy():
            return appraise_tdx(claims, policy)
        case SnpClaims(), SnpPolicy():
            return snp_policy.appraise(claims, policy)
        case AzureSnpClaims(), AzureSnpPolicy():
            return azure_policy.appraise(claims, policy)
        case AzureTdxClaims(), AzureTdxPolicy():
            return azure_policy.appraise(claims, policy)
    return [
        Reason(
            code="composite.cpu",
            message="the confidential VM is of another kind than the policy accepts",
            expected=type(policy).__name__.removesuffix("Policy"),
            came=type(claims).__name__.removesuffix("Claims"),
            mend="run on hardware that the policy names, or add an alternative for this kind",
        )
    ]
