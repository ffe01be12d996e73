"""
Errors in OpenAI's shape, for programs that know no other.

    {"error": {"message": …, "type": …, "param": …, "code": …}}

`code` is the dotted code of the error's first reason, and by it, or else by the status, a client
raises what the server raised.
"""

from __future__ import annotations

import msgspec

from aigovtool.errors import (
    AIGovToolError,
    BadPromptError,
    BlockedError,
    BudgetExhaustedError,
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
from aigovtool.wire.problem import problem_of

_TYPES: tuple[tuple[type[AIGovToolError], str], ...] = (
    (UnauthenticatedError, "authentication_error"),
    (BlockedError, "permission_error"),
    (BudgetExhaustedError, "insufficient_quota"),
    (LimitedError, "rate_limit_error"),
    (VerificationError, "server_error"),
    (UnavailableError, "server_error"),
    (RefusedError, "invalid_request_error"),
    (MalformedError, "invalid_request_error"),
)
_BY_CODE: dict[str, type[AIGovToolError]] = {
    kind.code: kind
    for kind in (
        BlockedError, BudgetExhaustedError, LimitedError, LoanNotActiveError, MoreDeniedError,
        NotFoundError, TooLargeError, UnauthenticatedError,
    )
}  # fmt: skip
_BY_STATUS: dict[int, type[AIGovToolError]] = {
    400: BadPromptError,
    401: UnauthenticatedError,
    403: BlockedError,
    404: NotFoundError,
    413: TooLargeError,
    422: BadPromptError,
    429: BudgetExhaustedError,
}


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    message: str
    type: str | None = None
    param: str | None = None
    code: str | None = None


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    error: _Told


def encode_error(error: AIGovToolError) -> tuple[int, bytes]:
    """Return the status and the body of an error answer."""
    told = _Told(
        message=str(error),
        type=next((name for kind, name in _TYPES if isinstance(error, kind)), "server_error"),
        param=error.param if isinstance(error, BadPromptError) else None,
        code=error.reasons[0].code,
    )
    return problem_of(error).status, msgspec.json.encode(_Answer(error=told))


def error_of(status: int, body: bytes, *, retry_after_s: float | None = None) -> AIGovToolError:
    """
    Turn an error answer, or the error event of a stream, back into an exception; raises none.

    Args:
        status: of the answer; that of a stream was 200.
    """
    try:
        told = msgspec.json.decode(body, type=_Answer).error
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return UnavailableError(f"the server answered {status} without saying why")
    kind = _BY_CODE.get(told.code or "") or _BY_STATUS.get(status, UnavailableError)
    error = kind(Reason(code=told.code or kind.code, message=told.message))
    if isinstance(error, BudgetExhaustedError | UnavailableError) and retry_after_s is not None:
        error.retry_after_s = retry_after_s
    return error
