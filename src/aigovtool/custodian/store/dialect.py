"""
From the SQL of the ``.sql`` files, which is SQLite's, to PostgreSQL's.

The translation is mechanical, so that a schema and its queries exist once:

- ``INTEGER`` is ``BIGINT``, ``BLOB`` is ``BYTEA``;
- ``INTEGER PRIMARY KEY AUTOINCREMENT`` is an identity column, whose numbers rise and may leave
  some out;
- ``:name`` is ``%(name)s``, and a ``%`` is doubled;
- a trigger that refuses, written ``CREATE TRIGGER name BEFORE … BEGIN SELECT RAISE(ABORT, 'why');
  END;``, calls the function `ledger_refuses`; what may not be deleted may not be truncated either.

No other trigger can be translated, and a file that has one is refused when it is loaded.
"""

from __future__ import annotations

import re

from aigovtool.errors import PromiseBrokenError

FIRST = """CREATE TABLE ledger_schema (
    only_one BIGINT PRIMARY KEY CHECK (only_one = 1),
    version BIGINT NOT NULL
);
INSERT INTO ledger_schema VALUES (1, 0);
CREATE FUNCTION ledger_refuses() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'integrity_constraint_violation', MESSAGE = TG_ARGV[0];
END $$;
"""
"""Before the first migration: its number, and what triggers call (psycopg's IntegrityError)."""

_WORDS = {
    re.compile(r"\bINTEGER PRIMARY KEY AUTOINCREMENT\b"): (
        "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
    ),
    re.compile(r"\bINTEGER\b"): "BIGINT",
    re.compile(r"\bBLOB\b"): "BYTEA",
}
_COMMENT = re.compile(r"--[^\n]*")
_PARAMETER = re.compile(r"(?<![:\w]):([a-z_][a-z0-9_]*)")
_TRIGGER = re.compile(
    r"CREATE TRIGGER (?P<name>\w+) BEFORE (?P<event>UPDATE|DELETE|INSERT)(?P<columns> OF [\w, ]+)?"
    r" ON (?P<table>\w+)(?:\s+WHEN (?P<when>(?:(?!\bBEGIN\b).)+?))?"
    r"\s+BEGIN SELECT RAISE\(ABORT, (?P<why>'(?:[^']|'')+')\); END;",
    re.DOTALL,
)


def query(sql: str) -> str:
    """Return a query as `psycopg` takes it."""
    return _PARAMETER.sub(r"%(\1)s", _words(sql).replace("%", "%%"))


def migration(sql: str) -> str:
    """Return a migration; raises PromiseBrokenError for a trigger that cannot be translated."""
    translated = _TRIGGER.sub(_trigger, _words(_COMMENT.sub("", sql)))
    if translated.count("CREATE TRIGGER") != translated.count("EXECUTE FUNCTION ledger_refuses("):
        raise PromiseBrokenError("a trigger that PostgreSQL cannot have", came=translated[:200])
    return translated


def _words(sql: str) -> str:
    for pattern, replacement in _WORDS.items():
        sql = pattern.sub(replacement, sql)
    return sql


def _trigger(found: re.Match[str]) -> str:
    name, table, why = found["name"], found["table"], found["why"]
    when = "" if found["when"] is None else f" WHEN ({found['when'].strip()})"
    calls = f"EXECUTE FUNCTION ledger_refuses({why});"
    made = (
        f"CREATE TRIGGER {name} BEFORE {found['event']}{found['columns'] or ''} ON {table}"
        f" FOR EACH ROW{when} {calls}"
    )
    if found["event"] == "DELETE":
        made += (
            f"\nCREATE TRIGGER {name}_nor_truncated BEFORE TRUNCATE ON {table}"
            f" FOR EACH STATEMENT {calls}"
        )
    return made
