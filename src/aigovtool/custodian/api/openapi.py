"""``/openapi.json`` out of the route table: what is served is what is described."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from aigovtool import __version__
from aigovtool.wire.problem import CONTENT_TYPE, Problem

_PARAMETER = re.compile(r"\{(\w+)\}")
_REF = "#/components/schemas/{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """
    One route.

    Args:
        body: the type of its JSON body, None for none.
        answer: the type of its JSON answer, None for a stream of events.
        query: its query parameters.
        form: fields of a form body, for the routes of the first AIGovTool.
        borrower: whether a borrower may call it, for its own loan.
    """

    method: str
    path: str
    summary: str
    endpoint: Callable[[Request], Awaitable[Response]]
    answer: Any
    body: Any = None
    query: tuple[str, ...] = ()
    form: tuple[str, ...] = ()
    borrower: bool = False


def describe(operations: Sequence[Operation]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of *operations*."""
    types = [
        kind
        for operation in operations
        for kind in (operation.body, operation.answer)
        if kind is not None
    ]
    schemas, components = msgspec.json.schema_components([*types, Problem], ref_template=_REF)
    of_type = dict(zip([*map(repr, types), repr(Problem)], schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _describe(
            operation, of_type
        )
    return {
        "openapi": "3.1.0",
        "info": {"title": "AIGovTool custodian", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic"},
            },
        },
        "security": [{"bearer": []}, {"basic": []}],
    }


def _describe(operation: Operation, of_type: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": operation.endpoint.__name__,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in _PARAMETER.findall(operation.path)
        ]
        + [
            {"name": name, "in": "query", "required": False, "schema": {"type": "string"}}
            for name in operation.query
        ],
        "responses": {
            "200": {"description": "done", "content": _content(operation, of_type)},
            "default": {
                "description": "a problem (RFC 9457)",
                "content": {CONTENT_TYPE: {"schema": of_type[repr(Problem)]}},
            },
        },
    }
    if operation.borrower:
        described["description"] = "A borrower's token opens it too, for its own loan."
    if operation.body is not None:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": of_type[repr(operation.body)]}},
        }
    if operation.form:
        properties = {name: {"type": "string"} for name in operation.form}
        described["requestBody"] = {
            "required": True,
            "content": {
                "application/x-www-form-urlencoded": {
                    "schema": {"type": "object", "properties": properties}
                }
            },
        }
    return described


def _content(operation: Operation, of_type: dict[str, Any]) -> dict[str, Any]:
    if operation.answer is None:
        return {"text/event-stream": {}}
    return {"application/json": {"schema": of_type[repr(operation.answer)]}}
