"""
Reading the ``.sql`` files: queries by name, migrations by number.

``queries.sql`` holds ``-- name: …`` lines, each followed by a comment that says what the query is
for, and the query. Migrations are ``NNNN_what.sql``; together they are the schema.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources

from aigovtool.errors import PromiseBrokenError

_FOLDER = resources.files("aigovtool.custodian.store") / "sql"
_NAME = re.compile(r"^-- name: ([a-z_]+)$", re.MULTILINE)
_MIGRATION = re.compile(r"^(\d{4})_[a-z_]+\.sql$")


@dataclass(frozen=True, slots=True)
class Migration:
    """One step from an older schema to a newer one."""

    number: int
    name: str
    sql: str


def load_queries() -> dict[str, str]:
    """Return every query by its name."""
    _, *pieces = _NAME.split((_FOLDER / "queries.sql").read_text(encoding="utf-8"))
    queries: dict[str, str] = {}
    for name, text in zip(pieces[::2], pieces[1::2], strict=True):
        if name in queries or not text.lstrip().startswith("-- "):
            raise PromiseBrokenError(f"the query {name} is there twice, or without a comment")
        lines = [line for line in text.splitlines() if line and not line.startswith("--")]
        queries[name] = " ".join(line.strip() for line in lines).rstrip(";")
    return queries


def load_migrations() -> list[Migration]:
    """Return the migrations in their order, which has no gap."""
    found = []
    for file in _FOLDER.iterdir():
        if match := _MIGRATION.match(file.name):
            found.append(Migration(int(match[1]), file.name, file.read_text(encoding="utf-8")))
    found.sort(key=lambda migration: migration.number)
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise PromiseBrokenError("the migrations are not numbered one after the other")
    return found
