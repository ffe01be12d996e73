"""What an enclave needs of the TEE it runs in."""

from __future__ import annotations

from typing import Protocol

from aigovtool.attestation.binding import REPORT_DATA_BYTES
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.errors import MalformedError

ATTESTED = (
    Tee.SGX,
    Tee.TDX,
    Tee.SNP,
    Tee.NITRO,
    Tee.AZURE_SNP,
    Tee.AZURE_TDX,
    Tee.COMPOSITE,
    Tee.SIMULATED,
)
"""Kinds that `detect` has an attester for: a TPM or a GPU alone holds no enclave."""


class Attester(Protocol):
    """
    The way to evidence about this very process or guest.

    Calls may block for a second or more (a quote by configfs): make evidence at start and on a
    nonce, never for each query, and not on an event loop's thread.
    """

    @property
    def tee(self) -> Tee:
        """The kind of evidence."""
        ...

    def describe(self) -> str:
        """Return one line for people: what the TEE is, and what it does not protect from."""
        ...

    def evidence(self, report_data: bytes) -> Evidence:
        """
        Return fresh evidence that commits to *report_data* (64 bytes).

        Raises:
            MalformedError: *report_data* is not 64 bytes.
            UnavailableError: the platform does not answer now.
            ConfigurationError: this machine has no such platform, or does not allow its use.
        """
        ...

    def endorsements(self) -> Endorsements:
        """Return what the platform itself can say for its evidence; may be empty."""
        ...


def check_report_data(report_data: bytes) -> None:
    """Raise MalformedError unless *report_data* has 64 bytes: it is never padded or cut."""
    if len(report_data) != REPORT_DATA_BYTES:
        raise MalformedError(
            "report data of a wrong length",
            code="attester.report_data",
            expected=f"{REPORT_DATA_BYTES} bytes",
            came=f"{len(report_data)} bytes",
        )
