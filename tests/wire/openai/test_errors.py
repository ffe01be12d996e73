"""Errors in OpenAI's shape: each has its status, says what would mend it, and can be read again."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigovtool.errors import (
    AIGovToolError,
    BadPromptError,
    BlockedError,
    BudgetExhaustedError,
    ConfigurationError,
    ConflictError,
    KeyReusedError,
    LimitedError,
    LoanNotActiveError,
    MalformedError,
    MoreDeniedError,
    NotFoundError,
    PromiseBrokenError,
    RefusedError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
    VerificationError,
)
from aigovtool.wire.openai.errors import encode_error, error_of

CASES = [
    (MalformedError("a"), 400, "invalid_request_error", None, "malformed", BadPromptError),
    (TooLargeError("a"), 413, "invalid_request_error", None, "too_large", TooLargeError),
    (
        BadPromptError("a", code="unsupported_value", param="n"),
        *(400, "invalid_request_error", "n", "unsupported_value", BadPromptError),
    ),
    (
        UnauthenticatedError("a"),
        *(401, "authentication_error", None, "invalid_api_key", UnauthenticatedError),
    ),
    (BlockedError("a"), 403, "permission_error", None, "blocked", RefusedError),
    (RefusedError("a", code="x.y"), 403, "permission_error", None, "x.y", RefusedError),
    (VerificationError("a"), 403, "permission_error", None, "untrue", RefusedError),
    (
        NotFoundError("a", code="model_not_found"),
        *(404, "invalid_request_error", "model", "model_not_found", NotFoundError),
    ),
    (KeyReusedError("a"), 422, "invalid_request_error", None, "idempotency.other", BadPromptError),
    (ConflictError("a"), 409, "invalid_request_error", None, "conflict", ConflictError),
    (
        BudgetExhaustedError("a"),
        *(429, "insufficient_quota", None, "budget.exhausted", BudgetExhaustedError),
    ),
    (MoreDeniedError("a"), 429, "insufficient_quota", None, "budget.denied", MoreDeniedError),
    (
        LimitedError("a", code="limit.rate"),
        *(429, "rate_limit_error", None, "limit.rate", LimitedError),
    ),
    (
        LoanNotActiveError("a"),
        *(503, "service_unavailable", None, "loan.not_active", UnavailableError),
    ),
    (UnavailableError("a"), 503, "service_unavailable", None, "unavailable", UnavailableError),
]


@pytest.mark.parametrize(("error", "status", "kind", "param", "code", "read"), CASES)
def test_each_error_has_its_place(
    error: AIGovToolError,
    status: int,
    kind: str,
    param: str | None,
    code: str,
    read: type[AIGovToolError],
) -> None:
    told, body = encode_error(error)
    assert told == status
    assert json.loads(body) == {
        "error": {"message": "a", "type": kind, "param": param, "code": code}
    }
    again = error_of(status, body)
    assert type(again) is read
    assert (str(again), again.reasons[0].code) == ("a", code)
    if isinstance(again, BadPromptError):
        assert again.param == param


def test_a_message_says_what_would_mend_it() -> None:
    _, body = encode_error(BudgetExhaustedError("no credit is left", mend="ask for more"))
    assert json.loads(body)["error"]["message"] == "no credit is left; to mend: ask for more"


@pytest.mark.parametrize("error", [PromiseBrokenError("inner"), ConfigurationError("inner")])
def test_our_own_fault_says_nothing_of_itself(error: AIGovToolError) -> None:
    status, body = encode_error(error)
    assert (status, json.loads(body)["error"]["type"]) == (500, "server_error")
    assert b"inner" not in body
    assert isinstance(error_of(status, body), UnavailableError)


def test_what_is_waited_for_is_kept() -> None:
    _, body = encode_error(BudgetExhaustedError("a"))
    again = error_of(429, body, retry_after_s=30)
    assert isinstance(again, BudgetExhaustedError)
    assert again.retry_after_s == 30


@given(status=st.integers(200, 599), body=st.binary() | st.text().map(lambda t: t.encode()))
def test_any_answer_is_some_error(status: int, body: bytes) -> None:
    assert isinstance(error_of(status, body), AIGovToolError)
    told = json.dumps({"error": {"message": "a", "type": body.hex()}}).encode()
    assert isinstance(error_of(status, told), UnavailableError)
