"""
The ledger in one SQLite file.

Rule 1: WAL with ``synchronous=FULL``: a commit is on the disk when it returns.
Rule 2: one connection writes, behind a lock, in transactions that are immediate; readers have
        connections of their own and wait for nobody.
Rule 3: a file is made only by `create`; `open` of a wrong path is an error and not a new, empty
        ledger.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from aigovtool.custodian.ageing import ANSWER_WITHIN_S, Step
from aigovtool.custodian.budget import Account
from aigovtool.custodian.lifecycle import LoanState
from aigovtool.custodian.records import (
    AppraisalRow,
    Consumer,
    Custodian,
    Event,
    GrantRow,
    LeaseRow,
    Loan,
    Model,
    MoreRequest,
    RequestId,
    Session,
    SettlementRow,
    Standing,
    StopProofRow,
)
from aigovtool.custodian.store import rows
from aigovtool.custodian.store.queries import load_migrations, load_queries
from aigovtool.errors import (
    AIGovToolError,
    ConfigurationError,
    ConflictError,
    PromiseBrokenError,
    UnavailableError,
)
from aigovtool.ids import ConsumerId, LeaseId, LoanId, SessionId

BUSY_TIMEOUT_MS = 5_000  # another process (a backup) may hold the file for a moment
IDLE_READERS = 4

_QUERIES = load_queries()
_TAKEN = frozenset({sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY})


class SqliteStore:
    """A `Store` in the file *path*. Its methods may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = _connect(path)
        self._writing = threading.Lock()
        self._readers: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()

    @classmethod
    def create(cls, path: Path) -> SqliteStore:
        """
        Make a new, empty ledger, readable by its owner only.

        Raises:
            ConflictError: the file exists.
            ConfigurationError: it cannot be made.
        """
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            raise ConflictError(f"there is a ledger at {path} already") from None
        except OSError as error:
            raise ConfigurationError(
                f"cannot make the ledger {path}", came=error.strerror
            ) from None
        store = cls(path)
        store._migrate()
        return store

    @classmethod
    def open(cls, path: Path) -> SqliteStore:
        """
        Open a ledger that was made before, and bring its schema up to date.

        Raises:
            ConfigurationError: no such file, not a ledger, or of a newer program.
        """
        if not path.is_file():
            raise ConfigurationError(
                f"there is no ledger at {path}", mend="aigovtool custodian init --data DIR"
            )
        store = cls(path)
        store._migrate()
        return store

    @contextlib.contextmanager
    def read(self) -> Iterator[SqliteView]:
        try:
            connection = self._readers.get_nowait()
        except queue.Empty:
            connection = _connect(self._path)
        try:
            with _translated():
                connection.execute("BEGIN")
            yield SqliteView(connection)
        finally:
            _roll_back(connection)
            if self._readers.qsize() < IDLE_READERS:
                self._readers.put(connection)
            else:
                connection.close()

    @contextlib.contextmanager
    def write(self) -> Iterator[SqliteView]:
        with self._writing:
            connection = self._writer
            with _translated():
                connection.execute("BEGIN IMMEDIATE")
            try:
                yield SqliteView(connection)
                with _translated():
                    connection.execute("COMMIT")
            except BaseException:
                _roll_back(connection)
                raise

    def close(self) -> None:
        with self._writing:
            self._writer.close()
            with contextlib.suppress(queue.Empty):
                while True:
                    self._readers.get_nowait().close()

    def _migrate(self) -> None:
        migrations = load_migrations()
        with _translated():
            (version,) = self._writer.execute("PRAGMA user_version").fetchone()
            if version > len(migrations):
                raise ConfigurationError(
                    f"the ledger {self._path} was written by a newer program",
                    expected=f"schema {len(migrations)} or older",
                    came=f"schema {version}",
                )
            for migration in migrations[version:]:
                # one transaction with its number: a crash leaves the old schema or the new one
                self._writer.executescript(
                    f"BEGIN IMMEDIATE; {migration.sql}\n"
                    f"PRAGMA user_version = {migration.number}; COMMIT;"
                )


def _connect(path: Path) -> sqlite3.Connection:
    with _translated():
        # mode=rw: connecting never makes a file
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=len(_QUERIES) + 8,
        )
        connection.row_factory = sqlite3.Row
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
        return connection


def _roll_back(connection: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Let no exception of sqlite3 out."""
    try:
        yield
    except sqlite3.Error as error:
        raise _error_of(error) from error


def _error_of(error: sqlite3.Error) -> AIGovToolError:
    code = getattr(error, "sqlite_errorcode", None)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    if isinstance(error, sqlite3.IntegrityError):
        if code in _TAKEN:
            return ConflictError("the ledger has such a row already", code="ledger.taken")
        return PromiseBrokenError("the ledger refused a row that breaks its rules", came=str(error))
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
        return ConfigurationError("the ledger cannot be used", code="ledger.file", came=name)
    return UnavailableError(
        "the ledger cannot be read or written now; what was asked may or may not have been kept",
        code="ledger.unavailable",
        came=name,
        mend="look at the custodian's disk, then ask again",
    )


class SqliteView:
    """One transaction: `Reading`, and within `write` also `Writing`."""

    __slots__ = ("_connection",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def _run(self, query: str, **values: Any) -> sqlite3.Cursor:
        # not by _translated: a context manager costs as much as the statement
        try:
            return self._connection.execute(_QUERIES[query], values)
        except sqlite3.Error as error:
            raise _error_of(error) from error

    def _one(self, query: str, **values: Any) -> sqlite3.Row | None:
        try:
            row = self._connection.execute(_QUERIES[query], values).fetchone()
        except sqlite3.Error as error:
            raise _error_of(error) from error
        assert row is None or isinstance(row, sqlite3.Row)
        return row

    def _just_one(self, query: str, **values: Any) -> sqlite3.Row:
        row = self._one(query, **values)
        if row is None:
            raise PromiseBrokenError(f"the query {query} found nothing")
        return row

    def _all(self, query: str, **values: Any) -> list[sqlite3.Row]:
        try:
            return self._connection.execute(_QUERIES[query], values).fetchall()
        except sqlite3.Error as error:
            raise _error_of(error) from error

    def _change(self, query: str, **values: Any) -> None:
        """Run an update that must find its row."""
        if self._run(query, **values).rowcount != 1:
            raise ConflictError("the ledger has moved on", code="ledger.moved", came=query)

    # --- reading ---

    def custodian(self) -> Custodian | None:
        row = self._one("custodian")
        return None if row is None else rows.custodian_of(row)

    def model(self, digest: bytes) -> Model | None:
        row = self._one("model", digest=digest)
        return None if row is None else rows.model_of(row)

    def models(self) -> Sequence[Model]:
        return [rows.model_of(row) for row in self._all("models")]

    def loan(self, loan: LoanId) -> Loan | None:
        row = self._one("loan", loan=loan)
        return None if row is None else rows.loan_of(row)

    def loan_of_token(self, token_sha256: bytes) -> Loan | None:
        row = self._one("loan_of_token", token_sha256=token_sha256)
        return None if row is None else rows.loan_of(row)

    def loans(self) -> Sequence[Loan]:
        return [rows.loan_of(row) for row in self._all("loans")]

    def loans_past_date(self, now: datetime) -> Sequence[LoanId]:
        return [row["loan"] for row in self._all("loans_past_date", now_us=rows.to_us(now))]

    def loan_policy(self, loan: LoanId) -> str:
        policy = self._just_one("loan_policy", loan=loan)["policy"]
        assert isinstance(policy, str)
        return policy

    def consumer(self, consumer: ConsumerId) -> Consumer | None:
        row = self._one("consumer", consumer=consumer)
        return None if row is None else rows.consumer_of(row)

    def consumers_of_loan(self, loan: LoanId) -> Sequence[Consumer]:
        return [rows.consumer_of(row) for row in self._all("consumers_of_loan", loan=loan)]

    def session(self, session: SessionId) -> Session | None:
        row = self._one("session", session=session)
        return None if row is None else rows.session_of(row)

    def sessions_of_loan(self, loan: LoanId, limit: int) -> Sequence[Session]:
        found = self._all("sessions_of_loan", loan=loan, limit=limit)
        return [rows.session_of(row) for row in found]

    def live_sessions_of_loan(self, loan: LoanId) -> Sequence[Session]:
        return [rows.session_of(row) for row in self._all("live_sessions_of_loan", loan=loan)]

    def count_connected_sessions(self, loan: LoanId) -> int:
        return int(self._just_one("count_connected_sessions", loan=loan)["sessions"])

    def standing(self, session: SessionId) -> Standing | None:
        row = self._one("standing", session=session)
        return None if row is None else rows.standing_of(row)

    def appraisals_of_session(self, session: SessionId) -> Sequence[AppraisalRow]:
        return [
            rows.appraisal_of(
                row, self._all("appraisal_documents", session=session, nonce=row["nonce"])
            )
            for row in self._all("appraisals_of_session", session=session)
        ]

    def document(self, sha256: bytes) -> bytes:
        body = self._just_one("document", sha256=sha256)["body"]
        assert isinstance(body, bytes)
        return body

    def count_steps(self, loan: LoanId) -> Mapping[Step, int]:
        return {Step(row["step"]): row["sessions"] for row in self._all("count_steps", loan=loan)}

    def ageing_sessions(self) -> Sequence[SessionId]:
        return [row["session"] for row in self._all("ageing_sessions")]

    def sessions_to_ask(self, now: datetime, limit: int) -> Sequence[SessionId]:
        found = self._all("sessions_to_ask", now_us=rows.to_us(now), limit=limit)
        return [row["session"] for row in found]

    def overdue_sessions(self, now: datetime, limit: int) -> Sequence[SessionId]:
        found = self._all(
            "overdue_sessions",
            now_us=rows.to_us(now),
            answer_within_us=round(ANSWER_WITHIN_S * 1e6),
            limit=limit,
        )
        return [row["session"] for row in found]

    def silent_sessions(self, now: datetime, limit: int) -> Sequence[SessionId]:
        found = self._all("silent_sessions", now_us=rows.to_us(now), limit=limit)
        return [row["session"] for row in found]

    def lease(self, lease: LeaseId) -> LeaseRow | None:
        row = self._one("lease", lease=lease)
        return None if row is None else self._with_caps(row)

    def leases_of_loan(self, loan: LoanId, limit: int) -> Sequence[LeaseRow]:
        return [self._with_caps(row) for row in self._all("leases_of_loan", loan=loan, limit=limit)]

    def _with_caps(self, row: sqlite3.Row) -> LeaseRow:
        caps = self._all("lease_caps", lease=row["lease"])
        return rows.lease_of(row, {cap["consumer"]: cap["credits"] for cap in caps})

    def open_of_session(self, session: SessionId) -> tuple[int, int, datetime | None]:
        row = self._just_one("open_of_session", session=session)
        return row["leases"], row["credits"], rows.from_us_or_none(row["expires_us"])

    def has_unsettled(self, session: SessionId) -> bool:
        return bool(self._just_one("unsettled_of_session", session=session)["leases"])

    def leases_to_forfeit(self, now: datetime, limit: int) -> Sequence[LeaseId]:
        found = self._all("leases_to_forfeit", now_us=rows.to_us(now), limit=limit)
        return [row["lease"] for row in found]

    def exposure(self, loan: LoanId, now: datetime) -> tuple[int, datetime | None]:
        row = self._just_one("exposure", loan=loan, now_us=rows.to_us(now))
        return row["credits"], rows.from_us_or_none(row["expires_us"])

    def settlement_payload(self, lease: LeaseId) -> bytes | None:
        row = self._one("settlement_payload", lease=lease)
        return None if row is None else row["payload"]

    def grant_of_key(self, key: str) -> GrantRow | None:
        row = self._one("grant_of_key", idempotency_key=key)
        return None if row is None else rows.grant_of(row)

    def grants_of_loan(self, loan: LoanId, limit: int) -> Sequence[GrantRow]:
        return [rows.grant_of(row) for row in self._all("grants_of_loan", loan=loan, limit=limit)]

    def request(self, request: RequestId) -> MoreRequest | None:
        row = self._one("request", request=request)
        return None if row is None else rows.request_of(row)

    def open_request_of_consumer(self, loan: LoanId, consumer: ConsumerId) -> MoreRequest | None:
        row = self._one("open_request_of_consumer", loan=loan, consumer=consumer)
        return None if row is None else rows.request_of(row)

    def requests_of_loan(self, loan: LoanId, limit: int) -> Sequence[MoreRequest]:
        found = self._all("requests_of_loan", loan=loan, limit=limit)
        return [rows.request_of(row) for row in found]

    def stop_proof(self, session: SessionId) -> StopProofRow | None:
        row = self._one("stop_proof", session=session)
        return None if row is None else rows.stop_proof_of(row)

    def events_after(self, after: int, loan: LoanId | None, limit: int) -> Sequence[Event]:
        found = self._all("events_after", after=after, loan=loan, limit=limit)
        return [rows.event_of(row) for row in found]

    def last_appraisal_of_session(self, session: SessionId) -> Event | None:
        row = self._one("last_appraisal_of_session", session=session)
        return None if row is None else rows.event_of(row)

    def last_events(self, loan: LoanId | None, limit: int) -> Sequence[Event]:
        return [rows.event_of(row) for row in self._all("last_events", loan=loan, limit=limit)]

    # --- writing ---

    def insert_custodian(self, row: Custodian) -> None:
        self._run("insert_custodian", **rows.custodian_values(row))

    def insert_model(self, row: Model) -> None:
        self._run("insert_model", **rows.model_values(row))

    def insert_loan(self, row: Loan, policy: str) -> None:
        self._run("insert_loan", policy=policy, **rows.loan_values(row))

    def set_loan_account(self, loan: LoanId, account: Account) -> None:
        self._change("set_loan_account", loan=loan, **rows.account_values(account))

    def set_loan_state(self, loan: LoanId, state: LoanState, reason: str) -> None:
        self._change("set_loan_state", loan=loan, state=state.value, state_reason=reason)

    def set_loan_token(self, loan: LoanId, token_sha256: bytes) -> None:
        self._change("set_loan_token", loan=loan, token_sha256=token_sha256)

    def insert_consumer(self, row: Consumer) -> None:
        self._run("insert_consumer", **rows.consumer_values(row))

    def set_consumer_account(self, consumer: ConsumerId, account: Account, used: int) -> None:
        self._change(
            "set_consumer_account", consumer=consumer, used=used, **rows.account_values(account)
        )

    def set_consumer_blocked(self, consumer: ConsumerId, blocked: bool, reason: str) -> None:
        self._change(
            "set_consumer_blocked", consumer=consumer, blocked=int(blocked), blocked_reason=reason
        )

    def insert_session(self, row: Session) -> None:
        self._run("insert_session", **rows.session_values(row))

    def set_session_state(self, row: Session) -> None:
        self._change(
            "set_session_state",
            session=row.session,
            state=row.state.value,
            disconnected_us=rows.to_us_or_none(row.disconnected),
            ended_us=rows.to_us_or_none(row.ended),
            end_reason=row.end_reason,
        )

    def set_session_report(
        self, session: SessionId, number: int, report_sha256: bytes, decision: bytes
    ) -> None:
        self._change(
            "set_session_report",
            session=session,
            last_report=number,
            report_sha256=report_sha256,
            decision=decision,
        )

    def disconnect_all_sessions(self, now: datetime) -> None:
        self._run("disconnect_all_sessions", now_us=rows.to_us(now))

    def insert_standing(self, row: Standing) -> None:
        self._run("insert_standing", **rows.standing_values(row))

    def set_standing(self, row: Standing) -> None:
        self._change("set_standing", **rows.standing_values(row))

    def keep_document(self, sha256: bytes, body: bytes) -> None:
        self._run("keep_document", sha256=sha256, body=body)

    def insert_appraisal(self, row: AppraisalRow) -> None:
        self._run("insert_appraisal", **rows.appraisal_values(row))
        for document in rows.appraisal_document_values(row):
            self._run("insert_appraisal_document", **document)

    def insert_lease(self, row: LeaseRow) -> None:
        self._run("insert_lease", **rows.lease_values(row))
        for consumer, credits in row.caps.items():
            self._run("insert_lease_cap", lease=row.lease, consumer=consumer, credits=credits)

    def set_lease_state(self, row: LeaseRow) -> None:
        self._change(
            "set_lease_state",
            lease=row.lease,
            state=row.state.value,
            used=row.used,
            forfeited_us=rows.to_us_or_none(row.forfeited),
            refunded_us=rows.to_us_or_none(row.refunded),
        )

    def insert_settlement(self, row: SettlementRow) -> None:
        self._run(
            "insert_settlement",
            lease=row.lease,
            used=row.used,
            receipts=row.receipts,
            receipt_chain=row.receipt_chain,
            payload=row.payload,
            signature=row.signature,
            received_us=rows.to_us(row.received),
        )
        for consumer, credits in row.by_consumer.items():
            self._run("insert_settlement_use", lease=row.lease, consumer=consumer, credits=credits)

    def insert_grant(self, row: GrantRow) -> None:
        self._run("insert_grant", **rows.grant_values(row))

    def insert_request(self, row: MoreRequest) -> None:
        self._run("insert_request", **rows.request_values(row))

    def set_request_decision(self, row: MoreRequest) -> None:
        self._change(
            "set_request_decision",
            request=row.request,
            state=row.state.value,
            granted=row.granted,
            decision_reason=row.decision_reason,
            decided_us=rows.to_us_or_none(row.decided),
        )

    def insert_stop_proof(self, row: StopProofRow) -> None:
        self._run("insert_stop_proof", **rows.stop_proof_values(row))

    def insert_event(
        self,
        *,
        time: datetime,
        kind: str,
        actor: str,
        loan: LoanId | None,
        session: SessionId | None,
        consumer: ConsumerId | None,
        lease: LeaseId | None,
        detail: bytes,
    ) -> None:
        self._run(
            "insert_event",
            time_us=rows.to_us(time),
            kind=kind,
            actor=actor,
            loan=loan,
            session=session,
            consumer=consumer,
            lease=lease,
            detail=detail,
        )
