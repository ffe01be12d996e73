"""What lives as long as one attested session: its model, leases, receipts and consumers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

from aigovtool.clock import Clock
from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.api.turnstile import Turnstile
from aigovtool.enclave.enrolment import Enrolment
from aigovtool.enclave.grants import GrantsKept
from aigovtool.enclave.meter import Meter
from aigovtool.enclave.receipts import Receipts
from aigovtool.enclave.renewal import Renewal
from aigovtool.enclave.roster import Roster, blocked
from aigovtool.enclave.runtime.base import TensorModel
from aigovtool.enclave.till import Till
from aigovtool.enclave.waiting import WaitingQueue
from aigovtool.errors import AIGovToolError, UnavailableError
from aigovtool.ids import ConsumerId, LoanId
from aigovtool.wire.enrolment import RosterEntry, Terms


class Session:
    """
    One session. It has no model until that is loaded, nor after it was wiped.

    Args:
        max_waiting: queries that may wait for credits, and as many for a limit, of all consumers
            and of each.
        wake: called when the control conversation has something to say.
        cache: folder in which notices of grants are kept, or None.
    """

    def __init__(
        self,
        *,
        loan: LoanId,
        enrolment: Enrolment,
        key: SigningKey,
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
        self.model: TensorModel | None = None
        self.roster: Roster | None = None  # the custodian says it first in its welcome
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
        self.turnstile = Turnstile(clock, max_waiting)
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

    def set_roster(self, entries: Iterable[RosterEntry]) -> None:
        """Consumers are now these."""
        entries = tuple(entries)
        self.roster = Roster(entries, now_s=self._clock.monotonic_s)
        self.renewal.set_roster(entries)
        self.turnstile.limits.set_consumers(entries)

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
        """Check again that *consumer* may ask; raises BlockedError."""
        if self.roster is None:
            raise blocked()
        if (refusal := self.roster.refusal(consumer)) is not None:
            raise refusal
