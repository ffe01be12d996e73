"""Who may ask: consumers by the hash of their key, as the custodian last said."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from aigovtool.errors import BlockedError, UnauthenticatedError
from aigovtool.ids import ConsumerId
from aigovtool.wire.enrolment import RosterEntry

_SCHEME = b"bearer "
MAX_KEY_BYTES = 512


class Roster:
    """The consumers of a loan. Immutable; a change is a new roster."""

    __slots__ = ("_admitted", "_by_hash")

    def __init__(self, entries: Iterable[RosterEntry] = ()) -> None:
        entries = tuple(entries)
        self._by_hash = {entry.api_key_sha256: entry for entry in entries}
        self._admitted = frozenset(entry.consumer for entry in entries if not entry.blocked)

    def admits(self, consumer: ConsumerId) -> bool:
        """Return whether *consumer* is known and not blocked."""
        return consumer in self._admitted

    def authenticate(self, authorization: bytes | None) -> ConsumerId:
        """
        Return whose key the value of an Authorization header holds.

        The lookup is by hash, so its timing says nothing of any key.

        Raises:
            UnauthenticatedError: no bearer key, or nobody's.
            BlockedError: the custodian has blocked its consumer.
        """
        if authorization is None or authorization[: len(_SCHEME)].lower() != _SCHEME:
            raise UnauthenticatedError(
                "no consumer key",
                expected="Authorization: Bearer <consumer key>",
                mend="the custodian gives consumers their keys",
            )
        key = authorization[len(_SCHEME) :].strip()
        if len(key) > MAX_KEY_BYTES:
            raise _unknown_key()
        entry = self._by_hash.get(hashlib.sha256(key).digest())
        if entry is None:
            raise _unknown_key()
        if entry.blocked:
            raise blocked()
        return entry.consumer


def _unknown_key() -> UnauthenticatedError:
    return UnauthenticatedError(
        "not a key of any consumer of this loan",
        mend="use the consumer key that the custodian gave out for this loan",
    )


def blocked() -> BlockedError:
    """Say that a consumer may no longer ask."""
    return BlockedError(
        "the custodian has blocked this consumer", mend="only the custodian can unblock it"
    )
