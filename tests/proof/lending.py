"""A real custodian in a folder, enclaves of real bytes, a consumer that keeps receipts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from aigovtool.attestation.binding import AskedBy
from aigovtool.attestation.policy import Custodian, Policy, parse_policy, write_policy
from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey
from aigovtool.custodian.records import LoanTerms
from aigovtool.enclave.meter import Meter
from aigovtool.enclave.receipts import Receipts
from aigovtool.enclave.settling import Settlements
from aigovtool.enclave.till import Paid, Till
from aigovtool.ids import ConsumerId, LeaseId, LoanId, SessionId, sha256
from aigovtool.proof.receipts import Checked, KeptReceipt, KeptSession, check_receipts
from aigovtool.proof.statement import Verified, verify_statement
from aigovtool.wire.codec import Signed, decode, encode, sign
from aigovtool.wire.control import Lease, Report, StopProof, Want
from aigovtool.wire.enrolment import (
    AttestationDocument,
    ChallengeRequest,
    Release,
    SessionStatement,
)
from aigovtool.wire.grants import GrantNotice, GrantSeen
from aigovtool.wire.receipt import from_header
from aigovtool.wire.statement import Statement, StatementFile, read_file
from tests.custodian.house import EnclaveSide, House, house
from tests.custodian.ledgers import BEGIN, SetClock

DAY_BEFORE = BEGIN - timedelta(days=1)
YEARS_LATER = datetime(2075, 1, 1, tzinfo=UTC)


@dataclass
class Enclave:
    """One session, with the product's own meter, receipts and settlements."""

    lending: Lending
    side: EnclaveSide
    release: Release
    number: int = 0
    till: Till = field(init=False)
    settlements: Settlements = field(init=False)

    def __post_init__(self) -> None:
        made = self.lending.made
        receipts = Receipts(
            loan=self.lending.loan,
            session=self.session,
            model_digest=made.lent.model.digest,
            key=self.side.signing,
            clock=made.app.clock,
        )
        self.till = Till(Meter(), receipts)
        self.settlements = Settlements(
            loan=self.lending.loan,
            session=self.session,
            key=self.side.signing,
            receipts=receipts,
        )

    @property
    def session(self) -> SessionId:
        return self.release.session

    def report(self, want: int | None = None) -> Lease | None:
        """Settle what is closed; open the lease that comes, if one is wanted."""
        self.number += 1
        now_s = self.lending.clock.monotonic_s()
        answer = self.lending.made.app.leasing.report(
            self.session,
            Report(
                number=self.number,
                settlements=self.settlements.due(now_s),
                want=None if want is None else Want(credits=want, by_consumer={}),
            ),
        )
        self.settlements.acknowledged(answer.settled, now_s)
        if answer.lease is not None:
            self.till.meter.open(answer.lease, now_s)
        return answer.lease

    def serve(self, consumer: ConsumerId | None = None, cost: int = 1) -> Signed:
        """Charge a query and return its receipt."""
        who = consumer or self.lending.consumer
        paid = self.till.pay(who, cost, self.lending.clock.monotonic_s())
        assert isinstance(paid, Paid), paid
        return from_header(self.till.receipts.header(paid.receipt))

    def counter_sign(self) -> None:
        """Counter-sign every grant that nobody has."""
        notices = self.lending.made.app.notices
        for notice, seen in reversed(notices.of_loan(self.lending.loan, 100)):
            if seen is None:
                said = GrantSeen(
                    loan=self.lending.loan,
                    session=self.session,
                    number=decode(notice.payload, GrantNotice).number,
                    notice_sha256=sha256(notice.payload),
                )
                notices.seen(self.session, sign(said, self.side.signing, Label.GRANT_SEEN))

    def close(self, lease: LeaseId | None = None) -> None:
        """Close one lease or all, to be settled with the next report."""
        meter = self.till.meter
        self.settlements.add(map(meter.close, meter.opened() if lease is None else [lease]))

    def stop(self) -> None:
        receipts = self.till.receipts
        proof = StopProof(
            loan=self.lending.loan,
            session=self.session,
            receipts=receipts.count,
            receipt_chain=receipts.chain,
            cancelled=0,
            reason="the loan is stopped",
            wiped=self.lending.clock.now(),
        )
        signed = sign(proof, self.side.signing, Label.STOP_PROOF)
        self.lending.made.app.sessions.stopped(self.session, signed)


@dataclass
class Lending:
    """A loan of a real custodian, whose clock is moved by hand."""

    made: House
    clock: SetClock
    consumer: ConsumerId
    other: ConsumerId

    @property
    def loan(self) -> LoanId:
        return self.made.lent.loan.loan

    @property
    def policy(self) -> Policy:
        """The consumer's manifest."""
        with self.made.app.ledger.read() as tx:
            accept = parse_policy(tx.loan_policy(self.loan).encode()).accept
        return Policy(
            accept=accept,
            custodian=Custodian(public_key=self.made.app.key.public_key, loan=self.loan),
        )

    def enclave(self) -> Enclave:
        side, app = EnclaveSide.make(), self.made.app
        asked = ChallengeRequest(loan=self.loan)
        nonce = app.enrolment.challenge(self.made.ticket.token, asked).nonce
        request = self.made.request(nonce, side.keys, self.made.evidence_for(nonce, side.keys))
        release = app.enrolment.enrol(self.made.ticket.token, request)
        app.sessions.connect(release.session)
        return Enclave(self, side, release)

    def kept_session(self, enclave: Enclave) -> KeptSession:
        """What the consumer judged of an enclave, and keeps."""
        nonce, keys = b"n" * 32, enclave.side.keys
        evidence = self.made.evidence_for(nonce, keys, asked_by=AskedBy.CONSUMER)
        document = AttestationDocument(
            nonce=nonce,
            keys=keys,
            custodian_key=self.made.app.key.public_key,
            loan=self.loan,
            evidence=evidence,
            endorsements=self.made.request(nonce, keys, evidence).endorsements,
            manifest=enclave.release.manifest,
            statement=enclave.release.statement,
        )
        return KeptSession(
            judged=self.clock.now(),
            document=encode(document),
            manifest=write_policy(self.policy).encode(),
        )

    def checked(self, receipts: list[Signed], *sessions: KeptSession) -> Checked:
        """The consumer's receipts, checked under its manifest."""
        named = {_session_of(kept): kept for kept in sessions}
        kept = [
            KeptReceipt(source=f"kept:{line}", consumer=None, signed=one)
            for line, one in enumerate(receipts, start=1)
        ]
        return check_receipts(kept, named, policy=self.policy)

    def statement(self, begin: datetime = DAY_BEFORE, end: datetime = YEARS_LATER) -> bytes:
        self.clock.forward(1)  # a statement's end is not part of it
        return self.made.app.accounting.statement(self.loan, begin=begin, end=end)

    def verify(self, file: bytes, **more: Any) -> Verified:
        return verify_statement(file, custodian_key=self.made.app.key.public_key, **more)

    def liar(self, file: bytes, lie: Callable[[Statement], Statement]) -> bytes:
        """The statement as its custodian would sign it if it lied."""
        return resigned(file, self.made.app.key, lie)


def _session_of(kept: KeptSession) -> SessionId:
    document = decode(kept.document, AttestationDocument)
    return decode(document.statement.payload, SessionStatement).session


def content(file: bytes) -> Statement:
    return decode(read_file(file).statement.payload, Statement)


def resigned(file: bytes, key: SigningKey, lie: Callable[[Statement], Statement]) -> bytes:
    opened = read_file(file)
    changed = lie(decode(opened.statement.payload, Statement))
    signed = sign(changed, key, Label.STATEMENT)
    return encode(msgspec.structs.replace(opened, statement=signed))


def rearchived(file: bytes, change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> bytes:
    opened = decode(file, StatementFile)
    return encode(msgspec.structs.replace(opened, archive=change(dict(opened.archive))))


@contextlib.contextmanager
def lending(folder: Path, *, credits: int = 100) -> Iterator[Lending]:
    clock = SetClock()
    terms = LoanTerms(max_lease_credits=20, reattest_interval_s=0)
    with house(folder, clock=clock, credits=credits, terms=terms) as made:
        consumers = [
            made.app.loans.add_consumer(made.lent.loan.loan, name=name, budget=None, actor="test")
            for name in ("me", "somebody else")
        ]
        yield Lending(made, clock, *(consumer.row.consumer for consumer in consumers))
