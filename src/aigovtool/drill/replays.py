"""
Scenario of I1 and I3: whatever is sent twice is applied once.

The drill takes an enclave's part: it attests, enrols and talks to the custodian with a session of
its own, so that it can send again what an honest enclave would not. Then it takes a consumer's
part, and asks the same query again and again under one ``Idempotency-Key``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import msgspec

from aigovtool.attestation.evidence import Tee
from aigovtool.channel.address import parse_address
from aigovtool.channel.connect import open_channel
from aigovtool.channel.http1 import Request
from aigovtool.client.receipts import VerifiedReceipt, receipt_of
from aigovtool.clock import SystemClock
from aigovtool.custodian.budget import Account
from aigovtool.drill.consumers import IMAGE, Served
from aigovtool.drill.rehearsal import Rehearsal, settled
from aigovtool.drill.scene import Scene
from aigovtool.drill.session import OwnSession, enrolled
from aigovtool.drill.sheet import Measured
from aigovtool.errors import AIGovToolError
from aigovtool.wire.codec import Signed
from aigovtool.wire.control import Report, SessionEnded, Want
from aigovtool.wire.headers import RECEIPT
from aigovtool.wire.oip import encode_infer_request

CREDITS = 1000
LEASED, USED = 10, 4  # of the drill's own sessions
REPEATS = 8
REFUSED = (AIGovToolError, SessionEnded)


@dataclass
class _Notes:
    """What was tried, and whether it changed nothing."""

    scene: Scene
    checks: list[tuple[str, bool]] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def changes_nothing(self, what: str) -> AsyncIterator[None]:
        before = await asyncio.to_thread(self._used)
        try:
            yield
        finally:
            self.checks.append(
                (f"{what} changed nothing", await asyncio.to_thread(self._used) == before)
            )

    def _used(self) -> tuple[int, int]:
        account: Account = self.scene.account()
        return account.spent, account.forfeited


def replay(rehearsal: Rehearsal) -> Measured:
    """Reports, settlements, greetings and queries are sent again."""
    with rehearsal.scene("replay", credits=CREDITS) as scene:
        notes = _Notes(scene)
        scene.background.call(_as_enclave(rehearsal, scene, notes))
        rehearsal.ask(scene)
        scene.background.call(_as_consumer(scene, notes))
        measured = settled(scene)
    return msgspec.structs.replace(measured, checks=(*measured.checks, *notes.checks))


async def _as_enclave(rehearsal: Rehearsal, scene: Scene, notes: _Notes) -> None:
    """Two sessions: one sends old messages again, one signs two settlements of one lease."""
    tee = Tee.SIMULATED if rehearsal.tee == "simulated" else None
    async with enrolled(scene, tee) as own:
        report, settlement = await _use_a_lease(own)
        scene.consumers.seen.failed += USED  # the drill's own use: nobody has receipts for it
        async with notes.changes_nothing("the same report again"):
            await own.tell(report)
        async with notes.changes_nothing("an old settlement in a new report"):
            await own.report(settlements=(settlement,))
        async with notes.changes_nothing("an old greeting"):
            notes.checks.append(("an old greeting was refused", not await own.greets_again()))
        async with notes.changes_nothing("an old report in a new connection"):
            await own.reconnect()
            refused = await _refuses(lambda: own.tell(report))
            notes.checks.append(("an old report in a new connection was refused", refused))
    async with enrolled(scene, tee) as own:
        _, settlement = await _use_a_lease(own)
        scene.consumers.seen.failed += USED
        other = own.settlement(own.lease, USED - 1, place=own.settled)
        async with notes.changes_nothing("a second, lower settlement of one lease"):
            refused = await _refuses(lambda: own.report(settlements=(other,)))
            notes.checks.append(("a second settlement of one lease was refused", refused))


async def _use_a_lease(own: OwnSession) -> tuple[Report, Signed]:
    """Lease and settle; return the report that settled, and the settlement in it."""
    await own.report(want=Want(credits=LEASED, by_consumer={}))
    settlement = own.settlement(own.lease, USED)
    return await own.report(settlements=(settlement,)), settlement


async def _refuses(call: Callable[[], object]) -> bool:
    try:
        await call()  # type: ignore[misc]
    except AIGovToolError:
        return True
    return False


async def _as_consumer(scene: Scene, notes: _Notes) -> None:
    """Ask the same query several times under one key, at once and one after the other."""
    consumers = scene.consumers
    (enclave,) = scene.enclaves
    channel = await open_channel(
        parse_address(f"127.0.0.1:{enclave.port}"), consumers.policy, clock=SystemClock()
    )
    body = encode_infer_request({"image": IMAGE})
    headers = (
        (b"authorization", b"Bearer " + consumers.api_key.encode()),
        (b"idempotency-key", b"drill-replay"),
        *((name.lower().encode(), value.encode()) for name, value in body.headers.items()
          if name != "Content-Length"),
    )  # fmt: skip

    async def once() -> VerifiedReceipt:
        name = channel.enclave.model.manifest.name
        async with channel.exchange(
            lambda _: Request(
                method=b"POST",
                target=f"/v2/models/{name}/infer".encode(),
                headers=headers,
                body=body.chunks,
            )
        ) as (judged, response):
            await response.read(max_bytes=1 << 20)
            return await receipt_of(response.header(RECEIPT.lower().encode()), judged, channel)

    asked_s = time.monotonic()
    try:
        receipts = [await once(), *await asyncio.gather(*(once() for _ in range(REPEATS)))]
    finally:
        await channel.aclose()
    payloads = {one.signed.payload for one in receipts}
    notes.checks.append((f"{REPEATS + 1} times one query was charged once", len(payloads) == 1))
    consumers.seen.served.append(
        Served(asked_s, time.monotonic(), receipts[0].receipt, receipts[0].signed)
    )
