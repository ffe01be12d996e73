"""
Receipts: the enclave's signed word about one inference, in the header ``Aigovtool-Receipt``.

The header is ``base64url(payload).base64url(signature)``, signed by the session's attested signing
key: alone, or with others in one tree, which `proof.receipt_signature` tells by the signature.

Rule 1: all receipts of a session are one chain (`number`, `previous`), so that no two histories
        of it can both be shown. Who holds them all, or the head of it that each settlement states,
        sees a gap or a fork.
Rule 2: those of one consumer in a session are a chain of their own inside it (`own_number`,
        `own_previous`), so that a consumer, who never sees the receipts of others, sees by itself
        that one of its own is missing.
"""

from __future__ import annotations

import base64
import binascii
from typing import Literal

from aigovtool.errors import MalformedError, VerificationError
from aigovtool.ids import ConsumerId, LeaseId, LoanId, SessionId
from aigovtool.wire.codec import Message, Signed, Time

MAX_RECEIPT_BYTES = 4096
NO_RECEIPT_BEFORE = bytes(32)

_URL_SAFE = bytes.maketrans(b"+/", b"-_")


RefundClass = Literal["model-error", "cancelled", "stopped"]
"""Why a charge was taken back: the model gave no answer; it was cancelled before its computation
began; the custodian stopped the loan or blocked the consumer while it was in flight."""


class Refund(Message, frozen=True, kw_only=True):
    """
    What a refund takes back.

    Args:
        kind: why.
        number: of the receipt of the charge, of the same session, lease and consumer.
    """

    kind: RefundClass
    number: int


class Receipt(Message, frozen=True, kw_only=True):
    """
    Args:
        number: of this receipt in its session, from 1.
        previous: SHA-256 of the payload before it, 32 zero bytes for the first.
        own_number: of this receipt among those of its consumer in the session, from 1.
        own_previous: SHA-256 of its consumer's payload before it, 32 zero bytes for the first.
        model_digest: SHA-256 of the sealed model's manifest, as signed.
        cost: credits charged, at least 1; those of a refund are negative.
        balance_before, balance_after: credits in the lease around the charge.
        time: enclave wall time, aware UTC; for people.
        refund: set when this is no charge but takes one back.
    """

    loan: LoanId
    session: SessionId
    lease: LeaseId
    consumer: ConsumerId
    model_digest: bytes
    number: int
    previous: bytes
    own_number: int
    own_previous: bytes
    cost: int
    balance_before: int
    balance_after: int
    time: Time
    refund: Refund | None = None

    def check_sum(self) -> None:
        """Raise VerificationError unless cost, balances and kind fit together."""
        is_refund = self.refund is not None and 1 <= self.refund.number < self.number
        fits = self.cost <= -1 if is_refund else self.cost >= 1 and self.refund is None
        if not fits or self.balance_before - self.cost != self.balance_after:
            raise VerificationError(
                "the receipt's balances do not add up",
                code="receipt.sum",
                expected=f"{self.balance_before} - {self.cost}",
                came=str(self.balance_after),
            )


def to_header(signed: Signed) -> str:
    """Write a signed receipt as a header value."""
    both = _b64(signed.payload) + b"." + _b64(signed.signature)
    return both.translate(_URL_SAFE, b"=").decode()


def from_header(value: str) -> Signed:
    """Read a header value; raises MalformedError. The signature is still to be checked."""
    payload, dot, signature = value.partition(".")
    if not dot or len(value) > MAX_RECEIPT_BYTES:
        raise MalformedError("not a receipt header")
    try:
        return Signed(payload=_unb64(payload), signature=_unb64(signature))
    except (binascii.Error, ValueError):
        raise MalformedError("a receipt header is not base64url") from None


def _b64(data: bytes) -> bytes:
    return binascii.b2a_base64(data, newline=False)


def _unb64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
