"""
A confidential VM and its GPUs in one piece of evidence, bound as `attestation.composite` demands.

The CPU part commits to the session; the GPUs answer the end of what the CPU part carries, which on
Azure is a hash of the report data and elsewhere the report data itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.nvidia.claims import gpu_nonce
from aigovtool.attestation.tpm2.verify import qualifying_data
from aigovtool.enclave.attester.base import Attester, check_report_data
from aigovtool.enclave.attester.nvidia import NvidiaAttester
from aigovtool.errors import ConfigurationError

CPU_TEES = (Tee.TDX, Tee.SNP, Tee.AZURE_SNP, Tee.AZURE_TDX)
_COMMITS_BY_DIGEST = (Tee.AZURE_SNP, Tee.AZURE_TDX)


class CompositeAttester:
    """
    Evidence of CPU and GPUs.

    Args:
        cpu: the confidential VM's own attester, one of `CPU_TEES`.
        gpu: the GPUs'.

    Raises:
        ConfigurationError: *cpu* is of a kind that GPUs cannot be bound to.
    """

    tee = Tee.COMPOSITE

    def __init__(self, cpu: Attester, gpu: NvidiaAttester) -> None:
        if cpu.tee not in CPU_TEES:
            raise ConfigurationError(
                f"GPUs cannot be attested together with {cpu.tee}",
                code="attester.composite",
                expected=" or ".join(CPU_TEES),
                came=cpu.tee,
            )
        self._cpu = cpu
        self._gpu = gpu

    def describe(self) -> str:
        return f"{self._cpu.describe()}, with NVIDIA GPUs by NVML"

    def evidence(self, report_data: bytes) -> Evidence:
        """
        Return fresh evidence of both parts over *report_data* (64 bytes).

        Raises:
            MalformedError, ConfigurationError, UnavailableError: as either part does.
        """
        check_report_data(report_data)
        carried = report_data
        if self._cpu.tee in _COMMITS_BY_DIGEST:
            carried = qualifying_data(report_data)
        cpu = self._cpu.evidence(report_data).documents
        gpu = self._gpu.answers(gpu_nonce(carried))
        return Evidence(
            tee=self.tee, documents=_named(self._cpu.tee, cpu) | _named(Tee.NVIDIA, gpu)
        )

    def endorsements(self) -> Endorsements:
        """Return what both parts can say for themselves."""
        cpu, gpu = self._cpu.endorsements().documents, self._gpu.endorsements().documents
        return Endorsements(
            tee=self.tee, documents=_named(self._cpu.tee, cpu) | _named(Tee.NVIDIA, gpu)
        )


def _named(tee: Tee, documents: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{tee}.{name}": body for name, body in documents.items()}
