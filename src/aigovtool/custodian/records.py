"""
What the ledger holds, row by row, in the narrowest types.

All times are aware UTC; all credits are whole numbers; digests and hashes are 32 bytes. Tokens and
API keys are here as hashes only, content keys only wrapped by the vault.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NewType

from aigovtool.attestation.dcap.policy import TcbGrace
from aigovtool.custodian.ageing import Step
from aigovtool.custodian.budget import Account
from aigovtool.custodian.lifecycle import LoanState, SessionState
from aigovtool.custodian.periods import Period
from aigovtool.ids import ConsumerId, LeaseId, LoanId, SessionId
from aigovtool.wire.codec import Signed
from aigovtool.wire.enrolment import ONE_CREDIT_A_TOKEN, Keys, TokenPrice
from aigovtool.wire.extraction import NO_EXTRACTION_LIMITS, ExtractionLimits
from aigovtool.wire.limits import NO_LIMITS, Limits

RequestId = NewType("RequestId", str)
BorrowerId = NewType("BorrowerId", str)
WebhookId = NewType("WebhookId", str)

DEFAULT_LEASE_CREDITS = 10_000
CUSTODIAN = "custodian"  # the actor of what nobody asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Custodian:
    """Who this custodian is: its key, wrapped by the vault, and its self-signed certificate."""

    public_key: bytes
    wrapped_signing_key: bytes
    certificate_pem: bytes
    created: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """
    A sealed model.

    Args:
        digest: the model digest, SHA-256 of the manifest's signed payload.
        manifest: the signed manifest, exactly as signed.
        wrapped_key: its content key, wrapped by the vault.
        body_sha256: of the sealed body's file, for If-Range and for whoever keeps a copy.
        source_sha256: of the plain entry file, by which an upload is recognised.
        context: tokens that input and output of one query of a language model may have together,
            None for a model of tensors.
    """

    digest: bytes
    name: str
    version: str
    manifest: bytes
    wrapped_key: bytes
    body_bytes: int
    body_sha256: bytes
    source_sha256: bytes
    created: datetime
    context: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoanTerms:
    """
    What was agreed for a loan.

    Args:
        max_enclaves: sessions that may live at one time.
        max_lease_credits: the most that one lease may hold.
        lease_duration_s: how long a lease lives; 0 authorises each query before it runs.
        settle_grace_s: how long after its leases' end a silent session is waited for.
        wipe_after_s: without contact for this long, an enclave wipes key and model.
        reattest_interval_s: after this long a session must attest again; 0 for never.
        expires: when the loan ends, or None.
        limits: of all its queries together, on all enclaves.
        token_price: of a language model.
        shared_prefixes: whether what is kept of one consumer's prompt may serve another's.
        extraction: what each consumer gets of the model.
        evictable: whether an enclave that serves several loans may let its idle model make room.
    """

    max_enclaves: int = 16
    max_lease_credits: int = DEFAULT_LEASE_CREDITS
    lease_duration_s: float = 5.0
    settle_grace_s: float = 30.0
    wipe_after_s: float = 3600.0
    reattest_interval_s: float = 3600.0
    expires: datetime | None = None
    limits: Limits = NO_LIMITS
    token_price: TokenPrice = ONE_CREDIT_A_TOKEN
    shared_prefixes: bool = False
    extraction: ExtractionLimits = NO_EXTRACTION_LIMITS
    evictable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Loan:
    """
    One model lent to one borrower.

    Args:
        token_sha256: of its ticket's token.
        rate_full_at: when its rate's bucket is full again, None for at once.
        retires: when sessions with a model that it lent before are ended, None if there was none.
    """

    loan: LoanId
    name: str
    model: bytes
    state: LoanState
    state_reason: str
    terms: LoanTerms
    account: Account
    token_sha256: bytes
    created: datetime
    rate_full_at: datetime | None = None
    retires: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """
    Who may query under a loan.

    Args:
        budgeted: whether it has a budget of its own within the loan's; fixed when it is made.
        account: that budget, all zero without one.
        used: credits that settlements say it used, budgeted or not.
        period: when that budget begins anew, None for never.
        limits: of its queries together, on all enclaves.
        expires: from when on it is refused, or None.
        expired: whether that was noted and pushed.
        rate_full_at: when its rate's bucket is full again, None for at once.
    """

    consumer: ConsumerId
    loan: LoanId
    name: str
    key_sha256: bytes
    blocked: bool
    blocked_reason: str
    budgeted: bool
    account: Account
    used: int
    created: datetime
    period: Period | None = None
    limits: Limits = NO_LIMITS
    expires: datetime | None = None
    expired: bool = False
    rate_full_at: datetime | None = None

    @property
    def capped(self) -> bool:
        """Whether leases set its credits apart: it has a budget or a rate of its own."""
        return self.budgeted or self.limits.rate is not None

    def may_ask(self, now: datetime) -> bool:
        """Whether it is neither blocked nor past its date."""
        return not self.blocked and (self.expires is None or now < self.expires)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """
    One attested run of an enclave.

    Args:
        model: that it was given the key of; the loan may lend another one by now.
        disconnected: since when it has no control connection, None while it has one.
        last_report: number of the last report that was applied, 0 before the first.
        report_sha256: of that report, to tell a repetition from another with its number.
        decision: the answer that was decided on it, encoded.
        replica: which of several processes holds its control connection, None when there is none
            or only one process.
    """

    session: SessionId
    loan: LoanId
    model: bytes
    state: SessionState
    keys: Keys
    tee: str
    measurement: str
    software: str
    opened: datetime
    disconnected: datetime | None
    ended: datetime | None
    end_reason: str
    last_report: int
    report_sha256: bytes
    decision: bytes
    replica: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """
    What a session's last accepted evidence said of its platform, and whether more is awaited.

    Args:
        appraised: when that evidence was accepted.
        tcb_status: the vendor's word for the platform, None where the vendor has none.
        grace: on what the acceptance rests when the platform is out of date, None otherwise.
        step: how far the session had aged when that was last noted.
        nonce: for which evidence is awaited, 32 bytes, None when none is.
        asked: since when it is awaited, None when it is not.
        overdue: whether it was noted that it should have come by now.
    """

    session: SessionId
    appraised: datetime
    tcb_status: str | None
    grace: TcbGrace | None
    step: Step
    nonce: bytes | None = None
    asked: datetime | None = None
    overdue: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AppraisalRow:
    """
    Evidence that was accepted for a session; its documents by their SHA-256.

    Args:
        nonce: that it answers, 32 bytes; the keys are the session's.
        judged: the time as of which it was judged.
        policy: digest of the policy that accepted it.
        evidence, endorsements: digests by the document's name.
    """

    session: SessionId
    nonce: bytes
    judged: datetime
    tee: str
    policy: bytes
    evidence: Mapping[str, bytes]
    endorsements: Mapping[str, bytes]


class LeaseState(StrEnum):
    """Whether a lease's use is known."""

    OPEN = "open"
    SETTLED = "settled"
    FORFEITED = "forfeited"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRow:
    """
    A block of credits in the hands of one session.

    Args:
        number: of the report that asked for it.
        caps: reserved from consumers' own budgets, by consumer.
        used: as its settlement says, None before.
        forfeited, refunded: when that happened, or None.
        written_off: when a reconciliation found it unsettled, or None; it gives nothing back since.
    """

    lease: LeaseId
    session: SessionId
    loan: LoanId
    number: int
    credits: int
    duration_s: float
    granted: datetime
    expires: datetime
    state: LeaseState = LeaseState.OPEN
    used: int | None = None
    forfeited: datetime | None = None
    refunded: datetime | None = None
    written_off: datetime | None = None
    caps: Mapping[ConsumerId, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SettlementRow:
    """The signed settlement of a lease, kept as it came."""

    lease: LeaseId
    used: int
    by_consumer: Mapping[ConsumerId, int]
    receipts: int
    receipt_chain: bytes
    payload: bytes
    signature: bytes
    received: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseAccount:
    """What became of a lease, with the settlement as it came, None while there is none."""

    lease: LeaseId
    session: SessionId
    credits: int
    granted: datetime
    expires: datetime
    forfeited: datetime | None
    refunded: datetime | None
    written_off: datetime | None
    settlement: Signed | None
    received: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedIn:
    """
    A settlement that came while the ledger was held, kept as it came.

    Args:
        statement: by the custodian itself, of whose key signed the settlement.
    """

    lease: LeaseId
    session: SessionId
    loan: LoanId
    settlement: Signed
    statement: Signed
    received: datetime


class GrantKind(StrEnum):
    """Why credits were made."""

    GRANT = "grant"
    APPROVAL = "approval"
    REFUND = "refund"


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantRow:
    """
    Credits that were made, for a loan or, with `consumer`, for that consumer's own budget.

    `key` is the idempotency key of the call that made them, None when it had none.
    """

    loan: LoanId
    consumer: ConsumerId | None
    credits: int
    kind: GrantKind
    reason: str
    actor: str
    created: datetime
    lease: LeaseId | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodRow:
    """
    The turn of a consumer's budget to a new period.

    Args:
        number: of the turn, from 1 for each consumer.
        withdrawn: what was left of the period before.
        granted: the new period's budget, less what was still leased.
    """

    consumer: ConsumerId
    loan: LoanId
    number: int
    unit: str
    began: datetime
    withdrawn: int
    granted: int
    created: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldGrant:
    """
    A grant as the borrower is told of it.

    Args:
        number: of the grant in the ledger.
        place: which grant of its loan it is, from 1.
        granted: credits that grants made for the loan up to it, itself with them.
    """

    number: int
    place: int
    loan: LoanId
    consumer: ConsumerId | None
    credits: int
    kind: GrantKind
    granted: int
    created: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantSeenRow:
    """An enclave's counter-signature under the notice of a grant, kept as it came."""

    number: int
    session: SessionId
    payload: bytes
    signature: bytes
    received: datetime


class RequestState(StrEnum):
    """What a person decided."""

    OPEN = "open"
    APPROVED = "approved"
    DENIED = "denied"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoreRequest:
    """
    A request for more, in the words of whoever asks, and what was decided on it.

    It is a consumer's, by its session, or the borrower's: then `borrower` names its token, and
    there is neither consumer nor session.
    """

    request: RequestId
    loan: LoanId
    consumer: ConsumerId | None
    session: SessionId | None
    credits: int
    reason: str
    state: RequestState
    granted: int
    decision_reason: str
    created: datetime
    decided: datetime | None
    borrower: BorrowerId | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """Queries that wait for what a request asks, and since when the first of them does."""

    queries: int = 0
    since: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Borrower:
    """A token with which a borrower reads its loan and asks for more; `revoked` ends it."""

    borrower: BorrowerId
    loan: LoanId
    note: str
    token_sha256: bytes
    created: datetime
    revoked: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StopProofRow:
    """A session's signed proof that key and model were wiped, kept as it came."""

    session: SessionId
    payload: bytes
    signature: bytes
    received: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One decision, never changed after it was written; `detail` is a JSON object."""

    number: int
    time: datetime
    kind: str
    actor: str
    loan: LoanId | None
    session: SessionId | None
    consumer: ConsumerId | None
    lease: LeaseId | None
    detail: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """
    Why nothing may be leased, released or granted.

    Args:
        code: what was found, such as ``rollback.mark``.
        reason: the same for people.
    """

    code: str
    reason: str
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """The present incarnation of the ledger (16 bytes, None before its first), and its hold."""

    incarnation: bytes | None
    hold: Hold | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """
    The worst case of a loan: stopped now, so much can still be used.

    Args:
        credits: in leases that live.
        seconds: until the last of them is over.
    """

    credits: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LogHead:
    """
    The ledger's transparency log: its key, and the tree as it was last signed.

    Args:
        origin: the log's name in its checkpoints.
        public_key: Ed25519, of checkpoints only.
        wrapped_key: its seed, wrapped by the vault.
        certificate: an encoded `Signed` `LogKey`, by the custodian's key.
        size: entries in the tree.
        edge: the hashes of `tlog.tree.Edge` at that size.
        checkpoint: the signed note.
    """

    origin: str
    public_key: bytes
    wrapped_key: bytes
    certificate: bytes
    size: int
    edge: tuple[bytes, ...]
    checkpoint: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRow:
    """
    An entry of the log, as it is published.

    Args:
        leaf: its number in the tree, from 0.
        event: which event it commits to; None for one that came back from the published log after
            the ledger was restored from an older copy, and of which only the public part is known.
        salt: 32 random bytes of the commitment, None as `event`.
    """

    leaf: int
    event: int | None
    salt: bytes | None
    entry: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Who is told of events of some kinds; the secret is wrapped."""

    webhook: WebhookId
    url: str
    kinds: tuple[str, ...]
    wrapped_secret: bytes
    created: datetime
    removed: datetime | None = None


class DeliveryState(StrEnum):
    """What became of a message to a webhook."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A message to one webhook; `message` is its id, the same however often it is sent."""

    number: int
    webhook: WebhookId
    message: str
    kind: str
    body: bytes
    created: datetime
    due: datetime
    tries: int
    state: DeliveryState
    answer: str
