"""
Vendors that run here: real HTTP, real bytes, and every way to misbehave.

A `Vendor` answers each path with the next `Reply` of its list, the last one for ever, and counts.
Time is a `FakeClock`, which only `sleep` and `advance` move.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote as url_quote

from aiohttp import web

from aigovtool.attestation.dcap import collateral as dcap
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.cli.evidence_files import COLLATERAL, endorsements_of, evidence_of
from aigovtool.cli.vectors import Case, Vector, read_manifest
from aigovtool.endorsements.cache import DiskCache
from aigovtool.endorsements.collector import Collector, Services
from aigovtool.endorsements.fetch import HttpTransport, http_session
from aigovtool.endorsements.library import Library
from aigovtool.endorsements.patience import PatientTransport
from tests.shared_data import shared

TEES: Mapping[str, Tee] = {
    "SGX": Tee.SGX,
    "TDX": Tee.TDX,
    "SEV-SNP": Tee.SNP,
    "Nitro": Tee.NITRO,
    "NVIDIA GPU": Tee.NVIDIA,
    "NVIDIA NVSwitch": Tee.NVIDIA,
    "TDX + NVIDIA GPU": Tee.COMPOSITE,
    "Azure SEV-SNP vTPM": Tee.AZURE_SNP,
    "Azure TDX vTPM": Tee.AZURE_TDX,
    "TPM 2.0": Tee.TPM2,
}


@dataclass
class FakeClock:
    """Time that stands still until somebody sleeps."""

    wall: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    monotonic: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def now(self) -> datetime:
        return self.wall

    def monotonic_s(self) -> float:
        return self.monotonic

    def advance(self, by: timedelta) -> None:
        self.wall += by
        self.monotonic += by.total_seconds()

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.advance(timedelta(seconds=seconds))
        await asyncio.sleep(0)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """
    What a vendor does once.

    Args:
        hang: does not answer until the server closes.
        cut: says that the body is longer than it is, and hangs up.
        gate: waits for this event first.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: bool = False
    cut: bool = False
    gate: asyncio.Event | None = None


class Vendor:
    """A local server; `url` is its address."""

    def __init__(self) -> None:
        self.url = ""
        self.replies: dict[str, list[Reply]] = {}
        self.asked: list[str] = []
        self.was_asked = asyncio.Event()
        self.closing = asyncio.Event()
        self._turns: defaultdict[str, int] = defaultdict(int)

    def set(self, path: str, *replies: Reply) -> None:
        self.replies[path] = list(replies)
        self._turns[path] = 0

    def count(self, path: str) -> int:
        return sum(asked.partition("?")[0] == path for asked in self.asked)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path_qs)
        await request.read()
        self.was_asked.set()
        replies = self.replies.get(request.path)
        if replies is None:
            return web.Response(status=404, text="no such thing")
        turn = self._turns[request.path]
        self._turns[request.path] += 1
        reply = replies[min(turn, len(replies) - 1)]
        if reply.gate is not None:
            await reply.gate.wait()
        if reply.hang:
            await self.closing.wait()
        if reply.cut:
            response = web.StreamResponse(status=reply.status, headers=reply.headers)
            response.content_length = len(reply.body) + 100
            await response.prepare(request)
            await response.write(reply.body)
            assert request.transport is not None
            request.transport.close()
            return response
        return web.Response(status=reply.status, body=reply.body, headers=reply.headers)


class NvidiaOcsp(Vendor):
    """An OCSP responder that looks into the request, as all questions go to one path."""

    def __init__(self, answers: Mapping[int, bytes]) -> None:
        super().__init__()
        self.answers = answers

    async def answer(self, request: web.Request) -> web.StreamResponse:
        from cryptography.x509 import ocsp

        self.asked.append(request.path_qs)
        if request.path != "/ocsp":
            return await super().answer(request)
        assert request.content_type == "application/ocsp-request"
        serial = ocsp.load_der_ocsp_request(await request.read()).serial_number
        if serial not in self.answers:
            return web.Response(status=404)
        return web.Response(
            body=self.answers[serial], headers={"Content-Type": "application/ocsp-response"}
        )


@asynccontextmanager
async def running(vendor: Vendor) -> AsyncIterator[Vendor]:
    app = web.Application(client_max_size=1 << 20)
    app.router.add_route("*", "/{path:.*}", vendor.answer)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    vendor.url = f"http://{host}:{port}"
    try:
        yield vendor
    finally:
        vendor.closing.set()
        await runner.cleanup()


@asynccontextmanager
async def library_for(
    clock: FakeClock, *, cache: Path | DiskCache | None = None, timeout_s: float = 5.0
) -> AsyncIterator[Library]:
    async with http_session(timeout_s=timeout_s, connect_timeout_s=timeout_s) as session:
        transport = PatientTransport(
            HttpTransport(session, clock=clock), clock=clock, sleep=clock.sleep, jitter=lambda: 1.0
        )
        disk = DiskCache(cache) if isinstance(cache, Path) else cache
        library = Library(transport, cache=disk, clock=clock, sleep=clock.sleep)
        try:
            yield library
        finally:
            await library.aclose()


@asynccontextmanager
async def collector_for(
    services: Services, clock: FakeClock, *, cache: Path | None = None
) -> AsyncIterator[Collector]:
    async with library_for(clock, cache=cache) as library:
        yield Collector(library, services=services)


def all_cases() -> list[tuple[str, Vector, Case]]:
    """Every case of every recorded vector, by name."""
    manifest = read_manifest(shared("evidence"))
    return [
        (f"{vector.id}: {case.name}", vector, case)
        for vector in manifest.vectors
        for case in vector.cases
    ]


def parts_of(vector: Vector, case: Case) -> tuple[Evidence, Endorsements]:
    tee, folder = TEES[vector.tee], shared("evidence", *vector.id.split("/"))
    roles: dict[str, Any] = dict(vector.files)
    if case.collateral is not None:
        roles[COLLATERAL] = case.collateral
    return evidence_of(tee, folder, roles), endorsements_of(tee, folder, roles)


def recorded(vector_id: str, case: int = 0) -> tuple[Evidence, Endorsements, datetime]:
    """One case of one vector: evidence, endorsements, time."""
    for vector in read_manifest(shared("evidence")).vectors:
        if vector.id == vector_id:
            chosen = vector.cases[case]
            return *parts_of(vector, chosen), chosen.verification_time
    raise AssertionError(vector_id)


def tcb_answer(documents: Mapping[str, bytes], *, header: str = "TCB-Info-Issuer-Chain") -> Reply:
    return _signed(
        "tcbInfo",
        documents[dcap.TCB_INFO],
        documents[dcap.TCB_INFO_SIGNATURE],
        {header: documents[dcap.TCB_INFO_ISSUER_CHAIN]},
    )


def identity_answer(documents: Mapping[str, bytes]) -> Reply:
    return _signed(
        "enclaveIdentity",
        documents[dcap.QE_IDENTITY],
        documents[dcap.QE_IDENTITY_SIGNATURE],
        {"SGX-Enclave-Identity-Issuer-Chain": documents[dcap.QE_IDENTITY_ISSUER_CHAIN]},
    )


def pck_crl_answer(documents: Mapping[str, bytes], *, as_hex: bool = False) -> Reply:
    body = documents[dcap.PCK_CRL]
    return Reply(
        body=body.hex().encode() if as_hex else body,
        headers={
            "SGX-PCK-CRL-Issuer-Chain": url_quote(documents[dcap.PCK_CRL_ISSUER_CHAIN], safe="")
        },
    )


def _signed(
    member: str, text: bytes, signature: bytes, chains: Mapping[str, bytes], **more: Any
) -> Reply:
    body = b'{"' + member.encode() + b'":' + text + b',"signature":"'
    return Reply(
        body=body + signature.hex().encode() + b'"}',
        headers={name: url_quote(chain, safe="") for name, chain in chains.items()},
    )


def serve_collateral(vendor: Vendor, tee: str, documents: Mapping[str, bytes]) -> None:
    """Make *vendor* a PCCS with this collateral."""
    vendor.set(f"/{tee}/certification/v4/tcb", tcb_answer(documents))
    vendor.set(f"/{tee}/certification/v4/qe/identity", identity_answer(documents))
    vendor.set("/sgx/certification/v4/pckcrl", pck_crl_answer(documents))
    vendor.set("/sgx/certification/v4/rootcacrl", Reply(body=documents[dcap.ROOT_CA_CRL]))


def rim_answer(rim_id: str, body: bytes, **change: Any) -> Reply:
    import base64
    import hashlib

    members = {
        "id": rim_id,
        "rim": base64.b64encode(body).decode(),
        "sha256": hashlib.sha256(body).hexdigest(),
        "last_updated": "2024-06-21T15:30:00.000000",
        "rim_format": "TCG",
        "request_id": "7d0e8a3e-3f9a-4a0c-9d5a-0d1a1f6d2c11",
    }
    return Reply(body=json.dumps(members | change).encode())


def serials_of(answers: Sequence[bytes]) -> dict[int, bytes]:
    from cryptography.x509 import ocsp

    return {ocsp.load_der_ocsp_response(body).serial_number: body for body in answers}
