from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import postgresql
from tests.custodian.ledgers import Bench, bench

STORES = ["sqlite", "postgresql"]


@pytest.fixture(params=STORES)
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """A new ledger, once on each kind of store."""
    if request.param == "sqlite":
        with bench(tmp_path) as made:
            yield made
        return
    url = request.getfixturevalue("database_url")
    with bench(tmp_path, url) as made:
        yield made


@pytest.fixture
def sqlite_ledger(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as made:
        yield made


@pytest.fixture
def postgres_ledger(tmp_path: Path, database_url: str) -> Iterator[Bench]:
    with bench(tmp_path, database_url) as made:
        yield made


@pytest.fixture
def database_url() -> Iterator[str]:
    """The URL of a PostgreSQL database with a new ledger in it."""
    with postgresql.server_or_skip().database() as url:
        yield url
