"""
The event log of a trust domain: what was extended into its four run-time registers, in order.

Rule 1: RTMR = SHA-384(RTMR || digest), from 48 zero bytes, must give all four registers of the
        report; a log that does not is refused, not ignored.
Rule 2: what an event says of itself is believed only where its digest covers it; that is so for
        dstack's run-time events (type 0x08000001), and for no firmware event.

Source: Intel TDX Module Base Architecture, "Measurement"; dstack, `docs/attestation`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from aigovtool.errors import MalformedError, VerificationError

EVENT_LOG = "event_log"
RUNTIME_EVENT = 0x08000001
MAX_EVENTS = 4096  # a booted guest has 30 to 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """
    One extension of a register.

    Args:
        register: 0 to 3.
        event_type: TCG event type of a run-time event, covered by the digest; else None.
        digest: 48 bytes, as extended.
        name: of a run-time event, covered by the digest; else None.
        payload: of a run-time event, covered by the digest; else None.
    """

    register: int
    event_type: int | None
    digest: bytes
    name: str | None
    payload: bytes | None


class _Entry(Struct, frozen=True):
    """What is read of an entry; a guest may say more, and nothing of it is believed (rule 2)."""

    imr: Annotated[int, Meta(ge=0, le=3)]
    event_type: Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
    digest: Annotated[str, Meta(pattern="^[0-9a-fA-F]{96}$")]
    event: str = ""
    event_payload: Annotated[str, Meta(pattern="^([0-9a-fA-F]{2})*$")] = ""


def replay(log: bytes, registers: Sequence[bytes]) -> tuple[Event, ...]:
    """
    Check that *log* gives the four *registers* (48 bytes each), and return its events.

    Raises:
        MalformedError: not such a log, or more than `MAX_EVENTS`.
        VerificationError: the log gives other registers, or an event is not what was extended.
    """
    try:
        entries = msgspec.json.decode(
            log, type=Annotated[tuple[_Entry, ...], Meta(max_length=MAX_EVENTS)]
        )
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MalformedError(
            "event log cannot be read", code="tdx.event_log.malformed", came=str(error)
        ) from None
    replayed = [bytes(48)] * 4
    events = []
    for entry in entries:
        digest = bytes.fromhex(entry.digest)
        replayed[entry.imr] = hashlib.sha384(replayed[entry.imr] + digest).digest()
        events.append(_event(entry, digest))
    for number, (came, expected) in enumerate(zip(replayed, registers, strict=True)):
        if came != expected:
            raise VerificationError(
                f"the event log does not lead to RTMR{number} of the report",
                code="tdx.event_log",
                expected=expected.hex(),
                came=came.hex(),
            )
    return tuple(events)


def _event(entry: _Entry, digest: bytes) -> Event:
    if entry.event_type != RUNTIME_EVENT:
        return Event(
            register=entry.imr,
            event_type=None,
            digest=digest,
            name=None,
            payload=None,
        )
    payload = bytes.fromhex(entry.event_payload)
    content = b":".join((entry.event_type.to_bytes(4, "little"), entry.event.encode(), payload))
    if hashlib.sha384(content).digest() != digest:
        raise VerificationError(
            "a run-time event is not what was extended", code="tdx.event_log.event"
        )
    return Event(
        register=entry.imr,
        event_type=entry.event_type,
        digest=digest,
        name=entry.event,
        payload=payload,
    )
