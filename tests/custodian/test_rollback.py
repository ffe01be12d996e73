"""A ledger that was put back from a copy leases, releases and grants nothing."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import psycopg.conninfo
import pytest

from aigovtool.crypto.labels import Label
from aigovtool.custodian import mark as mark_module
from aigovtool.custodian.handing_in import HandingIn
from aigovtool.custodian.mark import Mark, held_mark, mark_path
from aigovtool.custodian.records import Loan
from aigovtool.errors import ConflictError, MalformedError, UnavailableError
from aigovtool.wire.codec import open_signed
from aigovtool.wire.control import HELD, LoanChanged
from aigovtool.wire.enrolment import LedgerHead, SessionStatement
from tests import postgresql
from tests.custodian.ledgers import REFUSALS, Bench, FakeEnclave

GRANTED = 100


def copy_of(ledger: Bench, to: Path) -> None:
    """What `cp -r` of a stopped custodian's folder does."""
    ledger.close()
    to.mkdir()
    for file in ledger.path.parent.glob(ledger.path.name + "*"):
        shutil.copy(file, to)
    ledger.reopen()


def put_back(ledger: Bench, copy: Path) -> None:
    ledger.close()
    for file in ledger.path.parent.glob(ledger.path.name + "*"):
        file.unlink()
    for file in copy.iterdir():
        shutil.copy(file, ledger.path.parent)
    ledger.reopen()


def held_code(ledger: Bench) -> str | None:
    held = ledger.ledger.held
    return None if held is None else held.code


@pytest.fixture
def lent(ledger: Bench) -> tuple[Loan, FakeEnclave]:
    loan = ledger.lend(GRANTED)
    return loan, ledger.enclave(loan.loan)


def refuses_everything(ledger: Bench, loan: Loan, enclave: FakeEnclave) -> None:
    before = ledger.loan(loan.loan).account
    attempts: list[Callable[[], object]] = [
        lambda: ledger.lease(enclave, 1),
        lambda: ledger.enclave(loan.loan),
        lambda: ledger.grants.grant(loan.loan, 5, actor="test"),
        lambda: ledger.loans.resume(loan.loan, actor="test"),
        lambda: ledger.consumer(loan.loan, 5),
        lambda: ledger.lend(5),
    ]
    for attempt in attempts:
        with pytest.raises(UnavailableError) as refused:
            attempt()
        assert refused.value.reasons[0].code == "ledger.held"
    assert ledger.loan(loan.loan).account == before


def test_a_restart_never_holds(ledger: Bench, lent: tuple[Loan, FakeEnclave]) -> None:
    _, enclave = lent
    for _ in range(20):
        ledger.lease(enclave, 1)
        ledger.reopen()
        assert ledger.ledger.held is None
        ledger.sessions.connect(enclave.session)


def test_a_kill_between_commit_and_mark_never_holds(
    ledger: Bench, lent: tuple[Loan, FakeEnclave], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, enclave = lent
    with monkeypatch.context() as broken:
        broken.setattr(Mark, "advance", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ledger.lease(enclave, 1)
    ledger.reopen()
    assert ledger.ledger.held is None


def test_a_copy_put_back_is_behind_its_mark(sqlite_ledger: Bench, tmp_path: Path) -> None:
    ledger = sqlite_ledger
    loan = ledger.lend(GRANTED)
    enclave = ledger.enclave(loan.loan)
    copy_of(ledger, tmp_path / "copy")
    ledger.sessions.connect(enclave.session)
    ledger.lease(enclave, 10)
    put_back(ledger, tmp_path / "copy")
    assert held_code(ledger) == "rollback.behind"
    assert ledger.loan(loan.loan).account.left == GRANTED
    enclave.number = 0
    refuses_everything(ledger, loan, enclave)
    assert "ledger.held" in ledger.kinds()
    ledger.reopen()
    assert held_code(ledger) == "rollback.behind"


def test_yesterdays_dump_of_a_database_is_behind_its_mark(postgres_ledger: Bench) -> None:
    """``pg_dump`` and ``pg_restore``; what is append-only is so in the restored database, too."""
    ledger, server = postgres_ledger, postgresql.server()
    loan = ledger.lend(GRANTED)
    enclave = ledger.enclave(loan.loan)
    assert ledger.database is not None
    name = str(psycopg.conninfo.conninfo_to_dict(ledger.database)["dbname"])
    dump = server.dump(name)
    ledger.lease(enclave, 10)
    ledger.close()
    server.restore(name, dump)
    ledger.reopen()
    assert held_code(ledger) == "rollback.behind"
    assert ledger.loan(loan.loan).account.left == GRANTED
    enclave.number = 0
    refuses_everything(ledger, loan, enclave)
    before = ledger.dump()
    for statement in (
        "UPDATE grants SET credits = 1000", "DELETE FROM grants", "TRUNCATE grants CASCADE",
        "UPDATE events SET kind = 'nothing'", "DELETE FROM events",
    ):  # fmt: skip
        with pytest.raises(REFUSALS):
            ledger.run_sql(statement)
    assert ledger.dump() == before


def test_a_copy_that_went_on_by_itself_has_another_history(
    sqlite_ledger: Bench, tmp_path: Path
) -> None:
    ledger = sqlite_ledger
    loan = ledger.lend(GRANTED)
    enclave = ledger.enclave(loan.loan)
    ledger.mark.sync()
    shutil.copy(tmp_path / "mark", tmp_path / "old mark")
    copy_of(ledger, tmp_path / "copy")
    ledger.sessions.connect(enclave.session)
    ledger.lease(enclave, 10)
    ledger.close()
    (tmp_path / "mark").rename(tmp_path / "new mark")
    (tmp_path / "old mark").rename(tmp_path / "mark")
    ledger.clock.forward(1)
    put_back(ledger, tmp_path / "copy")
    assert ledger.ledger.held is None  # mark and ledger, both of then: nothing here can tell
    enclave.number = 0
    for _ in range(3):
        ledger.sessions.connect(enclave.session)
        ledger.lease(enclave, 10)
    ledger.close()
    (tmp_path / "new mark").rename(tmp_path / "mark")
    ledger.reopen()
    assert held_code(ledger) == "rollback.fork"


def test_a_missing_mark_holds_until_it_is_back(
    ledger: Bench, lent: tuple[Loan, FakeEnclave], tmp_path: Path
) -> None:
    loan, enclave = lent
    ledger.close()
    (tmp_path / "mark").rename(tmp_path / "aside")
    ledger.reopen()
    assert held_code(ledger) == "mark.absent"
    refuses_everything(ledger, loan, enclave)
    assert not (tmp_path / "mark").exists()
    ledger.close()
    (tmp_path / "aside").rename(tmp_path / "mark")
    ledger.reopen()
    assert ledger.ledger.held is None


@pytest.mark.parametrize("at", [0, 40, 70, 100, 256, 300])
def test_a_damaged_mark_holds(
    ledger: Bench, lent: tuple[Loan, FakeEnclave], tmp_path: Path, at: int
) -> None:
    ledger.close()
    damaged = bytearray((tmp_path / "mark").read_bytes())
    damaged[at] ^= 1
    (tmp_path / "mark").write_bytes(damaged)
    ledger.reopen()
    assert held_code(ledger) == "mark.damaged"
    assert (tmp_path / "mark").read_bytes() == damaged


def test_a_ledger_without_loans_needs_no_mark(ledger: Bench, tmp_path: Path) -> None:
    ledger.close()
    (tmp_path / "mark").unlink()
    ledger.reopen()
    assert ledger.ledger.held is None


def test_a_lease_does_not_leave_without_its_mark(
    ledger: Bench, lent: tuple[Loan, FakeEnclave], monkeypatch: pytest.MonkeyPatch
) -> None:
    loan, enclave = lent
    report = enclave.report(want=10)
    with monkeypatch.context() as full:

        def no_room(*_: object) -> int:
            raise OSError(28, "No space left on device")

        full.setattr(mark_module.os, "pwrite", no_room)
        with pytest.raises(UnavailableError) as refused:
            ledger.leasing.report(enclave.session, report)
        assert refused.value.reasons[0].code == "mark.unwritten"
        with pytest.raises(UnavailableError):  # kept, and still not told
            ledger.leasing.report(enclave.session, report)
        with pytest.raises(UnavailableError):
            ledger.loans.stop(loan.loan, reason="now", actor="test")
        assert ledger.told.pushes[-1].message == LoanChanged(state="stopped", reason="now")
    answer = ledger.leasing.report(enclave.session, report)
    assert answer.lease is not None
    marked = ledger.mark.read()
    assert marked is not None
    assert marked.head == ledger.ledger.head
    assert marked.accounts[loan.loan].left == ledger.loan(loan.loan).account.left


def test_the_mark_knows_every_account(ledger: Bench, lent: tuple[Loan, FakeEnclave]) -> None:
    loan, enclave = lent
    consumer = ledger.consumer(loan.loan, 7)
    ledger.consumer(loan.loan)
    lease = ledger.lease(enclave, 10).lease
    assert lease is not None
    marked = ledger.mark.read()
    assert marked is not None
    assert marked.current
    assert {one: (now.granted, now.left) for one, now in marked.accounts.items()} == {
        loan.loan: (GRANTED, GRANTED - lease.credits),
        consumer: (7, 7),
    }


def test_what_a_refused_decision_touched_is_not_marked(
    ledger: Bench, lent: tuple[Loan, FakeEnclave]
) -> None:
    loan, _ = lent
    with ledger.ledger.write_together() as together:
        with contextlib.suppress(MalformedError), together.decide() as entry:
            entry.tx.set_loan_account(loan.loan, ledger.loan(loan.loan).account)
            assert entry.tx.touched
            raise MalformedError("no")
        assert together.tx.touched == {}


def test_a_mark_written_before_the_machine_died_vouches_for_nothing(
    ledger: Bench, lent: tuple[Loan, FakeEnclave], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mark_module, "_boot_id", lambda: bytes(16))
    marked = ledger.mark.read()
    assert marked is not None
    assert not marked.current
    ledger.close()
    closed = Mark(tmp_path / "mark", ledger.key.public_key).read()
    assert closed is not None
    assert closed.current


def test_two_custodians_do_not_hold_one_mark(tmp_path: Path) -> None:
    path = tmp_path / "state" / "mark"
    with held_mark(path, bytes(32)):
        with pytest.raises(ConflictError) as refused, held_mark(path, bytes(32)):
            pass
        assert refused.value.reasons[0].code == "mark.in_use"


def test_the_marks_place(tmp_path: Path) -> None:
    named = mark_path(bytes(32), {"AIGOVTOOL_MARK": str(tmp_path / "m")})
    assert named == tmp_path / "m"
    state = mark_path(bytes(32), {"XDG_STATE_HOME": str(tmp_path)})
    home = mark_path(bytes(32), {"HOME": str(tmp_path)})
    other = mark_path(bytes([1]) * 32, {"HOME": str(tmp_path)})
    assert state.parent == tmp_path / "aigovtool"
    assert home.parent == tmp_path / ".local/state/aigovtool"
    assert home != other


def test_a_statement_of_ours_that_the_ledger_does_not_know_holds_it(
    sqlite_ledger: Bench, tmp_path: Path
) -> None:
    ledger = sqlite_ledger
    loan = ledger.lend(GRANTED)
    enclave = ledger.enclave(loan.loan)
    copy_of(ledger, tmp_path / "copy")
    ledger.sessions.connect(enclave.session)
    shown = ledger.lease(enclave, 10).statement
    put_back(ledger, tmp_path / "copy")
    (tmp_path / "copy" / "mark").unlink(missing_ok=True)
    # the mark went with the machine: a new life, in which only the enclave remembers
    ledger.close()
    (tmp_path / "mark").unlink()
    for file in (tmp_path / "copy").iterdir():
        shutil.copy(file, tmp_path)
    Mark(tmp_path / "mark", ledger.key.public_key).begin(head_in(tmp_path, ledger), {})
    ledger.reopen()
    assert ledger.ledger.held is None
    handing_in = HandingIn(ledger=ledger.ledger, custodian_key=ledger.key.public_key)
    ledger.told.pushes.clear()
    handing_in.shown(shown)
    assert held_code(ledger) == "rollback.statement"
    assert [type(push.message) for push in ledger.told.pushes] == [LoanChanged]
    assert ledger.told.pushes[0].message.state == HELD
    refuses_everything(ledger, loan, enclave)


def head_in(folder: Path, ledger: Bench) -> LedgerHead:
    from aigovtool.custodian.rollback import head_of
    from aigovtool.custodian.store.sqlite import SqliteStore

    store = SqliteStore.open(folder / ledger.path.name)
    try:
        with store.read() as tx:
            return head_of(tx)
    finally:
        store.close()


def test_every_statement_says_how_far_the_ledger_is(
    ledger: Bench, lent: tuple[Loan, FakeEnclave]
) -> None:
    _, enclave = lent
    said = open_signed(
        ledger.lease(enclave, 1).statement,
        SessionStatement,
        public_key=ledger.key.public_key,
        label=Label.SESSION_STATEMENT,
    )
    assert said.head == ledger.ledger.head
    assert said.head.event == len(ledger.kinds())
