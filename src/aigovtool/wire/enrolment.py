"""
Enrolment: an enclave proves what it is and receives the content key.

1. The enclave asks for a challenge and gets a nonce that works once, for a short time.
2. It sends fresh evidence whose report data (`attestation.binding`) commits to that nonce, its
   three keys, the custodian's key and the loan.
3. The custodian appraises, records, and answers with a `Release`: secrets sealed by HPKE to the
   attested key (`Label.CONTENT_KEY_RELEASE`, context = the report data), the signed manifest and
   a signed statement for consumers.
"""

from __future__ import annotations

from aigovtool.ids import ConsumerId, LeaseId, LoanId, SessionId
from aigovtool.wire.codec import Message, Signed, Time
from aigovtool.wire.extraction import NO_EXTRACTION_LIMITS, ExtractionLimits
from aigovtool.wire.limits import NO_LIMITS, Limits


class ChallengeRequest(Message, frozen=True, kw_only=True):
    """Asks for a nonce; the ticket's token goes in the Authorization header."""

    loan: LoanId


class Challenge(Message, frozen=True, kw_only=True):
    """A nonce of 32 bytes, good for one enrolment within `valid_s` seconds."""

    nonce: bytes
    valid_s: float


class Documents(Message, frozen=True, kw_only=True):
    """Evidence or endorsements as opaque bytes: a TEE kind and named documents."""

    tee: str
    documents: dict[str, bytes]


class Keys(Message, frozen=True, kw_only=True):
    """The enclave's public keys: SPKI digest (32), Ed25519 (32), ML-KEM-768 || X25519 (1216)."""

    tls_spki_sha256: bytes
    signing_key: bytes
    hpke_key: bytes


class LedgerHead(Message, frozen=True, kw_only=True):
    """
    The newest thing that the custodian's ledger held when something was signed.

    Whoever shows it to the custodian later shows a ledger that has lost it since.

    Args:
        incarnation: 16 random bytes, new whenever a ledger was reconciled after a rollback.
        event: number of its last event.
        digest: SHA-256 of that event, 32 bytes.
    """

    incarnation: bytes
    event: int
    digest: bytes


class EnrolRequest(Message, frozen=True, kw_only=True):
    """
    Fresh evidence for *nonce*; `software` is for people and proves nothing.

    Args:
        statement: the newest `SessionStatement` that this enclave, or the one before it on the same
            disk, was given; None for the first.
    """

    loan: LoanId
    nonce: bytes
    keys: Keys
    evidence: Documents
    endorsements: Documents
    software: str
    statement: Signed | None = None


class Secrets(Message, frozen=True, kw_only=True):
    """What `Release.sealed_secrets` holds: the model's content key (32 bytes)."""

    content_key: bytes


class TokenPrice(Message, frozen=True, kw_only=True):
    """
    What tokens of a language model cost, in credits.

    Args:
        input: of each token of the input, at least 1.
        output: of each token of the output, at least 1.
    """

    input: int = 1
    output: int = 1

    def cost(self, *, input: int, output: int) -> int:
        """Return what so many tokens cost."""
        return input * self.input + output * self.output


ONE_CREDIT_A_TOKEN = TokenPrice()


class Terms(Message, frozen=True, kw_only=True):
    """
    The terms of the loan that the enclave itself enforces.

    Args:
        lease_duration_s: how long a lease lives from when its request was sent (I2).
        wipe_after_s: without contact for this long, key and model are wiped.
        expires: when the loan ends, aware UTC, or None.
        expires_in_s: how long that was when the custodian said so; the enclave goes by whichever
            comes first, this time on its own monotonic clock.
        limits: of all queries of the loan together.
        tokens: what a language model's tokens cost.
        shared_prefixes: whether what is kept of one consumer's prompt may serve another's, who can
            tell by the time that it takes.
        extraction: what each consumer gets of the model.
        evictable: whether an idle model may make room for another loan's in the same enclave.
    """

    lease_duration_s: float
    wipe_after_s: float
    expires: Time | None
    expires_in_s: float | None = None
    limits: Limits = NO_LIMITS
    tokens: TokenPrice = ONE_CREDIT_A_TOKEN
    shared_prefixes: bool = False
    extraction: ExtractionLimits = NO_EXTRACTION_LIMITS
    evictable: bool = False


class RosterEntry(Message, frozen=True, kw_only=True):
    """
    One consumer, as the enclave may know it.

    Args:
        api_key_sha256: 32 bytes; keys are 256 random bits, so a plain hash hides them.
        budgeted: the consumer has a budget of its own within the loan's.
        left: credits left in that budget at the custodian, None when not budgeted.
        limits: its own, within the loan's.
        expires_in_s: how long it may still ask when the custodian said so; 0 or less when its time
            is over, None without an end.
    """

    consumer: ConsumerId
    api_key_sha256: bytes
    blocked: bool
    budgeted: bool
    left: int | None
    limits: Limits = NO_LIMITS
    expires_in_s: float | None = None

    @property
    def capped(self) -> bool:
        """Whether it uses only what a lease sets apart for it."""
        return self.budgeted or self.limits.rate is not None


class SessionStatement(Message, frozen=True, kw_only=True):
    """
    The custodian's signed word to consumers (`Label.SESSION_STATEMENT`): this enclave, by these
    keys, holds this loan of this model, with this lease, as of `issued`; void after `expires`.

    Args:
        model_digest: SHA-256 of the sealed model's manifest, as signed.
        lease: the live lease, or None when there is nothing to lease.
        left: credits of the loan not leased to anyone when this was issued.
        head: of the custodian's ledger, which must never be behind it again.
    """

    loan: LoanId
    session: SessionId
    keys: Keys
    model_digest: bytes
    lease: LeaseId | None
    left: int
    head: LedgerHead
    issued: Time
    expires: Time


class Release(Message, frozen=True, kw_only=True):
    """The answer to an accepted `EnrolRequest`; `manifest` is the signed manifest's bytes."""

    session: SessionId
    sealed_secrets: bytes
    manifest: bytes
    statement: Signed
    terms: Terms


class AttestationDocument(Message, frozen=True, kw_only=True):
    """
    What a consumer gets from ``GET /.well-known/attestation?nonce=…`` and judges before it sends.

    Args:
        nonce: the consumer's own, 32 bytes, back again; the evidence commits to it.
        custodian_key: 32 bytes, Ed25519.
        manifest: the sealed model's signed manifest, as signed.
        statement: the latest `SessionStatement`.
    """

    nonce: bytes
    keys: Keys
    custodian_key: bytes
    loan: LoanId
    evidence: Documents
    endorsements: Documents
    manifest: bytes
    statement: Signed
