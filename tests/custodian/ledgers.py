"""A real ledger in a real file, and enclaves that are only keys: the tests stand on these."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from aigovtool.attestation.appraise import AttestationResult
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.policy import Policy, write_policy
from aigovtool.crypto.hpke import HpkeKey
from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey
from aigovtool.custodian.admission import Admission
from aigovtool.custodian.archive import Exhibit
from aigovtool.custodian.grants import Grants
from aigovtool.custodian.leasing import Leasing
from aigovtool.custodian.ledger import Ledger, loan_of
from aigovtool.custodian.loans import Loans
from aigovtool.custodian.mark import Mark
from aigovtool.custodian.pushes import Push, announced
from aigovtool.custodian.records import Loan, LoanTerms, Model
from aigovtool.custodian.replicas import Replicas
from aigovtool.custodian.sessions import Sessions
from aigovtool.custodian.store.base import Listener, Reading, Store, Writing
from aigovtool.custodian.store.postgres import PostgresStore
from aigovtool.custodian.store.sqlite import SqliteStore
from aigovtool.errors import UnavailableError
from aigovtool.ids import ConsumerId, LeaseId, LoanId, SessionId, sha256
from aigovtool.simulation.measure import Measurement
from aigovtool.simulation.policy import simulated_policy
from aigovtool.wire.codec import Signed, sign
from aigovtool.wire.control import (
    NO_SETTLEMENT_BEFORE,
    Report,
    ReportAnswer,
    Settlement,
    StopProof,
    Want,
)
from aigovtool.wire.enrolment import Documents, EnrolRequest, Keys
from tests import postgresql

BEGIN = datetime(2026, 3, 1, 12, tzinfo=UTC)
MODEL = bytes(range(32))
NO_CHAIN = bytes(32)
HPKE_PUBLIC = HpkeKey().public_key  # making one is slow, and none is opened here
MEASUREMENT = Measurement(mr_td=bytes(48), lines=())
POLICY = write_policy(Policy(accept=(simulated_policy(bytes(32), MEASUREMENT),), custodian=None))
REFUSALS = (sqlite3.IntegrityError, psycopg.IntegrityError)
RESULT = AttestationResult(
    tee=Tee.SIMULATED,
    simulated=True,
    measurement="00" * 48,
    tcb_status="UpToDate",
    advisories=(),
    warnings=(),
    platform_id=None,
    valid_until=None,
    alternative=0,
    claims=None,  # type: ignore[arg-type]
)


class SetClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.time = BEGIN

    def now(self) -> datetime:
        return self.time

    def monotonic_s(self) -> float:
        return self.time.timestamp()

    def forward(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@dataclass
class Told:
    """Keeps what would be pushed."""

    pushes: list[Push] = field(default_factory=list)

    parts: int = 0  # how often we were parted from other replicas

    def publish(self, push: Push) -> None:
        self.pushes.append(push)

    def joined(self) -> None:
        pass

    def told(self, message: bytes) -> None:
        self.pushes.append(announced(message))

    def parted(self) -> None:
        self.parts += 1

    def changed(self) -> None:
        pass


@dataclass
class FakeEnclave:
    """An attested session from its own side: its key, its next report number."""

    session: SessionId
    loan: LoanId
    key: SigningKey
    number: int = 0
    settled: int = 0
    settlement_chain: bytes = NO_SETTLEMENT_BEFORE

    def settlement(self, lease: LeaseId, by_consumer: dict[ConsumerId, int]) -> Signed:
        self.settled += 1
        signed = sign(
            Settlement(
                loan=self.loan,
                session=self.session,
                lease=lease,
                number=self.settled,
                previous=self.settlement_chain,
                used=sum(by_consumer.values()),
                by_consumer=by_consumer,
                receipts=0,
                receipt_chain=NO_CHAIN,
            ),
            self.key,
            Label.SETTLEMENT,
        )
        self.settlement_chain = sha256(signed.payload)
        return signed

    def stop_proof(self) -> Signed:
        proof = StopProof(
            loan=self.loan,
            session=self.session,
            receipts=0,
            receipt_chain=NO_CHAIN,
            cancelled=0,
            reason="the loan is stopped",
            wiped=BEGIN,
        )
        return sign(proof, self.key, Label.STOP_PROOF)

    def report(
        self,
        settlements: tuple[Signed, ...] = (),
        want: int | None = None,
        by_consumer: dict[ConsumerId, int] | None = None,
        at_least: int = 0,
        at_least_of: dict[ConsumerId, int] | None = None,
        held: dict[ConsumerId, int] | None = None,
    ) -> Report:
        self.number += 1
        wish = None
        if want is not None:
            wish = Want(
                credits=want,
                by_consumer=by_consumer or {},
                at_least=at_least,
                at_least_of=at_least_of or {},
                held=held or {},
            )
        return Report(number=self.number, settlements=settlements, want=wish)


class BreakingStore:
    """
    A real store whose next commit fails: ``lost`` before anything is kept, ``kept`` after all is.

    From outside the two look the same, which is promise 5 of `store.base`.
    """

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self.next: str | None = None

    def read(self) -> AbstractContextManager[Reading]:
        return self._inner.read()

    @contextlib.contextmanager
    def write(self) -> Iterator[Writing]:
        how, self.next = self.next, None
        with self._inner.write() as tx:
            yield tx
            if how == "lost":
                raise UnavailableError("the disk failed")
        if how == "kept":
            raise UnavailableError("the disk failed, after it had kept everything")

    def join(self, listener: Listener) -> None:
        self._inner.join(listener)

    @property
    def replica(self) -> int | None:
        return self._inner.replica

    @property
    def shared(self) -> bool:
        return self._inner.shared

    def close(self) -> None:
        self._inner.close()


class Bench:
    """
    Every service over one ledger; `reopen` is what a crash and a restart do.

    Args:
        folder: where the ledger's file is.
        database: URL of a PostgreSQL database that holds a new ledger, instead of the file.
        replica: whether others serve it too; then pushes are announced.
    """

    def __init__(self, folder: Path, database: str | None = None, *, replica: bool = False) -> None:
        self.replica = replica
        self.path = folder / "ledger.db"
        self.database = database
        self.clock = SetClock()
        self.told = Told()
        self.key = SigningKey.generate()
        if database is None:
            SqliteStore.create(self.path).close()
        self._open()

    def _open(self) -> None:
        url = self.database
        self.store = BreakingStore(
            SqliteStore.open(self.path) if url is None else PostgresStore.open(url)
        )
        self.mark = Mark(self.path.with_name("mark"), self.key.public_key, shared=self.replica)
        self.ledger = Ledger(
            store=self.store, clock=self.clock, publisher=self.told, mark=self.mark
        )
        self.loans = Loans(ledger=self.ledger)
        self.grants = Grants(ledger=self.ledger)
        if self.replica:
            self.ledger.join(self.told)
        self.sessions = Sessions(ledger=self.ledger)
        self.replicas = Replicas(ledger=self.ledger)
        self.leasing = Leasing(ledger=self.ledger, key=self.key)
        self.admission = Admission(ledger=self.ledger)

    def close(self) -> None:
        self.mark.close()
        self.store.close()

    def reopen(self) -> None:
        self.close()
        self._open()
        self.replicas.start()

    def lend(self, credits: int, **terms: object) -> Loan:
        with self.ledger.write() as entry:
            if entry.tx.model(MODEL) is None:
                entry.tx.insert_model(
                    Model(
                        digest=MODEL,
                        name="m",
                        version="1",
                        manifest=b"{}",
                        wrapped_key=b"w",
                        body_bytes=1,
                        body_sha256=bytes(32),
                        source_sha256=bytes(32),
                        created=entry.now,
                    )
                )
        return self.loans.create(
            name=secrets.token_hex(4),
            model=MODEL,
            policy=POLICY,
            terms=LoanTerms(**terms),  # type: ignore[arg-type]
            credits=credits,
            actor="test",
        ).row

    def consumer(self, loan: LoanId, budget: int | None = None) -> ConsumerId:
        made = self.loans.add_consumer(loan, name=secrets.token_hex(4), budget=budget, actor="test")
        return made.row.consumer

    def enclave(self, loan: LoanId, *, connect: bool = True) -> FakeEnclave:
        key = SigningKey.generate()
        permit = self.admission.admit(
            loan, enrol_request(loan, key), RESULT, bytes(64), exhibit=exhibit(self.clock.now())
        )
        enclave = FakeEnclave(permit.session.session, loan, key)
        if connect:
            self.sessions.connect(enclave.session)
        return enclave

    def lease(self, enclave: FakeEnclave, credits: int, **more: object) -> ReportAnswer:
        return self.leasing.report(
            enclave.session,
            enclave.report(want=credits, **more),  # type: ignore[arg-type]
        )

    def settle(self, enclave: FakeEnclave, *settlements: Signed) -> ReportAnswer:
        return self.leasing.report(enclave.session, enclave.report(settlements))

    def run_sql(self, statement: str) -> None:
        """Run a statement past the program; raises one of `REFUSALS` when the database refuses."""
        if self.database is None:
            with contextlib.closing(sqlite3.connect(self.path)) as connection, connection:
                connection.execute("PRAGMA foreign_keys = ON")
                connection.execute(statement)
        else:
            with psycopg.connect(self.database) as other:
                other.execute(statement.encode())

    def dump(self) -> dict[str, list[str]]:
        """Return every row of every table, as whoever holds the database sees them."""
        if self.database is None:
            with contextlib.closing(sqlite3.connect(self.path)) as connection:
                found = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
                return {
                    name: sorted(map(repr, connection.execute(f"SELECT * FROM {name}")))
                    for (name,) in found.fetchall()
                }
        with psycopg.connect(self.database) as other:
            found = other.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            return {
                name: sorted(map(repr, other.execute(f"SELECT * FROM {name}".encode())))
                for (name,) in found.fetchall()
            }

    def loan(self, loan: LoanId) -> Loan:
        with self.ledger.read() as tx:
            return loan_of(tx, loan)

    def kinds(self) -> list[str]:
        with self.ledger.read() as tx:
            return [event.kind for event in tx.events_after(0, None, 10_000)]


def exhibit(judged: datetime) -> Exhibit:
    return Exhibit(
        nonce=bytes(32),
        evidence=Evidence(tee=Tee.SIMULATED, documents={"quote": b"evidence"}),
        endorsements=Endorsements(tee=Tee.SIMULATED),
        policy=POLICY.encode(),
        judged=judged,
    )


def enrol_request(loan: LoanId, key: SigningKey) -> EnrolRequest:
    return EnrolRequest(
        loan=loan,
        nonce=bytes(32),
        keys=Keys(tls_spki_sha256=bytes(32), signing_key=key.public_key, hpke_key=HPKE_PUBLIC),
        evidence=Documents(tee="simulated", documents={}),
        endorsements=Documents(tee="simulated", documents={}),
        software="test",
    )


@contextlib.contextmanager
def bench(folder: Path, database: str | None = None) -> Iterator[Bench]:
    made = Bench(folder, database)
    try:
        yield made
    finally:
        made.close()


class OnPostgres:
    """Lets a state machine play on PostgreSQL, on a new database in each run."""

    def open_bench(self, folder: Path) -> Bench:
        server = postgresql.server_or_skip()
        self._database = server.new_database()
        return Bench(folder, server.url(self._database))

    def teardown(self) -> None:
        super().teardown()  # type: ignore[misc]
        postgresql.server().drop(self._database)
