"""
RFC 9457 problem details, with the member ``error`` that Open Inference Protocol clients print.

One table says which HTTP status each class of error has. Internals stop here: what is not in the
table is a 500 that says nothing.
"""

from __future__ import annotations

import math

import msgspec

from aigovtool.errors import (
    AIGovToolError,
    AppraisalError,
    BadPromptError,
    BadTensorError,
    BlockedError,
    BudgetExhaustedError,
    ConflictError,
    KeyReusedError,
    LimitedError,
    LoanNotActiveError,
    MalformedError,
    MoreDeniedError,
    NotFoundError,
    Reason,
    RefusedError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
    VerificationError,
)
from aigovtool.wire.codec import decode
from aigovtool.wire.headers import PLACE

CONTENT_TYPE = "application/problem+json"
MAX_PROBLEM_BYTES = 64 << 10

# The most derived class first: the first match decides.
_STATUS: tuple[tuple[type[AIGovToolError], int, str], ...] = (
    (TooLargeError, 413, "Too large"),
    (MalformedError, 400, "Malformed"),
    (VerificationError, 403, "Not genuine"),
    (UnauthenticatedError, 401, "Not authenticated"),
    (BlockedError, 403, "Blocked"),
    (NotFoundError, 404, "Not found"),
    (BadTensorError, 422, "Bad tensor"),
    (BadPromptError, 400, "Bad request to a language model"),
    (KeyReusedError, 422, "Idempotency-Key reused"),
    (MoreDeniedError, 429, "More denied"),
    (BudgetExhaustedError, 429, "Budget used up"),
    (AppraisalError, 403, "Not accepted by the appraisal policy"),
    (RefusedError, 403, "Refused"),
    (LimitedError, 429, "Limit reached"),
    (LoanNotActiveError, 503, "Loan not active"),
    (UnavailableError, 503, "Unavailable"),
    (ConflictError, 409, "Conflict"),
)
_CLASS_OF_CODE: dict[str, type[AIGovToolError]] = {kind.code: kind for kind, _, _ in _STATUS}


class ProblemReason(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One reason, as `aigovtool.errors.Reason`."""

    code: str
    message: str
    expected: str | None = None
    came: str | None = None
    mend: str | None = None


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    The body of every error answer. Unknown members are ignored, as RFC 9457 section 3.2 asks.

    `kind` is the class of the error by its code, so that a client raises what the server raised.
    """

    status: int
    title: str
    detail: str
    error: str
    kind: str
    type: str = "about:blank"
    reasons: tuple[ProblemReason, ...] = ()


def problem_of(error: AIGovToolError) -> Problem:
    """Describe *error* to a client; anything that is our own fault becomes a bare 500."""
    for kind, status, title in _STATUS:
        if isinstance(error, kind):
            return Problem(
                status=status,
                title=title,
                detail=str(error),
                error=str(error),
                kind=kind.code,
                reasons=tuple(
                    ProblemReason(
                        code=reason.code,
                        message=reason.message,
                        expected=reason.expected,
                        came=reason.came,
                        mend=reason.mend,
                    )
                    for reason in error.reasons
                ),
            )
    return INTERNAL


INTERNAL = Problem(
    status=500,
    title="Internal error",
    detail="the server failed; its log says why",
    error="the server failed; its log says why",
    kind="internal",
)


def headers_of(error: AIGovToolError) -> dict[str, str]:
    """Return the extra headers of an error answer: Retry-After in whole seconds, and the like."""
    if isinstance(error, BudgetExhaustedError | UnavailableError):
        headers = {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
        if isinstance(error, BudgetExhaustedError) and error.place is not None:
            headers[PLACE] = f"{error.place[0]};of={error.place[1]}"
        return headers
    if isinstance(error, UnauthenticatedError):
        return {"WWW-Authenticate": "Bearer"}
    return {}


def error_of(status: int, body: bytes, *, retry_after_s: float | None = None) -> AIGovToolError:
    """Turn an error answer back into the exception that the server raised; never raises itself."""
    try:
        problem = decode(body, Problem, max_bytes=MAX_PROBLEM_BYTES)
    except MalformedError:
        return UnavailableError(f"the server answered {status} without saying why")
    kind = _CLASS_OF_CODE.get(problem.kind, UnavailableError)
    first = problem.reasons[0].message if problem.reasons else problem.detail
    if issubclass(kind, BudgetExhaustedError | UnavailableError):
        error: AIGovToolError = kind(first)
        if retry_after_s is not None and isinstance(error, BudgetExhaustedError | UnavailableError):
            error.retry_after_s = retry_after_s
    else:
        error = kind(first)
    if problem.reasons:
        error.reasons = tuple(_reason(reason) for reason in problem.reasons)
    return error


def _reason(reason: ProblemReason) -> Reason:
    return Reason(
        code=reason.code,
        message=reason.message,
        expected=reason.expected,
        came=reason.came,
        mend=reason.mend,
    )
