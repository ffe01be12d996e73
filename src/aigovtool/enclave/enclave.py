"""
One loan's enclave as its parts see it: its state, and the session that gets the queries.

The API reads it for every query, the control conversation changes it, the supervisor leads it from
one session to the next.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from aigovtool.clock import Clock
from aigovtool.enclave.control import Ending
from aigovtool.enclave.lifecycle import Lifecycle, State
from aigovtool.enclave.runtime.base import LanguageModel, Model, TensorModel
from aigovtool.enclave.session import Session
from aigovtool.errors import (
    AIGovToolError,
    LoanNotActiveError,
    NotFoundError,
    UnavailableError,
)
from aigovtool.ids import LoanId
from aigovtool.telemetry.logs import event

NOT_READY_RETRY_AFTER_S = 5.0
STOPPED_RETRY_AFTER_S = 30.0

_log = logging.getLogger(__name__)


class Enclave:
    """
    The state of one loan in an enclave server, which may serve others beside it.

    Args:
        on_ready: called each time a session begins to serve, with the seconds that this took.
    """

    def __init__(
        self, *, loan: LoanId, clock: Clock, on_ready: Callable[[Session, float], None]
    ) -> None:
        self.loan = loan
        self.life = Lifecycle()
        self.session: Session | None = None
        self.clock = clock
        self.sessions = 0  # enrolled by this process
        self.wanted = False  # whether a query came for the model that was evicted
        self._evicted = False  # and does not serve again yet
        self._idle_since_s = clock.monotonic_s()  # when it last ceased to serve, or was made
        self._live: list[Session] = []
        self._past_receipts = 0  # of sessions that are over
        self._on_ready = on_ready

    # --- for the API ----------------------------------------------------------------------------

    def serving(self, *, asked_by: bytes | None = None) -> tuple[Session, Model]:
        """
        Return session and model, if queries are admitted.

        Args:
            asked_by: an Authorization header; if it is a consumer's, an evicted model is loaded
                again.

        Raises:
            LoanNotActiveError: the loan is stopped, expired or closed.
            UnavailableError: not ready yet, or ending.
        """
        session = self.session
        if session is not None and session.model is not None and self.life.admits:
            return session, session.model
        self._want_for(asked_by)
        raise self.not_serving()

    def serving_tensors(self, *, asked_by: bytes | None = None) -> tuple[Session, TensorModel]:
        """As `serving`; raises NotFoundError when the model that is lent takes text."""
        session, model = self.serving(asked_by=asked_by)
        if model.takes == "tensors":
            return session, model
        raise NotFoundError(
            "the model that is lent here is a language model",
            code="model.takes_text",
            mend="ask it by POST /v1/chat/completions or /v1/completions",
        )

    def serving_text(self, *, asked_by: bytes | None = None) -> tuple[Session, LanguageModel]:
        """As `serving`; raises NotFoundError when the model that is lent takes tensors."""
        session, model = self.serving(asked_by=asked_by)
        if model.takes == "text":
            return session, model
        raise NotFoundError(
            "the model that is lent here takes tensors and is no language model",
            code="model.takes_tensors",
            mend="ask it by POST /v2/models/NAME/infer",
        )

    def not_serving(self) -> UnavailableError:
        """Say why no query is admitted."""
        state = self.life.state
        coming_back = self._evicted and state in (State.ENROLLING, State.LOADING)
        return refusal(State.EVICTED if coming_back else state, self.life.reason)

    def want(self) -> None:
        """If the model was evicted, let it be loaded again."""
        if self.life.state is State.EVICTED and not self.wanted:
            self.wanted = True
            self._idle_since_s = self.clock.monotonic_s()

    def _want_for(self, authorization: bytes | None) -> None:
        if self.session is not None and authorization is not None:
            with contextlib.suppress(AIGovToolError):
                self.session.authenticate(authorization)
                self.want()

    @property
    def receipts(self) -> int:
        """How many receipts this process issued under the loan."""
        return self._past_receipts + sum(session.receipts.count for session in self._live)

    @property
    def in_flight(self) -> int:
        """How many queries are charged and being computed."""
        return sum(len(session.flights) for session in self._live)

    # --- for the supervisor ---------------------------------------------------------------------

    def enrolled(self, session: Session) -> None:
        """There is another session, which does not serve yet."""
        self.sessions += 1
        self._live.append(session)

    def begin(self, session: Session) -> None:
        """This session's model is awaited."""
        self.life.move(State.LOADING, "loading the model")
        self.session = session

    def loaded(self, session: Session, model: Model) -> None:
        """The model is loaded: serve, once the custodian has said for whom."""
        session.open(model)
        self.serve()

    def succeed(self, session: Session, *, after_s: float) -> None:
        """From now on queries are those of another session, which is ready."""
        self.session = session
        if self.life.state is State.ENROLLING:  # the one before it ended first
            self.life.move(State.LOADING, "loading the model")
        else:
            self._on_ready(session, after_s)
        self.serve()

    def over(self, session: Session) -> None:
        """A session has ended."""
        self._live.remove(session)
        self._past_receipts += session.receipts.count

    # --- for the sessions -----------------------------------------------------------------------

    def serve(self) -> None:
        """Be in the state that follows from what the session has."""
        session = self.session
        if session is None or session.model is None or session.roster is None:
            return
        if self.life.state is State.LOADING:
            self.life.move(State.SERVING, "serving")
            self._evicted = False
            self._on_ready(session, self.clock.monotonic_s() - self._idle_since_s)
        if self.life.state is State.UNREACHABLE and session.renewal.connected:
            self.life.move(State.SERVING, "serving")
        elif self.life.state is State.SERVING and not session.renewal.connected:
            self.lost()

    def lost(self) -> None:
        """The custodian is not connected: live leases serve on."""
        if self.life.state is State.SERVING:
            self.life.move(State.UNREACHABLE, "the custodian cannot be reached")

    def ceased(self, ending: Ending) -> None:
        """The session has come to its end: no query is admitted any more."""
        self._idle_since_s = self.clock.monotonic_s()
        if ending.to is State.EVICTED:
            self._evicted, self.wanted = True, False
        if self.life.state is not State.DRAINING:  # which ends in its own way
            self.life.move(ending.to, ending.reason)
        _log.warning(
            "no query is admitted any more: %s",
            ending.logged or ending.reason,
            extra=event("enclave.stopped", state=ending.to),
        )


def refusal(state: State, reason: str) -> UnavailableError:
    """Say why no query is admitted in *state*."""
    if state in (State.STOPPED, State.CLOSED):
        return LoanNotActiveError(reason, retry_after_s=STOPPED_RETRY_AFTER_S)
    return UnavailableError(
        f"the enclave does not serve: {reason}",
        code=f"enclave.{state}",
        retry_after_s=NOT_READY_RETRY_AFTER_S,
    )
