"""
The count, on the enclave's side (I1, I2): which lease pays for a query, or why none does.

Rule 1: a query is charged here before it is computed. A charge is taken back only while its lease
        is open, so that the settlement says what was served, and only once, by `till`.
Rule 2: a lease lives until ``sent_at_s + duration_s``, on the enclave's monotonic clock. Once it
        has been seen expired it never serves again, even if that clock should jump back.
Rule 3: of several live leases the one that expires first pays; what is held is held by the one
        that expires last, since it has to move when that is over.
Rule 4: a consumer with a budget or a rate of its own uses only what a lease caps for it, and
        nothing of a lease that does not name it; none uses a lease after its own time is over.
Rule 5: a closed lease is gone: its use, as `close` gives it, is final.
Rule 6: a lease of duration 0 serves those for whom it was opened, then nobody; it stays open until
        they are over, since they could have no refund, and nothing to draw from, otherwise.
Rule 7: of a query that goes on, the worst case is *held* in one lease: nobody else can use it. What
        is drawn from the hold is used; it is drawn only while its lease lives. When that is closed
        the hold has no lease, and nothing is drawn, until another one takes it in whole.
Rule 8: balances count what was booked: charges at once, what was drawn when `book` says so. So the
        receipts of a lease follow each other without a gap, whatever is held meanwhile.

Pure: time is an argument, in seconds. `charge` is on the path of every query: a loop over one or
two leases, two dictionary updates and one small object.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterable, Set
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from aigovtool.errors import ConflictError, MalformedError, PromiseBrokenError
from aigovtool.ids import ConsumerId, LeaseId
from aigovtool.wire.control import Lease
from aigovtool.wire.receipt import RefundClass

_EXPIRED = -math.inf
MOVES_WITHIN_S = 2.0  # what is held by a lease that is nearly over has so long to find another


class Charge(NamedTuple):  # the quickest to make, as one is for every query
    """What was paid: `before` and `after` are the lease's credits around it.

    A charge that was taken back is another one, of negative cost.
    """

    lease: LeaseId
    cost: int
    before: int
    after: int


class Hold:
    """
    Credits set apart for one query that goes on (Rule 7).

    `left` may still be drawn, `drawn` was and is not booked; `lease` holds it, None for no lease.
    """

    __slots__ = ("consumer", "drawn", "lease", "left")

    def __init__(self, consumer: ConsumerId, lease: LeaseId, left: int) -> None:
        self.consumer = consumer
        self.lease: LeaseId | None = lease
        self.left = left
        self.drawn = 0


class Refusal(Enum):
    """Why no lease pays."""

    NO_LEASE = "no live lease"
    USED_UP = "the live leases are used up"
    CAPPED = "the live leases hold nothing for this consumer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """
    The final use of a closed lease.

    Args:
        used, unused: its credits, parted.
        by_consumer: `used`, by consumer.
        refunded: what was charged and taken back, by class; not in `used`.
        unused_caps: what is left of each cap.
    """

    lease: LeaseId
    used: int
    unused: int
    by_consumer: dict[ConsumerId, int]
    refunded: dict[RefundClass, int]
    unused_caps: dict[ConsumerId, int]


class _Live:
    """
    A live lease. `left` may be charged or held, `booked` is what its receipts charge together,
    `caps` what is left of each cap, `flying` how many charges are not over.
    """

    __slots__ = (
        "booked",
        "caps",
        "credits",
        "ends_s",
        "expires_s",
        "flying",
        "holds",
        "lease",
        "left",
        "opened_s",
        "refunded",
        "stays",
        "used",
    )

    def __init__(self, lease: Lease, opened_s: float, expires_s: float) -> None:
        self.lease = lease.lease
        self.credits = self.left = lease.credits
        self.booked = 0
        self.caps = dict(lease.caps)
        self.holds: dict[Hold, None] = {}
        self.ends_s = {who: opened_s + after_s for who, after_s in lease.ends_s.items()}
        self.opened_s = opened_s
        self.expires_s = expires_s
        self.stays = lease.duration_s == 0  # Rule 6
        self.flying = 0
        self.used: dict[ConsumerId, int] = {}
        self.refunded: dict[RefundClass, int] = {}

    def has_expired(self, now_s: float) -> bool:
        if now_s < self.expires_s:
            return False
        self.expires_s = _EXPIRED  # Rule 2: for good
        return True

    def is_over_for(self, consumer: ConsumerId, now_s: float) -> bool:
        if now_s < self.ends_s.get(consumer, math.inf):
            return False
        self.ends_s[consumer] = _EXPIRED  # Rule 2 holds for this, too
        return True

    def may_close(self, now_s: float) -> bool:
        return self.has_expired(now_s) and not self.is_needed

    @property
    def is_needed(self) -> bool:
        """Whether it stays open although its time is over (Rule 6)."""
        return self.stays and bool(self.flying or self.holds)

    @property
    def half_time_s(self) -> float:
        return (self.opened_s + self.expires_s) / 2

    @property
    def rolls(self) -> bool:
        """Whether what it holds must find another lease before it ends."""
        return not self.stays and any(hold.left for hold in self.holds)

    def book(self, cost: int) -> Charge:
        before = self.credits - self.booked
        self.booked += cost
        return Charge(self.lease, cost, before, before - cost)

    def use(self, consumer: ConsumerId, credits: int) -> None:
        if used := self.used.get(consumer, 0) + credits:
            self.used[consumer] = used
        else:
            del self.used[consumer]


class Meter:
    """
    The live leases of one session.

    `left` counts the credits of all leases that are not closed, `recent` what each consumer was
    charged since `take_recent`; both are for planning and decide nothing here.
    """

    __slots__ = ("_capped", "_live", "left", "recent")

    def __init__(self) -> None:
        self._live: list[_Live] = []
        self._capped: Set[ConsumerId] = frozenset()
        self.left = 0
        self.recent: dict[ConsumerId, int] = {}

    def set_capped(self, consumers: Set[ConsumerId]) -> None:
        """Say which consumers have a budget or a rate of their own (Rule 4)."""
        self._capped = consumers

    def charge(self, consumer: ConsumerId, cost: int, now_s: float) -> Charge | Refusal:
        """
        Take *cost* credits for *consumer*, or say why not; a refusal changes nothing.

        Raises:
            PromiseBrokenError: *cost* is not at least 1.
        """
        if cost < 1:
            raise PromiseBrokenError("a query must cost at least one credit", came=str(cost))
        live = self._take(self._live, consumer, cost, now_s)
        if isinstance(live, Refusal):
            return live
        return self._charged(live, consumer, cost)

    def charge_and_hold(
        self, consumer: ConsumerId, cost: int, held: int, now_s: float
    ) -> tuple[Charge, Hold] | Refusal:
        """
        Take *cost* credits for *consumer* and hold *held* more in the same lease, or say why not; a
        refusal changes nothing.

        Raises:
            PromiseBrokenError: one of them is not at least 1.
        """
        if min(cost, held) < 1:
            raise PromiseBrokenError("a query that goes on costs and holds", came=f"{cost}, {held}")
        live = self._take(reversed(self._live), consumer, cost + held, now_s)
        if isinstance(live, Refusal):
            return live
        hold = Hold(consumer, live.lease, held)
        live.holds[hold] = None
        return self._charged(live, consumer, cost), hold

    def _charged(self, live: _Live, consumer: ConsumerId, cost: int) -> Charge:
        live.use(consumer, cost)
        live.flying += 1
        self.recent[consumer] = self.recent.get(consumer, 0) + cost
        return live.book(cost)

    def _take(
        self, leases: Iterable[_Live], consumer: ConsumerId, credits: int, now_s: float
    ) -> _Live | Refusal:
        """Take credits out of what is left of the first of *leases* that can give them."""
        refusal = Refusal.NO_LEASE
        for live in leases:
            if live.has_expired(now_s):
                continue
            if live.ends_s and live.is_over_for(consumer, now_s):
                refusal = Refusal.CAPPED
                continue
            if live.left < credits:
                refusal = Refusal.USED_UP if refusal is Refusal.NO_LEASE else refusal
                continue
            cap = live.caps.get(consumer)
            if cap is None:
                if consumer in self._capped:
                    refusal = Refusal.CAPPED
                    continue
            elif cap < credits:
                refusal = Refusal.CAPPED
                continue
            else:
                live.caps[consumer] = cap - credits
            live.left -= credits
            self.left -= credits
            return live
        return refusal

    def _give_back(self, live: _Live, consumer: ConsumerId, credits: int) -> None:
        """Undo `_take`."""
        if consumer in live.caps:
            live.caps[consumer] += credits
        live.left += credits
        self.left += credits

    def draw(self, hold: Hold, credits: int, now_s: float) -> bool:
        """
        Use *credits* of a hold; False, and nothing changed, when no live lease holds it (Rule 7).

        Raises:
            PromiseBrokenError: it never held so much, or less than nothing is drawn.
        """
        if not 0 <= credits <= hold.left:
            raise PromiseBrokenError("more is drawn than was held", came=f"{credits}, {hold.left}")
        live = None if hold.lease is None else self._find(hold.lease)
        if live is None or live.is_over_for(hold.consumer, now_s):
            return False
        if not live.stays and live.has_expired(now_s):
            return False
        hold.left -= credits
        hold.drawn += credits
        if credits:
            live.use(hold.consumer, credits)
            self.recent[hold.consumer] = self.recent.get(hold.consumer, 0) + credits
        return True

    def book(self, hold: Hold) -> Charge | None:
        """Return the charge of what was drawn since the last time; None when that is nothing."""
        if not hold.drawn:
            return None
        live = None if hold.lease is None else self._find(hold.lease)
        if live is None:
            raise PromiseBrokenError("something was drawn from a lease that was closed unbooked")
        drawn, hold.drawn = hold.drawn, 0
        return live.book(drawn)

    def release(self, hold: Hold) -> None:
        """Hold nothing more; what was drawn must be booked. Again changes nothing."""
        if hold.drawn:
            raise PromiseBrokenError("a hold is released before what was drawn is booked")
        if hold.lease is not None and (live := self._find(hold.lease)) is not None:
            del live.holds[hold]
            self._give_back(live, hold.consumer, hold.left)
        hold.lease, hold.left = None, 0

    def rehome(self, hold: Hold, now_s: float) -> bool:
        """Let a live lease take in a hold that has none; False when none can take it whole."""
        live = self._take(reversed(self._live), hold.consumer, hold.left, now_s)
        if isinstance(live, Refusal):
            return False
        hold.lease = live.lease
        live.holds[hold] = None
        return True

    def held_at_half_time(self, now_s: float) -> LeaseId | None:
        """Return the first live lease that holds something and has lived half its time."""
        for live in self._live:
            if live.rolls and not live.has_expired(now_s) and live.half_time_s <= now_s:
                return live.lease
        return None

    def half_time_of_held_s(self) -> float:
        """Return when `held_at_half_time` may have something, infinity when nothing is held."""
        return min((live.half_time_s for live in self._live if live.rolls), default=math.inf)

    def moves_until_s(self, hold: Hold, now_s: float) -> float:
        """
        Return until when *hold*, which a lease has just taken in, may wait for the next one: that
        lease's own end, or a moment from now where that is near; infinity in one of duration 0.
        """
        live = None if hold.lease is None else self._find(hold.lease)
        if live is None:
            return _EXPIRED
        if live.stays:
            return math.inf
        return max(live.expires_s, now_s + min(live.half_time_s - live.opened_s, MOVES_WITHIN_S))

    def refund(self, charge: Charge, consumer: ConsumerId, kind: RefundClass) -> Charge | None:
        """
        Take *charge* back, which *consumer* paid; None, and nothing changed, once its lease is
        closed.

        Raises:
            PromiseBrokenError: its lease was not charged so much.
        """
        live = self._find(charge.lease)
        if live is None:
            return None
        if not 1 <= charge.cost <= live.used.get(consumer, 0):
            raise PromiseBrokenError("a refund of what was not charged", came=str(charge.cost))
        live.use(consumer, -charge.cost)
        live.refunded[kind] = live.refunded.get(kind, 0) + charge.cost
        self._give_back(live, consumer, charge.cost)
        return live.book(-charge.cost)

    def is_open(self, lease: LeaseId) -> bool:
        """Return whether *lease* is not closed, so that its charges can be taken back."""
        return self._find(lease) is not None

    def over(self, charge: Charge) -> None:
        """The query of *charge* is over: it was answered, or refunded, or never will be either."""
        if (live := self._find(charge.lease)) is not None:
            live.flying -= 1

    def retire(self, lease: LeaseId) -> None:
        """Never serve from *lease* again; it closes once all that it served is over (Rule 6)."""
        if (live := self._find(lease)) is not None:
            live.expires_s = _EXPIRED

    def _find(self, lease: LeaseId) -> _Live | None:
        for live in self._live:
            if live.lease == lease:
                return live
        return None

    def open(self, lease: Lease, sent_at_s: float, *, expires_s: float | None = None) -> None:
        """
        Serve from *lease* from now on.

        Args:
            sent_at_s: when the report that asked for it was first sent (Rule 2).
            expires_s: for a lease of duration 0 only, which its owner opens and retires around the
                queries that asked for it.

        Raises:
            ConflictError: it is open already.
            MalformedError: credits, caps or duration are negative or no number.
        """
        if any(live.lease == lease.lease for live in self._live):
            raise ConflictError(f"the lease {lease.lease} is open already")
        if lease.credits < 0 or min(lease.caps.values(), default=0) < 0:
            raise MalformedError(f"the lease {lease.lease} holds less than nothing")
        if not (lease.duration_s >= 0 and math.isfinite(lease.duration_s)):
            raise MalformedError(
                f"the lease {lease.lease} has no finite duration", came=str(lease.duration_s)
            )
        if expires_s is None:
            expires_s = sent_at_s + lease.duration_s
        insort(self._live, _Live(lease, sent_at_s, expires_s), key=lambda live: live.expires_s)
        self.left += lease.credits

    def close(self, lease: LeaseId) -> Use:
        """
        Never serve from *lease* again, and return its final use.

        Raises:
            ConflictError: no such lease is open.
            PromiseBrokenError: something that was drawn from it is not booked.
        """
        live = self._find(lease)
        if live is None:
            raise ConflictError(f"the lease {lease} is not open")
        for hold in tuple(live.holds):
            if hold.drawn:
                raise PromiseBrokenError("a lease is closed before what was drawn is booked")
            self._give_back(live, hold.consumer, hold.left)
            hold.lease = None
        self._live.remove(live)
        self.left -= live.left
        return Use(
            lease=lease,
            used=live.booked,
            unused=live.left,
            by_consumer=live.used,
            refunded=live.refunded,
            unused_caps=live.caps,
        )

    def over_at(self, now_s: float) -> list[LeaseId]:
        """Return the open leases whose time is over, and which may be closed."""
        return [live.lease for live in self._live if live.may_close(now_s)]

    def opened(self) -> list[LeaseId]:
        """Return the open leases."""
        return [live.lease for live in self._live]

    def usable(self, consumer: ConsumerId, now_s: float) -> int:
        """Return the credits that *consumer* could be charged from live leases."""
        total = 0
        for live in self._live:
            if not live.has_expired(now_s):
                cap = live.caps.get(consumer, 0 if consumer in self._capped else live.left)
                total += min(live.left, cap)
        return total

    def set_apart(self, consumer: ConsumerId) -> int:
        """Return what open leases still cap for *consumer*."""
        return sum(live.caps.get(consumer, 0) for live in self._live)

    def live(self, now_s: float) -> list[LeaseId]:
        """Return the leases that are neither expired nor closed, the first to expire first."""
        return [live.lease for live in self._live if not live.has_expired(now_s)]

    def credits(self, now_s: float) -> int:
        """Return the credits in leases that are neither expired nor closed."""
        return sum(live.left for live in self._live if not live.has_expired(now_s))

    def valid_until_s(self) -> float:
        """Return when the last live lease expires, minus infinity without one."""
        return max((live.expires_s for live in self._live), default=_EXPIRED)

    def first_expiry_s(self) -> float:
        """Return when the first open lease can be closed, infinity without one."""
        first_s = math.inf
        for live in self._live:
            if live.expires_s < first_s and not live.is_needed:
                first_s = live.expires_s
        return first_s

    def half_time_s(self) -> float:
        """Return when the longest-lived lease has lived half its time, minus infinity without."""
        newest = max(self._live, key=lambda live: live.expires_s, default=None)
        return _EXPIRED if newest is None else newest.half_time_s

    def take_recent(self) -> dict[ConsumerId, int]:
        """Return what each consumer was charged since the last call, and start again."""
        recent, self.recent = self.recent, {}
        return recent
