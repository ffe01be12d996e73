"""
Linux configfs-tsm: quotes of Intel TDX and reports of AMD SEV-SNP through one directory.

1. Make a report directory of our own, so that nobody else's request meets ours.
2. Write the 64 bytes of report data to ``inblob``; the kernel counts this in ``generation``.
3. Read ``outblob`` (and ``auxblob``: for SNP, the host's certificate table).
4. ``generation`` must be what our writes make it; else somebody else wrote between, and the report
   may be about other data: begin anew.

Source: Linux Documentation/ABI/testing/configfs-tsm-report.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aigovtool.attestation.dcap.verify import QUOTE
from aigovtool.attestation.evidence import Evidence, Tee
from aigovtool.attestation.snp.layout import REPORT_BYTES
from aigovtool.attestation.snp.verify import CERTIFICATE_TABLE, REPORT
from aigovtool.enclave.attester.by_kernel import KernelAttester
from aigovtool.enclave.attester.kernel import Kernel
from aigovtool.errors import AIGovToolError, ConfigurationError, UnavailableError

TSM_REPORTS = Path("/sys/kernel/config/tsm/report")
PROVIDERS = {"tdx_guest": Tee.TDX, "sev_guest": Tee.SNP}
MIN_QUOTE_BYTES = 48 + 584  # header and TD report body of a quote, before any signature


@dataclass(frozen=True, slots=True)
class TsmReport:
    """What one request gave: the provider's name, the report, and the auxiliary blob or nothing."""

    provider: str
    outblob: bytes
    auxblob: bytes


class TsmAttester(KernelAttester):
    """
    Evidence from configfs-tsm.

    Args:
        tee: `Tee.TDX` or `Tee.SNP`; a provider of the other kind is refused.
    """

    default_path = TSM_REPORTS

    def __init__(
        self,
        tee: Tee,
        *,
        kernel: Kernel | None = None,
        path: Path | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(kernel=kernel, path=path, sleep=sleep)
        self.tee = tee

    def describe(self) -> str:
        return f"{self.tee} by {self._path}"

    def _ask(self, report_data: bytes) -> Evidence:
        report = self._report(report_data)
        if PROVIDERS.get(report.provider) is not self.tee:
            raise ConfigurationError(
                f"configfs-tsm serves another TEE than {self.tee}",
                code="attester.provider",
                came=report.provider,
                mend="start with --tee auto",
            )
        if self.tee is Tee.TDX:
            return Evidence(tee=self.tee, documents={QUOTE: report.outblob})
        documents = {REPORT: report.outblob}
        if report.auxblob:
            documents[CERTIFICATE_TABLE] = report.auxblob
        return Evidence(tee=self.tee, documents=documents)

    def _report(self, report_data: bytes) -> TsmReport:
        kernel, folder = self._kernel, self._path / f"aigovtool-{secrets.token_hex(8)}"
        kernel.mkdir(folder)
        try:
            before = self._generation(folder)
            kernel.write(folder / "inblob", report_data)
            outblob = kernel.read(folder / "outblob")
            auxblob = self._optional(folder / "auxblob")
            provider = kernel.read(folder / "provider").decode("ascii", "replace").strip()
            after = self._generation(folder)
        finally:
            kernel.rmdir(folder)
        if after != before + 1:
            raise UnavailableError(
                "another request came between ours and its report",
                code="attester.generation",
                came=f"generation {after} after {before} and one write",
            )
        least = REPORT_BYTES if PROVIDERS.get(provider) is Tee.SNP else MIN_QUOTE_BYTES
        if len(outblob) < least:
            raise UnavailableError(
                "the report is cut short",
                code="attester.short_read",
                came=f"{len(outblob)} bytes",
            )
        return TsmReport(provider, outblob, auxblob)

    def _generation(self, folder: Path) -> int:
        text = self._kernel.read(folder / "generation").strip()
        if not text.isdigit():
            raise UnavailableError("the generation is not a number", code="attester.generation")
        return int(text)

    def _optional(self, path: Path) -> bytes:
        """Read a blob that providers without one do not have."""
        try:
            return self._kernel.read(path) if self._kernel.exists(path) else b""
        except AIGovToolError:
            return b""
