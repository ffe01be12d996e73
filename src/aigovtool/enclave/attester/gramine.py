"""
Intel SGX under Gramine: ``/dev/attestation``, a pseudo file system of the library OS.

Write 64 bytes to ``user_report_data``, read the DCAP quote from ``quote``. Gramine answers each
process by itself, so nobody else's request can come between.

Source: Gramine documentation, "Attestation and Secret Provisioning".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from aigovtool.attestation.dcap.verify import QUOTE
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.enclave.attester.base import check_report_data
from aigovtool.enclave.attester.kernel import Kernel
from aigovtool.enclave.attester.retry import retry
from aigovtool.errors import ConfigurationError, UnavailableError

GRAMINE_ATTESTATION = Path("/dev/attestation")
MIN_QUOTE_BYTES = 48 + 384  # header and report body of a quote, before any signature


class GramineAttester:
    """Evidence from Gramine; the collaborators are for tests."""

    tee = Tee.SGX

    def __init__(
        self,
        *,
        kernel: Kernel | None = None,
        root: Path = GRAMINE_ATTESTATION,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._kernel = kernel or Kernel()
        self._root = root
        self._sleep = sleep

    def describe(self) -> str:
        return f"sgx by Gramine's {self._root}"

    def evidence(self, report_data: bytes) -> Evidence:
        """
        Return fresh evidence over *report_data* (64 bytes).

        Raises:
            ConfigurationError: not under Gramine, or its manifest has no DCAP attestation.
            UnavailableError: busy, or a short quote, after all attempts.
        """
        check_report_data(report_data)
        kind = self._kernel.read(self._root / "attestation_type").strip()
        if kind != b"dcap":
            raise ConfigurationError(
                "Gramine is not set up for DCAP attestation",
                code="attester.gramine",
                expected="dcap",
                came=kind.decode("ascii", "replace"),
                mend='put `sgx.remote_attestation = "dcap"` into the Gramine manifest',
            )
        return retry(lambda: self._quote(report_data), sleep=self._sleep)

    def endorsements(self) -> Endorsements:
        """Return what the host handed over by itself: nothing."""
        return Endorsements(tee=self.tee)

    def _quote(self, report_data: bytes) -> Evidence:
        self._kernel.write(self._root / "user_report_data", report_data)
        quote = self._kernel.read(self._root / "quote")
        if len(quote) < MIN_QUOTE_BYTES:
            raise UnavailableError(
                "the quote is cut short", code="attester.short_read", came=f"{len(quote)} bytes"
            )
        return Evidence(tee=self.tee, documents={QUOTE: quote})
