"""
One loan's enclave as its parts see it: its state, its session, and what stops and wipes it.

The API reads it for every query, the control conversation changes it, the supervisor leads it from
one session to the next.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from datetime import datetime

from aigovtool.clock import Clock
from aigovtool.enclave.control import Ending
from aigovtool.enclave.flights import Flights
from aigovtool.enclave.hardening import return_freed_memory
from aigovtool.enclave.lifecycle import Lifecycle, State
from aigovtool.enclave.runtime.base import TensorModel
from aigovtool.enclave.session import Session
from aigovtool.errors import (
    AIGovToolError,
    LoanNotActiveError,
    UnavailableError,
)
from aigovtool.ids import LoanId
from aigovtool.telemetry.logs import event

NOT_READY_RETRY_AFTER_S = 5.0
STOPPED_RETRY_AFTER_S = 30.0

_log = logging.getLogger(__name__)


class Enclave:
    """
    The state of one loan in an enclave server, which may serve others beside it. Implements
    `control.Host` for the session's conversation.

    Args:
        on_ready: called each time the enclave begins to serve.
    """

    def __init__(
        self,
        *,
        loan: LoanId,
        flights: Flights,
        clock: Clock,
        on_ready: Callable[[Enclave, Session], None],
    ) -> None:
        self.loan = loan
        self.life = Lifecycle()
        self.session: Session | None = None
        self.flights = flights
        self.clock = clock
        self.cancelled = 0
        self.idle_since_s = clock.monotonic_s()  # when it last ceased to serve, or was made
        self.sessions = 0  # enrolled by this process
        self._past_receipts = 0  # of sessions that are over
        self._on_ready = on_ready
        self._loading: asyncio.Task[TensorModel] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._wiped: datetime | None = None

    # --- for the API ----------------------------------------------------------------------------

    def serving(self) -> tuple[Session, TensorModel]:
        """
        Return session and model, if queries are admitted.

        Raises:
            LoanNotActiveError: the loan is stopped, expired or closed.
            UnavailableError: not ready yet, or ending.
        """
        session = self.session
        if session is not None and session.model is not None and self.life.admits:
            return session, session.model
        raise self.not_serving()

    def not_serving(self) -> UnavailableError:
        """Say why no query is admitted."""
        if self.life.state in (State.STOPPED, State.CLOSED):
            return LoanNotActiveError(self.life.reason, retry_after_s=STOPPED_RETRY_AFTER_S)
        return UnavailableError(
            f"the enclave does not serve: {self.life.reason}",
            code=f"enclave.{self.life.state}",
            retry_after_s=NOT_READY_RETRY_AFTER_S,
        )

    @property
    def receipts(self) -> int:
        """How many receipts this process issued."""
        return self._past_receipts + (0 if self.session is None else self.session.receipts.count)

    # --- for the supervisor ---------------------------------------------------------------------

    def begin(self, session: Session, loading: asyncio.Task[TensorModel]) -> None:
        """A session was enrolled, and its model is being loaded."""
        self._past_receipts = self.receipts
        self.sessions += 1
        self.session, self._loading = session, loading
        self.cancelled, self._closing, self._wiped = 0, None, None

    def loaded(self, session: Session, model: TensorModel) -> None:
        """The model is loaded: serve, once the custodian has said for whom."""
        session.model = model
        self._serve()

    def _serve(self) -> None:
        session = self.session
        if session is None or session.model is None or session.roster is None:
            return
        if self.life.state is State.LOADING:
            self.life.move(State.SERVING, "serving")
            self._on_ready(self, session)
        if self.life.state is State.UNREACHABLE and session.renewal.connected:
            self.life.move(State.SERVING, "serving")
        elif self.life.state is State.SERVING and not session.renewal.connected:
            self.lost()

    # --- control.Host ---------------------------------------------------------------------------

    def reached(self) -> None:
        self._serve()

    def lost(self) -> None:
        if self.life.state is State.SERVING:
            self.life.move(State.UNREACHABLE, "the custodian cannot be reached")

    def consumers_changed(self) -> None:
        if (session := self.session) is None or (roster := session.roster) is None:
            return

        for consumer in self.flights.consumers():
            if (refusal := roster.refusal(consumer)) is not None:
                self.flights.cancel(functools.partial(_same, refusal), consumer=consumer)
        session.fail_waiting(roster.refusal)

    def stop(self, ending: Ending) -> None:
        self.idle_since_s = self.clock.monotonic_s()
        if self.life.state is not State.DRAINING:  # which ends in its own way
            self.life.move(ending.to, ending.reason)
        error: AIGovToolError = self.not_serving()
        _log.warning(
            "no query is admitted any more: %s",
            ending.logged or ending.reason,
            extra=event("enclave.stopped", state=ending.to),
        )
        self.cancelled = self.flights.cancel(lambda: error)
        if self.session is not None:
            self.session.fail_waiting(lambda _: self.not_serving())

    async def wipe(self) -> datetime:
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait([self._loading])
            self._loading = None
        await self.flights.idle()
        if self.session is not None and self.session.model is not None:
            model, self.session.model = self.session.model, None
            self._closing = asyncio.create_task(_close(model))
        if self._closing is not None:
            await asyncio.shield(self._closing)  # a caller may be cancelled while it waits
        return_freed_memory()
        if self._wiped is None:
            self._wiped = self.clock.now()
        return self._wiped


async def _close(model: TensorModel) -> None:
    # on a thread: overwriting gigabytes takes a moment, in which others want answers
    await asyncio.to_thread(model.close)
    _log.warning("key and model are wiped", extra=event("enclave.wiped"))


def _same(error: AIGovToolError) -> AIGovToolError:
    return error
