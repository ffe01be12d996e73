"""
What both doors share: bounded bodies, bearer tokens, errors as problem details.

Internals stop here: what is not one of our errors becomes a 500 that says nothing, and a line in
the log that says what.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from aigovtool.errors import (
    AIGovToolError,
    MalformedError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
)
from aigovtool.telemetry.logs import event
from aigovtool.wire.problem import CONTENT_TYPE, INTERNAL, Problem, headers_of, problem_of

BODY_TIMEOUT_S = 30.0
MAX_DIGITS = 20

_log = logging.getLogger(__name__)
T = TypeVar("T")


async def off_loop(executor: Executor, call: Callable[[], T]) -> T:
    """Run *call*, which waits for a disk or computes, away from the event loop."""
    return await asyncio.get_running_loop().run_in_executor(executor, call)


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """
    Return the body.

    Raises:
        TooLargeError: longer than *limit_bytes*; no more was read.
        UnavailableError: it did not come within `BODY_TIMEOUT_S`.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for piece in request.stream():
                body += piece
                if len(body) > limit_bytes:
                    raise TooLargeError("body too large", expected=f"at most {limit_bytes} bytes")
    except TimeoutError:
        raise UnavailableError("the body did not come in time") from None
    return bytes(body)


def bearer_of(connection: HTTPConnection) -> str:
    """Return the bearer token of a request; raises UnauthenticatedError without one."""
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise UnauthenticatedError("no token", mend="send Authorization: Bearer TOKEN")
    return token.strip()


def tokens_of(connection: HTTPConnection) -> tuple[str, ...]:
    """
    Return what a request offers as a token: the bearer token, or user and password of basic auth.

    Raises:
        UnauthenticatedError: it offers nothing that can be read.
    """
    scheme, _, value = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            raise UnauthenticatedError("basic authentication that cannot be read") from None
        return password, user
    return (bearer_of(connection),)


def json_response(value: Any, status: int = 200) -> Response:
    """Answer with JSON."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def problem_response(error: AIGovToolError) -> Response:
    """Answer with what *error* says to a client."""
    problem = problem_of(error)
    if problem.status >= 500 and not isinstance(error, UnavailableError):
        _log.error("a fault of our own", exc_info=error, extra=event("fault"))
    return _respond(problem, headers_of(error))


def make_app(routes: list[BaseRoute]) -> Starlette:
    """Return an application whose every error is a problem document."""
    return Starlette(
        routes=routes,
        exception_handlers={
            AIGovToolError: _on_error,
            HTTPException: _on_http,
            Exception: _on_bug,
        },
    )


async def _on_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, AIGovToolError)
    return problem_response(error)


async def _on_http(_: Request, error: Exception) -> Response:
    """What the routing itself refuses: no such path, or another method."""
    assert isinstance(error, HTTPException)
    kind = {404: "not_found"}.get(error.status_code, "refused")
    problem = Problem(
        status=error.status_code,
        title=error.detail,
        detail=error.detail,
        error=error.detail,
        kind=kind,
    )
    return _respond(problem, dict(error.headers or {}))


async def _on_bug(_: Request, error: Exception) -> Response:
    _log.error("a fault of our own", exc_info=error, extra=event("fault"))
    return _respond(INTERNAL, {})


def _respond(problem: Problem, headers: dict[str, str]) -> Response:
    body = msgspec.json.encode(problem)
    return Response(body, problem.status, headers=headers, media_type=CONTENT_TYPE)


def positive(text: str, what: str, *, default: int, most: int) -> int:
    """Read a number of a query string; raises MalformedError out of 1 to *most*."""
    if not text:
        return default
    # the length first: int() refuses thousands of digits with an error of its own
    number = text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS
    if not number or not 1 <= int(text) <= most:
        raise MalformedError(f"{what} is not a number of 1 to {most}", came=ascii(text[:20]))
    return int(text)
