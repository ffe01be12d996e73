"""
How much each consumer draws out of a language model in a day: caps, and alarms.

Rule 1: what may be produced is reserved before it is, so no concurrency exceeds a cap; what a query
        did not use is given back when it ends.
Rule 2: a query's tokens count for the day (UTC) in which it was admitted. A clock that goes back
        begins no day anew.
Rule 3: several enclaves share a cap. Each may give, beyond what the custodian has heard of, its
        part of what is left; what is held counts as given, so an enclave that dies forgets nothing
        that it said.
Rule 4: only numbers leave: consumer, day, tokens, and how often something was seen.

Pure: times are arguments.
"""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from aigovtool.enclave.alike import KEY_NUMBERS, Fingerprints, Recent
from aigovtool.errors import BadPromptError, LimitedError
from aigovtool.ids import ConsumerId
from aigovtool.wire.control import ExtractionSeen, OutputElsewhere, OutputSeen
from aigovtool.wire.extraction import NO_EXTRACTION_LIMITS, AlarmKind, ExtractionLimits

REPORT_EVERY_S = 2.0
ANSWERED_WITHIN = timedelta(seconds=10)  # or the session that sent it is over
MAX_REPORTED = 1000  # consumers in one message
OUTPUT_USED_UP = "extraction.output"
LOGPROBS = "extraction.logprobs"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY = timedelta(days=1)


@dataclass(slots=True)
class _Seen:
    """
    A consumer's day.

    Args:
        held: output tokens that queries which run may still produce.
        reported: of those that were produced or held, what the custodian has acknowledged.
        elsewhere: tokens that other processes gave or hold, as the custodian last said.
    """

    queries: int = 0
    alike: int = 0
    produced: int = 0
    held: int = 0
    reported: int = 0
    elsewhere: int = 0
    recent: Recent = field(default_factory=Recent)
    alarmed: set[AlarmKind] = field(default_factory=set)

    @property
    def counted(self) -> int:
        return self.produced + self.held


@dataclass(slots=True, eq=False)
class Reserved:
    """Output tokens that a query may produce; `Watch.produced` ends it."""

    consumer: ConsumerId
    day: int
    tokens: int
    open: bool = True


class Watch:
    """
    The day of every consumer of one loan; it outlives sessions.

    Args:
        prints: makes fingerprints; None for some under a random key.
    """

    def __init__(self, prints: Fingerprints | None = None) -> None:
        self.limits: ExtractionLimits = NO_EXTRACTION_LIMITS
        self.alarms: deque[ExtractionSeen] = deque()
        """What the custodian is still to be told."""
        self._id = secrets.token_hex(16)  # by which the custodian tells processes apart
        self._prints = prints or Fingerprints([secrets.randbits(64) for _ in range(KEY_NUMBERS)])
        self._day = 0
        self._seen: dict[ConsumerId, _Seen] = {}
        self._sharers = 1
        self._sent: OutputSeen | None = None  # and not yet answered
        self._sent_at = _EPOCH
        self._asks_all = True  # what all consumers were given elsewhere

    def set_limits(self, limits: ExtractionLimits) -> None:
        """The loan's limits are now these; what was counted today stays."""
        self.limits = limits

    # --- for queries ----------------------------------------------------------------------------

    def check_logprobs(self, asked: int | None) -> None:
        """
        Refuse more log probabilities for each token than the loan gives.

        Args:
            asked: how many; None for none at all, 0 for that of the chosen token alone.

        Raises:
            BadPromptError: the limit is lower, or 0.
        """
        limit = self.limits.top_logprobs
        if limit is None or asked is None or (limit and asked <= limit):
            return
        raise BadPromptError(
            "the loan gives no log probabilities" if not limit else "too many log probabilities",
            code=LOGPROBS,
            expected=f"top_logprobs of at most {limit}" if limit else "none",
            came=str(asked),
            param="top_logprobs" if limit else "logprobs",
        )

    def admit(self, consumer: ConsumerId, text: str, now: datetime) -> int | None:
        """
        Note a query, and return how many tokens its answer may have, None for any number.

        Args:
            text: what is new in it: the last message of a conversation, not all of them.

        Raises:
            LimitedError: the consumer's tokens of the day are used up, or all held by its queries.
        """
        seen = self._of(consumer, now)
        seen.queries += 1
        self._alarm(consumer, seen, "queries", seen.queries, self.limits.queries_per_day)
        if self.limits.alike_per_day is not None:
            seen.alike += seen.recent.note(self._prints.of(text))
            self._alarm(consumer, seen, "alike", seen.alike, self.limits.alike_per_day)
        left = self._left(seen)
        if left is not None and left <= 0:
            raise self._used_up(consumer, seen, now)
        return left

    def reserve(self, consumer: ConsumerId, tokens: int, now: datetime) -> Reserved:
        """Set *tokens* of the day's aside; raises LimitedError when there are not so many."""
        seen = self._of(consumer, now)
        left = self._left(seen)
        if left is not None and tokens > left:
            raise self._used_up(consumer, seen, now)
        seen.held += tokens
        return Reserved(consumer, self._day, tokens)

    def produced(self, reserved: Reserved, tokens: int, now: datetime) -> None:
        """End a query that produced so many of its *reserved* tokens. Again changes nothing."""
        self._turn(now)
        if reserved.open and reserved.day == self._day:
            seen = self._seen[reserved.consumer]
            seen.held -= reserved.tokens
            seen.produced += tokens
        reserved.open = False

    # --- for the control conversation -----------------------------------------------------------

    def connected(self) -> None:
        """There is a new connection: what was sent on the older one may not have come."""
        self._sent = None
        self._asks_all = True

    def due(self, now: datetime) -> OutputSeen | None:
        """Return what the custodian is to be told now; it then counts as sent until `told`."""
        self._turn(now)
        if self.limits.output_tokens_per_day is None:
            return None
        if self._sent is not None and timedelta() <= now - self._sent_at < ANSWERED_WITHIN:
            return None
        changed = {
            consumer: seen.counted
            for consumer, seen in self._seen.items()
            if seen.counted != seen.reported
        }
        if not changed and not self._asks_all:
            return None
        part = dict(list(changed.items())[:MAX_REPORTED])
        self._sent_at = now
        self._sent = OutputSeen(watch=self._id, day=self._day, tokens=part, all=self._asks_all)
        return self._sent

    def told(self, answer: OutputElsewhere) -> None:
        """Take the answer to what `due` returned."""
        sent, self._sent = self._sent, None
        if sent is None or not sent.day == answer.day == self._day:
            return
        self._asks_all = False
        self._sharers = max(1, answer.sharers)
        for consumer, tokens in sent.tokens.items():
            self._seen[consumer].reported = tokens
        for consumer, tokens in answer.tokens.items():
            self._seen.setdefault(consumer, _Seen()).elsewhere = tokens

    # --- within ---------------------------------------------------------------------------------

    def _of(self, consumer: ConsumerId, now: datetime) -> _Seen:
        self._turn(now)
        return self._seen.setdefault(consumer, _Seen())

    def _turn(self, now: datetime) -> None:
        """Begin a new day (Rule 2)."""
        day = (now - _EPOCH) // _DAY
        if day > self._day:
            self._day = day
            self._seen = {}
            self._asks_all = True

    def _left(self, seen: _Seen) -> int | None:
        """Return how many tokens more may be held (Rule 3)."""
        cap = self.limits.output_tokens_per_day
        if cap is None:
            return None
        # rounded up: what is left must not stay for ever because it is less than one for each
        part = -(-max(0, cap - seen.elsewhere - seen.reported) // self._sharers)
        return part - (seen.counted - seen.reported)

    def _used_up(self, consumer: ConsumerId, seen: _Seen, now: datetime) -> LimitedError:
        self._asks_all = True  # others may have given back what they held
        cap = self.limits.output_tokens_per_day or 0
        if seen.produced + seen.elsewhere < cap:
            return LimitedError(
                "the tokens that are left of the consumer's day are held by queries that run",
                code=OUTPUT_USED_UP,
                mend="ask for a shorter answer, or later",
                retry_after_s=REPORT_EVERY_S,
            )
        self._alarm(consumer, seen, "output", seen.produced + seen.elsewhere, cap)
        return LimitedError(
            "the consumer has had all tokens that a day has for it",
            code=OUTPUT_USED_UP,
            came=f"{cap} tokens a day",
            mend="ask again tomorrow (UTC), or ask the custodian for more a day",
            retry_after_s=max(1.0, ((self._day + 1) * _DAY - (now - _EPOCH)).total_seconds()),
        )

    def _alarm(
        self, consumer: ConsumerId, seen: _Seen, kind: AlarmKind, count: int, limit: int | None
    ) -> None:
        """Tell the custodian, once for each kind, consumer and day."""
        if limit is not None and count >= limit and kind not in seen.alarmed:
            seen.alarmed.add(kind)
            self.alarms.append(
                ExtractionSeen(consumer=consumer, day=self._day, kind=kind, count=count)
            )
