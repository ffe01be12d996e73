"""
Azure confidential VMs: the paravisor's report from the vTPM, and a quote by its attestation key.

1. Once in a process, write 64 random bytes to NV index 0x01400002 (made when it is not there), so
   that the paravisor asks the hardware anew, and wait until its report carries them.
2. Read the HCL report from NV index 0x01400001.
3. The key at 0x81000003 must be the one that the report vouches for.
4. Read the PCRs and have them quoted, with the hash of our report data as qualifying data. When
   they changed in between, begin again.
5. On TDX, have the host turn the TD report inside the HCL report into a quote.

The hardware's report is about the paravisor, whoever asks; only 4 is fresh for each nonce.

Source: Microsoft, "Azure Confidential VM guest attestation design"; TCG TPM 2.0 Library, Part 3.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

import msgspec

from aigovtool.attestation.azure.layout import (
    USER_DATA_BYTES,
    HclReport,
    ReportType,
    RuntimeData,
    parse_hcl_report,
    parse_runtime_data,
)
from aigovtool.attestation.azure.verify import HCL_REPORT, TPM_PCRS, TPM_QUOTE, TPM_SIGNATURE
from aigovtool.attestation.dcap.verify import QUOTE
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.snp.verify import CA_CHAIN, VCEK
from aigovtool.attestation.tpm2.layout import (
    Hash,
    Scheme,
    parse_public,
    parse_quote,
    parse_signature,
)
from aigovtool.attestation.tpm2.pcrs import check_pcr_digest
from aigovtool.attestation.tpm2.verify import qualifying_data
from aigovtool.enclave.attester.base import check_report_data
from aigovtool.enclave.attester.imds import Imds
from aigovtool.enclave.attester.retry import retry
from aigovtool.enclave.attester.tpm import MissingHandleError, Tpm
from aigovtool.errors import (
    ConfigurationError,
    MalformedError,
    UnavailableError,
    VerificationError,
)
from aigovtool.ids import sha256

HCL_REPORT_INDEX = 0x01400001
USER_DATA_INDEX = 0x01400002
ATTESTATION_KEY = 0x81000003
TD_REPORT_BYTES = 1024
MIN_QUOTE_BYTES = 48 + 584  # header and TD report body of a quote, before any signature
BANK = Hash.SHA256
REFRESH_PAUSE_S = 0.5
REFRESH_ATTEMPTS = 12  # the paravisor takes up to some seconds to renew its report

TEES = {ReportType.SNP: Tee.AZURE_SNP, ReportType.TDX: Tee.AZURE_TDX}


def azure_tee(tpm: Tpm) -> Tee:
    """
    Say which confidential hardware is under this Azure VM.

    Raises:
        ConfigurationError: there is none, or this user may not ask.
        UnavailableError: the vTPM does not answer now, or with something else.
    """
    return TEES[_hcl_report(tpm).report.report_type]


class AzureAttester:
    """
    Evidence of an Azure confidential VM.

    Args:
        tee: `Tee.AZURE_SNP` or `Tee.AZURE_TDX`; a VM of the other kind is refused.
        tpm, imds, random, sleep: collaborators; tests put stand-ins here.
    """

    def __init__(
        self,
        tee: Tee,
        *,
        tpm: Tpm | None = None,
        imds: Imds | None = None,
        random: Callable[[int], bytes] = secrets.token_bytes,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.tee = tee
        self._tpm = tpm or Tpm()
        self._imds = imds or Imds()
        self._random = random
        self._sleep = sleep
        self._lock = Lock()  # a TPM does one thing after the other, and 1 wants to be undisturbed
        self._refreshed = False
        self._quoted: tuple[bytes, bytes] | None = None  # a TD report, and the host's quote over it

    def describe(self) -> str:
        return f"{self.tee} by the vTPM: Microsoft's paravisor is trusted with all of the guest"

    def evidence(self, report_data: bytes) -> Evidence:
        """
        Return fresh evidence over *report_data* (64 bytes).

        Raises:
            ConfigurationError: no vTPM, no permission, no confidential VM, or one of another kind.
            UnavailableError: busy, a short answer, or no host to quote, after all attempts.
        """
        check_report_data(report_data)
        with self._lock:
            if not self._refreshed:
                self._refresh()
                self._refreshed = True
            return retry(lambda: self._evidence(report_data), sleep=self._sleep)

    def endorsements(self) -> Endorsements:
        """Return the VCEK and its chain, as the host has them; nothing when it does not say."""
        if self.tee is not Tee.AZURE_SNP:
            return Endorsements(tee=self.tee)
        try:
            vcek, chain = self._imds.amd_certification()
        except UnavailableError:
            return Endorsements(tee=self.tee)  # whoever verifies can ask AMD
        return Endorsements(tee=self.tee, documents={VCEK: vcek, CA_CHAIN: chain})

    def _refresh(self) -> None:  # 1
        user_data = self._random(USER_DATA_BYTES)

        def write() -> None:
            try:
                size = self._tpm.nv_size(USER_DATA_INDEX)
            except MissingHandleError:
                self._tpm.nv_define(USER_DATA_INDEX, USER_DATA_BYTES)
                size = USER_DATA_BYTES
            if size != USER_DATA_BYTES:
                raise ConfigurationError(
                    f"NV index {USER_DATA_INDEX:#x} has another size than Azure's paravisor reads",
                    code="attester.tpm_handle",
                    expected=f"{USER_DATA_BYTES} bytes",
                    came=f"{size} bytes",
                    mend=f"undefine it: tpm2_nvundefine -C o {USER_DATA_INDEX:#x}",
                )
            self._tpm.nv_write(USER_DATA_INDEX, user_data)

        retry(write, sleep=self._sleep)
        for _ in range(REFRESH_ATTEMPTS):
            hcl = retry(lambda: _hcl_report(self._tpm), sleep=self._sleep)
            if hcl.runtime.user_data == user_data:
                return
            self._sleep(REFRESH_PAUSE_S)
        raise UnavailableError(
            "Azure's paravisor does not renew its report", code="attester.hcl", retry_after_s=5.0
        )

    def _evidence(self, report_data: bytes) -> Evidence:
        hcl = _hcl_report(self._tpm)  # 2
        if TEES[hcl.report.report_type] is not self.tee:
            raise ConfigurationError(
                f"this VM is on other hardware than {self.tee}",
                code="attester.provider",
                came=TEES[hcl.report.report_type],
                mend="start with --tee auto",
            )
        self._check_key(hcl.runtime)  # 3
        message, signature, pcrs = self._quote(report_data)  # 4
        documents = {
            HCL_REPORT: hcl.raw,
            TPM_QUOTE: message,
            TPM_SIGNATURE: signature,
            TPM_PCRS: msgspec.json.encode([value.hex() for value in pcrs]),
        }
        if self.tee is Tee.AZURE_TDX:  # 5
            documents[QUOTE] = self._td_quote(hcl.report.hardware_report[:TD_REPORT_BYTES])
        return Evidence(tee=self.tee, documents=documents)

    def _check_key(self, runtime: RuntimeData) -> None:
        try:
            key = parse_public(self._tpm.public_area(ATTESTATION_KEY)).key
        except MalformedError as error:
            raise UnavailableError(
                "the vTPM's attestation key cannot be read", code="attester.short_read"
            ) from error
        if key != runtime.attestation_key:
            raise ConfigurationError(
                f"the key at {ATTESTATION_KEY:#x} is not the one that the paravisor vouches for",
                code="attester.hcl",
                mend="restart the VM: its vTPM was cleared or changed",
            )

    def _quote(self, report_data: bytes) -> tuple[bytes, bytes, list[bytes]]:
        """Return TPMS_ATTEST, the bare signature, and the PCR values that it covers."""
        pcrs = self._tpm.pcrs(bank=BANK)
        message, signed = self._tpm.quote(ATTESTATION_KEY, qualifying_data(report_data), bank=BANK)
        try:
            quote, signature = parse_quote(message), parse_signature(signed)
            check_pcr_digest(quote, signature.hash, dict(enumerate(pcrs)))
        except MalformedError as error:
            raise UnavailableError(
                "the vTPM gave no quote", code="attester.short_read", came=error.reasons[0].message
            ) from error
        except VerificationError as error:
            raise UnavailableError(
                "PCRs changed between reading and quoting them", code="attester.pcrs"
            ) from error
        if signature.scheme is not Scheme.RSASSA or not isinstance(signature.value, bytes):
            raise ConfigurationError(
                "the vTPM signs by another scheme than Azure's",
                code="attester.hcl",
                expected=Scheme.RSASSA,
                came=signature.scheme,
            )
        return message, signature.value, pcrs

    def _td_quote(self, td_report: bytes) -> bytes:
        if self._quoted is None or self._quoted[0] != td_report:
            quote = self._imds.quote(td_report)
            if len(quote) < MIN_QUOTE_BYTES:
                raise UnavailableError(
                    "the quote is cut short", code="attester.short_read", came=f"{len(quote)} bytes"
                )
            self._quoted = (td_report, quote)
        return self._quoted[1]


@dataclass(frozen=True, slots=True)
class _Hcl:
    """The paravisor's report, raw and read."""

    raw: bytes
    report: HclReport
    runtime: RuntimeData


def _hcl_report(tpm: Tpm) -> _Hcl:
    try:
        raw = tpm.nv_read(HCL_REPORT_INDEX)
    except MissingHandleError as error:
        raise ConfigurationError(
            "the vTPM holds no report of a paravisor: this is no Azure confidential VM",
            code="attester.hcl",
            came=error.reasons[0].came,
            mend="create the VM with the security type ConfidentialVM",
        ) from None
    try:
        report = parse_hcl_report(raw)
        runtime = parse_runtime_data(report.runtime_data)
    except MalformedError as error:
        raise UnavailableError(
            "the paravisor's report cannot be read",
            code="attester.hcl",
            came=error.reasons[0].message,
        ) from error
    if sha256(report.runtime_data) not in report.hardware_report:
        # it takes several reads, and the paravisor does not wait for the last of them
        raise UnavailableError(
            "the paravisor renewed its report while it was read", code="attester.hcl"
        )
    return _Hcl(raw, report, runtime)
