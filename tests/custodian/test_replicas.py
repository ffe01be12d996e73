"""Several replicas on one ledger, each with services of its own: what must hold between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from aigovtool.custodian.challenges import Challenges
from aigovtool.custodian.lifecycle import LoanState
from aigovtool.custodian.records import SessionState
from aigovtool.custodian.replicas import STILL_FOR_S
from aigovtool.custodian.store.postgres import PostgresView
from aigovtool.custodian.store.postgres_member import PART_CHARACTERS, parts_of
from aigovtool.errors import UnavailableError, VerificationError
from aigovtool.wire.control import LoanChanged, RosterChanged
from tests.custodian.ledgers import Bench

LIMIT_S = 30.0


def until(ready: Callable[[], bool]) -> None:
    """Wait for what another thread or the server does."""
    begin = time.monotonic()
    while not ready():
        assert time.monotonic() - begin < LIMIT_S
        time.sleep(0.01)


@pytest.fixture
def pair(tmp_path: Path, database_url: str) -> Iterator[tuple[Bench, Bench]]:
    made = []
    try:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            bench = Bench(tmp_path / name, database_url, replica=True)
            bench.replicas.start()
            made.append(bench)
        yield made[0], made[1]
    finally:
        for bench in made:
            bench.close()


def part(bench: Bench) -> None:
    """Cut the connection by which *bench* belongs, and let it not join again yet."""
    assert bench.database is not None
    with psycopg.connect(bench.database, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            " AND objid = %s AND objsubid = 2",
            (bench.store.replica,),
        )


def session_state(bench: Bench, session: str) -> tuple[int | None, bool]:
    with bench.ledger.read() as tx:
        found = tx.session(session)  # type: ignore[arg-type]
    assert found is not None
    return found.replica, found.disconnected is None


def test_a_challenge_of_one_replica_is_answered_at_another_once(pair: tuple[Bench, Bench]) -> None:
    a, b = pair
    loan = a.lend(1).loan
    nonce = Challenges(ledger=a.ledger).issue(loan)
    Challenges(ledger=b.ledger).redeem(loan, nonce)
    for replica in pair:
        with pytest.raises(VerificationError):
            Challenges(ledger=replica.ledger).redeem(loan, nonce)


def test_pushes_reach_every_replica_in_the_order_of_the_ledger(pair: tuple[Bench, Bench]) -> None:
    a, b = pair
    loan = a.lend(1).loan
    for number in range(20):
        pair[number % 2].loans.stop(loan, reason=str(number), actor="test")
        pair[number % 2].loans.resume(loan, actor="test")
    a.loans.stop(loan, reason="last", actor="test")

    def heard(bench: Bench) -> list[tuple[str, str]]:
        return [
            (push.message.state, push.message.reason)
            for push in bench.told.pushes
            if isinstance(push.message, LoanChanged)
        ]

    until(lambda: all(heard(bench)[-1:] == [(LoanState.STOPPED, "last")] for bench in pair))
    assert heard(a) == heard(b)
    assert [reason for state, reason in heard(b) if state == LoanState.STOPPED] == [
        *map(str, range(20)),
        "last",
    ]


def test_a_push_longer_than_a_notification_arrives_whole(pair: tuple[Bench, Bench]) -> None:
    a, b = pair
    loan = a.lend(1).loan
    for _ in range(100):
        a.consumer(loan)
    until(lambda: all(len(_rosters(bench)) == 100 for bench in pair))
    assert len(_rosters(b)[-1].roster) == 100
    assert len(list(parts_of(bytes(PART_CHARACTERS * 3)))) == 4
    assert _rosters(a) == _rosters(b)


def _rosters(bench: Bench) -> list[RosterChanged]:
    return [push.message for push in bench.told.pushes if isinstance(push.message, RosterChanged)]


def test_what_was_undone_is_told_to_nobody(pair: tuple[Bench, Bench]) -> None:
    a, b = pair
    loan = a.lend(1).loan
    a.store.next = "lost"
    with pytest.raises(UnavailableError):
        a.loans.stop(loan, reason="never", actor="test")
    b.loans.stop(loan, reason="then", actor="test")

    def heard(bench: Bench) -> list[str]:
        messages = [push.message for push in bench.told.pushes]
        return [message.reason for message in messages if isinstance(message, LoanChanged)]

    until(lambda: all(map(heard, pair)))  # what was undone came before, and would be told before
    assert [heard(bench) for bench in pair] == [["then"], ["then"]]


def test_a_clone_at_another_replica_is_turned_away(pair: tuple[Bench, Bench]) -> None:
    a, b = pair
    loan = a.lend(100).loan
    enclave = a.enclave(loan)
    with pytest.raises(UnavailableError) as caught:
        b.sessions.connect(enclave.session)
    assert caught.value.reasons[0].code == "control.connected"
    with pytest.raises(UnavailableError) as caught:
        b.lease(enclave, 10)
    assert caught.value.reasons[0].code == "control.moved"
    enclave.number -= 1
    assert a.lease(enclave, 10).lease is not None
    assert a.loan(loan).account.leased == 10


def test_a_session_that_let_go_is_taken_over(pair: tuple[Bench, Bench]) -> None:
    a, b = pair
    enclave = a.enclave(a.lend(100).loan)
    a.sessions.disconnect(enclave.session)
    b.sessions.connect(enclave.session)
    a.sessions.disconnect(enclave.session)  # late, and no longer its business
    assert session_state(a, enclave.session) == (b.store.replica, True)
    assert b.lease(enclave, 10).lease is not None


def test_a_start_leaves_the_sessions_of_others_connected(pair: tuple[Bench, Bench]) -> None:
    a, b = pair
    enclave = a.enclave(a.lend(100).loan)
    number = a.store.replica
    b.reopen()
    assert session_state(b, enclave.session) == (number, True)


def test_whoever_is_alone_at_the_start_gives_everybody_a_fresh_grace(
    pair: tuple[Bench, Bench],
) -> None:
    a, b = pair
    enclave = a.enclave(a.lend(100).loan)
    b.close()
    a.reopen()
    b._open()  # for the fixture
    assert session_state(a, enclave.session) == (None, False)


def test_the_sessions_of_a_replica_that_died_are_free_at_once(pair: tuple[Bench, Bench]) -> None:
    a, b = pair
    enclave = a.enclave(a.lend(100).loan)
    lease = a.lease(enclave, 10).lease
    assert lease is not None
    part(a)
    until(lambda: a.told.parts == 1)
    b.sessions.connect(enclave.session)
    assert session_state(b, enclave.session) == (b.store.replica, True)
    answer = b.settle(enclave, enclave.settlement(lease.lease, {}))
    assert answer.settled == (lease.lease,)
    assert "replica.gone" in b.kinds()


def test_who_was_parted_joins_again_under_another_number(pair: tuple[Bench, Bench]) -> None:
    a, b = pair
    before = a.store.replica
    part(a)
    until(lambda: a.told.parts == 1 and a.store.replica is not None)
    assert a.store.replica != before
    b.replicas.sweep()
    with b.ledger.read() as tx:
        assert set(tx.replicas()) == {a.store.replica, b.store.replica}
    loan = b.lend(1).loan
    b.loans.stop(loan, reason="heard again", actor="test")
    until(lambda: any(isinstance(push.message, LoanChanged) for push in a.told.pushes))


def test_a_replica_that_is_stopped_is_given_up_and_finds_that_out(
    pair: tuple[Bench, Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock is held, but its beat stands still by the clock of whoever watches."""
    a, b = pair
    enclave = a.enclave(a.lend(100).loan)
    frozen = {a.store.replica: 0, b.store.replica: 0}
    monkeypatch.setattr(PostgresView, "replicas", lambda _: frozen)
    b.replicas.sweep()
    b.clock.forward(STILL_FOR_S - 0.1)
    assert b.replicas.sweep() == 0
    b.clock.forward(0.1)
    assert b.replicas.sweep() == 1
    monkeypatch.undo()
    b.sessions.connect(enclave.session)
    assert session_state(b, enclave.session) == (b.store.replica, True)
    until(lambda: a.told.parts == 1)
    with pytest.raises(UnavailableError):
        a.lease(enclave, 10)


def test_sweeps_of_two_replicas_forfeit_once(pair: tuple[Bench, Bench]) -> None:
    a, _ = pair
    loan = a.lend(100).loan
    enclave = a.enclave(loan)
    a.lease(enclave, 10)
    a.sessions.disconnect(enclave.session)
    for bench in pair:
        bench.clock.forward(1000)
        bench.sessions.sweep()
    assert a.loan(loan).account.forfeited == 10
    assert a.kinds().count("lease.forfeited") == 1
    with a.ledger.read() as tx:
        found = tx.session(enclave.session)
    assert found is not None
    assert found.state is SessionState.LAPSED
