"""
How every command speaks: results on stdout, talk on stderr, one meaning for each exit code.

With ``--json`` stdout holds exactly one JSON value: the result, or ``{"error": …}``.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from datetime import datetime
from typing import NoReturn, ParamSpec, TypeVar

import click
import msgspec
from rich.console import Console
from rich.text import Text

from aigovtool.errors import (
    AIGovToolError,
    ConfigurationError,
    ConflictError,
    MalformedError,
    PromiseBrokenError,
    RefusedError,
    UnavailableError,
    VerificationError,
)

REFUSED, MISUSED, UNAVAILABLE, CONFLICT, INTERNAL, INTERRUPTED = 1, 2, 3, 4, 70, 130

_EXIT_CODES: tuple[tuple[type[AIGovToolError], int], ...] = (
    (MalformedError, MISUSED),
    (ConfigurationError, MISUSED),
    (VerificationError, REFUSED),
    (RefusedError, REFUSED),
    (UnavailableError, UNAVAILABLE),
    (ConflictError, CONFLICT),
    (PromiseBrokenError, INTERNAL),
)

SIMULATED = "SIMULATED TEE: it protects nothing from this machine's owner"

talk = Console(stderr=True, highlight=False, soft_wrap=True)
result = Console(highlight=False, soft_wrap=True)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as one JSON value on stdout."
)


class Time(click.ParamType[datetime]):
    """An aware time, RFC 3339."""

    name = "RFC3339"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a time such as 2026-01-31T12:00:00Z", param, ctx)
        if moment.tzinfo is None:
            self.fail(f"{value!r} has no time zone; write …Z for UTC", param, ctx)
        return moment


P = ParamSpec("P")
R = TypeVar("R")


def exits(command: Callable[P, R]) -> Callable[P, R]:
    """Let our errors leave a command as a few clear lines and the exit code of their class."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except AIGovToolError as error:
            fail(error, as_json=bool(kwargs.get("as_json")))
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)

    return run


def fail(error: AIGovToolError, *, as_json: bool) -> NoReturn:
    """Tell *error* and end with its exit code; never returns."""
    if as_json:
        reasons = [msgspec.to_builtins(reason) for reason in error.reasons]
        print_json({"error": {"kind": error.code, "message": str(error), "reasons": reasons}})
    tell_error(error)
    sys.exit(exit_code(error))


def tell_error(error: AIGovToolError) -> None:
    """Say *error* on stderr, with what would mend it."""
    # a reason may quote a peer that nobody has verified: no control sequence reaches the terminal
    for index, reason in enumerate(error.reasons):
        head = Text("error: " if index == 0 else "   and: ", style="bold red")
        talk.print(head + _plain(reason.message))
        for name, text in (
            ("expected", reason.expected),
            ("came", reason.came),
            ("to mend", reason.mend),
        ):
            if text is not None:
                talk.print(Text(f"{name:>11}: ", style="dim") + _plain(text))


def _plain(text: str) -> Text:
    return Text(printable(text), style="default")


def printable(text: str, *, also: str = "") -> str:
    """Return *text* without what steers a terminal or hides from the eye, except for *also*."""
    return "".join(c if c.isprintable() or c in also else "\ufffd" for c in text)


def exit_code(error: AIGovToolError) -> int:
    """Return the exit code of an error's class."""
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), INTERNAL)


def print_json(value: object) -> None:
    """Print one JSON value on stdout; structs, times and bytes (base64) are understood."""
    click.echo(json.dumps(msgspec.to_builtins(value), indent=2, ensure_ascii=False))


def print_json_line(value: object) -> None:
    """Print one of several JSON values on a line, in ASCII: no text in it steers a terminal."""
    click.echo(json.dumps(msgspec.to_builtins(value)))


def warn_simulated() -> None:
    """Say it loudly."""
    talk.print(Text(f" {SIMULATED} ", style="black on yellow"))
