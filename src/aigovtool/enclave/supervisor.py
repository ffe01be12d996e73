"""
From one session to the next: enrol, load, serve, wipe, and again.

Rule 1: the server stays up whatever the custodian says, to tell consumers why it does not serve.
Rule 2: a refusal is asked about again slowly, since only a person changes it; an outage quickly.
Rule 3: `closed` is final, and so is the end of the server.
Rule 4: when the loan's model is replaced, a session for the new one is enrolled and loaded beside
        the one that serves. When it is ready the old one charges nothing more and gives its leases
        back; what it has not charged, and all that comes, is the new one's. It ends when what it
        has charged is answered. Where there is no memory for both, the old one ends first.
Rule 5: a model that was evicted is loaded again when a query wants it, as soon as there is room or
        others may go for it (`eviction`); without a query, when there is room.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aigovtool.clock import Clock
from aigovtool.enclave.api.turnstile import Turnstile
from aigovtool.enclave.attester.base import Attester
from aigovtool.enclave.backoff import Backoff
from aigovtool.enclave.control import CLOSED, Conversation, Ending
from aigovtool.enclave.custodian_client import CustodianClient
from aigovtool.enclave.enclave import Enclave
from aigovtool.enclave.enrolment import Enrolment, enrol
from aigovtool.enclave.eviction import Evictions
from aigovtool.enclave.extraction import Watch
from aigovtool.enclave.flights import Flights
from aigovtool.enclave.keepsake import Keepsake
from aigovtool.enclave.keys import ProcessKeys
from aigovtool.enclave.lifecycle import State
from aigovtool.enclave.loader import Loader
from aigovtool.enclave.model_room import ModelRoom, NoRoomError
from aigovtool.enclave.reattestation import Reattestation
from aigovtool.enclave.runtime.base import Model
from aigovtool.enclave.secret_bytes import overwrite
from aigovtool.enclave.session import Session
from aigovtool.enclave.tenure import Tenure
from aigovtool.errors import AIGovToolError, LoanNotActiveError, UnavailableError
from aigovtool.sealing.manifest import SealedManifest
from aigovtool.telemetry.logs import event

REFUSED_FIRST_S = 1.0
REFUSED_LONGEST_S = 30.0
LOOK_FOR_ROOM_S = 0.2
HAND_OVER_S = 2.0  # for the custodian to have the leases that a session gives back
NO_ROOM_FOR_BOTH = "there is no memory for the loan's new model beside the older one"
KEEP_EVERY_S = 5.0  # the custodian's newest statement, for a custodian that was rolled back

_log = logging.getLogger(__name__)


class Supervisor:
    """
    Leads one loan's enclave through its sessions; `run` is a task of the server.

    Args:
        room: the memory for models.
        evictions: makes room in it.
        make_flights: makes what holds the queries of one session while they are computed.
        max_waiting: queries that may wait for credits, and as many for a limit, of all consumers
            and of each.
    """

    def __init__(
        self,
        *,
        enclave: Enclave,
        client: CustodianClient,
        loader: Loader,
        room: ModelRoom,
        evictions: Evictions,
        attester: Attester,
        keys: ProcessKeys,
        make_flights: Callable[[], Flights],
        max_waiting: tuple[int, int],
        keepsake: Keepsake,
        clock: Clock,
        cache: Path | None = None,
    ) -> None:
        self._keepsake = keepsake
        self._enclave = enclave
        self._client = client
        self._loader = loader
        self._room = room
        self._evictions = evictions
        self._attester = attester
        self._keys = keys
        self._loan = enclave.loan
        self._make_flights = make_flights
        self._max_waiting = max_waiting
        self._clock = clock
        self._cache = cache
        self._tenures: dict[Tenure, None] = {}  # those whose sessions are not over
        self._running: asyncio.Task[None] | None = None
        self._said = ""
        self._lacks_room = False  # for the model that was to be loaded last

    async def run(self) -> None:
        """Lead until the loan is closed, or for ever."""
        self._running = asyncio.current_task()
        refused = Backoff(first_s=REFUSED_FIRST_S, longest_s=REFUSED_LONGEST_S)
        try:
            while (enrolment := await self._enrol(refused)) is not None:
                await self._lead(self._begin(enrolment), refused)
                if self._enclave.life.state in (State.CLOSED, State.DRAINING):
                    break
                model = enrolment.verified.manifest
                if self._enclave.life.state is State.EVICTED:
                    await self._until_room_for(model, evicting=lambda: self._enclave.wanted)
                elif self._lacks_room:
                    # for as long as any refusal: the loan's model may become a smaller one
                    room = self._until_room_for(model, evicting=lambda: True)
                    await _either(asyncio.create_task(room), asyncio.create_task(refused.wait()))
                else:
                    await refused.wait()
            await self._all_over()
        finally:
            for tenure in self._tenures:
                tenure.living.cancel()
            await self._all_over()

    async def drain(self, *, drain_s: float, goodbye_s: float) -> None:
        """
        Admit nothing more, let what is in flight end within *drain_s*, wipe, settle and prove.

        When the custodian is not found within *goodbye_s*, it will count the last leases as used.
        """
        ending = Ending(State.DRAINING, "the server is ending")
        enclave = self._enclave
        if enclave.life.state is not State.CLOSED:
            enclave.life.move(ending.to, ending.reason)
        if enclave.session is not None:
            enclave.session.fail_waiting(lambda _: enclave.not_serving())
        try:
            async with asyncio.timeout(drain_s):
                for tenure in tuple(self._tenures):
                    await tenure.session.flights.answered()
        except TimeoutError:
            _log.warning(
                "queries in flight are cancelled: they took longer than %g s",
                drain_s,
                extra=event("enclave.drain_cut"),
            )
        if self._running is not None:
            if self._tenures:
                for tenure in self._tenures:
                    tenure.conversation.end(ending)
                await asyncio.wait({self._running}, timeout=goodbye_s)
            self._running.cancel()
            await asyncio.wait({self._running})
        enclave.life.move(State.CLOSED, ending.reason)

    async def _until_room_for(self, model: SealedManifest, *, evicting: Callable[[], bool]) -> None:
        """Return when a model can be loaded, for which others may go if *evicting* (Rule 5)."""
        fits = functools.partial(self._evictions.would_fit, model, of=self._loan)
        while not fits(evicting=evicting()):  # noqa: ASYNC110 - time alone may make room
            await asyncio.sleep(LOOK_FOR_ROOM_S)

    async def _all_over(self) -> None:
        if living := {tenure.living for tenure in self._tenures}:
            await asyncio.wait(living)

    # --- enrolling ------------------------------------------------------------------------------

    async def _enrol(self, refused: Backoff) -> Enrolment | None:
        """Try until the custodian accepts; None when the loan is closed for good."""
        outage = Backoff()
        life = self._enclave.life
        while True:
            if life.state is not State.STOPPED:
                life.move(
                    State.ENROLLING, life.reason if life.state is State.ENROLLING else "enrolling"
                )
            try:
                enrolment = await self._enrol_once()
            except LoanNotActiveError as error:
                if any(CLOSED in (reason.code, reason.came) for reason in error.reasons):
                    life.move(State.CLOSED, str(error))
                    return None
                self._say(State.STOPPED, error)
                await refused.wait()
            except UnavailableError as error:
                self._say(life.state, error)
                await outage.wait()
            except AIGovToolError as error:
                self._say(life.state, error)
                await refused.wait()
            else:
                life.move(State.ENROLLING, "enrolling")
                return enrolment

    async def _enrol_once(self) -> Enrolment:
        return await enrol(
            self._client,
            attester=self._attester,
            keys=self._keys,
            loan=self._loan,
            newest=self._keepsake.newest,
        )

    # --- a session ------------------------------------------------------------------------------

    def _begin(self, enrolment: Enrolment) -> Tenure:
        """Begin a session: its model is loaded, and the custodian is talked to."""
        wakeup = asyncio.Event()
        before = self._enclave.session
        session = Session(
            loan=self._loan,
            enrolment=enrolment,
            key=self._keys.signing,
            # limits hold for the loan, and those who wait for them outlive the session
            turnstile=Turnstile(self._clock, self._max_waiting)
            if before is None
            else before.turnstile,
            watch=Watch() if before is None else before.watch,
            flights=self._make_flights(),
            max_waiting=self._max_waiting,
            clock=self._clock,
            wake=wakeup.set,
            cache=self._cache,
        )
        loading = asyncio.create_task(self._load(enrolment))
        tenure = Tenure(self._enclave, session, loading, self._room)
        tenure.conversation = Conversation(
            client=self._client,
            session=session,
            reattestation=Reattestation(
                attester=self._attester,
                keys=enrolment.keys,
                custodian_key=session.custodian_key,
                loan=self._loan,
            ),
            key=self._keys.signing,
            host=tenure,
            clock=self._clock,
            wakeup=wakeup,
        )
        self._enclave.enrolled(session)
        self._tenures[tenure] = None
        self._evictions.residents[tenure] = None
        tenure.living = asyncio.create_task(self._live(tenure))
        return tenure

    async def _live(self, tenure: Tenure) -> None:
        """Talk until the session is over; nothing of it is left then."""
        session = tenure.session
        beside = {
            asyncio.create_task(self._keep(session)),
            asyncio.create_task(tenure.retire()),
        }
        try:
            await tenure.conversation.run()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.wait(beside)
            self._keepsake.keep(session.renewal.newest_statement)
            await tenure.wipe()
            self._enclave.over(session)
            del self._tenures[tenure], self._evictions.residents[tenure]

    async def _keep(self, session: Session) -> None:
        while True:
            self._keepsake.keep(session.renewal.newest_statement)
            await asyncio.sleep(KEEP_EVERY_S)

    async def _load(self, enrolment: Enrolment) -> Model:
        manifest = enrolment.verified.manifest
        try:
            await self._evictions.take(manifest, of=self._loan)
            try:
                return await self._loader.load(enrolment.verified, enrolment.content_key)
            except BaseException:
                self._room.give_back(manifest)
                raise
        finally:
            overwrite(enrolment.content_key)  # nothing needs it once the model is loaded

    async def _lead(self, tenure: Tenure, refused: Backoff) -> None:
        """Live through a session, and those that succeed it."""
        enclave = self._enclave
        enclave.begin(tenure.session)
        loading = tenure.loading
        await asyncio.wait({loading, tenure.living}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done() and not loading.cancelled() and enclave.life.state is State.LOADING:
            try:
                model = loading.result()
            except AIGovToolError as error:
                self._lacks_room = isinstance(error, NoRoomError)
                _log.error("the model cannot be loaded: %s", error, extra=event("model.not_loaded"))
                tenure.conversation.end(
                    Ending(State.ENROLLING, f"the model cannot be loaded: {error}")
                )
            else:
                enclave.loaded(tenure.session, model)
                self._lacks_room = False
                refused.reset()
                tenure = await self._follow(tenure)
        await tenure.living

    # --- another model (Rule 4) -----------------------------------------------------------------

    async def _follow(self, tenure: Tenure) -> Tenure:
        """Let each session be succeeded by the next, and return the last, which is over."""
        while await _goes_on(tenure, asyncio.create_task(tenure.session.replaced.wait())):
            begin_s = self._clock.monotonic_s()
            preparing = asyncio.create_task(self._prepare(tenure))
            if not await _goes_on(tenure, preparing):
                break
            if (successor := preparing.result()) is not None:
                tenure.session.leave()
                before, after = tenure.session.renewal, successor.session.renewal
                await before.retire(wait_s=HAND_OVER_S)
                after.freed(before.standing.left)
                self._enclave.succeed(
                    successor.session, after_s=self._clock.monotonic_s() - begin_s
                )
                tenure.session.succeeded.set()
                _log.info("the loan's new model is served", extra=event("model.replaced"))
                tenure = successor
        return tenure

    async def _prepare(self, before: Tenure) -> Tenure | None:
        """
        Enrol and load until there is a successor of the session *before*; None when there is no
        need of one any more: the loan has its model again, or *before* had to end first.
        """
        backoff = Backoff(first_s=REFUSED_FIRST_S, longest_s=REFUSED_LONGEST_S)
        while before.session.replaced.is_set():
            try:
                return await self._made_ready(before)
            except AIGovToolError as error:
                _log.warning(
                    "the loan's new model is not served yet: %s",
                    _without_reason(error),
                    extra=event("model.not_replaced"),
                )
                await backoff.wait()
        return None

    async def _made_ready(self, before: Tenure) -> Tenure:
        """Return a session that could serve; raises AIGovToolError as enrolling and loading do."""
        enrolment = await self._enrol_once()
        tenure = self._begin(enrolment)
        try:
            await tenure.ready()
        except NoRoomError:
            old, new = before.session.verified.manifest, enrolment.verified.manifest
            if self._room.fits_instead(new, old):
                before.conversation.end(Ending(State.ENROLLING, NO_ROOM_FOR_BOTH))
            tenure.conversation.end(Ending(State.ENROLLING, NO_ROOM_FOR_BOTH))
            raise
        except BaseException:
            tenure.conversation.end(Ending(State.ENROLLING, "it did not come to serve"))
            raise
        return tenure

    def _say(self, state: State, error: AIGovToolError) -> None:
        """Log a reason, once for as long as it stays the same, and give it to consumers."""
        if self._said != str(error):
            self._said = str(error)
            _log.warning(
                "not enrolled: %s", _without_reason(error), extra=event("enclave.not_enrolled")
            )
        if self._enclave.life.state is not State.STOPPED:  # why it was stopped says more
            self._enclave.life.move(state, str(error))


async def _goes_on(tenure: Tenure, what: asyncio.Task[Any]) -> bool:
    """Wait for *what* while the session lives; False, and it is cancelled, when that is over."""
    try:
        await asyncio.wait({what, tenure.living}, return_when=asyncio.FIRST_COMPLETED)
        return what.done()
    finally:
        if not what.done():
            what.cancel()
            await asyncio.wait({what})


async def _either(*tasks: asyncio.Task[None]) -> None:
    """Wait for the first of these, and end the others."""
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _without_reason(error: AIGovToolError) -> str:
    """Return what is logged of a refusal: why somebody stopped a loan is told to consumers only."""
    return "the loan is not active" if isinstance(error, LoanNotActiveError) else str(error)
