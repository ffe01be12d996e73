"""
NVIDIA GPUs in confidential mode: a report over our nonce and a certificate chain, by NVML.

The driver asks each GPU by SPDM and gives request and response one after the other, which is what
`attestation.nvidia` reads. Here it is only looked whether the report is whole and answers our
nonce: a driver that gives an old one is asked again.

GPUs alone are no enclave: they are the second half of `CompositeAttester`. NVSwitches do not answer
by NVML; hosts that need them attested (protected PCIe) are not covered here.

Source: NVIDIA, NVML API reference, "Confidential compute"; nvidia-ml-py.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.nvidia.claims import gpu_nonce
from aigovtool.attestation.nvidia.layout import NONCE_BYTES, parse_report
from aigovtool.attestation.nvidia.verify import CERTIFICATES, MAX_DEVICES, REPORT
from aigovtool.enclave.attester.base import check_report_data
from aigovtool.enclave.attester.retry import retry
from aigovtool.errors import ConfigurationError, MalformedError, UnavailableError

NVIDIA_CONTROL = Path("/dev/nvidiactl")
_BEGIN_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"


def load_nvml() -> Any:
    """
    Import NVIDIA's bindings, which are an extra.

    Raises:
        ConfigurationError: they are not installed.
    """
    # Any: nvidia-ml-py has no types of its own
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        raise ConfigurationError(
            "GPUs are asked by NVML, and its Python bindings are not installed",
            code="nvidia.extra",
            mend="install aigovtool[nvidia]",
        ) from None


class NvidiaAttester:
    """
    Evidence of all GPUs that this guest sees.

    Args:
        nvml, sleep: collaborators; tests put stand-ins here.
    """

    tee = Tee.NVIDIA

    def __init__(
        self,
        *,
        nvml: Callable[[], Any] = load_nvml,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._load = nvml
        self._sleep = sleep

    def describe(self) -> str:
        return "nvidia by NVML: GPUs alone say nothing of the machine that uses them"

    def evidence(self, report_data: bytes) -> Evidence:
        """
        Return fresh reports of all GPUs over the end of *report_data* (64 bytes).

        Raises:
            ConfigurationError: no bindings, driver, GPU, confidential mode or permission.
            UnavailableError: busy, lost, or a short report, after all attempts.
        """
        check_report_data(report_data)
        return Evidence(tee=self.tee, documents=self.answers(gpu_nonce(report_data)))

    def answers(self, nonce: bytes) -> dict[str, bytes]:
        """
        Return the documents with which all GPUs answer *nonce* (32 bytes).

        Raises:
            MalformedError: *nonce* has another length.
            ConfigurationError, UnavailableError: as `evidence`.
        """
        if len(nonce) != NONCE_BYTES:
            raise MalformedError(
                "a GPU nonce of a wrong length",
                code="attester.report_data",
                expected=f"{NONCE_BYTES} bytes",
                came=f"{len(nonce)} bytes",
            )
        nvml = self._load()
        return retry(lambda: _ask_all(nvml, nonce), sleep=self._sleep)

    def endorsements(self) -> Endorsements:
        """Return what the GPUs themselves hand over: nothing beside the evidence."""
        return Endorsements(tee=self.tee)


def _ask_all(nvml: Any, nonce: bytes) -> dict[str, bytes]:
    try:
        nvml.nvmlInit()
        try:
            return _documents(nvml, nonce)
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        raise _trouble(nvml, error) from None


def _documents(nvml: Any, nonce: bytes) -> dict[str, bytes]:
    state = nvml.nvmlSystemGetConfComputeState()
    if state.ccFeature != nvml.NVML_CC_SYSTEM_FEATURE_ENABLED:
        raise ConfigurationError(
            "the GPUs are not in confidential mode",
            code="attester.nvidia_mode",
            mend="set the GPUs' CC mode on the host, and start the VM again",
        )
    count = nvml.nvmlDeviceGetCount()
    if not 0 < count <= MAX_DEVICES:
        raise ConfigurationError(
            "no GPU, or more than can be verified together",
            code="attester.nvidia_count",
            expected=f"1 to {MAX_DEVICES}",
            came=str(count),
        )
    documents = {}
    for number in range(count):
        device = nvml.nvmlDeviceGetHandleByIndex(number)
        answer = nvml.nvmlDeviceGetConfComputeGpuAttestationReport(device, nonce)
        report = _cut(answer.attestationReport, answer.attestationReportSize, number)
        _check_report(report, nonce, number)
        answer = nvml.nvmlDeviceGetConfComputeGpuCertificate(device)
        chain = _cut(answer.attestationCertChain, answer.attestationCertChainSize, number)
        if not chain.startswith(_BEGIN_CERTIFICATE):
            raise _short(number, "a certificate chain that is not PEM")
        documents[REPORT.format(number=number)] = report
        documents[CERTIFICATES.format(number=number)] = chain.rstrip(b"\0")
    return documents


def _cut(array: Any, size: int, number: int) -> bytes:
    """Return the *size* bytes that NVML says it filled of an array."""
    data = bytes(array)
    if not 0 < size <= len(data):
        raise _short(number, f"{size} bytes of {len(data)}")
    return data[:size]


def _check_report(report: bytes, nonce: bytes, number: int) -> None:
    try:
        answered = parse_report(report).nonce
    except MalformedError as error:
        raise _short(number, error.reasons[0].message) from error
    if answered != nonce:
        raise UnavailableError(
            f"GPU {number} answered another nonce",
            code="attester.nvidia_nonce",
            came=f"{answered.hex()}, asked with {nonce.hex()}",
        )


def _short(number: int, came: str) -> UnavailableError:
    return UnavailableError(
        f"GPU {number} gave no whole report", code="attester.short_read", came=came
    )


def _trouble(nvml: Any, error: Any) -> ConfigurationError | UnavailableError:
    """Tell apart what waiting may mend from what it will not."""
    code = error.value
    if code == nvml.NVML_ERROR_NO_PERMISSION:
        return ConfigurationError(
            "the GPUs may not be asked by this user",
            code="attester.permission",
            mend=f"run the enclave as a user who may read and write {NVIDIA_CONTROL}",
        )
    if code in (
        nvml.NVML_ERROR_LIBRARY_NOT_FOUND,
        nvml.NVML_ERROR_DRIVER_NOT_LOADED,
        nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        nvml.NVML_ERROR_NOT_SUPPORTED,
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    ):
        return ConfigurationError(
            "NVIDIA's driver here cannot attest",
            code="attester.missing",
            came=f"NVML error {code}",
            mend="install a driver with confidential computing, for a GPU that has it",
        )
    return UnavailableError(
        "NVML did not answer", code="attester.busy", came=f"NVML error {code}", retry_after_s=1.0
    )
