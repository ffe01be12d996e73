"""
What both servers log: lines for people, or one JSON object a line (``--log-format json``).

Rule 1: no payload, key, token or reason of a person is given to a logger. An exception is logged
        by its kind and place, never by its message, which could quote what was being handled.
Rule 2: only our own loggers follow ``--log-level``. Other libraries' speak from warnings on: at
        debug some of them print headers and frames.
Rule 3: an event's name, in ``event``, is stable; its words are for people and may change.
Rule 4: what a peer had a part in cannot begin a line, colour a terminal or end the JSON.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

OURS = "aigovtool"
FORMATS = ("human", "json")
UNNAMED = "log"  # the event of a line that has no name
_EXTRA = "aigovtool_event"

_Exc = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]


def event(name: str, **fields: str | int | float | None) -> dict[str, Any]:
    """Return what a logging call takes as `extra`: the event's name, and its fields."""
    known = {key: value for key, value in fields.items() if value is not None}
    return {_EXTRA: (name, known)}


def configure(*, level: str, form: str) -> None:
    """Log to stderr from *level* on, in one of `FORMATS`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else HumanFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(OURS).setLevel(level.upper())


class HumanFormatter(logging.Formatter):
    """One line for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return place_of(ei)


class JsonFormatter(logging.Formatter):
    """One JSON object: time, level, logger, event, message, the event's fields, and any fault."""

    def format(self, record: logging.LogRecord) -> str:
        name, fields = getattr(record, _EXTRA, (UNNAMED, {}))
        time = datetime.fromtimestamp(record.created, UTC)
        line = {
            **fields,
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["fault"] = place_of(record.exc_info)
        return json.dumps(line)  # ASCII: whatever is in a message, it is one line


def place_of(ei: _Exc) -> str:
    """Return the kinds and places of an exception and its causes, without their messages."""
    parts = []
    error = ei[1]
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        places = " < ".join(f"{one.name} ({one.filename}:{one.lineno})" for one in frames[::-1])
        parts.append(f"{type(error).__name__} in {places or 'no frame'}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "; after ".join(parts)


def printable(text: str) -> str:
    """Return *text* in one line, with what controls a terminal replaced."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
