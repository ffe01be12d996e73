"""
Errors in the shape of OpenAI, which its clients read: ``{"error": {message, type, param, code}}``.

Their statuses and extra headers are those of `wire.problem`; the code is the one of our own reason,
but where OpenAI's clients look for another.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from aigovtool.errors import (
    AIGovToolError,
    BadPromptError,
    BudgetExhaustedError,
    ConflictError,
    LimitedError,
    MalformedError,
    MoreDeniedError,
    NotFoundError,
    Reason,
    RefusedError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
)
from aigovtool.wire.codec import decode
from aigovtool.wire.problem import MAX_PROBLEM_BYTES, problem_of

_INVALID: Final = "invalid_request_error"
_SERVER: Final = "server_error"
_PERMISSION: Final = "permission_error"
_PERMISSION_STATUS: Final = 403

# The most derived class first: the first match decides, and an error that is read becomes the
# first class of its type.
_TYPES: Final[tuple[tuple[type[AIGovToolError], str], ...]] = (
    (UnauthenticatedError, "authentication_error"),
    (BudgetExhaustedError, "insufficient_quota"),
    (LimitedError, "rate_limit_error"),
    (UnavailableError, "service_unavailable"),
)
_CLASS_OF_TYPE: Final = {name: kind for kind, name in _TYPES} | {_PERMISSION: RefusedError}
_CLASS_OF_STATUS: Final[dict[int, type[AIGovToolError]]] = {
    404: NotFoundError,
    409: ConflictError,
    413: TooLargeError,
}
_MODEL_CODE: Final = "model_not_found"


class _Described(msgspec.Struct, frozen=True, kw_only=True):
    message: str
    type: str | None = None
    param: str | None = None
    code: str | None = None


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    error: _Described


def describe(error: AIGovToolError) -> dict[str, Any]:
    """Return the member ``error``; anything that is our own fault says nothing of itself."""
    problem = problem_of(error)
    if problem.status >= 500 and not isinstance(error, UnavailableError):
        return {"message": problem.detail, "type": _SERVER, "param": None, "code": problem.kind}
    code = error.reasons[0].code
    param = error.param if isinstance(error, BadPromptError) else None
    if isinstance(error, UnauthenticatedError):
        code = "invalid_api_key"
    elif code == _MODEL_CODE:
        param = "model"
    return {
        "message": problem.detail,
        "type": _type_of(error, problem.status),
        "param": param,
        "code": code,
    }


def encode_error(error: AIGovToolError) -> tuple[int, bytes]:
    """Return the status and the body of an error answer."""
    return problem_of(error).status, msgspec.json.encode({"error": describe(error)})


def error_of(status: int, body: bytes, *, retry_after_s: float | None = None) -> AIGovToolError:
    """
    Turn an error answer, or the error event of a stream, back into an exception; raises none.

    Args:
        status: of the answer; that of a stream was 200.
    """
    try:
        error = decode(body, _Body, max_bytes=MAX_PROBLEM_BYTES).error
    except MalformedError:
        return UnavailableError(f"the server answered {status} without saying why")
    kind = _CLASS_OF_TYPE.get(error.type or "")
    if kind is None and error.type == _INVALID:
        kind = _CLASS_OF_STATUS.get(status, BadPromptError)
    if kind is BudgetExhaustedError and error.code == MoreDeniedError.code:
        kind = MoreDeniedError
    return _made(kind or UnavailableError, error, retry_after_s)


def _type_of(error: AIGovToolError, status: int) -> str:
    for kind, name in _TYPES:
        if isinstance(error, kind):
            return name
    return _PERMISSION if status == _PERMISSION_STATUS else _INVALID


def _made(
    kind: type[AIGovToolError], error: _Described, retry_after_s: float | None
) -> AIGovToolError:
    made = kind(Reason(code=error.code or kind.code, message=error.message))
    if isinstance(made, BadPromptError):
        made.param = error.param
    if retry_after_s is not None and isinstance(made, BudgetExhaustedError | UnavailableError):
        made.retry_after_s = retry_after_s
    return made
