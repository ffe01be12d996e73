"""
Evidence in, endorsements out: what each kind of TEE needs, and who has it.

| kind | from |
|---|---|
| sgx, tdx, azure-tdx | Intel (`intel`) |
| snp, azure-snp | the host, AMD (`amd`) |
| nvidia | NVIDIA (`nvidia`) |
| composite | each part from its own |
| nitro, tpm2, simulated | nobody: they bring what they need, and there is nothing to add |
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from aigovtool.attestation.azure.layout import parse_hcl_report
from aigovtool.attestation.azure.verify import HCL_REPORT
from aigovtool.attestation.dcap.verify import QUOTE
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.snp import verify as snp
from aigovtool.clock import Clock, SystemClock
from aigovtool.endorsements.amd import AmdService, snp_documents
from aigovtool.endorsements.cache import DiskCache
from aigovtool.endorsements.fetch import HttpTransport, http_session
from aigovtool.endorsements.intel import IntelService, collateral_items
from aigovtool.endorsements.library import Documents, Library
from aigovtool.endorsements.nvidia import NvidiaService, nvidia_documents
from aigovtool.endorsements.patience import PatientTransport


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """
    The addresses; the defaults are the vendors' own.

    Args:
        intel: Intel's service, or a PCCS.
        amd: AMD's key distribution service.
        nvidia: NVIDIA's RIM service and OCSP responder.
    """

    intel: IntelService = field(default_factory=IntelService)
    amd: AmdService = field(default_factory=AmdService)
    nvidia: NvidiaService = field(default_factory=NvidiaService)

    @classmethod
    def by(cls, *, pccs: str | None) -> Services:
        """Return the vendors' own, with a PCCS instead of Intel's when one is given."""
        return cls() if pccs is None else cls(intel=IntelService.pccs(pccs))


class Collector:
    """Collects what verifiers need; `open_collector` makes one."""

    def __init__(self, library: Library, *, services: Services) -> None:
        self._library = library
        self._services = services

    async def collect(
        self, evidence: Evidence, *, have: Endorsements, now: datetime
    ) -> Endorsements:
        """
        Return *have*, with what is missing or out of date at *now* from the vendors.

        Raises:
            MalformedError: the evidence cannot be read, or a vendor's answer has another shape.
            NotFoundError: the vendor does not know the platform, or nobody publishes what it needs.
            UnavailableError: a vendor cannot be had, and what it says is needed.
            RefusedError, ConfigurationError: the address is wrong, or wants credentials.
        """
        documents = dict(have.documents)
        documents |= await self._missing(evidence, documents, now)
        return Endorsements(tee=evidence.tee, documents=documents)

    async def keep_fresh(self) -> None:
        """Renew in the background whatever was collected, before it is out of date; for ever."""
        await self._library.keep_fresh()

    async def _missing(self, evidence: Evidence, have: Documents, now: datetime) -> Documents:
        match evidence.tee:
            case Tee.SGX | Tee.TDX | Tee.AZURE_TDX:
                items = collateral_items(evidence.document(QUOTE), have, self._services.intel)
                return await self._library.fill(items, have, now=now)
            case Tee.SNP:
                return await snp_documents(
                    evidence, have, service=self._services.amd, library=self._library, now=now
                )
            case Tee.AZURE_SNP:
                report = parse_hcl_report(evidence.document(HCL_REPORT)).hardware_report
                inner = Evidence(tee=Tee.SNP, documents={snp.REPORT: report})
                return await self._missing(inner, have, now)
            case Tee.NVIDIA:
                return await nvidia_documents(
                    evidence, have, service=self._services.nvidia, library=self._library, now=now
                )
            case Tee.COMPOSITE:
                return await self._missing_of_parts(evidence, have, now)
        return {}

    async def _missing_of_parts(
        self, evidence: Evidence, have: Documents, now: datetime
    ) -> Documents:
        missing: dict[str, bytes] = {}
        kinds = {name.partition(".")[0] for name in evidence.documents}
        for tee in Tee:
            if tee in kinds and tee is not Tee.COMPOSITE:
                part = Evidence(tee=tee, documents=_part(evidence.documents, tee))
                found = await self._missing(part, _part(have, tee), now)
                missing |= {f"{tee}.{name}": body for name, body in found.items()}
        return missing


def _part(documents: Documents, tee: Tee) -> dict[str, bytes]:
    prefix = f"{tee}."
    return {
        name.removeprefix(prefix): body
        for name, body in documents.items()
        if name.startswith(prefix)
    }


@asynccontextmanager
async def open_collector(
    services: Services, *, cache: Path | None, clock: Clock | None = None
) -> AsyncIterator[Collector]:
    """
    Lend a collector that visits *services*.

    Args:
        services: whom to ask.
        cache: folder for answers; None keeps them in memory alone.
        clock: the machine's by default.
    """
    clock = clock or SystemClock()
    async with http_session() as session:
        library = Library(
            PatientTransport(HttpTransport(session, clock=clock), clock=clock),
            cache=None if cache is None else DiskCache(cache),
            clock=clock,
        )
        try:
            yield Collector(library, services=services)
        finally:
            await library.aclose()
