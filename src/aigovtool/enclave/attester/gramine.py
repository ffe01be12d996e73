"""
Intel SGX under Gramine: ``/dev/attestation``, a pseudo file system of the library OS.

Write 64 bytes to ``user_report_data``, read the DCAP quote from ``quote``. Gramine answers each
process by itself, so nobody else's request can come between.

Source: Gramine documentation, "Attestation and Secret Provisioning".
"""

from __future__ import annotations

from pathlib import Path

from aigovtool.attestation.dcap.verify import QUOTE
from aigovtool.attestation.evidence import Evidence, Tee
from aigovtool.enclave.attester.by_kernel import KernelAttester
from aigovtool.errors import ConfigurationError, UnavailableError

GRAMINE_ATTESTATION = Path("/dev/attestation")
MIN_QUOTE_BYTES = 48 + 384  # header and report body of a quote, before any signature


class GramineAttester(KernelAttester):
    """Evidence from Gramine: a quote, if its manifest has DCAP attestation."""

    tee = Tee.SGX
    default_path = GRAMINE_ATTESTATION

    def describe(self) -> str:
        return f"sgx by Gramine's {self._path}"

    def _ask(self, report_data: bytes) -> Evidence:
        kind = self._kernel.read(self._path / "attestation_type").strip()
        if kind != b"dcap":
            raise ConfigurationError(
                "Gramine is not set up for DCAP attestation",
                code="attester.gramine",
                expected="dcap",
                came=kind.decode("ascii", "replace"),
                mend='put `sgx.remote_attestation = "dcap"` into the Gramine manifest',
            )
        self._kernel.write(self._path / "user_report_data", report_data)
        quote = self._kernel.read(self._path / "quote")
        if len(quote) < MIN_QUOTE_BYTES:
            raise UnavailableError(
                "the quote is cut short", code="attester.short_read", came=f"{len(quote)} bytes"
            )
        return Evidence(tee=self.tee, documents={QUOTE: quote})
