"""
The control conversation of one session: kept open, taken up again, and ended with a proof.

Rule 1: what the custodian pushes takes effect in the step in which it is read.
Rule 2: a lost connection is taken up again for the same session, with jittered waits. After
        `wipe_after_s` of silence the model is wiped; the session still settles when the custodian
        is back, and a new one is enrolled.
Rule 3: fresh evidence that the custodian asks for is made beside all else, which goes on.
Rule 4: whatever ends a session that the custodian knows: first the model is wiped, then the last
        leases are settled, then the signed proof is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from aigovtool.clock import Clock
from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.backoff import Backoff
from aigovtool.enclave.custodian_client import ControlSocket, CustodianClient
from aigovtool.enclave.extraction import REPORT_EVERY_S
from aigovtool.enclave.lifecycle import State
from aigovtool.enclave.reattestation import Reattestation
from aigovtool.enclave.session import Session
from aigovtool.errors import AIGovToolError
from aigovtool.telemetry.logs import event
from aigovtool.wire.codec import sign
from aigovtool.wire.control import (
    CreditsFreed,
    FromCustodian,
    GrantMade,
    LoanChanged,
    ModelReplaced,
    MoreDecided,
    OutputElsewhere,
    ReattestWanted,
    ReportAnswer,
    RosterChanged,
    SessionEnded,
    ShuttingDown,
    Stopped,
    StopProof,
    TermsChanged,
    Welcome,
)

ACTIVE = "active"
CLOSED = "closed"
MODEL_REPLACED = "the loan's model was replaced"
HELLO_TIMEOUT_S = 10.0
FAREWELL_S = 5.0  # for the last settlements to be acknowledged
STEADY_S = 2.0  # a connection that lasted so long was a good one
EXPIRY_CHECK_S = 1.0  # wall clocks are set now and then, and terms changed

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ending:
    """
    How a session ended.

    Args:
        to: the state that the enclave goes to.
        reason: in words.
        logged: the same without what a person at the custodian wrote; None when nothing is.
    """

    to: State
    reason: str
    logged: str | None = None


class Host(Protocol):
    """What the conversation does to the enclave."""

    def reached(self) -> None:
        """The custodian is connected."""
        ...

    def lost(self) -> None:
        """It no longer is: live leases serve on."""
        ...

    def consumers_changed(self) -> None:
        """Cancel what consumers who may no longer ask have in flight or waiting."""
        ...

    def stop(self, ending: Ending) -> None:
        """Admit nothing more, and cancel what is in flight, at once."""
        ...

    async def wipe(self) -> datetime:
        """Wipe key and model, and return when that was done."""
        ...

    @property
    def cancelled(self) -> int:
        """How many queries `stop` cancelled."""
        ...


class Conversation:
    """The conversation of one session; `run` returns when the session is over."""

    def __init__(
        self,
        *,
        client: CustodianClient,
        session: Session,
        reattestation: Reattestation,
        key: SigningKey,
        host: Host,
        clock: Clock,
        wakeup: asyncio.Event,
    ) -> None:
        self._client = client
        self._session = session
        self._reattestation = reattestation
        self._key = key
        self._host = host
        self._clock = clock
        self._wakeup = wakeup
        self._ending: Ending | None = None
        self._ended = asyncio.Event()
        self._forgotten = False  # the custodian knows the session no more: nothing is owed to it
        self._backoff = Backoff()
        self._attempted = False
        self._said = ""  # why there is no connection, the last time that it was logged

    def end(self, ending: Ending) -> None:
        """Let the session end for a reason of our own, unless it has ended already."""
        if self._ending is None:
            self._ending = ending
            self._host.stop(ending)
            self._ended.set()

    async def run(self) -> Ending:
        """
        Talk until the session is over, through any number of connections.

        After a session has ended the custodian is looked for until the last settlements and the
        proof are delivered; whoever cannot wait for that cancels.
        """
        while True:
            try:
                async with contextlib.AsyncExitStack() as stack:
                    delivered = await self._converse(stack)
            except AIGovToolError as error:
                delivered = False
                _log.warning(
                    "the control connection is lost: %s", error, extra=event("control.lost")
                )
            self._session.renewal.lost()
            self._reattestation.forget()
            self._session.grants.forget()
            if self._ending is not None and (delivered or self._forgotten):
                await self._host.wipe()
                return self._ending
            if self._ending is None:
                self._host.lost()

    async def _converse(self, stack: contextlib.AsyncExitStack) -> bool:
        """Talk through one connection; True when all was said that had to be said."""
        socket, first = await self._connect(stack)
        connected_s = self._clock.monotonic_s()
        self._said = ""
        self._take(first)
        if not isinstance(first, Welcome):
            return False
        self._session.watch.connected()
        await self._tell_of_extraction(socket)  # answered before any lease is
        if (unanswered := self._session.renewal.unanswered) is not None:
            await socket.send(unanswered)
        try:
            if self._ending is None:
                self._host.reached()
                await self._talk(socket)
            if self._ending is not None and not self._forgotten:
                await self._farewell(socket, self._ending)
                return True
        finally:
            if self._clock.monotonic_s() - connected_s > STEADY_S:
                self._backoff.reset()
        return False

    # --- connecting -----------------------------------------------------------------------------

    async def _connect(
        self, stack: contextlib.AsyncExitStack
    ) -> tuple[ControlSocket, FromCustodian]:
        """Connect, however long it takes; wipes on the way if it takes too long (Rule 2)."""
        connecting = asyncio.create_task(self._connect_patiently(stack))
        async with _owned(connecting):
            silence_s = self._session.renewal.terms.wipe_after_s
            await asyncio.wait({connecting}, timeout=silence_s)
            if not connecting.done() and self._ending is None:
                reason = f"no contact with the custodian for {silence_s:g} s"
                _log.warning("%s: wiping key and model", reason, extra=event("control.silence"))
                self.end(Ending(State.ENROLLING, reason))
                await self._host.wipe()
            return await connecting

    async def _connect_patiently(
        self, stack: contextlib.AsyncExitStack
    ) -> tuple[ControlSocket, FromCustodian]:
        while True:
            if self._attempted:
                await self._backoff.wait()
            self._attempted = True
            try:
                socket = await stack.enter_async_context(self._client.control())
                async with asyncio.timeout(HELLO_TIMEOUT_S):
                    return socket, await socket.hello(
                        self._session.id, self._key, self._session.renewal.newest_statement
                    )
            except (AIGovToolError, TimeoutError) as error:
                why = str(error) or "no answer in time"
                if self._said != why:  # once for as long as it stays the same
                    self._said = why
                    _log.info(
                        "no control connection yet: %s", why, extra=event("control.unreachable")
                    )
                await stack.aclose()

    # --- talking --------------------------------------------------------------------------------

    async def _talk(self, socket: ControlSocket) -> None:
        """Talk until the session ends (then `_ending` is set) or the connection is lost."""
        tasks = [
            asyncio.create_task(self._read(socket)),
            asyncio.create_task(self._write(socket)),
            asyncio.create_task(self._reattestation.answer(socket.send)),
            asyncio.create_task(self._session.grants.answer(socket.send)),
            asyncio.create_task(self._watch(socket)),
            asyncio.create_task(self._expire()),
            asyncio.create_task(self._until_ended()),
        ]
        async with _owned(*tasks):
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()

    async def _read(self, socket: ControlSocket) -> None:
        while self._ending is None:
            self._take(await socket.receive(FromCustodian))

    async def _write(self, socket: ControlSocket) -> None:
        renewal = self._session.renewal
        while True:
            self._wakeup.clear()
            if (report := renewal.due(self._clock.monotonic_s())) is not None:
                await socket.send(report)
            for more in renewal.more_due(self._clock.monotonic_s()):
                await socket.send(more)
            now_s = self._clock.monotonic_s()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(renewal.wake_at(now_s) - now_s):
                    await self._wakeup.wait()

    async def _watch(self, socket: ControlSocket) -> None:
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            await self._tell_of_extraction(socket)

    async def _tell_of_extraction(self, socket: ControlSocket) -> None:
        """Tell what consumers drew out of the model, in numbers."""
        watch = self._session.watch
        while watch.alarms:
            await socket.send(watch.alarms[0])
            watch.alarms.popleft()
        if (seen := watch.due(self._clock.now())) is not None:
            await socket.send(seen)

    async def _expire(self) -> None:
        """End the session, or a consumer's queries, when its time, or its model's, is over."""
        while True:
            self._host.consumers_changed()
            if self._session.retires_s <= self._clock.monotonic_s():
                self.end(Ending(State.ENROLLING, MODEL_REPLACED))
                return
            expires = self._session.renewal.terms.expires
            left_s = self._session.expires_s - self._clock.monotonic_s()
            if expires is not None:  # whichever of our two clocks says so first
                left_s = min(left_s, (expires - self._clock.now()).total_seconds())
            if left_s <= 0:
                self.end(Ending(State.STOPPED, "the loan has expired"))
                return
            retires_in_s = self._session.retires_s - self._clock.monotonic_s()
            await asyncio.sleep(max(0.0, min(left_s, retires_in_s, EXPIRY_CHECK_S)))

    async def _until_ended(self) -> None:
        await self._ended.wait()

    def _take(self, message: FromCustodian) -> None:
        """Let a message take effect (Rule 1)."""
        renewal = self._session.renewal
        match message:
            case Welcome():
                renewal.welcomed(message, self._clock.monotonic_s())
                self._session.set_terms(message.terms)
                self._session.set_model_of_loan(message.model_digest, message.retire_after_s)
                self._loan_is(message.state, message.state_reason)
                self._session.set_roster(message.roster)
                self._host.consumers_changed()
            case ReportAnswer():
                renewal.answered(message, self._clock.monotonic_s())
            case LoanChanged():
                self._loan_is(message.state, message.reason)
            case RosterChanged():
                self._session.set_roster(message.roster)
                self._host.consumers_changed()
            case TermsChanged():
                self._session.set_terms(message.terms)
            case ModelReplaced():
                self._session.set_model_of_loan(message.model_digest, message.retire_after_s)
            case CreditsFreed():
                renewal.freed(message.left)
            case MoreDecided():
                renewal.decided(message, self._clock.monotonic_s())
            case GrantMade():
                self._session.grants.take(message)
            case OutputElsewhere():
                self._session.watch.told(message)
            case ReattestWanted():
                self._reattestation.want(message)
            case ShuttingDown():
                _log.warning(
                    "the custodian shuts down: all leases are given back",
                    extra=event("custodian.shuts_down"),
                )
                renewal.suspend()
            case SessionEnded():
                self._forgotten = True
                self.end(Ending(State.ENROLLING, message.reason))

    def _loan_is(self, state: str, reason: str) -> None:
        if state != ACTIVE:
            to = State.CLOSED if state == CLOSED else State.STOPPED
            said = f"the loan is {state}"
            self.end(Ending(to, said + (f": {reason}" if reason else ""), said))

    # --- ending ---------------------------------------------------------------------------------

    async def _farewell(self, socket: ControlSocket, ending: Ending) -> None:
        """Wipe, settle, prove (Rule 4)."""
        wiped = await self._host.wipe()
        await self._tell_of_extraction(socket)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await self._settle_all(socket)
        if self._forgotten:
            return
        receipts = self._session.receipts
        proof = StopProof(
            loan=self._session.loan,
            session=self._session.id,
            receipts=receipts.count,
            receipt_chain=receipts.chain,
            cancelled=self._host.cancelled,
            reason=ending.reason,
            wiped=wiped,
        )
        await socket.send(Stopped(proof=sign(proof, self._key, Label.STOP_PROOF)))

    async def _settle_all(self, socket: ControlSocket) -> None:
        renewal = self._session.renewal
        renewal.suspend()
        while True:
            if (report := renewal.due(self._clock.monotonic_s())) is not None:
                await socket.send(report)
            if not renewal.unsettled:
                return
            now_s = self._clock.monotonic_s()
            try:
                async with asyncio.timeout(renewal.wake_at(now_s) - now_s):
                    message = await socket.receive(FromCustodian)
            except TimeoutError:
                continue  # something is to be sent again
            if isinstance(message, SessionEnded):
                self._forgotten = True
                return
            if isinstance(message, ReportAnswer):
                renewal.answered(message, self._clock.monotonic_s())
                renewal.suspend()  # a lease that came with it is given back too


@contextlib.asynccontextmanager
async def _owned(*tasks: asyncio.Task[Any]) -> AsyncIterator[None]:
    """Whatever happens, these tasks end here, and their failures have been seen."""
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
