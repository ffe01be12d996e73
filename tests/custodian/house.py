"""A whole custodian in a temporary folder, with a simulated platform, and its doors on port 0."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aigovtool
from aigovtool.attestation.binding import AskedBy, EnclaveKeys, report_data
from aigovtool.attestation.dcap.verify import QUOTE
from aigovtool.clock import Clock, SystemClock
from aigovtool.crypto.hpke import HpkeKey
from aigovtool.crypto.signing import SigningKey
from aigovtool.custodian.app import App, initialise, open_custodian
from aigovtool.custodian.data import Address, DataFolder, ServerConfig
from aigovtool.custodian.lend import Lent, lend
from aigovtool.custodian.records import LoanTerms
from aigovtool.custodian.server import Doors, Server, advertised
from aigovtool.custodian.upload import Upload
from aigovtool.simulation.measure import Measurement
from aigovtool.simulation.platform import SimulatedPlatform
from aigovtool.simulation.policy import simulated_policy
from aigovtool.wire.enrolment import Documents, EnrolRequest, Keys
from aigovtool.wire.ticket import Ticket, read_ticket

DIGITS = Path(aigovtool.__file__).parent / "demo/assets/digits.onnx"
GENUINE = Measurement(mr_td=bytes([7]) * 48, lines=())
TERMS = LoanTerms()
LOOPBACK = ServerConfig(
    listen=Address("127.0.0.1", 0), advertise=None, admin_listen=Address("127.0.0.1", 0)
)


@dataclass
class House:
    """A custodian that lends one model, and a platform that its loan accepts."""

    app: App
    platform: SimulatedPlatform
    lent: Lent
    address: str

    @property
    def ticket(self) -> Ticket:
        return read_ticket(self.app.folder.ticket)

    @property
    def admin_token(self) -> str:
        return self.app.folder.admin_token.read_text().strip()

    def evidence_for(
        self,
        nonce: bytes,
        keys: Keys,
        *,
        custodian_key: bytes | None = None,
        loan: str | None = None,
        mr_td: bytes = GENUINE.mr_td,
        asked_by: AskedBy = AskedBy.CUSTODIAN,
        **more: bool,
    ) -> Documents:
        """What an honest enclave, or one that a test makes dishonest, shows."""
        bound = report_data(
            asked_by,
            nonce=nonce,
            keys=EnclaveKeys(
                tls_spki_sha256=keys.tls_spki_sha256,
                signing_key=keys.signing_key,
                hpke_key=keys.hpke_key,
            ),
            custodian_key=custodian_key or self.app.key.public_key,
            loan_id=loan or self.lent.loan.loan,  # type: ignore[arg-type]
        )
        return Documents(
            tee="simulated", documents={QUOTE: self.platform.quote(mr_td, bound, **more)}
        )

    def request(
        self, nonce: bytes, keys: Keys, evidence: Documents, *, loan: str | None = None
    ) -> EnrolRequest:
        endorsements = self.platform.endorsements(self.app.clock.now())
        return EnrolRequest(
            loan=loan or self.lent.loan.loan,  # type: ignore[arg-type]
            nonce=nonce,
            keys=keys,
            evidence=evidence,
            endorsements=Documents(tee="simulated", documents=dict(endorsements.documents)),
            software="test",
        )

    def events(self) -> list[str]:
        with self.app.ledger.read() as tx:
            return [event.kind for event in tx.events_after(0, None, 10_000)]


@dataclass
class EnclaveSide:
    """Fresh keys of an enclave."""

    hpke: HpkeKey
    signing: SigningKey

    @classmethod
    def make(cls) -> EnclaveSide:
        return cls(HpkeKey(), SigningKey.generate())

    @property
    def keys(self) -> Keys:
        return Keys(
            tls_spki_sha256=bytes(32),
            signing_key=self.signing.public_key,
            hpke_key=self.hpke.public_key,
        )


@contextlib.contextmanager
def house(
    folder: Path,
    *,
    clock: Clock | None = None,
    credits: int = 100,
    terms: LoanTerms = TERMS,
    address: str = "127.0.0.1:7000",
    metrics_token: bool = True,
) -> Iterator[House]:
    """Make a custodian in *folder* that lends the demo's model."""
    clock = clock or SystemClock()
    platform = SimulatedPlatform.in_memory(now=clock.now())
    data = DataFolder(folder / "custodian")
    accept = (simulated_policy(platform.root_sha256, GENUINE),)
    initialise(data, clock=clock, environ={}, accept=accept)
    if not metrics_token:
        data.metrics_token.unlink()
    with open_custodian(data, clock=clock, environ=os.environ) as app:
        lent = lend(
            app,
            Upload(path=DIGITS),
            credits=credits,
            terms=terms,
            policy=data.policy.read_text(),
            address=address,
        )
        yield House(app, platform, lent, address)


@contextlib.asynccontextmanager
async def open_house(
    folder: Path, *, credits: int = 100, metrics_token: bool = True
) -> AsyncIterator[tuple[House, Doors]]:
    """A custodian with both doors open, ended in order."""
    doors = Doors.bind(LOOPBACK)
    with house(
        folder,
        credits=credits,
        address=advertised(LOOPBACK, doors),
        metrics_token=metrics_token,
    ) as made:
        server = Server(app=made.app, config=LOOPBACK, doors=doors)
        ready = asyncio.Event()
        task = asyncio.create_task(server.run(on_ready=ready.set))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        try:
            assert ready.is_set()
            yield made, doors
        finally:
            waiting.cancel()
            server.end()
            await task
