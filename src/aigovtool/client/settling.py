"""
The receipts of an answer of a language model: checked, kept, and held against the token price.

1. The first receipt came in the header, and was checked before a byte of the answer was used.
2. At the end all have come (`token_pricing`). Each is checked and kept: the first is that of the
   header, and they are one chain.
3. Together they cost what the loan's token price asks. The enclave, which is measured code, says
   the price (``GET /v1/budget``). It is read once, and again when a sum does not fit it.

Step 3 may ask the enclave, so `settle` is called when the answer's own connection is given back.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from aigovtool.channel.connect import AttestedChannel
from aigovtool.channel.http1 import Headers, Request, Response
from aigovtool.channel.judge import VerifiedEnclave
from aigovtool.client.events import DONE, Event, EventReader
from aigovtool.client.receipt_store import ReceiptStore, keep_or_warn
from aigovtool.client.receipts import VerifiedReceipt, check_order, receipt_of
from aigovtool.client.token_pricing import (
    Bill,
    Charged,
    Usage,
    bill_in,
    check_token_price,
)
from aigovtool.errors import AIGovToolError, MalformedError, VerificationError
from aigovtool.wire.budget import BudgetView
from aigovtool.wire.codec import decode
from aigovtool.wire.enrolment import TokenPrice
from aigovtool.wire.headers import BUDGET_PATH, RECEIPT, REFUND
from aigovtool.wire.openai.answers import STREAM_TYPE
from aigovtool.wire.receipt import to_header

MAX_ANSWER_BYTES = 64 << 20  # of JSON, which is held whole: the embeddings of 2,048 texts fit
MAX_BUDGET_BYTES = 64 << 10

_OK = 200
_RECEIPT = RECEIPT.lower().encode()
_REFUND = REFUND.lower().encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """
    What an answer cost.

    Args:
        receipts: all of it, in order, verified and kept.
        remaining: credits that this consumer can still use.
        usage: its tokens.
    """

    receipts: tuple[VerifiedReceipt, ...]
    remaining: int
    usage: Usage

    @property
    def cost(self) -> int:
        """Credits charged, less those that were taken back."""
        return sum(each.receipt.cost for each in self.receipts)


class StreamedAnswer:
    """
    An answer as a stream of events: `events` gives those before its bill, as they come.

    The event with the bill, and ``[DONE]`` after it, are `held` until the bill is settled.
    """

    def __init__(self, response: Response) -> None:
        self._response = response
        self.held: list[Event] = []
        self.charged: Charged | None = None
        self._done = False

    async def events(self) -> AsyncIterator[Event]:
        """
        Raises:
            VerificationError: something follows the bill that may have been charged later.
            TooLargeError, MalformedError: it cannot be read.
            ConnectionLostError: it was cut off.
        """
        reader = EventReader()
        async for piece in self._response.chunks():
            for event in reader.feed(piece):
                if event.data and self._is_over(event):
                    self.held.append(event)
                else:
                    yield event

    def _is_over(self, event: Event) -> bool:
        """Say whether *event* is one of the last two."""
        if self._done or (self.charged is not None and event.data != DONE):
            raise VerificationError("the answer goes on after its end", code="receipt.late")
        self._done = event.data == DONE
        if self.charged is None:
            self.charged = bill_in(event.data)
        return self._done or self.charged is not None


class Settler:
    """Settles the answers of one enclave; see the module's rules."""

    def __init__(self, channel: AttestedChannel, store: ReceiptStore) -> None:
        self._channel = channel
        self._store = store
        self._price: TokenPrice | None = None

    async def learn_price(self, authorization: Headers) -> None:
        """Read the token price if it is not known; whoever may not ask is told so elsewhere."""
        if self._price is None:
            with contextlib.suppress(AIGovToolError):
                self._price = await self._read_price(authorization)

    async def begin(self, enclave: VerifiedEnclave, response: Response) -> VerifiedReceipt | None:
        """
        Check and keep the receipts in the header of an answer.

        Returns:
            that of the charge; None for an error answer that was not charged.

        Raises:
            AIGovToolError: as `receipt_of`; an answer must have one.
        """
        return await header_receipts(
            enclave,
            response,
            owed=response.status == _OK,
            channel=self._channel,
            store=self._store,
        )

    async def settle(
        self,
        response: Response,
        charged: Charged | None,
        first: VerifiedReceipt,
        enclave: VerifiedEnclave,
        authorization: Headers,
    ) -> Settled | None:
        """
        Check what an answer was charged, and keep its receipts, whatever they say.

        Args:
            charged: found in the answer, None if it was not.
            first: what `begin` returned.
            enclave: that answered.
            authorization: by which the price can be asked for again.

        Returns:
            None for an error answer that says no more than its header.

        Raises:
            VerificationError: receipts are missing, forged, of no chain, or of another price.
            MalformedError: one is not a receipt.
        """
        if charged is None or charged.aigovtool is None:
            if response.status != _OK:
                return None
            raise VerificationError(
                "the answer ended without the receipts of what it was charged",
                code="receipt.missing",
                mend="nothing shows what it was charged beyond the receipt in its header",
            )
        bill = charged.aigovtool
        receipts = await self._receipts_of(bill, first, enclave)
        check_order(receipts)
        said = [each.receipt for each in receipts]
        if self._price is None:
            self._price = await self._read_price(authorization)
        try:
            check_token_price(said, self._price, bill.usage)
        except VerificationError:
            with contextlib.suppress(AIGovToolError):
                self._price = await self._read_price(authorization)
            check_token_price(said, self._price, bill.usage)
        return Settled(receipts=receipts, remaining=bill.remaining, usage=bill.usage)

    async def _receipts_of(
        self, bill: Bill, first: VerifiedReceipt, enclave: VerifiedEnclave
    ) -> tuple[VerifiedReceipt, ...]:
        own = to_header(first.signed)
        receipts = []
        for header in bill.receipts:
            if header == own:  # checked and kept when it came
                receipts.append(first)
                continue
            verified = await receipt_of(header.encode("latin-1", "replace"), enclave, self._channel)
            keep_or_warn(self._store, verified)
            receipts.append(verified)
        if receipts[0] is not first:
            raise VerificationError(
                "the first receipt of the answer is not the one in its header",
                code="receipt.order",
            )
        return tuple(receipts)

    async def _read_price(self, authorization: Headers) -> TokenPrice:
        def make(_: VerifiedEnclave) -> Request:
            return Request(method=b"GET", target=BUDGET_PATH.encode("ascii"), headers=authorization)

        async with self._channel.exchange(make) as (_, response):
            body = await response.read(max_bytes=MAX_BUDGET_BYTES)
        price = decode(body, BudgetView).token_price if response.status == _OK else None
        if price is None or price.input < 1 or price.output < 1:
            raise VerificationError(
                "what the answer should have cost cannot be told",
                code="receipt.price",
                expected=f"a token price in GET {BUDGET_PATH}",
                came=f"status {response.status}",
            )
        return price


async def header_receipts(
    enclave: VerifiedEnclave,
    response: Response,
    *,
    owed: bool,
    channel: AttestedChannel,
    store: ReceiptStore,
) -> VerifiedReceipt | None:
    """
    Check and keep the receipts in an answer's header: of the charge, and what took it back.

    Args:
        owed: whether there must be one.

    Returns:
        that of the charge.
    """
    charge = None
    for name in (_RECEIPT, _REFUND):
        value = response.header(name)
        if value is None and not (owed and name == _RECEIPT):
            continue
        verified = await receipt_of(value, enclave, channel)
        keep_or_warn(store, verified)  # whatever it says: it is the proof of it
        if name == _RECEIPT:
            charge = verified
    return charge


def is_stream(response: Response) -> bool:
    """Say whether an answer comes as server-sent events."""
    kind = response.header(b"content-type") or b""
    return kind.partition(b";")[0].strip().lower() == STREAM_TYPE.encode()


async def whole_answer(response: Response) -> bytes:
    """Return an answer in JSON; raises as `Response.read`, and MalformedError if it is packed."""
    if (coding := response.header(b"content-encoding") or b"identity") != b"identity":
        raise MalformedError(
            "the answer is compressed, and nobody asked for that", came=ascii(coding[:20])
        )
    return await response.read(max_bytes=MAX_ANSWER_BYTES)
