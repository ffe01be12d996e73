"""
Evidence and endorsements as they travel: a kind, and named documents of bytes.

Nothing here has been checked; `verify` turns these into claims. The document names of each kind are
the constants of its own module (`dcap`, `snp`, `nitro`, …).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from aigovtool.errors import MalformedError

MAX_EVIDENCE_BYTES = 1 << 20  # a TDX quote is 5 to 8 kB, with an event log some 100 kB
MAX_ENDORSEMENTS_BYTES = 4 << 20  # Intel collateral is some 30 kB, NVIDIA RIMs some 300 kB


class Tee(StrEnum):
    """The kinds of trusted execution environment that this product can verify."""

    SIMULATED = "simulated"
    SGX = "sgx"
    TDX = "tdx"
    SNP = "snp"
    NITRO = "nitro"
    AZURE_SNP = "azure-snp"
    AZURE_TDX = "azure-tdx"
    TPM2 = "tpm2"
    NVIDIA = "nvidia"
    COMPOSITE = "composite"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """
    What an attester says of itself, signed by its platform (RFC 9334, Evidence).

    Args:
        tee: the kind, which names the verifier.
        documents: by name, the exact bytes as the platform gave them, such as ``quote``.
    """

    tee: Tee
    documents: Mapping[str, bytes]

    def __post_init__(self) -> None:
        _bound("evidence", self.documents, MAX_EVIDENCE_BYTES)

    def document(self, name: str) -> bytes:
        """Return one document; raises MalformedError when it is missing."""
        return _get("evidence", self.tee, self.documents, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endorsements:
    """
    What vendors say of the platform: certificates, CRLs, TCB info, RIMs (RFC 9334, Endorsement).

    They prove themselves by their signatures, so they may come from anyone, the attester included.
    """

    tee: Tee
    documents: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _bound("endorsements", self.documents, MAX_ENDORSEMENTS_BYTES)

    def document(self, name: str) -> bytes:
        """Return one document; raises MalformedError when it is missing."""
        return _get("endorsements", self.tee, self.documents, name)


def _bound(what: str, documents: Mapping[str, bytes], limit_bytes: int) -> None:
    size = sum(len(body) for body in documents.values())
    if size > limit_bytes:
        raise MalformedError(
            f"{what} too large", expected=f"at most {limit_bytes} bytes", came=f"{size} bytes"
        )


def _get(what: str, tee: Tee, documents: Mapping[str, bytes], name: str) -> bytes:
    try:
        return documents[name]
    except KeyError:
        raise MalformedError(
            f"{tee} {what} without the document {name!r}",
            came=", ".join(sorted(documents)) or "no document",
        ) from None
