"""The ledger's database: the folder's own file, or a PostgreSQL server of the benchmark's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol


class Database(Protocol):
    """A database server that can be killed and started again."""

    def kill(self) -> None: ...
    def start(self) -> None: ...


@contextlib.contextmanager
def database(*, postgresql: bool) -> Iterator[tuple[Database | None, str | None]]:
    """Lend a server and the URL of an empty database on it, or nothing for SQLite."""
    if not postgresql:
        yield None, None
        return
    from tests.postgresql import Server

    server = Server()
    try:
        yield server, server.url(server.new_database(empty=True))
    finally:
        server.close()
