"""
What the ledger's transparency log says of an event, and how what it hides is shown.

Rule 1: an entry names what every reader may know: when, what kind of decision, for which loan,
        session and lease (random pseudonyms), and how many credits. Who did it, whose consumer it
        was and in which words is hidden behind ``SHA-256(label || 0 || salt || event)``, with a
        salt of 32 random bytes, so that guessing words or consumers tells nothing.
Rule 2: whoever is shown the opening, salt and event, checks it against the entry; what the entry
        says in the clear is in the event too, and must be the same.
Rule 3: the log signs with a key of its own (signed notes carry no label), which the custodian's
        key certifies.
"""

from __future__ import annotations

import hmac

import msgspec

from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey
from aigovtool.errors import MalformedError, VerificationError
from aigovtool.ids import sha256
from aigovtool.wire.codec import Message, Signed, Time, decode, encode, open_signed, sign

SALT_BYTES = 32
MAX_ENTRY_BYTES = 0xFFFF  # what a bundle of tlog-tiles holds
MAX_CERTIFICATE_BYTES = 4096
CERTIFICATE_NAME = "log-key.json"  # beside the checkpoint
LOG_PATH = "/log"  # on both of the custodian's doors
PUBLIC_COUNTS = ("asked", "credits", "granted", "left", "receipts", "used")
"""Members of an event's detail that are numbers of credits or receipts, shown in the clear."""


class LogKey(Message, frozen=True, kw_only=True):
    """The key of a custodian's log (`Label.LOG_KEY`), Ed25519, for checkpoints only."""

    origin: str
    public_key: bytes


class LogEntry(Message, frozen=True, kw_only=True):
    """
    One entry as it is published.

    Args:
        event: its number in the ledger.
        counts: of `PUBLIC_COUNTS`, those that the event has.
        commitment: to all of the event, 32 bytes.
    """

    event: int
    time: Time
    kind: str
    loan: str | None
    session: str | None
    lease: str | None
    counts: dict[str, int]
    commitment: bytes


class LoggedEvent(Message, frozen=True, kw_only=True):
    """An event of the ledger, whole; `detail` is a JSON object."""

    number: int
    time: Time
    kind: str
    actor: str
    loan: str | None
    session: str | None
    consumer: str | None
    lease: str | None
    detail: msgspec.Raw


class LogOpening(Message, frozen=True, kw_only=True):
    """What opens an entry's commitment: the exact bytes of a `LoggedEvent`, and the salt."""

    salt: bytes
    event: bytes


class ProofExtra(Message, frozen=True, kw_only=True):
    """
    What a proof's file carries beside the proof: the entry, and perhaps what opens it. Nobody has
    signed it; the proof holds for the entry or it does not, and the opening for the entry.
    """

    entry: bytes
    opening: LogOpening | None = None


def commit(opening: LogOpening) -> bytes:
    """Return the 32-byte commitment to an event."""
    return sha256(Label.LOG_OPENING.value + b"\0" + opening.salt + opening.event)


def entry_of(event: LoggedEvent, salt: bytes) -> bytes:
    """Return the entry that is published of *event*."""
    return encode(_entry(event, commit(LogOpening(salt=salt, event=encode(event)))))


def _entry(event: LoggedEvent, commitment: bytes) -> LogEntry:
    return LogEntry(
        event=event.number,
        time=event.time,
        kind=event.kind,
        loan=event.loan,
        session=event.session,
        lease=event.lease,
        counts=_counts(event),
        commitment=commitment,
    )


def _counts(event: LoggedEvent) -> dict[str, int]:
    detail = decode(bytes(event.detail), dict[str, msgspec.Raw])
    counts: dict[str, int] = {}
    for name in PUBLIC_COUNTS:
        try:
            counts[name] = msgspec.json.decode(detail[name], type=int)
        except (KeyError, msgspec.DecodeError):  # not there, or words under that name
            continue
    return counts


def read_entry(data: bytes) -> LogEntry:
    """Read a published entry; raises MalformedError."""
    return decode(data, LogEntry, max_bytes=MAX_ENTRY_BYTES)


def open_entry(data: bytes, opening: LogOpening) -> LoggedEvent:
    """
    Return the event to which a published entry commits.

    Raises:
        MalformedError: entry or opening cannot be read.
        VerificationError: the opening is of another event, or the entry says in the clear what
            the event does not.
    """
    entry = read_entry(data)
    if len(opening.salt) != SALT_BYTES:
        raise MalformedError(
            "not the salt of a log's entry",
            expected=f"{SALT_BYTES} bytes",
            came=f"{len(opening.salt)}",
        )
    came = commit(opening)
    if not hmac.compare_digest(came, entry.commitment):
        raise VerificationError(
            "the entry commits to another event",
            code="log.opening",
            expected=entry.commitment.hex(),
            came=came.hex(),
        )
    event = decode(opening.event, LoggedEvent)
    if _entry(event, came) != entry:
        raise VerificationError(
            "the entry says in the clear what the event that it commits to does not",
            code="log.entry_differs",
        )
    return event


def certify(log_key: LogKey, custodian: SigningKey) -> bytes:
    """Return the custodian's certificate for its log's key, as it is published."""
    return encode(sign(log_key, custodian, Label.LOG_KEY))


def open_certificate(data: bytes, custodian_key: bytes) -> LogKey:
    """
    Return the key of the log that the custodian with *custodian_key* keeps.

    Raises:
        MalformedError: not a certificate.
        VerificationError: not by this custodian.
    """
    signed = decode(data, Signed, max_bytes=MAX_CERTIFICATE_BYTES)
    return open_signed(signed, LogKey, public_key=custodian_key, label=Label.LOG_KEY)
