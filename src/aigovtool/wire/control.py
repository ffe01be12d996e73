"""
The control connection: one WebSocket that the enclave keeps open to the custodian.

It opens with `Hello` (who), answered by `Welcome`. After that the enclave sends reports, one at a
time, each answered by a `ReportAnswer` of the same number; the custodian pushes whatever has
changed. Messages are JSON, tagged by ``type``.

Rule 1: a report that was not answered is sent again with its number, after a reconnection too; the
custodian applies each number once and gives the same answer.
Rule 2: a lease's time runs from the moment its report was *first* sent (I2).
Rule 3: a settlement is final for its lease: the enclave has closed the lease before it signs.
Rule 4: `ReattestWanted` is answered once, by a `Reattest` of the same nonce. A newer one takes the
place of an older one that was not answered yet.
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec import field

from aigovtool.ids import ConsumerId, LeaseId, LoanId, SessionId
from aigovtool.wire.codec import MAX_MESSAGE_BYTES, Message, Signed, Time
from aigovtool.wire.enrolment import Documents, RosterEntry, Terms
from aigovtool.wire.extraction import AlarmKind
from aigovtool.wire.receipt import RefundClass

MAX_CONTROL_BYTES = MAX_MESSAGE_BYTES  # what was small enough to enrol can attest again
ANSWER_LIVES_S = 5.0  # a lease of duration 0 serves only so soon after it was asked for
MAX_SETTLEMENTS = 64  # in one report; more wait for the next
NO_SETTLEMENT_BEFORE = bytes(32)


# --- opening ---------------------------------------------------------------------------------


class ControlChallenge(Message, frozen=True, kw_only=True, tag="challenge"):
    """The custodian's first message: 32 bytes to sign."""

    nonce: bytes


class Hello(Message, frozen=True, kw_only=True, tag="hello"):
    """
    Who is here. `signature` is by the session's attested signing key over
    ``nonce || session`` (`Label.CONTROL_HELLO`).

    Args:
        statement: the newest `SessionStatement` of this session: a ledger that was put back from
            a copy, and may not know the session, is told so by its own signature.
    """

    session: SessionId
    signature: bytes
    statement: Signed


HELD = "held"
"""
The state of every loan while the custodian's ledger is held: enclaves stop, hand in every
settlement that they still have, those that were acknowledged too, and are leased nothing.
"""


class Welcome(Message, frozen=True, kw_only=True, tag="welcome"):
    """
    The state of things; what follows are changes to it.

    Args:
        place, sharers: as in `Lease`.
        decided: what was decided lately on consumers' requests, the last for each consumer.
        model_digest, retire_after_s: as in `ModelReplaced`; None when no model was replaced.
    """

    state: str
    state_reason: str
    terms: Terms
    roster: tuple[RosterEntry, ...]
    left: int
    model_digest: bytes
    retire_after_s: float | None = None
    place: int = 0
    sharers: int = 1
    decided: tuple[MoreDecided, ...] = ()


# --- enclave to custodian --------------------------------------------------------------------


class Settlement(Message, frozen=True, kw_only=True):
    """
    The final use of a lease, signed by the session (`Label.SETTLEMENT`).

    Args:
        used: credits charged to the lease and not taken back, at most its size.
        by_consumer: the same, by consumer; sums up to `used`.
        refunded: credits that were charged and taken back, by class; they are not in `used`.
        number: of this settlement in its session, from 1.
        previous: SHA-256 of the settlement before it, 32 zero bytes for the first; so that whoever
            gives an account of a session cannot leave one out.
        receipts: number of receipts that the session has issued up to now.
        receipt_chain: SHA-256 of the last of them, or 32 zero bytes.
    """

    loan: LoanId
    session: SessionId
    lease: LeaseId
    number: int
    previous: bytes
    used: int
    by_consumer: dict[ConsumerId, int]
    receipts: int
    receipt_chain: bytes
    refunded: dict[RefundClass, int] = field(default_factory=dict)


class Want(Message, frozen=True, kw_only=True):
    """
    A wish for a lease.

    Args:
        credits: how many would serve for one lease duration.
        by_consumer: what consumers with a budget or a rate of their own wait for, by consumer.
        at_least: the price of the largest query that waits: a smaller lease could not pay for it.
        at_least_of: the same, of each of `by_consumer`.
        held: of `credits`, what queries that go on hold, by consumer: settlements in the same
            report give it back, and no rate counts it anew.
    """

    credits: int
    by_consumer: dict[ConsumerId, int]
    at_least: int = 0
    at_least_of: dict[ConsumerId, int] = field(default_factory=dict)
    held: dict[ConsumerId, int] = field(default_factory=dict)


class Report(Message, frozen=True, kw_only=True, tag="report"):
    """Settle what is closed, and ask for a lease if one is wanted; `number` starts at 1."""

    number: int
    settlements: tuple[Signed, ...] = ()
    want: Want | None = None


class MoreWanted(Message, frozen=True, kw_only=True, tag="more-wanted"):
    """
    The budget is used up; a consumer asks for more, in its own words. Sent again, it says how it
    stands by now, and changes nothing else of the request that is open.

    Args:
        credits: that its waiting queries cost together.
        waiting: how many of them there are; with none nothing is asked for.
        waited_s: how long the first of them has waited.
        place: of the first of them, from 1, among all that wait at the enclave.
        waiting_in_all: how many these are.
    """

    consumer: ConsumerId
    credits: int
    reason: str
    waiting: int = 1
    waited_s: float = 0.0
    place: int = 1
    waiting_in_all: int = 1


class StopProof(Message, frozen=True, kw_only=True):
    """
    Signed by the session (`Label.STOP_PROOF`) after key and model were wiped.

    Args:
        receipts: number of the session's last receipt.
        cancelled: queries that were in flight and cancelled.
        reason: why it stopped.
    """

    loan: LoanId
    session: SessionId
    receipts: int
    receipt_chain: bytes
    cancelled: int
    reason: str
    wiped: Time


class Stopped(Message, frozen=True, kw_only=True, tag="stopped"):
    """Key and model are gone; `proof` is a signed `StopProof`. The session ends here."""

    proof: Signed


class Reattest(Message, frozen=True, kw_only=True, tag="reattest"):
    """Evidence for *nonce*, the session's own keys, the custodian and the loan, as at enrolment."""

    nonce: bytes
    evidence: Documents
    endorsements: Documents


class GrantSeenBy(Message, frozen=True, kw_only=True, tag="grant-seen"):
    """`seen` is a `grants.GrantSeen`, signed by the session (`Label.GRANT_SEEN`)."""

    seen: Signed


class ExtractionSeen(Message, frozen=True, kw_only=True, tag="extraction-seen"):
    """
    A limit that raises an alarm was reached; told once for each kind, consumer and day.

    Args:
        day: since 1970, in UTC.
        kind: near-duplicate prompts, output tokens, or queries.
        count: how many there were.
    """

    consumer: ConsumerId
    day: int
    kind: AlarmKind
    count: int


class OutputSeen(Message, frozen=True, kw_only=True, tag="output-seen"):
    """
    How many tokens consumers were given today, or will be at the most by queries that run; answered
    by `OutputElsewhere`.

    Args:
        watch: 32 hex digits, chosen by the enclave's process for its life.
        day: since 1970, in UTC.
        tokens: by consumer, those of this process; consumers that are not named are as before.
        all: the answer is to name all consumers that were given something, not only these.
    """

    watch: str
    day: int
    tokens: dict[ConsumerId, int]
    all: bool = False


FromEnclave: TypeAlias = (
    Report | MoreWanted | Stopped | Reattest | GrantSeenBy | ExtractionSeen | OutputSeen
)


# --- custodian to enclave --------------------------------------------------------------------


class Lease(Message, frozen=True, kw_only=True):
    """
    A block of credits.

    Args:
        credits: inferences that may be served from it.
        caps: for each consumer with a budget or a rate of its own, how many of them; one that is
            not named here and has such a budget or rate may use none.
        duration_s: how long it lives from when its report was first sent; 0 means that it serves
            the queries that asked for it and no other, within `ANSWER_LIVES_S`.
        ends_s: for each consumer whose time ends while the lease lives, how long it may use it.
        place, sharers: this session is the one at `place` (from 0) of `sharers` that share limits
            on concurrency.
    """

    lease: LeaseId
    credits: int
    caps: dict[ConsumerId, int]
    duration_s: float
    ends_s: dict[ConsumerId, float] = field(default_factory=dict)
    place: int = 0
    sharers: int = 1


class ReportAnswer(Message, frozen=True, kw_only=True, tag="report-answer"):
    """
    Args:
        settled: leases whose settlement is now durable.
        lease: what was granted, or None.
        left: credits of the loan that are not leased to anyone.
        leased_elsewhere: credits in other sessions' live leases; some may come back.
        consumer_left: for consumers with a budget of their own, what is left at the custodian.
        largest_lease: credits that one lease can hold at the most; a query that costs more can
            never be paid for. None when no lease can be had now.
        statement: a fresh `SessionStatement`.
        rate_wait_s: how long the loan's rate lets nothing more through, 0 when it does.
        consumer_wait_s: the same for consumers with a rate of their own.
    """

    number: int
    settled: tuple[LeaseId, ...]
    lease: Lease | None
    left: int
    leased_elsewhere: int
    consumer_left: dict[ConsumerId, int]
    largest_lease: int | None = None
    statement: Signed
    rate_wait_s: float = 0.0
    consumer_wait_s: dict[ConsumerId, float] = field(default_factory=dict)


class LoanChanged(Message, frozen=True, kw_only=True, tag="loan-changed"):
    """The loan's state is now this. Anything but ``active`` stops the enclave."""

    state: str
    reason: str


class RosterChanged(Message, frozen=True, kw_only=True, tag="roster-changed"):
    """Consumers are now these, all of them."""

    roster: tuple[RosterEntry, ...]


class ModelReplaced(Message, frozen=True, kw_only=True, tag="model-replaced"):
    """
    The loan lends another model from now on. A session lives on with the one that it has, for a
    while: an enclave enrols for the new one beside it.

    Args:
        model_digest: SHA-256 of the manifest of the model that is lent now.
        retire_after_s: after so long, a session with another model ends.
    """

    model_digest: bytes
    retire_after_s: float


class TermsChanged(Message, frozen=True, kw_only=True, tag="terms-changed"):
    """The terms of the loan are now these."""

    terms: Terms


class CreditsFreed(Message, frozen=True, kw_only=True, tag="credits-freed"):
    """There are credits to lease again."""

    left: int


class MoreDecided(Message, frozen=True, kw_only=True, tag="more-decided"):
    """
    What a person decided on a consumer's request for more.

    Args:
        credits: that were granted; 0 with a denial.
        reason: why, in that person's words.
        asked: the words of the request.
        age_s: how long ago, as an enclave that connects is told.
    """

    consumer: ConsumerId
    approved: bool
    credits: int
    reason: str
    asked: str = ""
    age_s: float = 0.0


class GrantMade(Message, frozen=True, kw_only=True, tag="grant-made"):
    """`notice` is a `grants.GrantNotice`, signed by the custodian (`Label.GRANT_NOTICE`)."""

    notice: Signed


class OutputElsewhere(Message, frozen=True, kw_only=True, tag="output-elsewhere"):
    """
    The answer to an `OutputSeen`: it is in the ledger.

    Args:
        day: that it was about.
        tokens: what other processes gave the consumers that were asked about.
        sharers: live sessions of the loan, this one included.
    """

    day: int
    tokens: dict[ConsumerId, int]
    sharers: int


class ReattestWanted(Message, frozen=True, kw_only=True, tag="reattest-wanted"):
    """Prove again what you are, for this nonce of 32 bytes; without it no lease is renewed."""

    nonce: bytes
    answer_within_s: float


class SessionEnded(Message, frozen=True, kw_only=True, tag="session-ended"):
    """This session is not (or no longer) known; enrol again."""

    reason: str


class ShuttingDown(Message, frozen=True, kw_only=True, tag="shutting-down"):
    """The custodian stops: settle now; nothing more will be leased until it is back."""

    settle_within_s: float


FromCustodian: TypeAlias = (
    Welcome
    | ReportAnswer
    | LoanChanged
    | RosterChanged
    | TermsChanged
    | ModelReplaced
    | CreditsFreed
    | MoreDecided
    | GrantMade
    | OutputElsewhere
    | ReattestWanted
    | SessionEnded
    | ShuttingDown
)
