"""A session of the drill's own: attested like any enclave's, and free to say what none would."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aigovtool.attestation.evidence import Tee
from aigovtool.clock import SystemClock
from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey
from aigovtool.drill.scene import Scene
from aigovtool.enclave.attester.base import Attester
from aigovtool.enclave.attester.detect import choose
from aigovtool.enclave.attester.simulated import SimulatedAttester
from aigovtool.enclave.custodian_client import ControlSocket, CustodianClient
from aigovtool.enclave.enrolment import Enrolment, enrol
from aigovtool.enclave.keys import ProcessKeys
from aigovtool.enclave.secret_bytes import overwrite
from aigovtool.errors import UnavailableError, VerificationError
from aigovtool.ids import ConsumerId, LeaseId, LoanId, sha256
from aigovtool.wire.codec import Signed, sign
from aigovtool.wire.control import (
    NO_SETTLEMENT_BEFORE,
    ControlChallenge,
    FromCustodian,
    Hello,
    Report,
    ReportAnswer,
    Settlement,
    Want,
    Welcome,
)
from aigovtool.wire.ticket import read_ticket

ANSWER_LIMIT_S = 10.0
NO_RECEIPTS = bytes(32)


class OwnSession:
    """Made by `enrolled`; `lease` is its newest, `settled` the place of its last settlement."""

    def __init__(
        self,
        client: CustodianClient,
        enrolment: Enrolment,
        key: SigningKey,
        consumer: ConsumerId,
        loan: LoanId,
    ) -> None:
        self._client = client
        self._enrolment = enrolment
        self._key = key
        self._consumer = consumer
        self._loan = loan
        self._stack = contextlib.AsyncExitStack()
        self._number = 0
        self._chain = NO_SETTLEMENT_BEFORE
        self._places: list[bytes] = []
        self.lease = LeaseId("")
        self.settled = 0

    async def reconnect(self) -> None:
        """Close the control connection and open another."""
        await self.close()
        self._socket: ControlSocket = await self._stack.enter_async_context(self._client.control())
        first = await self._socket.hello(
            self._enrolment.session, self._key, self._enrolment.statement
        )
        if not isinstance(first, Welcome):
            raise VerificationError("the drill's own session was not welcomed", came=str(first))

    async def close(self) -> None:
        await self._stack.aclose()

    async def report(
        self, *, settlements: tuple[Signed, ...] = (), want: Want | None = None
    ) -> Report:
        """Send a new report, take in its answer, and return the report."""
        self._number += 1
        report = Report(number=self._number, settlements=settlements, want=want)
        await self.tell(report)
        return report

    async def tell(self, report: Report) -> ReportAnswer:
        """Send a report as it is; raises VerificationError when the session is ended for it."""
        await self._socket.send(report)
        async with asyncio.timeout(ANSWER_LIMIT_S):
            while True:
                message = await self._socket.receive(FromCustodian)
                if isinstance(message, ReportAnswer):
                    if message.lease is not None:
                        self.lease = message.lease.lease
                    return message
                if not isinstance(message, Welcome):
                    raise VerificationError("the custodian refused", came=str(message)[:200])

    async def greets_again(self) -> bool:
        """Whether a greeting that was signed for an old nonce opens a connection."""
        try:
            async with self._client.control() as socket:
                await socket.receive(ControlChallenge)
                old = self._key.sign(
                    Label.CONTROL_HELLO, bytes(32) + self._enrolment.session.encode()
                )
                await socket.send(
                    Hello(
                        session=self._enrolment.session,
                        signature=old,
                        statement=self._enrolment.statement,
                    )
                )
                async with asyncio.timeout(ANSWER_LIMIT_S):
                    return isinstance(await socket.receive(FromCustodian), Welcome)
        except UnavailableError:
            return False

    def settlement(self, lease: LeaseId, used: int, *, place: int | None = None) -> Signed:
        """Sign a settlement; with *place* it takes that of an earlier one in the chain."""
        if place is None:
            self.settled += 1
            place = self.settled
            self._places.append(self._chain)
        signed = sign(
            Settlement(
                loan=self._loan,
                session=self._enrolment.session,
                lease=lease,
                used=used,
                by_consumer={self._consumer: used},
                receipts=used,
                receipt_chain=NO_RECEIPTS,
                number=place,
                previous=self._places[place - 1],
            ),
            self._key,
            Label.SETTLEMENT,
        )
        self._chain = sha256(signed.payload)
        return signed


@contextlib.asynccontextmanager
async def enrolled(scene: Scene, tee: Tee | None) -> AsyncIterator[OwnSession]:
    """
    Attest as this very code on this machine, enrol, and connect.

    Args:
        tee: None for whatever TEE this machine has.
    """
    clock = SystemClock()
    attester: Attester
    if tee is Tee.SIMULATED:
        attester = SimulatedAttester.open(clock=clock, directory=scene.stage.platform)
    else:
        attester = choose(tee, clock=clock).attester
    keys = ProcessKeys.make(now=clock.now())
    async with CustodianClient(read_ticket(scene.folder.ticket)) as client:
        enrolment = await enrol(client, attester=attester, keys=keys, loan=scene.loan)
        overwrite(enrolment.content_key)
        own = OwnSession(client, enrolment, keys.signing, scene.consumer(), scene.loan)
        await own.reconnect()
        try:
            yield own
        finally:
            await own.close()
