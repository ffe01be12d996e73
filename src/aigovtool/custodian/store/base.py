"""
What the services may rely on, whatever the database.

A store promises:

1. **Atomic.** What one `write` block does becomes true together when the block ends, or not at
   all when it raises.
2. **Durable.** When a `write` block has ended without an exception, what it did survives the death
   of this process and of the machine.
3. **Serialised.** Write blocks happen one after the other; none sees a half of another, and what
   one reads is not changed by another until it ends.
4. **Constrained.** Accounts that do not add up, a second settlement of a lease, a second lease for
   a report, a changed or deleted event are refused by the database itself.
5. **Honest about doubt.** When the end of a block fails, it raises `UnavailableError`, and what was
   done may have been kept or not. Callers repeat: reports by their number, grants by their
   idempotency key; the rest is safe to repeat.

Every method raises `UnavailableError` when the database cannot answer, `ConflictError` when a row
exists already, and `PromiseBrokenError` when a constraint caught this program being wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Protocol

from aigovtool.custodian.ageing import Step
from aigovtool.custodian.budget import Account
from aigovtool.custodian.lifecycle import LoanState, SessionState
from aigovtool.custodian.records import (
    AppraisalRow,
    Borrower,
    BorrowerId,
    Consumer,
    Custodian,
    Delivery,
    DeliveryState,
    Event,
    GrantRow,
    GrantSeenRow,
    HandedIn,
    Hold,
    LeaseAccount,
    LeaseRow,
    Life,
    Loan,
    LogHead,
    LogRow,
    Model,
    MoreRequest,
    PeriodRow,
    RequestId,
    Session,
    SettlementRow,
    Standing,
    StopProofRow,
    ToldGrant,
    Waiting,
    Webhook,
    WebhookId,
)
from aigovtool.ids import ConsumerId, LeaseId, LoanId, SessionId
from aigovtool.wire.codec import Signed


class Reading(Protocol):
    """One consistent view of the ledger."""

    def custodian(self) -> Custodian | None: ...

    def model(self, digest: bytes) -> Model | None: ...
    def models(self) -> Sequence[Model]: ...

    def loan(self, loan: LoanId) -> Loan | None: ...
    def loan_of_token(self, token_sha256: bytes) -> Loan | None: ...
    def loans(self) -> Sequence[Loan]: ...
    def loans_past_date(self, now: datetime) -> Sequence[LoanId]: ...
    def loan_policy(self, loan: LoanId) -> str: ...

    def consumer(self, consumer: ConsumerId) -> Consumer | None: ...
    def consumers_of_loan(self, loan: LoanId) -> Sequence[Consumer]: ...

    def consumers_to_turn(self, now: datetime, limit: int) -> Sequence[ConsumerId]:
        """Return consumers whose budget's period is over, of loans that are not."""
        ...

    def consumers_to_expire(self, now: datetime, limit: int) -> Sequence[ConsumerId]:
        """Return consumers past their date, not noted as such yet."""
        ...

    def consumers_ending(self, loan: LoanId, until: datetime) -> Mapping[ConsumerId, datetime]:
        """Return consumers whose date comes before *until* and was not noted as past."""
        ...

    def last_period_of_consumer(self, consumer: ConsumerId) -> int: ...
    def periods_of_loan(self, loan: LoanId, limit: int) -> Sequence[PeriodRow]: ...

    def session(self, session: SessionId) -> Session | None: ...
    def sessions_of_loan(self, loan: LoanId, limit: int) -> Sequence[Session]: ...

    def live_sessions_of_loan(self, loan: LoanId) -> Sequence[Session]:
        """Return those that count against the loan's terms, the longest silent first."""
        ...

    def count_connected_sessions(self, loan: LoanId) -> int: ...

    def count_sessions(self, loan: LoanId) -> Mapping[SessionState, int]:
        """Return how many sessions of the loan are in which state; a state of none is left out."""
        ...

    def count_sharers(self, loan: LoanId) -> int:
        """Return how many sessions hold leases of what the loan has left."""
        ...

    def limits_concurrency(self, loan: LoanId) -> bool:
        """Whether any consumer of the loan may run only so many queries at one time."""
        ...

    def place_of_session(self, session: SessionId) -> tuple[int, int]:
        """Return how many live sessions are older than this one, and how many live."""
        ...

    def outputs_elsewhere(self, loan: LoanId, *, day: int, watch: str) -> Mapping[ConsumerId, int]:
        """Return the tokens that other processes than *watch* gave the loan's consumers."""
        ...

    def standing(self, session: SessionId) -> Standing | None: ...

    def appraisals_of_session(self, session: SessionId) -> Sequence[AppraisalRow]:
        """Return what evidence the session was accepted on, the oldest first."""
        ...

    def document(self, sha256: bytes) -> bytes:
        """Return a document that an appraisal names."""
        ...

    def count_steps(self, loan: LoanId) -> Mapping[Step, int]:
        """Return how many connected sessions have aged how far, by the step last noted."""
        ...

    def ageing_sessions(self) -> Sequence[SessionId]:
        """Return live sessions whose platform is out of date."""
        ...

    def sessions_to_ask(self, now: datetime, limit: int) -> Sequence[SessionId]:
        """Return connected sessions that must attest again and were not asked."""
        ...

    def overdue_sessions(self, now: datetime, limit: int) -> Sequence[SessionId]:
        """Return connected sessions that should have attested again, not noted as such yet."""
        ...

    def silent_sessions(self, now: datetime, limit: int) -> Sequence[SessionId]:
        """Return live sessions that are silent past their grace and have no open lease."""
        ...

    def retired_sessions(self, now: datetime, limit: int) -> Sequence[SessionId]:
        """Return live sessions with a model that was replaced, and whose time is over."""
        ...

    def lease(self, lease: LeaseId) -> LeaseRow | None: ...
    def leases_of_loan(self, loan: LoanId, limit: int) -> Sequence[LeaseRow]: ...

    def open_of_session(self, session: SessionId) -> tuple[int, int, datetime | None]:
        """Return number, credits and last end of the leases that the session has not settled."""
        ...

    def has_unsettled(self, session: SessionId) -> bool:
        """Whether a lease of the session is open, or forfeited and not settled late."""
        ...

    def leases_to_forfeit(self, now: datetime, limit: int) -> Sequence[LeaseId]:
        """Return open leases whose end and whose session's last contact are past the grace."""
        ...

    def exposure(self, loan: LoanId, now: datetime) -> tuple[int, datetime | None]:
        """Return credits and last end of the leases of the loan that live."""
        ...

    def settlement_payload(self, lease: LeaseId) -> bytes | None: ...

    def balance_at(self, loan: LoanId, at: datetime) -> Account:
        """Return the loan's account as all moves before *at* add up to it."""
        ...

    def grants_between(
        self, loan: LoanId, begin: datetime, end: datetime
    ) -> Sequence[GrantRow]: ...

    def leases_between(
        self, loan: LoanId, begin: datetime, end: datetime, limit: int
    ) -> Sequence[LeaseAccount]:
        """Return leases that were unsettled at *begin*, or granted or moved since, as of now."""
        ...

    def recovered_leases(self, loan: LoanId) -> Sequence[LeaseId]: ...
    def settlements_before(self, session: SessionId, before: datetime) -> Sequence[Signed]:
        """Return those of the session that came last before a time, several from one report."""
        ...

    def sessions_between(self, loan: LoanId, begin: datetime, end: datetime) -> Sequence[SessionId]:
        """Return sessions that were opened or ended in the span."""
        ...

    def events_between(
        self, loan: LoanId, begin: datetime, end: datetime, after: int, limit: int
    ) -> Sequence[Event]: ...

    def grant_of_key(self, key: str) -> GrantRow | None: ...
    def grants_of_loan(self, loan: LoanId, limit: int) -> Sequence[GrantRow]: ...

    def request(self, request: RequestId) -> MoreRequest | None: ...
    def open_request_of_consumer(
        self, loan: LoanId, consumer: ConsumerId
    ) -> MoreRequest | None: ...
    def count_open_requests(self, loan: LoanId) -> int: ...
    def open_request_of_borrower(self, loan: LoanId) -> MoreRequest | None: ...
    def requests_of_loan(self, loan: LoanId, limit: int) -> Sequence[MoreRequest]: ...

    def waiting_of_request(self, request: RequestId) -> Waiting:
        """Return who waits for it in living sessions, as they last said."""
        ...

    def webhooks(self) -> Sequence[Webhook]:
        """Return those that were not removed."""
        ...

    def webhook(self, webhook: WebhookId) -> Webhook | None: ...

    def due_deliveries(self, now: datetime, limit: int) -> Sequence[Delivery]:
        """Return the first message that waits for each webhook, if it is due and not claimed."""
        ...

    def count_deliveries(self, webhook: WebhookId) -> Mapping[DeliveryState, int]: ...

    def last_answer(self, webhook: WebhookId) -> str:
        """Return in words what the last message that was tried came to, "" before any was."""
        ...

    def low_mark(self, loan: LoanId) -> tuple[int, bool] | None:
        """Return below how many credits the loan is low, and whether that was said."""
        ...

    def stop_proof(self, session: SessionId) -> StopProofRow | None: ...

    def events_after(self, after: int, loan: LoanId | None, limit: int) -> Sequence[Event]: ...

    def last_appraisal_of_session(self, session: SessionId) -> Event | None:
        """Return the event of what the session's newest evidence came to."""
        ...

    def replicas(self) -> Mapping[int, int]:
        """Return the processes that belong together by number, and how far each one's beat is."""
        ...

    def replica_lives(self, replica: int) -> bool:
        """Whether the process with this number still belongs; it may be stopped all the same."""
        ...

    def leased_to_connected(self, replica: int | None) -> int:
        """Return the credits in leases of sessions that are connected to *replica*."""
        ...

    def last_events(self, loan: LoanId | None, limit: int) -> Sequence[Event]:
        """Return the newest events, the newest first."""
        ...

    def borrower(self, borrower: BorrowerId) -> Borrower | None: ...

    def borrower_of_token(self, token_sha256: bytes) -> Borrower | None:
        """Return whose token it is, unless it was revoked."""
        ...

    def borrowers_of_loan(self, loan: LoanId, limit: int) -> Sequence[Borrower]: ...

    def last_grant(self) -> int:
        """Return the highest number of a grant, 0 before the first."""
        ...

    def grants_after(self, after: int, limit: int) -> Sequence[ToldGrant]:
        """Return grants of all loans from a number on, the oldest first."""
        ...

    def unseen_grants(self, loan: LoanId, limit: int) -> Sequence[ToldGrant]:
        """Return grants of the loan that no enclave has counter-signed, the oldest first."""
        ...

    def told_grants(self, loan: LoanId, limit: int) -> Sequence[ToldGrant]:
        """Return the grants of the loan, the newest first."""
        ...

    def told_between(self, loan: LoanId, begin: datetime, end: datetime) -> Sequence[ToldGrant]:
        """Return the grants of `grants_between`, in the same order."""
        ...

    def told_grant(self, number: int) -> ToldGrant | None: ...
    def grant_seen(self, number: int) -> GrantSeenRow | None: ...

    def log_head(self) -> LogHead | None: ...

    def events_to_log(self, limit: int) -> Sequence[Event]:
        """Return events that are not in the log yet, the oldest first."""
        ...

    def count_to_log(self) -> int: ...
    def last_logged_event(self) -> int: ...
    def log_entries(self, first: int, limit: int) -> Sequence[LogRow]: ...
    def log_entry_of_event(self, event: int) -> LogRow | None: ...

    def event(self, number: int) -> Event | None: ...
    def last_event_of_kind(self, kind: str) -> Event | None: ...

    def unsettled_leases_of_loan(self, loan: LoanId) -> Sequence[LeaseRow]:
        """Return the leases whose use is not known, but for those that were written off."""
        ...

    def last_lease_number(self, session: SessionId) -> int: ...
    def unended_sessions_of_loan(self, loan: LoanId) -> Sequence[Session]: ...

    def incarnations(self) -> Sequence[bytes]:
        """Return the lives of this ledger, the present one last."""
        ...

    def life(self) -> Life:
        """Return the present one of them, and whether it is held."""
        ...

    def handed_in(self) -> Sequence[HandedIn]: ...
    def handed_in_of_lease(self, lease: LeaseId) -> HandedIn | None: ...


class Listener(Protocol):
    """Hears what is announced to the processes that belong to a ledger; from any thread."""

    def joined(self) -> None:
        """From now on everything that is announced is told."""
        ...

    def told(self, message: bytes) -> None: ...

    def parted(self) -> None:
        """Nothing more is told: what rests on having been told everything must end."""
        ...


class Writing(Reading, Protocol):
    """A view that may also be changed."""

    def savepoint(self) -> AbstractContextManager[None]:
        """Undo what the block did, and nothing else, when the block raises."""
        ...

    @property
    def touched(self) -> dict[LoanId | ConsumerId, Account]:
        """The accounts that this block wrote, as they are now."""
        ...

    def insert_custodian(self, row: Custodian) -> None: ...
    def insert_model(self, row: Model) -> None: ...

    def insert_loan(self, row: Loan, policy: str) -> None: ...
    def set_loan_account(self, loan: LoanId, account: Account) -> None: ...
    def set_loan_state(self, loan: LoanId, state: LoanState, reason: str) -> None: ...
    def set_loan_terms(self, row: Loan) -> None:
        """Write those terms of *row* that may be changed, and `rate_full_at`."""
        ...

    def set_outputs(
        self, loan: LoanId, consumer: ConsumerId, *, day: int, watch: str, tokens: int
    ) -> None:
        """Note how many tokens *consumer* was given on *day* by the process *watch*."""
        ...

    def forget_outputs(self, loan: LoanId, *, before: int) -> None:
        """Forget what was given before the day *before*."""
        ...

    def set_loan_model(self, row: Loan) -> None:
        """Write `model` and `retires` of *row*."""
        ...

    def set_loan_token(self, loan: LoanId, token_sha256: bytes) -> None: ...

    def insert_consumer(self, row: Consumer) -> None: ...
    def set_consumer_account(self, consumer: ConsumerId, account: Account, used: int) -> None: ...
    def set_consumer_blocked(self, consumer: ConsumerId, blocked: bool, reason: str) -> None: ...

    def set_consumer_terms(self, row: Consumer) -> None:
        """Write `period`, `limits`, `rate_full_at`, `expires` and `expired` of *row*."""
        ...

    def insert_period(self, row: PeriodRow) -> None: ...

    def insert_session(self, row: Session) -> None: ...

    def set_session_state(self, row: Session) -> None:
        """Write `state`, `disconnected`, `ended` and `end_reason` of *row*."""
        ...

    def set_session_report(
        self, session: SessionId, number: int, report_sha256: bytes, decision: bytes
    ) -> None:
        """Note report *number*; raises ConflictError unless it follows the last one."""
        ...

    def disconnect_all_sessions(self, now: datetime) -> None: ...

    def remove_replica(self, replica: int, now: datetime) -> None:
        """Note that a process is gone: the sessions that it held are disconnected."""
        ...

    def insert_challenge(
        self, loan: LoanId, nonce: bytes, *, now: datetime, expires: datetime, most: int
    ) -> None:
        """Note a nonce that is out; the oldest of the loan give way when there are *most*."""
        ...

    def take_challenge(self, loan: LoanId, nonce: bytes, now: datetime) -> bool:
        """Take a nonce back; whether it was out for this loan, and still good."""
        ...

    def announce(self, messages: Sequence[bytes]) -> bool:
        """
        Hand *messages* to every process that belongs, this one too, in the order of commits, if
        and when this block is kept. False when this process has to tell itself.
        """
        ...

    def insert_standing(self, row: Standing) -> None: ...
    def set_standing(self, row: Standing) -> None: ...

    def keep_document(self, sha256: bytes, body: bytes) -> None:
        """Keep a document under its digest; one that is kept already stays as it is."""
        ...

    def insert_appraisal(self, row: AppraisalRow) -> None: ...

    def insert_lease(self, row: LeaseRow) -> None: ...

    def set_lease_state(self, row: LeaseRow) -> None:
        """Write `state`, `used`, `forfeited` and `refunded` of *row*."""
        ...

    def insert_settlement(self, row: SettlementRow) -> None: ...
    def insert_grant(self, row: GrantRow) -> None: ...
    def insert_request(self, row: MoreRequest) -> None: ...

    def set_request_decision(self, row: MoreRequest) -> None:
        """Write what was decided; raises ConflictError when that was done before."""
        ...

    def set_waiting(self, request: RequestId, session: SessionId, waiting: Waiting) -> None:
        """Note what *session* says of who waits there; with none, forget what it said."""
        ...

    def insert_webhook(self, row: Webhook) -> None: ...

    def remove_webhook(self, webhook: WebhookId, now: datetime) -> None:
        """Tell it nothing more, nor what waits."""
        ...

    def queue_deliveries(self, message: str, kind: str, body: bytes, now: datetime) -> None:
        """Have every webhook that wants *kind* told."""
        ...

    def queue_delivery(
        self, webhook: WebhookId, message: str, kind: str, body: bytes, now: datetime
    ) -> None: ...

    def claim_delivery(self, number: int, now: datetime, until: datetime) -> bool:
        """Return whether it is ours to deliver until then."""
        ...

    def set_delivery(self, row: Delivery) -> None:
        """Write `state`, `tries`, `due` and `answer` of *row*, if it still waits."""
        ...

    def set_low_mark(self, loan: LoanId, credits: int, *, low: bool) -> None: ...
    def drop_low_mark(self, loan: LoanId) -> None: ...

    def insert_stop_proof(self, row: StopProofRow) -> None: ...

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
    ) -> int:
        """Append an event and return its number, which is higher than any before it."""
        ...

    def write_off_leases(self, loan: LoanId, now: datetime) -> None: ...
    def begin_incarnation(self, incarnation: bytes, now: datetime) -> None: ...

    def set_hold(self, row: Hold) -> None:
        """Hold; when that was done before, the first reason stays."""
        ...

    def lift_hold(self) -> None: ...
    def insert_handed_in(self, row: HandedIn) -> None: ...
    def forget_handed_in(self) -> None: ...

    def insert_borrower(self, row: Borrower) -> None: ...

    def revoke_borrower(self, borrower: BorrowerId, now: datetime) -> None:
        """Raise ConflictError when it was revoked before."""
        ...

    def insert_grant_seen(self, row: GrantSeenRow) -> None: ...

    def insert_log_head(self, row: LogHead) -> None: ...

    def swap_log_head(self, old: LogHead, new: LogHead) -> None:
        """Put *new* in the place of *old*; raises ConflictError when that is no longer there."""
        ...

    def insert_log_entry(self, row: LogRow) -> None:
        """Append an entry; its event is no longer one to log."""
        ...


class Store(Protocol):
    """A ledger that keeps the promises of this module."""

    def read(self) -> AbstractContextManager[Reading]:
        """Lend a view as of now; it waits for no writer."""
        ...

    def write(self) -> AbstractContextManager[Writing]:
        """Lend the ledger for one decision; the block's end is its commit."""
        ...

    def join(self, listener: Listener) -> None:
        """
        Belong to the processes that serve this ledger, until `close`.

        What parts this one from the others is mended behind its back, under a new number.
        """
        ...

    @property
    def replica(self) -> int | None:
        """The number of this process among them; None when it is alone, or not one of them."""
        ...

    @property
    def shared(self) -> bool:
        """Whether several processes may serve this ledger."""
        ...

    def close(self) -> None: ...
