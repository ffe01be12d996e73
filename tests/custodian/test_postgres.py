"""What only PostgreSQL can do to a ledger: be foreign, be gone, be in doubt, and be shared."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest

from aigovtool.custodian.records import Custodian
from aigovtool.custodian.store import dialect
from aigovtool.custodian.store.postgres import PostgresStore
from aigovtool.errors import (
    AIGovToolError,
    ConfigurationError,
    ConflictError,
    MalformedError,
    PromiseBrokenError,
    UnavailableError,
)
from tests import postgresql
from tests.custodian.ledgers import BEGIN, Bench, bench

SECRET = "hunter2-hunter2"


@pytest.fixture
def empty_url(database_url: str) -> Iterator[str]:
    with postgresql.server().database(empty=True) as url:
        yield url


def tables(url: str) -> list[tuple[str]]:
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return found.fetchall()


def end_connections(url: str) -> None:
    """What a restart of the server does to whoever is connected."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_an_empty_database_is_an_error_and_not_a_new_ledger(empty_url: str) -> None:
    with pytest.raises(ConfigurationError, match="no ledger in this database"):
        PostgresStore.open(empty_url)
    assert not tables(empty_url)


def test_a_ledger_is_never_made_over_another(postgres_ledger: Bench) -> None:
    with postgres_ledger.store.write() as tx:
        tx.insert_custodian(
            Custodian(
                public_key=bytes(32), wrapped_signing_key=b"w", certificate_pem=b"c", created=BEGIN
            )
        )
    before = postgres_ledger.dump()
    assert postgres_ledger.database is not None
    with pytest.raises(ConflictError):
        PostgresStore.create(postgres_ledger.database)
    assert postgres_ledger.dump() == before


def test_a_newer_schema_is_refused(postgres_ledger: Bench) -> None:
    postgres_ledger.run_sql("UPDATE ledger_schema SET version = 999")
    assert postgres_ledger.database is not None
    with pytest.raises(ConfigurationError, match="newer"):
        PostgresStore.open(postgres_ledger.database)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://ledger:{SECRET}@127.0.0.1:1/none",
        f"postgresql://ledger:{SECRET}@/none?host=/nowhere",
        f"postgresql://ledger:{SECRET}@127.0.0.1:1/none?no_such_option=1",
        f"postgresql://ledger:{SECRET}@[::1/none",
        f"postgresql://ledger:{SECRET}@127.0.0.1:port/none",
    ],
)
def test_a_password_is_in_no_error_and_no_log(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(AIGovToolError) as caught:
        PostgresStore.open(url)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in repr(error) + str(error)
        error = error.__cause__
    assert SECRET not in caplog.text


def test_a_refused_password_is_in_no_error_and_no_log(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"postgresql://ledger:{SECRET}@127.0.0.1:{postgresql.server().port}/postgres"
    with pytest.raises(UnavailableError) as caught:
        PostgresStore.open(url)
    assert SECRET not in str(caught.value) + caplog.text
    assert "authentication failed" in caplog.text


def test_a_block_that_lost_its_connection_is_in_doubt_and_the_next_one_works(
    postgres_ledger: Bench,
) -> None:
    ledger = postgres_ledger
    assert ledger.database is not None

    def lose(url: str) -> None:
        with ledger.ledger.write() as entry:
            entry.event("lost", actor="test")
            end_connections(url)

    with pytest.raises(UnavailableError):
        lose(ledger.database)
    with ledger.ledger.write() as entry:
        entry.event("kept", actor="test")
    assert "lost" not in ledger.kinds()
    assert "kept" in ledger.kinds()


def test_connections_that_died_while_idle_are_made_anew_and_nobody_is_told(
    postgres_ledger: Bench,
) -> None:
    ledger = postgres_ledger
    assert ledger.database is not None
    ledger.kinds()
    with ledger.ledger.write() as entry:
        entry.event("before", actor="test")
    end_connections(ledger.database)
    with ledger.ledger.write() as entry:
        entry.event("after", actor="test")
    assert ledger.kinds() == ["before", "after"]


def test_write_blocks_of_two_processes_happen_one_after_the_other(
    postgres_ledger: Bench, database_url: str
) -> None:
    other = PostgresStore.open(database_url)
    order: list[str] = []
    begun = threading.Event()

    def second() -> None:
        begun.set()
        with other.write() as tx:
            order.append("second begins")
            assert [loan.name for loan in tx.loans()] == [loan.name]

    loan = postgres_ledger.lend(10)
    thread = threading.Thread(target=second)
    with postgres_ledger.store.write():
        thread.start()
        begun.wait()
        thread.join(0.2)
        order.append("first ends")
    thread.join()
    other.close()
    assert order == ["first ends", "second begins"]


def test_a_process_that_stops_within_a_block_does_not_keep_the_ledger(
    postgres_ledger: Bench, database_url: str
) -> None:
    """Its pause has a limit that the server keeps: what it wakes up with is a lost block."""
    ledger = postgres_ledger
    other = PostgresStore.open(database_url)

    def stop_in_the_middle() -> None:
        with ledger.store.write() as tx:
            tx._connection.execute(  # type: ignore[attr-defined]
                "SET idle_in_transaction_session_timeout = '50ms'"
            )
            with other.write():
                pass  # it waited for the server to end the first
            tx.loans()

    try:
        with pytest.raises(UnavailableError):
            stop_in_the_middle()
    finally:
        other.close()
    assert not ledger.kinds()


def test_whoever_waits_too_long_for_the_ledger_is_told_so(
    postgres_ledger: Bench, database_url: str
) -> None:
    other = PostgresStore.open(database_url)
    try:
        with other.write() as tx:
            tx._connection.execute("SET lock_timeout = '50ms'")
        with postgres_ledger.store.write(), pytest.raises(UnavailableError), other.write():
            pass
        with other.write():
            pass
    finally:
        other.close()


def test_a_block_that_went_on_after_a_failure_is_not_called_kept(postgres_ledger: Bench) -> None:
    ledger = postgres_ledger
    loan = ledger.lend(10)
    before = ledger.dump()

    def go_on() -> None:
        with ledger.ledger.write() as entry:
            entry.event("never", actor="test")
            with pytest.raises(AIGovToolError):
                entry.tx.insert_loan(loan, "")

    with pytest.raises(PromiseBrokenError):
        go_on()
    assert ledger.dump() == before


def test_commits_are_on_the_disk_when_they_return(postgres_ledger: Bench) -> None:
    with postgres_ledger.store.write() as tx:
        connection = tx._connection  # type: ignore[attr-defined]
        for setting in ("synchronous_commit", "fsync", "full_page_writes"):
            row = connection.execute(f"SHOW {setting}").fetchone()
            assert row == {setting: "on"}


def test_what_is_append_only_cannot_be_truncated_either(postgres_ledger: Bench) -> None:
    for table in ("events", "grants", "settlements"):
        with pytest.raises(psycopg.IntegrityError, match="append-only"):
            postgres_ledger.run_sql(f"TRUNCATE {table} CASCADE")


def test_a_text_that_the_database_cannot_hold_is_malformed(postgres_ledger: Bench) -> None:
    loan = postgres_ledger.lend(1).loan
    with pytest.raises(MalformedError), postgres_ledger.store.read() as tx:
        tx.grant_of_key("a\0b")
    with pytest.raises(MalformedError), postgres_ledger.store.read() as tx:
        tx.leases_of_loan(loan, 1 << 63)


def test_migrations_add_up_to_the_same_schema_on_both(
    postgres_ledger: Bench, sqlite_ledger: Bench
) -> None:
    ours = postgres_ledger.dump().keys() - {"ledger_schema"}
    assert ours == sqlite_ledger.dump().keys() - {"sqlite_sequence"}


@pytest.mark.parametrize("stopped_at", [1, 2])
def test_a_ledger_of_an_older_program_is_brought_up_to_date(
    empty_url: str, database_url: str, stopped_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aigovtool.custodian.store import postgres

    every = postgres.load_migrations()
    monkeypatch.setattr(postgres, "load_migrations", lambda: every[:stopped_at])
    PostgresStore.create(empty_url).close()
    monkeypatch.undo()
    PostgresStore.open(empty_url).close()
    assert schema_of(empty_url) == schema_of(database_url)


def schema_of(url: str) -> list[tuple[object, ...]]:
    """Columns, constraints, indexes and triggers, as the server itself describes them."""
    with psycopg.connect(url) as connection:
        return [
            row
            for query in (
                "SELECT table_name, column_name, data_type, is_nullable, column_default,"
                " is_identity FROM information_schema.columns"
                " WHERE table_schema = 'public' ORDER BY table_name, column_name",
                "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)"
                " FROM pg_constraint WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2",
                "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1",
                "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1",
            )
            for row in connection.execute(query)
        ]


def test_a_trigger_that_cannot_be_translated_is_refused() -> None:
    with pytest.raises(PromiseBrokenError):
        dialect.migration("CREATE TRIGGER t AFTER INSERT ON events BEGIN SELECT 1; END;")


def test_parameters_and_percents_are_translated() -> None:
    assert dialect.query("SELECT 1 WHERE a LIKE 'x%' AND b = :b AND c = CAST(:b AS INTEGER)") == (
        "SELECT 1 WHERE a LIKE 'x%%' AND b = %(b)s AND c = CAST(%(b)s AS BIGINT)"
    )


def test_the_server_may_die_and_come_back(postgres_ledger: Bench) -> None:
    """SIGKILL: what was kept is kept, what is asked meanwhile is unavailable, then all goes on."""
    ledger, server = postgres_ledger, postgresql.server()
    loan = ledger.lend(100)
    enclave = ledger.enclave(loan.loan)
    consumer = ledger.consumer(loan.loan)
    lease = ledger.lease(enclave, 10).lease
    assert lease is not None
    before = ledger.dump()
    server.kill()
    try:
        with pytest.raises(UnavailableError):
            ledger.lease(enclave, 10)
        with pytest.raises(UnavailableError):
            ledger.loan(loan.loan)
    finally:
        server.start()
    assert ledger.dump() == before
    enclave.number -= 1
    ledger.settle(enclave, enclave.settlement(lease.lease, {consumer: 4}))
    assert ledger.loan(loan.loan).account.spent == 4


def test_the_same_ledger_twice_in_one_process(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two databases of one server share nothing, not even the lock."""
    server = postgresql.server()
    with (
        server.database() as one,
        server.database() as other,
        bench(tmp_path_factory.mktemp("a"), one) as a,
        bench(tmp_path_factory.mktemp("b"), other) as b,
        a.store.write(),
        b.store.write(),
    ):
        pass
