"""
A statement: the custodian's signed account of one loan for one span of time, in one file.

    {"format": "aigovtool-statement", "version": 1,
     "statement": {"payload": base64 of a `Statement` in JSON, "signature": base64},
     "archive": {sha256 in hex: base64 of a document, …}}

Rule 1: the custodian's key signs the payload (`Label.STATEMENT`), which names each document of the
        archive by its SHA-256.
Rule 2: what enclaves signed is in it as it came, so that the custodian is not believed for it.
Rule 3: a statement says what was so at its `end`: what happened later is in the next one, whose
        opening balance is this one's closing balance.

JSON and base64, which any language reads; not an archive format, for the reasons in
`endorsements.bundle`.
"""

from __future__ import annotations

from typing import Literal

from aigovtool.errors import MalformedError
from aigovtool.ids import ConsumerId, LeaseId, LoanId, SessionId
from aigovtool.wire.codec import Message, Signed, Time, decode, encode
from aigovtool.wire.enrolment import Keys

FORMAT: Literal["aigovtool-statement"] = "aigovtool-statement"
MAX_STATEMENT_BYTES = 256 << 20
MAX_LEASES = 100_000  # in one statement, some 100 MB; a busier loan takes shorter spans


class Balance(Message, frozen=True, kw_only=True):
    """A loan's credits by what has become of them; ``granted`` is the sum of the others."""

    granted: int
    left: int
    leased: int
    spent: int
    forfeited: int


class Received(Message, frozen=True, kw_only=True):
    """What a session signed, as it came, and when."""

    signed: Signed
    received: Time


class GrantLine(Message, frozen=True, kw_only=True):
    """
    Credits that were made.

    Args:
        consumer: whose own budget they were added to, within the loan's; None for the loan itself.
        kind: ``grant``, ``approval`` or ``refund``.
        lease: the forfeited lease that a refund is for.
        notice: the custodian's signed `GrantNotice`, the one that enclaves are told; None only in
            statements of programs that did not put it here.
        seen: a session's `GrantSeen` under that notice, None while no enclave counter-signed it.
    """

    time: Time
    credits: int
    kind: str
    consumer: ConsumerId | None
    lease: LeaseId | None
    actor: str
    reason: str
    notice: Signed | None = None
    seen: Received | None = None


class LeaseLine(Message, frozen=True, kw_only=True):
    """
    A lease that was unsettled or moved in the span.

    Args:
        settlement: the session's signed `Settlement`, None while there is none.
        forfeited: when it was charged whole, its session silent; None when it was not.
        refunded: when its credits were granted again, None when they were not.
        written_off: when a ledger that had been put back from a copy was reconciled and did not
            know its use, None otherwise; what it did not use comes back no more.
        recovered: it was entered, at `granted`, by such a reconciliation, of what was shown or had
            to be feared of its use: `credits` is that, and it may have held more.
    """

    lease: LeaseId
    session: SessionId
    credits: int
    granted: Time
    expires: Time
    settlement: Received | None
    forfeited: Time | None
    refunded: Time | None
    written_off: Time | None
    recovered: bool = False


class AppraisalLine(Message, frozen=True, kw_only=True):
    """
    Evidence on which a session was accepted; its documents are in the archive.

    Args:
        nonce: the custodian's, to which the evidence commits.
        judged: as of when it was judged.
        policy: SHA-256 of the appraisal policy.
        evidence, endorsements: SHA-256 by the document's name.
    """

    nonce: bytes
    judged: Time
    tee: str
    policy: bytes
    evidence: dict[str, bytes]
    endorsements: dict[str, bytes]


class SessionLine(Message, frozen=True, kw_only=True):
    """
    An attested run of an enclave that held a lease in the span, counter-signed a grant of it, or
    was opened or ended in it.

    Args:
        model_digest: SHA-256 of the manifest of the model that it was given.
        appraisals: the last one before the span, and those in it; the oldest first.
        before: the last settlement that came before the span, to which the first in it is chained.
        stop_proof: its signed `StopProof`, None when there is none by the end of the span.
    """

    session: SessionId
    model_digest: bytes
    keys: Keys
    tee: str
    measurement: str
    opened: Time
    ended: Time | None
    end_reason: str
    appraisals: tuple[AppraisalLine, ...]
    before: Signed | None
    stop_proof: Received | None


class DecisionLine(Message, frozen=True, kw_only=True):
    """A decision that is no credit: a stop, a block, the end of a session or of a period."""

    time: Time
    kind: str
    actor: str
    session: SessionId | None
    consumer: ConsumerId | None
    detail: dict[str, str]


class Statement(Message, frozen=True, kw_only=True):
    """
    Args:
        model_digest: of the model that the loan lends when the statement is issued.
        manifest: SHA-256 of the model's signed manifest, which is in the archive.
        begin, end: the span; its end is not part of it, and is not after `issued`.
        opening, closing: the loan's balance at either end.
        used: credits used by each consumer, by the settlements that came in the span.
    """

    custodian_key: bytes
    loan: LoanId
    model_digest: bytes
    manifest: bytes
    begin: Time
    end: Time
    issued: Time
    opening: Balance
    closing: Balance
    used: dict[ConsumerId, int]
    grants: tuple[GrantLine, ...]
    leases: tuple[LeaseLine, ...]
    sessions: tuple[SessionLine, ...]
    decisions: tuple[DecisionLine, ...]


class StatementFile(Message, frozen=True, kw_only=True):
    """The file; `archive` is by SHA-256 in hex."""

    format: str
    version: int
    statement: Signed
    archive: dict[str, bytes]


def write_file(statement: Signed, archive: dict[bytes, bytes]) -> bytes:
    """Return the file."""
    return encode(
        StatementFile(
            format=FORMAT,
            version=1,
            statement=statement,
            archive={digest.hex(): body for digest, body in sorted(archive.items())},
        )
    )


def read_file(data: bytes) -> StatementFile:
    """
    Read a file; nothing of it is believed yet.

    Raises:
        TooLargeError: longer than `MAX_STATEMENT_BYTES`.
        MalformedError: not a statement, or of a version that is not known.
    """
    file = decode(data, StatementFile, max_bytes=MAX_STATEMENT_BYTES)
    if (file.format, file.version) != (FORMAT, 1):
        raise MalformedError(
            "not a statement",
            expected=f"{FORMAT}, version 1",
            came=ascii(f"{file.format[:40]}, version {file.version}"),
        )
    return file
