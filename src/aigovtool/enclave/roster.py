"""Who may ask: consumers by the hash of their key, as the custodian last said."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable

from aigovtool.errors import BlockedError, UnauthenticatedError
from aigovtool.ids import ConsumerId
from aigovtool.wire.enrolment import RosterEntry

_SCHEME = b"bearer "
MAX_KEY_BYTES = 512


class Roster:
    """
    The consumers of a loan. Immutable; a change is a new roster.

    Args:
        now_s: the enclave's monotonic clock, on which consumers' dates run from when we heard them.
    """

    __slots__ = ("_admitted", "_by_hash", "_ends_s", "_now_s")

    def __init__(
        self, entries: Iterable[RosterEntry] = (), *, now_s: Callable[[], float] = lambda: 0.0
    ) -> None:
        entries = tuple(entries)
        self._now_s = now_s
        self._by_hash = {entry.api_key_sha256: entry for entry in entries}
        self._admitted = frozenset(entry.consumer for entry in entries if not entry.blocked)
        heard_s = now_s()
        self._ends_s = {
            entry.consumer: heard_s + entry.expires_in_s
            for entry in entries
            if entry.expires_in_s is not None
        }

    def refusal(self, consumer: ConsumerId) -> BlockedError | None:
        """Return why *consumer* may not ask, None when it may."""
        if consumer not in self._admitted:
            return blocked()
        if self._ends_s and self._now_s() >= self._ends_s.get(consumer, math.inf):
            return expired()
        return None

    def admits(self, consumer: ConsumerId) -> bool:
        """Return whether *consumer* is known, not blocked, and not past its date."""
        return self.refusal(consumer) is None

    def authenticate(self, authorization: bytes | None) -> ConsumerId:
        """
        Return whose key the value of an Authorization header holds.

        The lookup is by hash, so its timing says nothing of any key.

        Raises:
            UnauthenticatedError: no bearer key, or nobody's.
            BlockedError: the custodian has blocked its consumer, or its time is over.
        """
        if authorization is None or authorization[: len(_SCHEME)].lower() != _SCHEME:
            raise UnauthenticatedError(
                "no consumer key",
                expected="Authorization: Bearer <consumer key>",
                mend="the custodian gives consumers their keys",
            )
        entry = self._find(authorization)
        if entry is None:
            raise _unknown_key()
        if (refusal := self.refusal(entry.consumer)) is not None:
            raise refusal
        return entry.consumer

    def knows(self, authorization: bytes | None) -> bool:
        """Return whether the value of an Authorization header holds a key of one of these."""
        return authorization is not None and self._find(authorization) is not None

    def _find(self, authorization: bytes) -> RosterEntry | None:
        key = authorization[len(_SCHEME) :].strip()
        if len(key) > MAX_KEY_BYTES:
            return None
        return self._by_hash.get(hashlib.sha256(key).digest())


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


def expired() -> BlockedError:
    """Say that a consumer's time is over."""
    return BlockedError(
        "this consumer's time is over",
        code="consumer.expired",
        mend="only the custodian can give it more",
    )
