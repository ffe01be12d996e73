"""
Reading a request's JSON, member by member.

Rule 1: what is not understood is refused, by its name; a member that is null is one left out.
Rule 2: a request is bounded in bytes, depth and values; a name twice in one object, a number that
        is no number, and text that is no Unicode are refused, so that all readers read the same.
Rule 3: a refusal names the parameter and what it may be, never what came in its place: that is the
        consumer's data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, NoReturn

from aigovtool.errors import BadPromptError, MalformedError, TooLargeError

MAX_BODY_BYTES: Final = 4 << 20  # some million tokens of text
MAX_DEPTH: Final = 64  # of arrays and objects in each other; schemas of tools are the deepest
MAX_VALUES: Final = 1 << 18  # a prompt of 131,072 tokens as numbers, and room
MAX_NAME_CHARACTERS: Final = 256
_INTEGER_LIMIT: Final = 1 << 63


def read_object(data: bytes, *, max_bytes: int = MAX_BODY_BYTES) -> Fields:
    """
    Read the JSON object of a request.

    Raises:
        TooLargeError: longer than *max_bytes*, or more values than `MAX_VALUES`.
        MalformedError: not JSON as rule 2 has it.
        BadPromptError: not an object.
    """
    if len(data) > max_bytes:
        raise TooLargeError(
            "request too large", expected=f"at most {max_bytes} bytes", came=f"{len(data)} bytes"
        )
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_without_twins, parse_constant=_no_number
        )
    except (ValueError, RecursionError):  # of UTF-8, of JSON, and of integers with 4,300 digits
        raise MalformedError("not valid JSON", mend="send one object, in UTF-8") from None
    _check_values(value)
    return Fields(value, "")


class Fields:
    """
    The members of one object, each taken once; `end` refuses those that nobody took.

    Args:
        value: that should be an object.
        where: its own name, as in ``messages[0]``; empty for the request itself.

    Raises:
        BadPromptError: not an object; and by each method, when the member is not as it should be.
    """

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise wrong_type(where or None, "an object")
        self._members = {name: each for name, each in value.items() if each is not None}
        self._where = where

    def param(self, name: str) -> str:
        """Return how a refusal calls the member."""
        return f"{self._where}.{name}" if self._where else name

    def take(self, name: str) -> Any:
        """Return the member whatever it is; None when it is left out."""
        return self._members.pop(name, None)

    def need(self, name: str) -> Any:
        """Return the member whatever it is."""
        if (value := self.take(name)) is None:
            raise BadPromptError(
                f"missing required parameter: '{self.param(name)}'",
                code="missing_required_parameter",
                param=self.param(name),
            )
        return value

    def text(self, name: str, *, max_characters: int = MAX_BODY_BYTES) -> str | None:
        if (value := self.take(name)) is not None:
            check_text(value, self.param(name), max_characters=max_characters)
        return value  # type: ignore[no-any-return] # it was checked

    def need_text(self, name: str, *, max_characters: int = MAX_BODY_BYTES) -> str:
        value: str = self.need(name)
        check_text(value, self.param(name), min_characters=1, max_characters=max_characters)
        return value

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return the member, *default* when it is left out."""
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise wrong_type(self.param(name), "true or false")
        return value

    def integer(self, name: str, low: int, high: int) -> int | None:
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type(self.param(name), "an integer")
        if not low <= value <= high:
            raise wrong_value(self.param(name), f"{low} to {high}")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        if (value := self.take(name)) is not None:
            check_number(value, self.param(name), low, high)
        return value  # type: ignore[no-any-return] # it was checked

    def items(self, name: str, *, most: int) -> list[Any]:
        """Return the members of a list that is not empty; none when it is left out."""
        value = self.take(name)
        if value is None:
            return []
        check_list(value, self.param(name), most=most)
        return list(value)

    def objects(self, name: str, *, most: int) -> Iterator[Fields]:
        """Yield the objects of a list that is not empty; none when it is left out."""
        for number, each in enumerate(self.items(name, most=most)):
            yield Fields(each, f"{self.param(name)}[{number}]")

    def object(self, name: str) -> Fields:
        return Fields(self.need(name), self.param(name))

    def choice(self, name: str, allowed: Sequence[str]) -> str:
        value = self.need(name)
        if not isinstance(value, str):
            raise wrong_type(self.param(name), "a string")
        if value not in allowed:
            raise wrong_value(self.param(name), "one of " + ", ".join(allowed))
        return value

    def ignore(self, *names: str) -> None:
        """Take what means nothing here."""
        for name in names:
            self.take(name)

    def only(self, name: str, *neutral: Any) -> None:
        """Refuse the member unless it says what is done anyway."""
        value = self.take(name)
        if value is not None and not any(_same(value, each) for each in neutral):
            said = " or ".join(json.dumps(each) for each in neutral)
            raise unsupported(self.param(name), f"left out, or {said}" if said else "left out")

    def end(self) -> None:
        """Refuse what nobody took."""
        for name in self._members:
            shown = self.param(ascii(name[:64])[1:-1])
            raise BadPromptError(
                f"Unrecognized request argument supplied: {shown}",
                code="unknown_parameter",
                param=shown,
            )


def check_text(
    value: Any, param: str, *, min_characters: int = 0, max_characters: int = MAX_BODY_BYTES
) -> None:
    if not isinstance(value, str):
        raise wrong_type(param, "a string")
    if not min_characters <= len(value) <= max_characters:
        raise wrong_value(param, f"{min_characters} to {max_characters} characters")


def check_number(value: Any, param: str, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type(param, "a number")
    if not low <= value <= high:
        raise wrong_value(param, f"{low} to {high}")


def check_list(value: Any, param: str, *, most: int) -> None:
    if not isinstance(value, list):
        raise wrong_type(param, "an array")
    if not 1 <= len(value) <= most:
        raise wrong_value(param, f"1 to {most} items")


def wrong_type(param: str | None, expected: str) -> BadPromptError:
    return BadPromptError(
        f"invalid type for '{param or 'request'}'",
        code="invalid_type",
        expected=expected,
        param=param,
    )


def wrong_value(param: str, expected: str) -> BadPromptError:
    return BadPromptError(
        f"invalid value for '{param}'", code="invalid_value", expected=expected, param=param
    )


def unsupported(param: str, expected: str) -> BadPromptError:
    return BadPromptError(
        f"unsupported value for '{param}'",
        code="unsupported_value",
        expected=expected,
        param=param,
    )


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)  # 1 is not true


def _without_twins(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) != len(members):
        raise ValueError
    return found


def _no_number(_: str) -> NoReturn:
    raise ValueError


def _check_values(root: Any) -> None:
    """Hold *root* to the bounds of rule 2."""
    layer, count = [root], 0
    for _ in range(MAX_DEPTH + 1):
        count += len(layer)
        if count > MAX_VALUES:
            raise TooLargeError("request too large", expected=f"at most {MAX_VALUES} values")
        below: list[Any] = []
        for value in layer:
            if isinstance(value, dict):
                below += value.values()
                for name in value:
                    _check_unicode(name)
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str):
                _check_unicode(value)
            elif isinstance(value, float) and not math.isfinite(value):
                raise MalformedError("a number that is too large")
            elif isinstance(value, int) and not -_INTEGER_LIMIT <= value < _INTEGER_LIMIT:
                raise MalformedError("an integer that is too large", expected="64 bits")
        if not below:
            return
        layer = below
    raise MalformedError("nested too deeply", expected=f"at most {MAX_DEPTH} levels")


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise MalformedError("half of a surrogate pair", expected="Unicode text") from None
