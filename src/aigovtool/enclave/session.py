"""What lives as long as one attested session: its model, leases, receipts and consumers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from pathlib import Path

from aigovtool.clock import Clock
from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.api.turnstile import Turnstile
from aigovtool.enclave.enrolment import Enrolment
from aigovtool.enclave.extraction import Watch
from aigovtool.enclave.flights import Flights
from aigovtool.enclave.grants import GrantsKept
from aigovtool.enclave.meter import Meter
from aigovtool.enclave.receipts import Receipts
from aigovtool.enclave.renewal import Renewal
from aigovtool.enclave.roster import Roster, blocked
from aigovtool.enclave.runtime.base import Model
from aigovtool.enclave.till import Till
from aigovtool.enclave.waiting import WaitingQueue
from aigovtool.errors import AIGovToolError, UnavailableError
from aigovtool.ids import ConsumerId, LoanId
from aigovtool.wire.enrolment import RosterEntry, Terms


class SucceededError(UnavailableError):
    """Nothing was charged, and another session has taken or takes the place of this one."""


class Session:
    """
    One session. It has no model until that is loaded, nor after it was wiped.

    Args:
        turnstile: lets queries through the loan's limits; a session that succeeds another one has
            the same.
        watch: counts what consumers draw out of the model; the same, too.
        flights: holds its queries while they are computed.
        max_waiting: queries that may wait for credits, of all consumers and of each.
        wake: called when the control conversation has something to say.
        cache: folder in which notices of grants are kept, or None.
    """

    def __init__(
        self,
        *,
        loan: LoanId,
        enrolment: Enrolment,
        key: SigningKey,
        turnstile: Turnstile,
        watch: Watch,
        flights: Flights,
        max_waiting: tuple[int, int],
        clock: Clock,
        wake: Callable[[], None],
        cache: Path | None = None,
    ) -> None:
        self.loan = loan
        self.id = enrolment.session
        self.verified = enrolment.verified
        self.custodian_key = enrolment.verified.custodian_key
        self.keys = enrolment.keys
        self.model: Model | None = None
        self.roster: Roster | None = None  # the custodian says it first in its welcome
        self.over: Callable[[], AIGovToolError] | None = None  # why nothing is computed any more
        self.replaced = asyncio.Event()  # while the loan's model is another one
        self.retires_s = math.inf  # on our own clock, as the custodian last said
        self.leaving = False  # in favour of a successor: nothing more is charged
        self.succeeded = asyncio.Event()
        self.flights = flights
        self.receipts = Receipts(
            loan=loan,
            session=enrolment.session,
            model_digest=enrolment.verified.digest,
            key=key,
            clock=clock,
        )
        self.grants = GrantsKept(
            folder=cache,
            loan=loan,
            session=enrolment.session,
            key=key,
            custodian_key=self.custodian_key,
        )
        self.till = Till(Meter(), self.receipts)
        self.turnstile = turnstile
        self.watch = watch
        self._clock = clock
        self.renewal = Renewal(
            loan=loan,
            session=enrolment.session,
            key=key,
            custodian_key=self.custodian_key,
            till=self.till,
            queue=WaitingQueue(*max_waiting),
            terms=enrolment.terms,
            statement=enrolment.statement,
            wake=wake,
            now_s=clock.monotonic_s(),
            limits=self.turnstile.limits,
        )
        self.expires_s = math.inf  # on our own clock, as the custodian last said
        self.set_terms(enrolment.terms)

    def set_terms(self, terms: Terms) -> None:
        """The loan's terms are now these."""
        self.renewal.terms = terms
        self.expires_s = math.inf
        if terms.expires_in_s is not None:
            self.expires_s = self._clock.monotonic_s() + terms.expires_in_s
        self.turnstile.limits.set_loan(terms.limits)
        self.watch.set_limits(terms.extraction)

    def set_roster(self, entries: Iterable[RosterEntry]) -> None:
        """Consumers are now these."""
        entries = tuple(entries)
        self.roster = Roster(entries, now_s=self._clock.monotonic_s)
        self.renewal.set_roster(entries)
        self.turnstile.limits.set_consumers(entries)

    def set_model_of_loan(self, digest: bytes, retire_after_s: float | None) -> None:
        """The loan lends this model now, and another one for no longer than that."""
        self.retires_s = math.inf
        if digest == self.verified.digest:
            self.replaced.clear()
            return
        if retire_after_s is not None:
            self.retires_s = self._clock.monotonic_s() + retire_after_s
        self.replaced.set()

    def leave(self) -> None:
        """Charge nothing more: who waits here waits for `succeeded`, and begins anew."""
        self.leaving = True
        self.renewal.fail_waiting(lambda _: _succeeded())

    def end(self, error: Callable[[], AIGovToolError]) -> None:
        """Compute nothing more; who waits, and who comes, is told *error*."""
        self.over = error
        if self.leaving:  # who waits in the turnstile is the successor's
            self.renewal.fail_waiting(lambda _: error())
        else:
            self.fail_waiting(lambda _: error())
        self.succeeded.set()

    def check_stays(self) -> None:
        """Raise SucceededError when nothing more is charged here."""
        if self.leaving:
            raise _succeeded()

    def fail_waiting(self, error: Callable[[ConsumerId], AIGovToolError | None]) -> None:
        """Wake whoever waits here, and for whose consumer *error* returns one, with it."""
        self.turnstile.fail_all(error)
        self.renewal.fail_waiting(error)

    def authenticate(self, authorization: bytes | None) -> ConsumerId:
        """
        Return whose key the value of an Authorization header holds.

        Raises:
            UnauthenticatedError, BlockedError: as `Roster.authenticate`.
            UnavailableError: the custodian has not yet said who the consumers are.
        """
        if self.roster is None:
            raise UnavailableError("the consumers of this loan are not known yet")
        return self.roster.authenticate(authorization)

    def admit(self, consumer: ConsumerId) -> None:
        """Check again that *consumer* may ask; raises BlockedError, or why the session is over."""
        if self.over is not None:
            raise self.over()
        if self.roster is None:
            raise blocked()
        if (refusal := self.roster.refusal(consumer)) is not None:
            raise refusal


def _succeeded() -> SucceededError:
    return SucceededError("another session takes the place of this one", code="enclave.succeeded")
