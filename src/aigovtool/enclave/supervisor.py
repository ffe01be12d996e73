"""
From one session to the next: enrol, load, serve, wipe, and again.

Rule 1: the server stays up whatever the custodian says, to tell consumers why it does not serve.
Rule 2: a refusal is asked about again slowly, since only a person changes it; an outage quickly.
Rule 3: `closed` is final, and so is the end of the server.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from aigovtool.clock import Clock
from aigovtool.enclave.attester.base import Attester
from aigovtool.enclave.backoff import Backoff
from aigovtool.enclave.control import CLOSED, Conversation, Ending
from aigovtool.enclave.custodian_client import CustodianClient
from aigovtool.enclave.enclave import Enclave
from aigovtool.enclave.enrolment import Enrolment, enrol
from aigovtool.enclave.keepsake import Keepsake
from aigovtool.enclave.keys import ProcessKeys
from aigovtool.enclave.lifecycle import State
from aigovtool.enclave.loader import Loader
from aigovtool.enclave.reattestation import Reattestation
from aigovtool.enclave.runtime.base import TensorModel
from aigovtool.enclave.secret_bytes import overwrite
from aigovtool.enclave.session import Session
from aigovtool.errors import AIGovToolError, LoanNotActiveError, UnavailableError
from aigovtool.telemetry.logs import event

REFUSED_FIRST_S = 1.0
REFUSED_LONGEST_S = 30.0
KEEP_EVERY_S = 5.0  # the custodian's newest statement, for a custodian that was rolled back

_log = logging.getLogger(__name__)


class Supervisor:
    """Leads one loan's enclave through its sessions; `run` is a task of the server."""

    def __init__(
        self,
        *,
        enclave: Enclave,
        client: CustodianClient,
        loader: Loader,
        attester: Attester,
        keys: ProcessKeys,
        max_waiting: tuple[int, int],
        keepsake: Keepsake,
        clock: Clock,
        cache: Path | None = None,
    ) -> None:
        self._keepsake = keepsake
        self._enclave = enclave
        self._client = client
        self._loader = loader
        self._attester = attester
        self._keys = keys
        self._loan = enclave.loan
        self._max_waiting = max_waiting
        self._clock = clock
        self._cache = cache
        self._conversation: Conversation | None = None
        self._running: asyncio.Task[None] | None = None
        self._said = ""

    async def run(self) -> None:
        """Lead until the loan is closed, or for ever."""
        self._running = asyncio.current_task()
        refused = Backoff(first_s=REFUSED_FIRST_S, longest_s=REFUSED_LONGEST_S)
        while (enrolment := await self._enrol(refused)) is not None:
            await self._session(enrolment, refused)
            if self._enclave.life.state in (State.CLOSED, State.DRAINING):
                return
            await refused.wait()

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
                await enclave.flights.idle()
        except TimeoutError:
            _log.warning(
                "queries in flight are cancelled: they took longer than %g s",
                drain_s,
                extra=event("enclave.drain_cut"),
            )
        if self._running is not None:
            if self._conversation is not None:
                self._conversation.end(ending)
                await asyncio.wait({self._running}, timeout=goodbye_s)
            self._running.cancel()
            await asyncio.wait({self._running})
        await enclave.wipe()
        enclave.life.move(State.CLOSED, ending.reason)

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
                enrolment = await enrol(
                    self._client,
                    attester=self._attester,
                    keys=self._keys,
                    loan=self._loan,
                    newest=self._keepsake.newest,
                )
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

    async def _session(self, enrolment: Enrolment, refused: Backoff) -> None:
        """Live through one session."""
        enclave = self._enclave
        enclave.life.move(State.LOADING, "loading the model")
        wakeup = asyncio.Event()
        session = Session(
            loan=self._loan,
            enrolment=enrolment,
            key=self._keys.signing,
            max_waiting=self._max_waiting,
            clock=self._clock,
            wake=wakeup.set,
            cache=self._cache,
        )
        loading = asyncio.create_task(self._load(enrolment))
        enclave.begin(session, loading)
        self._conversation = conversation = Conversation(
            client=self._client,
            session=session,
            reattestation=Reattestation(
                attester=self._attester,
                keys=enrolment.keys,
                custodian_key=session.custodian_key,
                loan=self._loan,
            ),
            key=self._keys.signing,
            host=enclave,
            clock=self._clock,
            wakeup=wakeup,
        )
        talking = asyncio.create_task(conversation.run())
        keeping = asyncio.create_task(self._keep(session))
        try:
            await asyncio.wait({loading, talking}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done() and not loading.cancelled() and enclave.life.state is State.LOADING:
                try:
                    model = loading.result()
                except AIGovToolError as error:
                    _log.error(
                        "the model cannot be loaded: %s", error, extra=event("model.not_loaded")
                    )
                    conversation.end(
                        Ending(State.ENROLLING, f"the model cannot be loaded: {error}")
                    )
                else:
                    enclave.loaded(session, model)
                    refused.reset()
            await talking
        finally:
            talking.cancel()
            keeping.cancel()
            await asyncio.wait({talking, keeping})
            self._keepsake.keep(session.renewal.newest_statement)
            await enclave.wipe()
            self._conversation = None

    async def _keep(self, session: Session) -> None:
        while True:
            self._keepsake.keep(session.renewal.newest_statement)
            await asyncio.sleep(KEEP_EVERY_S)

    async def _load(self, enrolment: Enrolment) -> TensorModel:
        try:
            return await self._loader.load(enrolment.verified, enrolment.content_key)
        finally:
            overwrite(enrolment.content_key)  # nothing needs it once the model is loaded

    def _say(self, state: State, error: AIGovToolError) -> None:
        """Log a reason, once for as long as it stays the same, and give it to consumers."""
        if self._said != str(error):
            self._said = str(error)
            _log.warning(
                "not enrolled: %s", _without_reason(error), extra=event("enclave.not_enrolled")
            )
        if self._enclave.life.state is not State.STOPPED:  # why it was stopped says more
            self._enclave.life.move(state, str(error))


def _without_reason(error: AIGovToolError) -> str:
    """Return what is logged of a refusal: why somebody stopped a loan is told to consumers only."""
    return "the loan is not active" if isinstance(error, LoanNotActiveError) else str(error)
