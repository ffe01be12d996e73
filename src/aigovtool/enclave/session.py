"""What lives as long as one attested session: its model, leases, receipts and consumers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from aigovtool.clock import Clock
from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.enrolment import Enrolment
from aigovtool.enclave.meter import Meter
from aigovtool.enclave.receipts import Receipts
from aigovtool.enclave.renewal import Renewal
from aigovtool.enclave.roster import Roster
from aigovtool.enclave.runtime.base import TensorModel
from aigovtool.enclave.waiting import WaitingQueue
from aigovtool.ids import LoanId
from aigovtool.wire.enrolment import RosterEntry


class Session:
    """
    One session. It has no model until that is loaded, nor after it was wiped.

    Args:
        wake: called when the control conversation has something to say.
    """

    def __init__(
        self,
        *,
        loan: LoanId,
        enrolment: Enrolment,
        key: SigningKey,
        max_waiting: int,
        clock: Clock,
        wake: Callable[[], None],
    ) -> None:
        self.loan = loan
        self.id = enrolment.session
        self.verified = enrolment.verified
        self.custodian_key = enrolment.verified.custodian_key
        self.keys = enrolment.keys
        self.model: TensorModel | None = None
        self.roster = Roster()
        self.meter = Meter()
        self.receipts = Receipts(
            loan=loan,
            session=enrolment.session,
            model_digest=enrolment.verified.digest,
            key=key,
            clock=clock,
        )
        self.renewal = Renewal(
            loan=loan,
            session=enrolment.session,
            key=key,
            custodian_key=self.custodian_key,
            receipts=self.receipts,
            meter=self.meter,
            queue=WaitingQueue(max_waiting),
            terms=enrolment.terms,
            statement=enrolment.statement,
            wake=wake,
            now_s=clock.monotonic_s(),
        )

    def set_roster(self, entries: Iterable[RosterEntry]) -> None:
        """Consumers are now these."""
        entries = tuple(entries)
        self.roster = Roster(entries)
        self.renewal.set_roster(entries)
