"""
The session's receipts: numbered, chained, signed.

Rule 1: a receipt is drawn up in the same step as its charge, so numbers and chain follow the
        charges; the signature, which takes longer, may be made later and elsewhere.
Rule 2: a receipt names the SHA-256 of the payload before it, so a gap or a fork shows; of the
        session's, and of its consumer's own, since a consumer holds no others (`wire.receipt`).
"""

from __future__ import annotations

from collections.abc import Sequence

from aigovtool.clock import Clock
from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.meter import Charge
from aigovtool.ids import ConsumerId, LoanId, SessionId, sha256
from aigovtool.proof.receipt_signature import sign_receipts
from aigovtool.wire.codec import encode
from aigovtool.wire.receipt import NO_RECEIPT_BEFORE, Receipt, Refund, to_header

_NONE_BEFORE = (0, NO_RECEIPT_BEFORE)


class Receipts:
    """Draws up one session's receipts. `count` of them exist, `chain` is the last one's digest."""

    __slots__ = ("_clock", "_key", "_loan", "_model_digest", "_own", "_session", "chain", "count")

    def __init__(
        self,
        *,
        loan: LoanId,
        session: SessionId,
        model_digest: bytes,
        key: SigningKey,
        clock: Clock,
    ) -> None:
        self._loan = loan
        self._session = session
        self._model_digest = model_digest
        self._key = key
        self._clock = clock
        self._own: dict[ConsumerId, tuple[int, bytes]] = {}  # as many as the loan has consumers
        self.count = 0
        self.chain = NO_RECEIPT_BEFORE

    def draw_up(self, charge: Charge, consumer: ConsumerId, refund: Refund | None = None) -> bytes:
        """
        Return the payload of the receipt for *charge*, which must have just been made.

        Args:
            refund: what it takes back, when it is a charge of less than nothing.
        """
        self.count += 1
        own_count, own_chain = self._own.get(consumer, _NONE_BEFORE)
        payload = encode(
            Receipt(
                loan=self._loan,
                session=self._session,
                lease=charge.lease,
                consumer=consumer,
                model_digest=self._model_digest,
                number=self.count,
                previous=self.chain,
                own_number=own_count + 1,
                own_previous=own_chain,
                cost=charge.cost,
                balance_before=charge.before,
                balance_after=charge.after,
                time=self._clock.now(),
                refund=refund,
            )
        )
        self.chain = sha256(payload)
        self._own[consumer] = own_count + 1, self.chain
        return payload

    def header(self, payload: bytes) -> str:
        """Sign what `draw_up` returned, and write it as a header value."""
        return self.headers([payload])[0]

    def headers(self, payloads: Sequence[bytes]) -> list[str]:
        """Sign 1 to `MAX_TREE` receipts at the price of one, and write each as a header value."""
        return [to_header(signed) for signed in sign_receipts(self._key, payloads)]
