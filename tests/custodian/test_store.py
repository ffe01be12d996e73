"""The database itself refuses what would break an invariant, and a wrong path is no new ledger."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest

from aigovtool.custodian.store.queries import load_migrations, load_queries
from aigovtool.custodian.store.sqlite import SqliteStore
from aigovtool.errors import (
    ConfigurationError,
    ConflictError,
    PromiseBrokenError,
    UnavailableError,
)
from tests.custodian.ledgers import REFUSALS, Bench


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE loans SET spent = spent + 1",
        "UPDATE loans SET remaining = -1, granted = granted - 11",
        "UPDATE consumers SET granted = 5, remaining = 5",
        "UPDATE events SET kind = 'nothing happened'",
        "DELETE FROM events",
        "DELETE FROM grants",
        "UPDATE grants SET credits = 1000",
        "UPDATE leases SET used = credits + 1, state = 'settled'",
        "UPDATE leases SET state = 'settled'",
        "INSERT INTO leases SELECT 'twin', session, loan, number, credits, duration_us, granted_us,"
        " expires_us, state, used, forfeited_us, refunded_us, written_off_us FROM leases",
        "INSERT INTO custodian SELECT 2, key_sha256, key_sha256, key_sha256, 0 FROM consumers",
    ],
)
def test_a_row_that_breaks_an_invariant_is_refused_by_the_database(
    ledger: Bench, statement: str
) -> None:
    loan = ledger.lend(10)
    ledger.consumer(loan.loan)
    ledger.lease(ledger.enclave(loan.loan), 4)
    before = ledger.dump()
    with pytest.raises(REFUSALS):
        ledger.run_sql(statement)
    assert ledger.dump() == before


def test_a_settlement_cannot_be_changed_or_deleted(ledger: Bench) -> None:
    loan = ledger.lend(10)
    consumer = ledger.consumer(loan.loan)
    enclave = ledger.enclave(loan.loan)
    lease = ledger.lease(enclave, 4).lease
    assert lease is not None
    ledger.settle(enclave, enclave.settlement(lease.lease, {consumer: 1}))
    for statement in ("UPDATE settlements SET used = 0", "DELETE FROM settlements"):
        with pytest.raises(REFUSALS):
            ledger.run_sql(statement)


def test_commits_are_on_the_disk_when_they_return(sqlite_ledger: Bench) -> None:
    ledger = sqlite_ledger
    with ledger.store.write() as tx:
        connection = tx._connection  # type: ignore[attr-defined]
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert connection.execute("PRAGMA foreign_keys").fetchone()[0] == 1


def test_what_raises_leaves_nothing(ledger: Bench) -> None:
    loan = ledger.lend(10)

    def fail() -> None:
        with ledger.ledger.write() as entry:
            entry.event("never", actor="test")
            entry.push_roster(loan.loan)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert "never" not in ledger.kinds()
    assert not ledger.told.pushes


def test_a_reader_sees_no_half_of_a_decision(ledger: Bench) -> None:
    loan = ledger.lend(10)
    with ledger.ledger.write() as entry:
        entry.event("half", actor="test")
        assert "half" not in ledger.kinds()
        assert ledger.loan(loan.loan) == loan
    assert "half" in ledger.kinds()


def test_the_file_is_for_its_owner_only(sqlite_ledger: Bench) -> None:
    ledger = sqlite_ledger
    for path in ledger.path.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_wrong_path_is_an_error_and_not_a_new_ledger(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        SqliteStore.open(tmp_path / "typo.db")
    assert not list(tmp_path.iterdir())


def test_a_ledger_is_never_made_over_another(sqlite_ledger: Bench) -> None:
    ledger = sqlite_ledger
    before = ledger.path.read_bytes()
    with pytest.raises(ConflictError):
        SqliteStore.create(ledger.path)
    assert ledger.path.read_bytes() == before


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"not a database, but long enough to be looked at" * 50)
    with pytest.raises(ConfigurationError):
        SqliteStore.open(path)


def test_a_newer_schema_is_refused(sqlite_ledger: Bench) -> None:
    ledger = sqlite_ledger
    ledger.close()
    connection = sqlite3.connect(ledger.path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ConfigurationError, match="newer"):
        SqliteStore.open(ledger.path)


def test_a_locked_database_is_unavailable_and_not_a_crash(sqlite_ledger: Bench) -> None:
    ledger = sqlite_ledger
    with ledger.store.write() as tx:
        tx._connection.execute("PRAGMA busy_timeout = 1")  # type: ignore[attr-defined]
    other = sqlite3.connect(ledger.path)
    other.isolation_level = None
    other.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(UnavailableError), ledger.store.write():
            pass
    finally:
        other.close()


def test_a_program_that_is_wrong_is_told_so(ledger: Bench) -> None:
    loan = ledger.lend(10)
    with pytest.raises(PromiseBrokenError), ledger.store.write() as tx:
        tx._run(  # type: ignore[attr-defined]
            "set_loan_account",
            loan=loan.loan,
            granted=1,
            remaining=5,
            leased=0,
            spent=0,
            forfeited=0,
        )
    assert ledger.loan(loan.loan) == loan


def test_every_query_has_a_comment_and_a_user() -> None:
    folder = Path(__file__).parents[2] / "src/aigovtool/custodian/store"
    text = "".join(source.read_text() for source in folder.glob("*.py"))
    for name in load_queries():
        assert f'"{name}"' in text, f"nobody runs {name}"


def test_migrations_are_numbered_without_a_gap() -> None:
    assert [migration.number for migration in load_migrations()] == list(
        range(1, len(load_migrations()) + 1)
    )
