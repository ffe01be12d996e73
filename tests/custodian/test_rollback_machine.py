"""
Whatever is leased, used, settled, copied and put back: never more is served than was granted.

The ledger is a real file with a real mark; enclaves serve from whatever leases they hold, a copy
put back or not, and hand in all, some or nothing of what they know.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aigovtool.crypto.labels import Label
from aigovtool.custodian.evidence import Shown
from aigovtool.custodian.handing_in import HandingIn
from aigovtool.custodian.reconciling import Reconciling
from aigovtool.ids import ConsumerId, LeaseId, SessionId
from aigovtool.wire.codec import Signed
from aigovtool.wire.control import Hello, Report
from tests.custodian.ledgers import Bench, FakeEnclave

GRANTED = 50
NONCE = bytes(32)


@dataclass
class Held:
    """A lease in an enclave's memory."""

    lease: LeaseId
    credits: int
    cap: int
    used: int = 0
    used_by_own: int = 0


@dataclass
class Machine:
    """An enclave that goes on with what it has, whatever the custodian forgets."""

    enclave: FakeEnclave
    statement: Signed | None = None
    leases: dict[LeaseId, Held] = field(default_factory=dict)
    settlements: list[Signed] = field(default_factory=list)
    over: bool = False


class RollingBack(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.bench = Bench(self.folder)
        self.loan = self.bench.lend(GRANTED, max_enclaves=100).loan
        self.shared = self.bench.consumer(self.loan)
        self.own = self.bench.consumer(self.loan, 20)
        self.granted, self.granted_to_own = GRANTED, 20
        self.served = self.served_to_own = 0
        self.copies = 0
        self.machines = [Machine(self.bench.enclave(self.loan))]

    def teardown(self) -> None:
        self.bench.close()
        shutil.rmtree(self.folder)

    @property
    def held(self) -> bool:
        return self.bench.ledger.held is not None

    def live(self) -> list[Machine]:
        return [one for one in self.machines if not one.over]

    @precondition(lambda self: not self.held and self.live())
    @rule(data=st.data(), want=st.integers(1, 60), own=st.integers(0, 10))
    def lease(self, data: st.DataObject, want: int, own: int) -> None:
        machine = data.draw(st.sampled_from(self.live()))
        report = machine.enclave.report(
            want=want + own, by_consumer={self.own: own} if own else None
        )
        answer = self.bench.leasing.report(machine.enclave.session, report)
        machine.statement = answer.statement
        if answer.lease is not None:
            machine.leases[answer.lease.lease] = Held(
                answer.lease.lease, answer.lease.credits, answer.lease.caps.get(self.own, 0)
            )

    @precondition(lambda self: any(one.leases for one in self.machines))
    @rule(data=st.data(), share=st.integers(1, 4))
    def serve(self, data: st.DataObject, share: int) -> None:
        machine = data.draw(st.sampled_from([one for one in self.machines if one.leases]))
        lease = data.draw(st.sampled_from(list(machine.leases.values())))
        own = min(lease.cap - lease.used_by_own, lease.credits - lease.used)
        if data.draw(st.booleans()) and own > 0:
            lease.used_by_own += own
            lease.used += own
            self.served_to_own += own
            self.served += own
        used = -(-(lease.credits - lease.used) // share)
        lease.used += used
        self.served += used

    def close(self, machine: Machine, lease: Held) -> Signed:
        del machine.leases[lease.lease]
        uses: dict[ConsumerId, int] = {
            self.shared: lease.used - lease.used_by_own,
            self.own: lease.used_by_own,
        }
        signed = machine.enclave.settlement(
            lease.lease, {who: used for who, used in uses.items() if used}
        )
        machine.settlements.append(signed)
        return signed

    @precondition(lambda self: not self.held and any(one.leases for one in self.live()))
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        machine = data.draw(st.sampled_from([one for one in self.live() if one.leases]))
        lease = data.draw(st.sampled_from(list(machine.leases.values())))
        signed = self.close(machine, lease)
        machine.statement = self.bench.settle(machine.enclave, signed).statement

    @precondition(lambda self: not self.held)
    @rule(credits=st.integers(1, 30), to_own=st.booleans())
    def grant(self, credits: int, to_own: bool) -> None:
        self.bench.grants.grant(
            self.loan, credits, actor="test", consumer=self.own if to_own else None
        )
        if to_own:
            self.granted_to_own += credits
        else:
            self.granted += credits

    @precondition(lambda self: not self.held)
    @rule()
    def enrol(self) -> None:
        self.machines.append(Machine(self.bench.enclave(self.loan)))

    @precondition(lambda self: not self.held)
    @rule()
    def restart(self) -> None:
        self.bench.reopen()
        assert not self.held
        for machine in self.live():
            self.bench.sessions.connect(machine.enclave.session)

    @precondition(lambda self: not self.held)
    @rule()
    def copy(self) -> None:
        self.bench.close()
        self.copies += 1
        to = self.folder / f"copy-{self.copies}"
        to.mkdir()
        for file in self.folder.glob("ledger.db*"):
            shutil.copy(file, to)
        self.bench.reopen()
        for machine in self.live():
            self.bench.sessions.connect(machine.enclave.session)

    @precondition(lambda self: self.copies)
    @rule(data=st.data(), with_mark=st.booleans())
    def put_back(self, data: st.DataObject, with_mark: bool) -> None:
        copy = self.folder / f"copy-{data.draw(st.integers(1, self.copies))}"
        self.bench.close()
        for file in self.folder.glob("ledger.db*"):
            file.unlink()
        for file in copy.iterdir():
            shutil.copy(file, self.folder)
        if not with_mark:
            (self.folder / "mark").unlink(missing_ok=True)
        self.bench.reopen()
        if not self.held:  # nothing had happened since
            for machine in self.live():
                self.bench.sessions.connect(machine.enclave.session)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), refunded=st.booleans())
    def reconcile(self, data: st.DataObject, refunded: bool) -> None:
        handing_in = HandingIn(ledger=self.bench.ledger, custodian_key=self.bench.key.public_key)
        for machine in self.machines:
            if machine.statement is not None and data.draw(st.booleans()):
                for lease in list(machine.leases.values()):
                    self.close(machine, lease)
                self.hand_in(handing_in, machine)
        done = Reconciling(ledger=self.bench.ledger, custodian_key=self.bench.key.public_key).run(
            Shown(), apply=True, actor="test", reason="test"
        )
        assert done.applied
        for machine in self.machines:
            machine.over = True  # its session ended; it may go on with what it holds
        self.bench.loans.resume(self.loan, actor="test")
        lines = {line.account: line for line in done.accounts}
        if refunded and (charge := lines[self.loan].charged_as) is not None:
            with self.bench.ledger.read() as tx:
                lease = tx.lease(LeaseId(charge))
            assert lease is not None
            self.bench.grants.refund(lease.lease, actor="test", reason="test")
            self.granted += lease.credits
            self.granted_to_own += lease.caps.get(self.own, 0)
        self.bench.reopen()
        assert not self.held
        self.machines.append(Machine(self.bench.enclave(self.loan)))

    def hand_in(self, handing_in: HandingIn, machine: Machine) -> None:
        statement, session = machine.statement, machine.enclave.session
        assert statement is not None
        over = NONCE + SessionId(session).encode()
        signature = machine.enclave.key.sign(Label.CONTROL_HELLO, over)
        hello = Hello(session=session, signature=signature, statement=statement)
        stated = handing_in.identify(hello, NONCE, self.loan)
        handing_in.take(
            stated, statement, Report(number=1, settlements=tuple(machine.settlements[-60:]))
        )

    @invariant()
    def never_more_than_was_granted(self) -> None:
        assert self.served <= self.granted
        assert self.served_to_own <= self.granted_to_own

    @invariant()
    def what_can_still_be_leased_was_not_used(self) -> None:
        if self.held:
            return
        left = self.bench.loan(self.loan).account.left
        in_memory = sum(
            lease.credits - lease.used for one in self.machines for lease in one.leases.values()
        )
        assert self.served + in_memory + left <= self.granted


TestRollingBack = RollingBack.TestCase
TestRollingBack.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
