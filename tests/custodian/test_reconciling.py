"""What a rolled-back ledger may have leased is charged before anything is leased again."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from aigovtool.crypto.labels import Label
from aigovtool.custodian.backup import back_up, restore
from aigovtool.custodian.data import DataFolder
from aigovtool.custodian.evidence import Shown
from aigovtool.custodian.handing_in import HandingIn
from aigovtool.custodian.lifecycle import LoanState
from aigovtool.custodian.reconciling import Reconciled, Reconciling
from aigovtool.custodian.records import Hold, LeaseState
from aigovtool.custodian.store.sqlite import SqliteStore
from aigovtool.errors import (
    ConflictError,
    MalformedError,
    UnavailableError,
    VerificationError,
)
from aigovtool.ids import ConsumerId, LoanId
from aigovtool.wire.codec import Signed, decode, sign
from aigovtool.wire.control import Hello, Report, ReportAnswer
from aigovtool.wire.enrolment import SessionStatement
from aigovtool.wire.receipt import NO_RECEIPT_BEFORE, Receipt
from tests.custodian.ledgers import MODEL, Bench, FakeEnclave

GRANTED = 100
NONCE = bytes(32)


@dataclass
class Rolled:
    """A loan that was served after a copy of its ledger was made, which is then put back."""

    bench: Bench
    folder: Path
    loan: LoanId
    consumer: ConsumerId
    enclave: FakeEnclave
    served: int = 0

    @property
    def account(self) -> tuple[int, int, int, int, int]:
        now = self.bench.loan(self.loan).account
        return now.granted, now.left, now.leased, now.spent, now.forfeited

    def copy(self) -> None:
        self.bench.close()
        (self.folder / "copy").mkdir()
        for file in self.folder.glob("ledger.db*"):
            shutil.copy(file, self.folder / "copy")
        self.bench.reopen()
        self.bench.sessions.connect(self.enclave.session)

    def put_back(self, *, with_mark: bool = True) -> None:
        self.bench.store.close()  # as a process that is killed, whose mark stays as it was
        for file in self.folder.glob("ledger.db*"):
            file.unlink()
        for file in (self.folder / "copy").iterdir():
            shutil.copy(file, self.folder)
        if not with_mark:
            (self.folder / "mark").unlink()
        self.bench.reopen()
        assert self.bench.ledger.held is not None

    def lease(self, enclave: FakeEnclave, credits: int) -> ReportAnswer:
        answer = self.bench.lease(enclave, credits)
        assert answer.lease is not None
        return answer

    def use(self, enclave: FakeEnclave, answer: ReportAnswer, used: int) -> Signed:
        assert answer.lease is not None
        assert used <= answer.lease.credits
        self.served += used
        return enclave.settlement(answer.lease.lease, {self.consumer: used} if used else {})

    def hand_in(self, enclave: FakeEnclave, statement: Signed, *settlements: Signed) -> None:
        handing_in = HandingIn(ledger=self.bench.ledger, custodian_key=self.bench.key.public_key)
        over = NONCE + enclave.session.encode()
        hello = Hello(
            session=enclave.session,
            signature=enclave.key.sign(Label.CONTROL_HELLO, over),
            statement=statement,
        )
        stated = handing_in.identify(hello, NONCE, enclave.loan)
        answer = handing_in.take(stated, statement, Report(number=99, settlements=settlements))
        assert len(answer.settled) == len(settlements)
        assert answer.lease is None

    def reconcile(self, *, apply: bool = True, shown: Shown | None = None) -> Reconciled:
        reconciling = Reconciling(ledger=self.bench.ledger, custodian_key=self.bench.key.public_key)
        return reconciling.run(shown or Shown(), apply=apply, actor="test", reason="the disk died")

    def serve_all(self) -> None:
        """Resume, and use every credit that can still be leased."""
        self.bench.loans.resume(self.loan, actor="test")
        enclave = self.bench.enclave(self.loan)
        while (answer := self.bench.lease(enclave, 1000)).lease is not None:
            settlement = self.use(enclave, answer, answer.lease.credits)
            self.bench.settle(enclave, settlement)


@pytest.fixture
def rolled(sqlite_ledger: Bench, tmp_path: Path) -> Rolled:
    loan = sqlite_ledger.lend(GRANTED).loan
    enclave = sqlite_ledger.enclave(loan)
    return Rolled(sqlite_ledger, tmp_path, loan, sqlite_ledger.consumer(loan), enclave)


@pytest.fixture
def lost(rolled: Rolled) -> Rolled:
    """Served after the copy: 20 in a lease that was settled, 5 in one that was not."""
    rolled.copy()
    first = rolled.lease(rolled.enclave, 30)
    rolled.bench.settle(rolled.enclave, rolled.use(rolled.enclave, first, 20))
    rolled.use(rolled.enclave, rolled.lease(rolled.enclave, 10), 5)
    return rolled


def test_nothing_of_the_hold_is_lifted_by_looking(lost: Rolled) -> None:
    lost.put_back()
    before = lost.account, lost.bench.kinds()
    assert not lost.reconcile(apply=False).applied
    assert (lost.account, lost.bench.kinds()) == before
    assert lost.bench.ledger.held is not None
    lost.bench.reopen()
    assert lost.bench.ledger.held is not None


def test_with_the_mark_what_was_left_is_left(lost: Rolled) -> None:
    left = lost.bench.loan(lost.loan).account.left
    lost.put_back()
    (line,) = lost.reconcile().accounts
    assert (line.ledger_left, line.mark_left, line.left) == (GRANTED, left, left)
    assert lost.account == (GRANTED, left, 0, 0, GRANTED - left)
    assert lost.bench.loan(lost.loan).state is LoanState.STOPPED
    lost.serve_all()
    assert lost.served <= GRANTED
    lost.bench.reopen()
    assert lost.bench.ledger.held is None


def test_without_the_mark_nothing_is_left(lost: Rolled) -> None:
    lost.put_back(with_mark=False)
    (line,) = lost.reconcile().accounts
    assert (line.mark_left, line.charged, line.left) == (None, GRANTED, 0)
    lost.serve_all()
    assert lost.served == 25
    assert lost.account == (GRANTED, 0, 0, 0, GRANTED)


def test_a_charge_has_a_name_and_can_be_refunded_as_a_new_grant(lost: Rolled) -> None:
    lost.put_back(with_mark=False)
    (line,) = lost.reconcile().accounts
    assert line.charged_as is not None
    after = lost.bench.grants.refund(line.charged_as, actor="test", reason="we know better")  # type: ignore[arg-type]
    assert (after.account.granted, after.account.left) == (2 * GRANTED, GRANTED)
    lost.serve_all()
    assert lost.served <= 2 * GRANTED


@pytest.mark.parametrize("with_mark", [True, False])
def test_settlements_that_are_handed_in_are_spent_and_not_forfeited(
    rolled: Rolled, with_mark: bool
) -> None:
    rolled.copy()
    first = rolled.lease(rolled.enclave, 30)
    settled = rolled.use(rolled.enclave, first, 20)
    answer = rolled.bench.settle(rolled.enclave, settled)
    left = rolled.bench.loan(rolled.loan).account.left
    rolled.put_back(with_mark=with_mark)
    rolled.hand_in(rolled.enclave, answer.statement, settled)
    rolled.hand_in(rolled.enclave, answer.statement, settled)
    (line,) = rolled.reconcile().accounts
    assert line.shown == 20
    left = left if with_mark else 0
    assert rolled.account == (GRANTED, left, 0, 20, GRANTED - 20 - left)
    if with_mark:
        assert line.charged == 0  # to the credit
    rolled.serve_all()
    assert rolled.served <= GRANTED
    with rolled.bench.ledger.read() as tx:
        (consumer,) = tx.consumers_of_loan(rolled.loan)
        assert consumer.used == rolled.served
        assert tx.handed_in() == []


def test_a_session_that_the_ledger_lost_hands_in_by_its_statement(rolled: Rolled) -> None:
    rolled.copy()
    late = rolled.bench.enclave(rolled.loan)
    answer = rolled.lease(late, 30)
    settled = rolled.use(late, answer, 7)
    rolled.put_back()
    with pytest.raises(UnavailableError):
        rolled.bench.sessions.connect(late.session)
    rolled.hand_in(late, answer.statement, settled)
    rolled.reconcile()
    assert rolled.account[3] == 7
    with rolled.bench.ledger.read() as tx:
        session = tx.session(late.session)
        lease = tx.lease(answer.lease.lease)  # type: ignore[union-attr]
    assert session is not None
    assert lease is not None
    assert (session.end_reason, lease.state, lease.used) != ("", LeaseState.OPEN, None)
    rolled.serve_all()
    assert rolled.served <= GRANTED


def test_nobody_hands_in_for_a_session_that_is_not_its_own(lost: Rolled) -> None:
    other = FakeEnclave(lost.enclave.session, lost.loan, type(lost.bench.key).generate())
    statement = lost.bench.lease(lost.enclave, 1).statement
    forged = sign(decode(statement.payload, SessionStatement), other.key, Label.SESSION_STATEMENT)
    lost.put_back()
    for shown in (statement, forged):
        with pytest.raises(VerificationError):
            lost.hand_in(other, shown)
    with lost.bench.ledger.read() as tx:
        assert tx.handed_in() == []


def test_a_grant_that_was_lost_comes_back_with_the_mark(rolled: Rolled) -> None:
    rolled.copy()
    rolled.bench.grants.grant(rolled.loan, 50, actor="test", reason="more")
    for _ in range(20):
        answer = rolled.bench.lease(rolled.enclave, 1000)
        if answer.lease is None:
            break
        rolled.bench.settle(
            rolled.enclave, rolled.use(rolled.enclave, answer, answer.lease.credits)
        )
    left = rolled.bench.loan(rolled.loan).account.left
    rolled.put_back()
    (line,) = rolled.reconcile().accounts
    assert (line.granted_again, line.left) == (50, left)
    rolled.serve_all()
    assert rolled.served <= GRANTED + 50
    assert rolled.account[0] == GRANTED + 50


def test_use_beyond_what_the_copy_had_granted_shows_a_grant(rolled: Rolled) -> None:
    rolled.copy()
    rolled.bench.grants.grant(rolled.loan, 400, actor="test", reason="more")
    answer = rolled.lease(rolled.enclave, 250)
    settled = rolled.use(rolled.enclave, answer, 250)
    rolled.put_back(with_mark=False)
    rolled.hand_in(rolled.enclave, answer.statement, settled)
    rolled.reconcile()
    granted, left, _, spent, _ = rolled.account
    assert (granted, left, spent) == (250, 0, 250)


def test_what_was_open_in_the_copy_gives_nothing_back_after_it(rolled: Rolled) -> None:
    """Settled and leased again after the copy: settled a second time it would be used twice."""
    open_lease = rolled.lease(rolled.enclave, 40)
    rolled.copy()
    unused = rolled.use(rolled.enclave, open_lease, 0)
    rolled.bench.settle(rolled.enclave, unused)
    enclave = rolled.bench.enclave(rolled.loan)
    while (answer := rolled.bench.lease(enclave, 1000)).lease is not None:
        rolled.bench.settle(enclave, rolled.use(enclave, answer, answer.lease.credits))
    assert rolled.served == GRANTED
    rolled.put_back()
    rolled.hand_in(rolled.enclave, open_lease.statement, unused)
    rolled.reconcile()
    assert rolled.account[1] == 0
    rolled.serve_all()
    assert rolled.served == GRANTED


def test_a_late_settlement_of_what_was_written_off_gives_nothing_back(rolled: Rolled) -> None:
    answer = rolled.lease(rolled.enclave, 40)
    rolled.copy()
    rolled.bench.grants.grant(rolled.loan, 1, actor="test")
    settled = rolled.use(rolled.enclave, answer, 3)
    rolled.put_back()
    rolled.reconcile()
    granted, left, leased, spent, forfeited = rolled.account
    rolled.enclave.number = 1
    rolled.bench.settle(rolled.enclave, settled)
    assert rolled.account == (granted, left, leased, spent + 3, forfeited - 3)


def test_a_consumers_own_budget_is_charged_too(rolled: Rolled) -> None:
    own = rolled.bench.consumer(rolled.loan, 30)
    rolled.copy()
    report = rolled.enclave.report(want=10, by_consumer={own: 10})
    answer = rolled.bench.leasing.report(rolled.enclave.session, report)
    assert answer.lease is not None
    cap = answer.lease.caps[own]
    rolled.put_back()
    lines = {line.account: line for line in rolled.reconcile().accounts}
    assert lines[own].left == 30 - cap
    with rolled.bench.ledger.read() as tx:
        consumer = tx.consumer(own)
    assert consumer is not None
    assert consumer.account.forfeited == cap


def test_without_a_mark_a_consumers_own_budget_is_gone_even_if_the_loan_had_nothing(
    rolled: Rolled,
) -> None:
    own = rolled.bench.consumer(rolled.loan, 30)
    while rolled.bench.lease(rolled.enclave, 1000).lease is not None:
        pass
    rolled.copy()
    rolled.bench.grants.grant(rolled.loan, 5, actor="test")
    rolled.put_back(with_mark=False)
    lines = {line.account: line for line in rolled.reconcile().accounts}
    assert (lines[own].charged, lines[own].left, lines[own].charged_as) == (30, 0, None)


def test_receipts_show_a_lease_that_nobody_settled(rolled: Rolled) -> None:
    rolled.copy()
    late = rolled.bench.enclave(rolled.loan)
    answer = rolled.lease(late, 30)
    assert answer.lease is not None
    receipts = [receipt(rolled, late, answer, number) for number in (1, 2, 3)]
    rolled.served += 3
    forged = sign(decode(receipts[0].payload, Receipt), type(late.key).generate(), Label.RECEIPT)
    rolled.put_back()
    shown = Shown(
        receipts=(*receipts, receipts[0], forged, Signed(payload=b"", signature=b"")),
        statements=(answer.statement,),
    )
    done = rolled.reconcile(shown=shown)
    assert (done.accounts[0].shown, done.receipts_refused) == (3, 2)
    with rolled.bench.ledger.read() as tx:
        lease = tx.lease(answer.lease.lease)
    assert lease is not None
    assert (lease.state, lease.credits) == (LeaseState.FORFEITED, 3)
    rolled.serve_all()
    assert rolled.served <= GRANTED


def receipt(rolled: Rolled, enclave: FakeEnclave, answer: ReportAnswer, number: int) -> Signed:
    assert answer.lease is not None
    return sign(
        Receipt(
            loan=rolled.loan,
            session=enclave.session,
            lease=answer.lease.lease,
            consumer=rolled.consumer,
            model_digest=MODEL,
            number=number,
            previous=NO_RECEIPT_BEFORE,
            own_number=number,
            own_previous=NO_RECEIPT_BEFORE,
            cost=1,
            balance_before=answer.lease.credits - number + 1,
            balance_after=answer.lease.credits - number,
            time=rolled.bench.clock.now(),
        ),
        enclave.key,
        Label.RECEIPT,
    )


def test_receipts_that_nobody_vouches_for_are_no_evidence(rolled: Rolled) -> None:
    rolled.copy()
    late = rolled.bench.enclave(rolled.loan)
    answer = rolled.lease(late, 30)
    shown = Shown(receipts=(receipt(rolled, late, answer, 1),))
    rolled.put_back()
    done = rolled.reconcile(shown=shown)
    assert (done.accounts[0].shown, done.receipts_refused) == (0, 1)


def test_a_ledger_that_is_not_held_is_not_reconciled(rolled: Rolled) -> None:
    before = rolled.account
    with pytest.raises(ConflictError):
        rolled.reconcile()
    assert rolled.account == before


def test_a_reconciliation_says_why(lost: Rolled) -> None:
    lost.put_back()
    with pytest.raises(MalformedError):
        Reconciling(ledger=lost.bench.ledger, custodian_key=lost.bench.key.public_key).run(
            Shown(), apply=True, actor="test", reason=" "
        )
    assert lost.bench.ledger.held is not None


@pytest.mark.parametrize("how", ["lost", "kept"])
def test_a_reconciliation_that_failed_is_whole_or_not_at_all(lost: Rolled, how: str) -> None:
    lost.put_back()
    lost.bench.store.next = how
    with pytest.raises(UnavailableError):
        lost.reconcile()
    assert lost.bench.ledger.held is not None  # until the process knows better
    lost.bench.reopen()
    if how == "lost":
        assert lost.bench.ledger.held is not None
        lost.reconcile()
    assert lost.bench.ledger.held is None
    assert lost.bench.kinds().count("ledger.reconciled") == 1
    lost.serve_all()
    assert lost.served <= GRANTED


def test_statements_of_the_life_that_was_lost_hold_nothing_afterwards(lost: Rolled) -> None:
    seen = lost.bench.lease(lost.enclave, 1).statement
    lost.put_back()
    lost.reconcile()
    handing_in = HandingIn(ledger=lost.bench.ledger, custodian_key=lost.bench.key.public_key)
    handing_in.shown(seen)
    assert lost.bench.ledger.held is None


def test_the_copy_put_back_after_it_was_reconciled_is_held_again(lost: Rolled) -> None:
    lost.put_back()
    lost.reconcile()
    lost.put_back()
    assert lost.bench.ledger.held is not None
    assert lost.bench.ledger.held.code == "rollback.incarnation"
    lost.reconcile()
    lost.serve_all()
    assert lost.served <= GRANTED


def test_a_mark_that_an_enclave_disproves_does_not_vouch(rolled: Rolled) -> None:
    """Mark and ledger were both put back, to different days; only an enclave knows the third."""
    rolled.copy()
    rolled.bench.grants.grant(rolled.loan, 1, actor="test")
    shutil.copy(rolled.folder / "mark", rolled.folder / "old mark")
    answer = rolled.lease(rolled.enclave, 40)
    settled = rolled.use(rolled.enclave, answer, answer.lease.credits)  # type: ignore[union-attr]
    (rolled.folder / "old mark").replace(rolled.folder / "mark")
    rolled.put_back()
    assert rolled.reconcile(apply=False).vouched
    rolled.hand_in(rolled.enclave, answer.statement, settled)
    assert rolled.bench.ledger.held is not None
    assert rolled.bench.ledger.held.code == "rollback.statement"
    assert not rolled.reconcile().vouched
    rolled.serve_all()
    assert rolled.served <= GRANTED + 1


def test_a_backup_is_whole_private_and_held_when_it_comes_back(
    lost: Rolled, tmp_path: Path
) -> None:
    folder = DataFolder(tmp_path)
    (tmp_path / "master.key").write_text("secret")
    (tmp_path / "policy.toml").write_text("p")
    left = lost.account[1]
    size = back_up(folder, tmp_path.parent / "backup")
    assert size > 0
    backup = tmp_path.parent / "backup"
    assert not (backup / "master.key").exists()
    assert {item.stat().st_mode & 0o077 for item in backup.rglob("*")} == {0}
    with pytest.raises(ConflictError):
        back_up(folder, backup)
    with pytest.raises(ConflictError):
        restore(backup, folder, now=lost.bench.clock.now())
    new = tmp_path.parent / "new"
    restore(backup, DataFolder(new), now=lost.bench.clock.now())
    lost.bench.close()
    lost.bench.path = new / "ledger.db"
    shutil.copy(tmp_path / "mark", new / "mark")
    lost.bench.reopen()
    assert lost.bench.ledger.held is not None
    assert lost.bench.ledger.held.code == "rollback.restored"
    (line,) = lost.reconcile().accounts
    assert (line.charged, line.left) == (0, left)  # the newest backup: nothing was lost since


def test_an_enclave_cannot_enrol_while_the_ledger_is_held(lost: Rolled) -> None:
    lost.put_back()
    with pytest.raises(UnavailableError):
        lost.bench.enclave(lost.loan)


def test_a_hold_that_another_process_lifted_by_reconciling_is_lifted_here(lost: Rolled) -> None:
    lost.put_back()
    other = SqliteStore.open(lost.bench.path)
    try:
        with other.write() as tx:
            tx.lift_hold()  # by hand: no reconciliation
        lost.bench.ledger.refresh()
        assert lost.bench.ledger.held is not None
        with other.write() as tx:
            tx.begin_incarnation(bytes(16), lost.bench.clock.now())
        lost.bench.ledger.refresh()
        assert lost.bench.ledger.held is None
        with other.write() as tx:
            tx.set_hold(
                Hold(code="rollback.test", reason="elsewhere", since=lost.bench.clock.now())
            )
        with pytest.raises(UnavailableError):
            lost.bench.lend(1)
        lost.bench.ledger.refresh()
        assert lost.bench.ledger.held is not None
    finally:
        other.close()
