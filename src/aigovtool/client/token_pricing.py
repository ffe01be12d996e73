"""
What an answer of a language model was charged, by its own words, and whether that adds up.

Rule 1: the JSON of an answer, or the last event of a streamed one, has the member ``aigovtool``
        with every receipt of the answer, in the order in which they were drawn up. The first is
        that of its header, which was signed before anything was computed.
Rule 2: they cost what the loan's token price asks for the tokens in its ``usage``, which a stream
        tells there whether or not it was asked for it. What a refund took back may be missing
        from that, and nothing may be added to it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import msgspec

from aigovtool.errors import MalformedError, VerificationError
from aigovtool.wire.enrolment import TokenPrice
from aigovtool.wire.receipt import Receipt

MAX_RECEIPTS = 4096  # of one answer: it has one for each lease that it outlived

_PATH = re.compile(r"/v1/(chat/completions|completions|embeddings)/?\Z")
_MEMBER = b'"aigovtool"'  # in no text of a model: its quotation marks are escaped there

_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens of an answer, as OpenAI names them; embeddings have no output."""

    prompt_tokens: _Count
    completion_tokens: _Count = 0


class Bill(msgspec.Struct, frozen=True, kw_only=True):
    """
    The member ``aigovtool``.

    Args:
        receipts: each as the header ``Aigovtool-Receipt`` has it.
        remaining: credits that the consumer can still use.
        usage: the tokens of the answer.
    """

    receipts: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=MAX_RECEIPTS)]
    remaining: _Count
    usage: Usage


class Charged(msgspec.Struct, frozen=True, kw_only=True):
    """The end of an answer; what else is in it is not looked at."""

    aigovtool: Bill | None = None


def is_token_query(method: str, path: str) -> bool:
    """Say whether a request asks for an answer that is paid by its tokens."""
    return method == "POST" and _PATH.match(path) is not None


def bill_in(data: bytes) -> Charged | None:
    """Return the bill in an answer or event, None if it has none; raises MalformedError."""
    if _MEMBER not in data:
        return None
    try:
        charged = msgspec.json.decode(data, type=Charged)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise MalformedError(
            "what the answer was charged cannot be read",
            code="receipt.unreadable",
            expected="a member `aigovtool` with receipts, usage and what remains",
        ) from None
    return charged if charged.aigovtool is not None else None


def check_token_price(receipts: Sequence[Receipt], price: TokenPrice, usage: Usage) -> None:
    """
    Raise VerificationError unless *receipts* charge what *price* asks (Rule 2).

    Args:
        receipts: all of one answer, that of its input first.
    """
    cost = sum(receipt.cost for receipt in receipts)
    asked = price.cost(input=usage.prompt_tokens, output=usage.completion_tokens)
    refunded = any(receipt.refund is not None for receipt in receipts)
    if cost != asked and not (refunded and 0 <= cost < asked):
        raise _other_price(
            f"{asked} credits for {usage.prompt_tokens} tokens of input at {price.input} and "
            f"{usage.completion_tokens} of output at {price.output}",
            cost,
        )


def _other_price(expected: str, cost: int) -> VerificationError:
    return VerificationError(
        "the answer was charged another price than its tokens have",
        code="receipt.price",
        expected=expected,
        came=str(cost),
    )
