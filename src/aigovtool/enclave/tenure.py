"""
One session in an enclave from enrolment to its end, and what its control conversation does to it.

Of the sessions that a loan's enclave has at one time, one is current: it gets the queries that
come, and decides about the enclave's state. Another one may be made ready to succeed it, or has
been succeeded and ends what was begun with it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from datetime import datetime

from aigovtool.enclave.control import MODEL_REPLACED, Conversation, Ending
from aigovtool.enclave.enclave import Enclave, refusal
from aigovtool.enclave.lifecycle import State
from aigovtool.enclave.model_room import ModelRoom
from aigovtool.enclave.runtime.base import Model
from aigovtool.enclave.session import Session
from aigovtool.errors import AIGovToolError
from aigovtool.heap import return_freed_memory
from aigovtool.ids import LoanId
from aigovtool.sealing.manifest import SealedManifest
from aigovtool.telemetry.logs import event

EVICTED = "its model made room for another one, and is loaded again when it is asked for"

_log = logging.getLogger(__name__)


class Tenure:
    """
    A session, with who loads its model and who talks for it. Implements `control.Host`.

    Args:
        loading: brings its model, for which *room* was taken.

    `conversation` and `living`, the task that lasts as long as the session does, are set by who
    makes it.
    """

    conversation: Conversation
    living: asyncio.Task[None]

    def __init__(
        self,
        enclave: Enclave,
        session: Session,
        loading: asyncio.Task[Model],
        room: ModelRoom,
    ) -> None:
        self.session = session
        self.loading = loading
        self.cancelled = 0
        self._enclave = enclave
        self._room = room
        self._welcomed = asyncio.Event()  # the custodian has said for whom it serves
        self._closing: asyncio.Task[None] | None = None
        self._wiped: datetime | None = None

    async def ready(self) -> None:
        """
        Return when it could serve: its model is loaded, and its consumers are known.

        Raises:
            AIGovToolError: the model cannot be loaded, or the session has ended.
        """
        welcomed = asyncio.create_task(self._welcomed.wait())
        try:
            for awaited in (self.loading, welcomed):
                await asyncio.wait(
                    {asyncio.ensure_future(awaited), self.living},
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if self.session.over is not None:
                    raise self.session.over()
            self.session.open(self.loading.result())
        finally:
            welcomed.cancel()

    async def retire(self) -> None:
        """Wait until another session has succeeded this one and its queries are answered: end."""
        await self.session.succeeded.wait()
        await self.session.flights.answered()
        self.conversation.end(Ending(State.ENROLLING, MODEL_REPLACED))

    # --- eviction.Resident ----------------------------------------------------------------------

    @property
    def loan(self) -> LoanId:
        return self.session.loan

    @property
    def manifest(self) -> SealedManifest:
        return self.session.verified.manifest

    @property
    def rests_since_s(self) -> float | None:
        session = self.session
        if (
            self._is_current
            and self._enclave.life.state is State.SERVING
            and session.renewal.terms.evictable
            and session.idle
            and not session.replaced.is_set()
            and not session.leaving
        ):
            return session.used_s
        return None

    def evict(self) -> None:
        _log.warning("the model makes room for another one", extra=event("model.evicted"))
        self.conversation.end(Ending(State.EVICTED, EVICTED))

    async def gone(self) -> None:
        await self.wipe()  # whether or not the custodian can be told now

    # --- control.Host ---------------------------------------------------------------------------

    def reached(self) -> None:
        self._welcomed.set()
        if self._is_current:
            self._enclave.serve()

    def lost(self) -> None:
        if self._is_current:
            self._enclave.lost()

    def consumers_changed(self) -> None:
        if (roster := self.session.roster) is None:
            return
        flights = self.session.flights
        for consumer in flights.consumers():
            if (blocked := roster.refusal(consumer)) is not None:
                flights.cancel(functools.partial(_same, blocked), consumer=consumer)
        self.session.fail_waiting(roster.refusal)

    def stop(self, ending: Ending) -> None:
        if self._is_current:
            self._enclave.ceased(ending)
        error = functools.partial(refusal, ending.to, ending.reason)
        self.cancelled = self.session.flights.cancel(error)
        self.session.end(error)

    async def wipe(self) -> datetime:
        if not self.loading.done():
            self.loading.cancel()
            await asyncio.wait({self.loading})
        await self.session.flights.idle()
        if self._closing is None and (model := self._take_model()) is not None:
            self._closing = asyncio.create_task(self._close(model))
        if self._closing is not None:
            await asyncio.shield(self._closing)  # a caller may be cancelled while it waits
        return_freed_memory()
        if self._wiped is None:
            self._wiped = self._enclave.clock.now()
        return self._wiped

    @property
    def _is_current(self) -> bool:
        return self._enclave.session is self.session

    def _take_model(self) -> Model | None:
        """Take the model from the session, which may never have got what was loaded for it."""
        self.session.model = None
        if self.loading.cancelled() or self.loading.exception() is not None:
            return None
        return self.loading.result()

    async def _close(self, model: Model) -> None:
        # on a thread: overwriting gigabytes takes a moment, in which others want answers
        await asyncio.to_thread(model.close)
        self._room.give_back(self.session.verified.manifest)
        _log.warning("key and model are wiped", extra=event("enclave.wiped"))


def _same(error: AIGovToolError) -> AIGovToolError:
    return error
