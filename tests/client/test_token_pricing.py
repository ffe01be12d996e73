"""What an answer says that it was charged, against the token price."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigovtool.client.token_pricing import Usage, bill_in, check_token_price, is_token_query
from aigovtool.errors import MalformedError, VerificationError
from aigovtool.ids import ConsumerId, LeaseId, LoanId, SessionId
from aigovtool.wire.enrolment import TokenPrice
from aigovtool.wire.receipt import Receipt, Refund


def receipt(cost: int) -> Receipt:
    return Receipt(
        loan=LoanId("loan"), session=SessionId("sess"), lease=LeaseId("lease"),
        consumer=ConsumerId("cons"), model_digest=bytes(32), number=2, previous=bytes(32),
        own_number=2, own_previous=bytes(32), cost=cost, balance_before=1000,
        balance_after=1000 - cost, time=datetime.now(UTC),
        refund=Refund(kind="stopped", number=1) if cost < 0 else None,
    )  # fmt: skip


@given(
    st.integers(1, 1000), st.lists(st.integers(1, 50), max_size=5), st.integers(1, 9),
    st.integers(1, 9), st.integers(-30, 30),
)  # fmt: skip
def test_only_what_the_tokens_cost(
    prompt: int, outputs: list[int], a: int, b: int, more: int
) -> None:
    price = TokenPrice(input=a, output=b)
    receipts = [receipt(prompt * a), *(receipt(count * b) for count in outputs)]
    usage = Usage(prompt_tokens=prompt, completion_tokens=sum(outputs))
    check_token_price(receipts, price, usage)
    if more > 0:
        with pytest.raises(VerificationError):
            check_token_price([*receipts, receipt(more)], price, usage)
    if more < 0:  # taken back
        if prompt * a + sum(outputs) * b + more >= 0:
            check_token_price([*receipts, receipt(more)], price, usage)
        fewer = Usage(prompt_tokens=prompt + 1, completion_tokens=sum(outputs))
        with pytest.raises(VerificationError):
            check_token_price(receipts, price, fewer)


@pytest.mark.parametrize(
    ("path", "is_one"),
    [
        ("/v1/chat/completions", True),
        ("/v1/completions/", True),
        ("/v1/embeddings", True),
        ("/v1/models", False),
        ("/v1/chat/completions/1", False),
        ("/v2/v1/embeddings", False),
    ],
)
def test_which_requests_are_paid_by_tokens(path: str, is_one: bool) -> None:
    assert is_token_query("POST", path) is is_one
    assert not is_token_query("GET", path)


def test_a_text_of_the_model_is_no_bill() -> None:
    """A model that says a bill in its text does not make one."""
    said = '"aigovtool": {"receipts": ["x"], "remaining": 5}, {"aigovtool":1}'
    assert bill_in(msgspec.json.encode({"choices": [{"delta": {"content": said}}]})) is None


def test_a_bill() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    bill = {"receipts": ["x"], "remaining": 5, "usage": usage}
    found = bill_in(msgspec.json.encode({"aigovtool": bill, "usage": None, "choices": []}))
    assert found is not None
    assert found.aigovtool is not None
    assert (found.aigovtool.receipts, found.aigovtool.remaining) == (("x",), 5)
    assert found.aigovtool.usage == Usage(prompt_tokens=3, completion_tokens=4)


@pytest.mark.parametrize(
    "bill",
    [
        1,
        [],
        {"receipts": []},
        {"receipts": ["x"]},
        {"receipts": ["x"], "remaining": 1},
        {"receipts": ["x"], "remaining": -1, "usage": {"prompt_tokens": 1}},
        {"receipts": [1], "remaining": 1, "usage": {"prompt_tokens": 1}},
        {"receipts": ["x"] * 5000, "remaining": 1, "usage": {"prompt_tokens": 1}},
        {"receipts": ["x"], "remaining": 1, "usage": {"prompt_tokens": -1}},
    ],
)
def test_what_cannot_be_read(bill: Any) -> None:
    with pytest.raises(MalformedError):
        bill_in(msgspec.json.encode({"aigovtool": bill}))


@given(st.binary())
def test_nothing_else_leaves_the_reader(data: bytes) -> None:
    for told in (data, data + b'"aigovtool"', b'{"aigovtool":' + data + b"}"):
        found = None
        with suppress(MalformedError):
            found = bill_in(told)
        assert found is None or found.aigovtool is not None
