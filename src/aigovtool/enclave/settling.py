"""
Settlements: signed when a lease is closed, kept and repeated until the custodian has them (I3).

Rule 1: a lease is closed before its settlement is signed; what is signed is final.
Rule 2: a settlement is sent again until the custodian says that it is durable, and never altered.
Rule 3: the newest stay here when they are durable, to be handed in again should the custodian find
        that its ledger was put back to an older copy.
Rule 4: settlements are numbered and chained, so that an account of them cannot leave one out.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.meter import Use
from aigovtool.enclave.receipts import Receipts
from aigovtool.ids import LeaseId, LoanId, SessionId, sha256
from aigovtool.wire.codec import Signed, sign
from aigovtool.wire.control import MAX_SETTLEMENTS, NO_SETTLEMENT_BEFORE, Settlement

AGAIN_S = 1.0  # after an answer that did not acknowledge all
KEPT = 1024  # settlements, after they were acknowledged: an hour of leases of 5 s, about 1 MB


@dataclass(frozen=True, slots=True)
class _Unsettled:
    settlement: Signed
    use: Use


class Settlements:
    """The settlements of one session that are not known to be durable."""

    __slots__ = (
        "_chain",
        "_count",
        "_kept",
        "_key",
        "_loan",
        "_receipts",
        "_sent",
        "_session",
        "_unsettled",
        "again_s",
    )

    def __init__(
        self, *, loan: LoanId, session: SessionId, key: SigningKey, receipts: Receipts
    ) -> None:
        self._loan = loan
        self._session = session
        self._key = key
        self._receipts = receipts
        self._count = 0
        self._chain = NO_SETTLEMENT_BEFORE
        self._unsettled: dict[LeaseId, _Unsettled] = {}
        self._kept: deque[_Unsettled] = deque(maxlen=KEPT)
        self._sent: tuple[LeaseId, ...] = ()  # in the report that is not answered yet
        self.again_s = -math.inf

    def __bool__(self) -> bool:
        return bool(self._unsettled)

    def add(self, uses: Iterable[Use]) -> None:
        """Settle leases that were closed."""
        for use in uses:
            self._count += 1
            settlement = Settlement(
                loan=self._loan,
                session=self._session,
                lease=use.lease,
                number=self._count,
                previous=self._chain,
                used=use.used,
                by_consumer=use.by_consumer,
                receipts=self._receipts.count,
                receipt_chain=self._receipts.chain,
                refunded=use.refunded,
            )
            signed = sign(settlement, self._key, Label.SETTLEMENT)
            self._chain = sha256(signed.payload)
            self._unsettled[use.lease] = _Unsettled(signed, use)

    def due(self, now_s: float) -> tuple[Signed, ...]:
        """Return what the next report must carry, the oldest first."""
        if now_s < self.again_s:
            return ()
        self._sent = tuple(islice(self._unsettled, MAX_SETTLEMENTS))
        return tuple(self._unsettled[lease].settlement for lease in self._sent)

    def acknowledged(self, leases: Iterable[LeaseId], now_s: float) -> None:
        """
        The custodian has these. What was sent and is not among them is sent again, a little later;
        what has not been sent yet goes at once.
        """
        for lease in leases:
            if (settled := self._unsettled.pop(lease, None)) is not None:
                self._kept.append(settled)
        if self._sent:
            refused = any(lease in self._unsettled for lease in self._sent)
            self.again_s = now_s + AGAIN_S if refused else -math.inf
            self._sent = ()

    def hand_in(self) -> None:
        """Send what was acknowledged once more: the custodian's ledger may have lost it since."""
        while self._kept:
            settled = self._kept.popleft()
            self._unsettled[settled.use.lease] = settled

    def uses(self) -> Iterator[Use]:
        """Yield what comes back to the custodian once these are durable."""
        return (one.use for one in self._unsettled.values())
