"""Claims of any kind, as JSON and as rows for people: their own field names, bytes in hex."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import Enum


def jsonable(value: object) -> object:
    """Return *value* as JSON can hold it; an enum by its value, a time in RFC 3339."""
    if is_dataclass(value):
        return {field.name: jsonable(getattr(value, field.name)) for field in fields(value)}
    match value:
        case bytes():
            return value.hex()
        case Enum():
            return jsonable(value.value)
        case datetime():
            return value.isoformat()
        case Mapping():
            return {str(jsonable(key)): jsonable(item) for key, item in value.items()}
        case tuple() | list() | set() | frozenset():
            return [jsonable(item) for item in value]
        case None | bool() | int() | str():
            return value
    return str(value)


def claims_as_rows(claims: object) -> Iterator[tuple[str, str]]:
    """Yield a dotted name and a text for each claim, in the order of the classes."""
    yield from _rows("", jsonable(claims))


def _rows(prefix: str, value: object) -> Iterator[tuple[str, str]]:
    match value:
        case dict():
            for name, item in value.items():
                yield from _rows(f"{prefix}.{name}" if prefix else name, item)
        case list() if any(isinstance(item, dict | list) for item in value):
            for position, item in enumerate(value):
                yield from _rows(f"{prefix}[{position}]", item)
        case list():
            yield prefix, ", ".join(map(str, value)) or "none"
        case None:
            yield prefix, "not said"
        case bool():
            yield prefix, "yes" if value else "no"
        case _:
            yield prefix, str(value)
