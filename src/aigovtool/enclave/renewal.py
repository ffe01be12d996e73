"""
What the enclave says to the custodian and when: leases asked for, settled, waited for.

This is the conversation without its socket: events and time go in, messages come out. `control`
carries them; `api` asks `acquire` when no live lease pays for a query.

Rule 1: leases follow demand. An idle enclave holds none; the first query, or a consumer that wants
        to see a live lease, asks for one.
Rule 2: while a lease is in use the next one is asked for at half its time, or when its credits are
        about to end; the old one serves on until it expires.
Rule 3: one report at a time. An unanswered one is sent again with its number, and its lease's time
        runs from when it was first sent (I2).
Rule 4: of what the custodian said is used up, nothing more is asked for until something changed;
        a person is asked instead, if somebody waits.
Rule 5: a query that goes on moves with what is held for it from lease to lease: one that holds
        something is settled at half its time, and the same report asks for what it held. While the
        answer is awaited nothing of it is served; without one by the end of its last lease (or a
        moment later where it had only just moved there), or with less, it ends there.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.asking import Asking
from aigovtool.enclave.decisions import Decisions
from aigovtool.enclave.demand import Demand
from aigovtool.enclave.limits import LocalLimits, too_fast
from aigovtool.enclave.meter import Refusal
from aigovtool.enclave.refunds import REFUNDS, Fate
from aigovtool.enclave.roster import expired
from aigovtool.enclave.settling import Settlements
from aigovtool.enclave.standing import Standing
from aigovtool.enclave.till import Paid, Tab, Till
from aigovtool.enclave.waiting import Waiter, WaitingQueue
from aigovtool.errors import (
    AIGovToolError,
    BudgetExhaustedError,
    MoreDeniedError,
    TooLargeError,
    UnavailableError,
)
from aigovtool.ids import ConsumerId, LeaseId, LoanId, SessionId
from aigovtool.wire.codec import Signed, open_signed
from aigovtool.wire.control import (
    ANSWER_LIVES_S,
    HELD,
    Lease,
    MoreDecided,
    MoreWanted,
    Report,
    ReportAnswer,
    Want,
    Welcome,
)
from aigovtool.wire.enrolment import RosterEntry, SessionStatement, Terms

ASK_AGAIN_S = 0.1  # after an answer that brought no lease although credits are left
LOOK_AGAIN_S = 0.25  # at a lease past half its time, to see whether it is in use by now
LOOK_FOR_MORE_S = 1.0  # where there is something, and too little for a query that waits
EXHAUSTED_RETRY_AFTER_S = 5.0
RATE_PATIENCE_S = 1.0  # a query that asked for no wait waits so long for a rate of all enclaves
RETRY_SPREAD_S = 10  # over so many seconds those that were refused together come back
UNREACHABLE_RETRY_AFTER_S = 2.0


@dataclass(frozen=True, slots=True)
class _Sent:
    """
    The report that awaits its answer.

    Args:
        asked: the queries that wait on whose behalf it asks.
        tabs: of queries that go on, for which it asks too.
    """

    report: Report
    first_sent_at_s: float
    asked: Sequence[Waiter[Paid]]
    tabs: frozenset[Tab] = frozenset()


class Renewal:
    """
    The leases of one session, from wish to settlement.

    Args:
        key: signs settlements; its public key is attested.
        custodian_key: 32 bytes; statements are signed by it.
        wake: called when a message may have become due before `wake_at`.
    """

    def __init__(
        self,
        *,
        loan: LoanId,
        session: SessionId,
        key: SigningKey,
        custodian_key: bytes,
        till: Till,
        queue: WaitingQueue[Paid],
        terms: Terms,
        statement: Signed,
        wake: Callable[[], None],
        now_s: float,
        limits: LocalLimits | None = None,
    ) -> None:
        self._custodian_key = custodian_key
        self._till = till
        self._settlements = Settlements(loan=loan, session=session, key=key, receipts=till.receipts)
        self._wake = wake
        self._demand = Demand(now_s)
        self._number = 0
        self._sent: _Sent | None = None
        self._ask_again_s = -math.inf
        self._look_s = -math.inf
        self._limits = limits
        self._rate_wait_s = 0.0  # of the loan, and of consumers, as last heard
        self._rated_until_s: dict[ConsumerId, float] = {}
        self._refused = 0
        self._suspended = False  # the custodian is shutting down
        self._retired = False  # nothing more is to be charged in this session
        self._settling: list[asyncio.Future[None]] = []
        self.asking = Asking(queue)
        self._viewers: list[asyncio.Future[None]] = []
        self.meter = till.meter
        self.standing = Standing(till.meter, self._settlements)
        self.decisions = Decisions()
        self.queue = queue
        self.terms = terms
        self.connected = False
        self.low_mark = 0
        self.statement = statement
        self.newest_statement = statement
        self._stated = self._read_statement(statement)

    # --- for the API ---------------------------------------------------------------------------

    def nudge(self) -> None:
        """Say that live leases fell below `low_mark`."""
        self._wake()

    async def acquire(
        self,
        consumer: ConsumerId,
        cost: int,
        *,
        now_s: float,
        lease_wait_s: float,
        patience_s: float,
        reason: str,
        key: str = "",
        held: int = 0,
    ) -> Paid:
        """
        Wait until a lease pays for a query.

        Args:
            cost: credits, *held* included.
            held: of these, what is held and not charged; then a `Tab` is returned.
            lease_wait_s: how long to wait for credits that exist.
            patience_s: how long to wait for credits that do not exist yet; 0 to be told at once.
            reason: why the consumer needs more, in its own words.
            key: the query's Idempotency-Key, by which its consumer finds its place.

        Raises:
            TooLargeError: no lease of this loan can hold so much.
            BudgetExhaustedError: not so much is left, and did not come in time.
            MoreDeniedError: the custodian was asked for more, and said no.
            UnavailableError: the custodian is not reached or does not answer, or too many wait.
            LoanNotActiveError, BlockedError: the loan or consumer was stopped meanwhile.
        """
        self._close(self.meter.over_at(now_s))
        waiter: Waiter[Paid] = Waiter(
            consumer=consumer,
            cost=cost,
            held=held,
            patient=patience_s > 0,
            reason=reason,
            key=key,
            since_s=now_s,
        )
        if self._fits_no_lease(waiter):
            raise self._too_large(waiter)
        if not waiter.patient and not self._leasing:
            raise self._unreachable()
        if self._in_vain(waiter) and not self._may_swap(waiter):
            denial = self.decisions.denial(
                consumer, reason if waiter.patient or reason else None, now_s
            )
            if denial is not None:
                raise self._denied(denial)
            if not waiter.patient:
                raise self._exhausted(waiter)
        self.queue.add(waiter)
        self._consider(waiter, now_s)
        self._wake()
        try:
            async with asyncio.timeout(max(patience_s, lease_wait_s)):
                return await waiter.paid
        except TimeoutError:
            if waiter.paid.done() and not waiter.paid.cancelled():
                return waiter.paid.result()  # paid in the very moment in which time was up
            raise self._out_of_time(waiter) from None
        except asyncio.CancelledError:
            if waiter.paid.done() and not waiter.paid.cancelled() and not waiter.paid.exception():
                self.finish(waiter.paid.result(), Fate.NOT_BEGUN, now_s)
            raise
        finally:
            self.queue.leave(waiter)
            if consumer in self.asking:
                self._wake()  # whoever decides is told that one waits less
            if waiter.paid.done() and not waiter.paid.cancelled():
                waiter.paid.exception()  # it was seen, whether or not anyone is still here

    def finish(self, paid: Paid, fate: Fate, now_s: float) -> bool:
        """
        A charged query has ended: take its charge back if that is the rule, once and for all.

        Returns:
            Whether it stays charged.
        """
        kind = REFUNDS[fate]
        refunded = kind is not None and self._till.refund(paid, kind)
        self._till.close(paid)
        self._till.used_s = now_s
        if refunded or isinstance(paid, Tab):
            self._serve(now_s)
        if self.meter.first_expiry_s() <= now_s:
            self._wake()  # it was the last one of a lease that waited for it
        return not refunded

    def pay(self, consumer: ConsumerId, cost: int, held: int, now_s: float) -> Paid | Refusal:
        """Charge *cost* credits of which *held* are only held, or say why no lease can."""
        if held:
            self._wake()  # its lease may be past half its time
            return self._till.open_tab(consumer, cost - held, held, now_s)
        return self._till.pay(consumer, cost, now_s)

    def lapse(self, tab: Tab, now_s: float) -> AIGovToolError | None:
        """Return why nothing more can be drawn on *tab*; None while it can, or will be able to."""
        if tab.lapsed is None and now_s >= tab.until_s:
            tab.lapsed = self._unreachable()
        return tab.lapsed

    async def live_lease(self, now_s: float, *, wait_s: float) -> Signed:
        """Return a statement that names a live lease, or the latest one when none comes in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while self._leasing and self._stated.lease not in self.meter.live(now_s):
                    seen: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._viewers.append(seen)
                    self._wake()
                    await seen
                    if self.standing.loan_is_used_up or self.terms.lease_duration_s <= 0:
                        break  # there is no lease to be seen, or none that outlives its query
        return self.statement

    # --- messages to be sent ---------------------------------------------------------------------

    def due(self, now_s: float) -> Report | None:
        """Return the report that must be sent now, if any; it then counts as sent."""
        self._close(self.meter.over_at(now_s))
        if self._sent is not None or not self.connected:
            return None
        if not self._held() and (lease := self.meter.held_at_half_time(now_s)) is not None:
            self._close([lease])  # Rule 5
        asked = [
            one
            for one in self.queue
            if not self.standing.lacks(one.consumer, one.cost)
            and now_s >= self._rated_until_s.get(one.consumer, now_s)
        ]
        want = self._want(asked, now_s)
        settlements = self._settlements.due(now_s)
        if want is None and not settlements and not self._viewers:
            return None
        self._number += 1
        report = Report(number=self._number, settlements=settlements, want=want)
        self._sent = (
            _Sent(report, now_s, ())
            if want is None
            else _Sent(report, now_s, asked, frozenset(self._homeless()))
        )
        return report

    def more_due(self, now_s: float) -> list[MoreWanted]:
        """Return what must be sent now of the consumers' requests for more."""
        return self.asking.due(now_s) if self.connected else []

    def wake_at(self, now_s: float) -> float:
        """Return when `due` must be asked again if nothing happens until then."""
        times = [self.meter.first_expiry_s()]
        if self._sent is None and self.connected:
            if self.meter.live(now_s):
                times.append(max(self.meter.half_time_s(), now_s + LOOK_AGAIN_S))
            times.append(self.meter.half_time_of_held_s())
            again = [self._ask_again_s, self._settlements.again_s, *self._rated_until_s.values()]
            if any(self._short(waiter) for waiter in self.queue):
                again.append(self._look_s)
            times += [at for at in again if at > now_s]
        if self._leasing:  # nothing more is asked of a custodian that shuts down, or at the end
            times.append(self.asking.wake_at())
        return min(times)

    # --- events from the custodian ---------------------------------------------------------------

    def welcomed(self, welcome: Welcome, now_s: float) -> None:
        """A connection is open; an `unanswered` report must be sent again."""
        self.connected = True
        self._suspended = False
        self.terms = welcome.terms
        if welcome.state == HELD:
            self._settlements.hand_in()
        if self._limits is not None:
            self._limits.set_place(welcome.place, welcome.sharers)
        self.freed(welcome.left)
        for decision in welcome.decided:
            self.decisions.heard(decision, now_s)
        for waiter in self.queue:
            self._consider(waiter, now_s)

    @property
    def unanswered(self) -> Report | None:
        """The report whose answer has not come."""
        return None if self._sent is None else self._sent.report

    def lost(self) -> None:
        """The connection is gone: live leases serve on until they expire."""
        self.connected = False
        self.asking.lost()
        self._release_viewers()
        for tab in self._till.tabs:
            if math.isinf(tab.until_s):  # authorised one by one: no time bounds it but this
                self._let_lapse(tab, self._unreachable())

    def answered(self, answer: ReportAnswer, now_s: float) -> None:
        """
        Take in the answer to the outstanding report; any other answer is an old one come twice.

        Raises:
            MalformedError, VerificationError: a lease or statement that cannot be.
        """
        sent = self._sent
        if sent is None or answer.number != sent.report.number:
            return
        stated = self._read_statement(answer.statement)
        self._sent = None
        self.newest_statement = answer.statement
        if stated.lease is not None or self._stated.lease not in self.meter.live(now_s):
            # a statement names the lease that came with it: one that is live is worth keeping
            self._stated, self.statement = stated, answer.statement
        self._settlements.acknowledged(answer.settled, now_s)
        self.standing.heard(
            left=answer.left,
            leased_elsewhere=answer.leased_elsewhere,
            consumer_left=answer.consumer_left,
            largest_lease=answer.largest_lease,
        )
        if answer.lease is not None:
            if self._limits is not None:
                self._limits.set_place(answer.lease.place, answer.lease.sharers)
            self._open(answer.lease, sent, now_s)
            over = {who for who, after_s in answer.lease.ends_s.items() if after_s <= 0}
            if over:
                self.queue.fail_all(lambda one: expired() if one.consumer in over else None)
            self.asking.answered()
        elif sent.report.want is not None and not self.standing.loan_is_used_up:
            self._ask_again_s = now_s + max(ASK_AGAIN_S, answer.rate_wait_s)
        if sent.report.want is not None:
            self._rate_heard(answer, now_s)
        self.low_mark = 0 if self.standing.loan_is_used_up else self._demand.low_mark()
        self._close(self.meter.over_at(now_s))  # a lease may come after its time
        self._rehome(now_s)
        self._end_in_vain(sent)
        self._serve(now_s)
        for waiter in self.queue:
            self._consider(waiter, now_s)
        self._release_viewers()
        _release(self._settling)
        self._wake()

    def _rate_heard(self, answer: ReportAnswer, now_s: float) -> None:
        """Let those wait for a rate who can, and tell the others how long it would take."""
        self._rate_wait_s = answer.rate_wait_s
        self._rated_until_s = {
            who: now_s + wait_s for who, wait_s in answer.consumer_wait_s.items()
        }
        waits_s = answer.consumer_wait_s
        self.queue.fail_all(
            lambda waiter: (
                self._rated(wait_s)
                if not waiter.patient
                and (wait_s := max(answer.rate_wait_s, waits_s.get(waiter.consumer, 0.0)))
                > RATE_PATIENCE_S
                else None
            )
        )

    def _rated(self, wait_s: float) -> AIGovToolError:
        return too_fast(
            "the limit on all enclaves together is reached", retry_after_s=max(wait_s, ASK_AGAIN_S)
        )

    def freed(self, left: int) -> None:
        """There may be credits again."""
        self.standing.freed(left)
        self._ask_again_s = -math.inf
        if left:
            self.asking.answered()
        self._wake()

    def set_roster(self, roster: Iterable[RosterEntry]) -> None:
        """Consumers are now these; what is left of their own budgets is known anew."""
        self.asking.answered(self.standing.set_roster(roster))
        self._wake()

    def decided(self, decision: MoreDecided, now_s: float) -> None:
        """A person decided on a consumer's wish: a denial ends the wait, credits come by push."""
        self.decisions.heard(decision, now_s)
        self.asking.decided(decision.consumer)
        if not decision.approved:
            for waiter in self.queue.of(decision.consumer):
                self.queue.fail(waiter, self._denied(decision))

    def suspend(self) -> None:
        """The custodian shuts down: give everything back, and serve nothing until it is back."""
        self._suspended = True
        self.give_back()
        for tab in self._till.tabs:
            self._let_lapse(tab, self._unreachable())
        self.queue.fail_all(lambda waiter: None if waiter.patient else self._unreachable())

    def give_back(self) -> None:
        """Close every lease and settle it."""
        self._close(self.meter.opened())
        self._wake()

    async def retire(self, *, wait_s: float) -> None:
        """Give back every lease, take no other, and wait until the custodian has them."""
        self._retired = True
        self.give_back()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while self.unsettled:
                    seen: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._settling.append(seen)
                    await seen

    def fail_waiting(self, error: Callable[[ConsumerId], AIGovToolError | None]) -> None:
        """Wake every waiter for whose consumer *error* returns one."""
        self.queue.fail_all(lambda waiter: error(waiter.consumer))
        self._release_viewers()

    @property
    def unsettled(self) -> bool:
        """Whether a settlement is not known to be durable."""
        return bool(self._settlements)

    @property
    def unsettled_leases(self) -> int:
        """How many settlements are not known to be durable."""
        return sum(1 for _ in self._settlements.uses())

    # --- decisions -------------------------------------------------------------------------------

    @property
    def _leasing(self) -> bool:
        return self.connected and not self._suspended and not self._retired

    def _close(self, leases: Iterable[LeaseId]) -> None:
        self._settlements.add(self._till.close_leases(leases))

    def _homeless(self) -> Iterator[Tab]:
        return (tab for tab in self._till.tabs if tab.homeless)

    def _held(self) -> dict[ConsumerId, int]:
        """Return what queries that go on need of another lease, by consumer."""
        held: dict[ConsumerId, int] = {}
        for tab in self._homeless():
            held[tab.consumer] = held.get(tab.consumer, 0) + tab.hold.left
        return held

    def _rehome(self, now_s: float) -> None:
        """Let queries that go on do so, where a lease has what they hold."""
        for tab in self._homeless():
            if self._till.rehome(tab, now_s):
                tab.changed()

    def _end_in_vain(self, sent: _Sent) -> None:
        """
        End queries that go on for which *sent* asked in vain (Rule 5). While some of them found
        what they hold, the others ask again: leases that were given back together may have held
        more than one lease can.
        """
        if all(tab.homeless for tab in sent.tabs):
            for tab in sent.tabs:
                self._let_lapse(tab, self._used_up())

    def _let_lapse(self, tab: Tab, error: AIGovToolError) -> None:
        if tab.lapsed is None:
            tab.lapsed = error
            tab.changed()

    def _open(self, lease: Lease, sent: _Sent, now_s: float) -> None:
        """Open a lease. One of duration 0 serves those that asked for it, in this very step."""
        if self._suspended or (self._retired and not sent.tabs):  # granted before: straight back
            self.meter.open(lease, sent.first_sent_at_s, expires_s=-math.inf)
            return
        if lease.duration_s > 0:
            self.meter.open(lease, sent.first_sent_at_s)
            return
        self.meter.open(lease, sent.first_sent_at_s, expires_s=math.inf)
        try:
            if now_s - sent.first_sent_at_s > ANSWER_LIVES_S:
                return  # authorised too long ago: the custodian counts on this (exposure)
            self._rehome(now_s)
            self._serve(now_s, only=frozenset(sent.asked))
        finally:
            self.meter.retire(lease.lease)

    def _serve(self, now_s: float, *, only: Container[Waiter[Paid]] | None = None) -> None:
        self.queue.serve(lambda one: self.pay(one.consumer, one.cost, one.held, now_s), only=only)

    def _want(self, asked: Sequence[Waiter[Paid]], now_s: float) -> Want | None:
        held = self._held()
        if held and not self._suspended:
            return self._want_on(held, asked, now_s)
        return self._want_new(asked, now_s)

    def _want_new(self, asked: Sequence[Waiter[Paid]], now_s: float) -> Want | None:
        if now_s < self._ask_again_s or not self._leasing:
            return None
        recent = self.meter.recent
        live = self.meter.live(now_s)
        in_use = bool(live and recent) and not self.standing.loan_is_used_up
        renew = in_use and now_s >= self.meter.half_time_s()
        low = in_use and self.meter.left < self.low_mark
        viewed = bool(self._viewers) and not live
        if not (asked or renew or low or viewed):
            return self._look(now_s)
        recent = self.meter.take_recent()
        self._demand.observe(sum(recent.values()), now_s)
        waiting = sum(waiter.cost for waiter in asked)
        at_least_of: dict[ConsumerId, int] = {}
        if self.terms.lease_duration_s <= 0:
            credits = max(waiting, 1)
        else:
            rate_share = self._demand.credits_for(self.terms.lease_duration_s) - self.meter.left
            credits = max(waiting + 1, rate_share)
        own = self.standing.is_capped
        by_consumer = {consumer: cost for consumer, cost in recent.items() if own(consumer)}
        for waiter in asked:
            if own(waiter.consumer):
                by_consumer[waiter.consumer] = by_consumer.get(waiter.consumer, 0) + waiter.cost
                most = max(waiter.cost, at_least_of.get(waiter.consumer, 0))
                at_least_of[waiter.consumer] = most
        return Want(
            credits=max(credits, sum(by_consumer.values())),
            by_consumer=by_consumer,
            at_least=max((waiter.cost for waiter in asked), default=0),
            at_least_of=at_least_of,
        )

    def _want_on(
        self, held: dict[ConsumerId, int], asked: Sequence[Waiter[Paid]], now_s: float
    ) -> Want:
        """Ask for what is held, and for what else is needed meanwhile, in one lease."""
        in_all = sum(held.values())
        capped = {who: credits for who, credits in held.items() if self.standing.is_capped(who)}
        more = None if self._retired else self._want_new(asked, now_s)
        if more is None:
            return Want(
                credits=in_all,
                by_consumer=capped,
                at_least=in_all,
                at_least_of=capped,
                held=held,
            )
        # what cannot be had in whole is not asked for in whole: running queries come first
        at_least = in_all + more.at_least
        return Want(
            credits=in_all + more.credits,
            by_consumer=_sum(capped, more.by_consumer),
            at_least=in_all if self.standing.loan_lacks(at_least) else at_least,
            at_least_of=more.at_least_of | capped,
            held=held,
        )

    def _look(self, now_s: float) -> Want | None:
        """
        Ask how much is left by now, for queries that cost more than there was.

        Credits that come where there were none are pushed; a little more where there was little,
        as when another enclave gives back the rest of a lease, is not.
        """
        short = [waiter for waiter in self.queue if self._short(waiter)]
        if not short or (now_s < self._look_s and all(waiter.looked for waiter in short)):
            return None
        self._look_s = now_s + LOOK_FOR_MORE_S
        for waiter in short:
            waiter.looked = True
        own = self.standing.has_own_budget
        return Want(credits=0, by_consumer={one.consumer: 0 for one in short if own(one.consumer)})

    def _short(self, waiter: Waiter[Paid]) -> bool:
        """Whether there is something for this waiter, and too little."""
        one = self.standing.lacks(waiter.consumer, 1)
        return not one and self.standing.lacks(waiter.consumer, waiter.cost)

    def _in_vain(self, waiter: Waiter[Paid]) -> bool:
        """Whether it is useless to ask for this waiter; where it is *short* that is asked first."""
        if self._leasing and not waiter.looked and self._short(waiter):
            return False
        return self.standing.lacks(waiter.consumer, waiter.cost)

    def _consider(self, waiter: Waiter[Paid], now_s: float) -> None:
        """Decide for a waiter for whom there is too little: swap, ask a person, or give up."""
        if self._fits_no_lease(waiter):
            self.queue.fail(waiter, self._too_large(waiter))
            return
        if not self._in_vain(waiter):
            return
        if self._may_swap(waiter):
            waiter.swapped = True
            self.give_back()
        elif not waiter.patient:
            self.queue.fail(waiter, self._exhausted(waiter))
        elif denial := self.decisions.denial(waiter.consumer, waiter.reason, now_s):
            self.queue.fail(waiter, self._denied(denial))  # it came while we were not connected
        else:
            self.asking.ask(waiter.consumer, waiter.reason)

    def _may_swap(self, waiter: Waiter[Paid]) -> bool:
        """
        Whether our own leases hold what this waiter needs, set apart for others or in pieces: the
        custodian can deal it anew once it has it back.
        """
        return (
            self._leasing
            and not waiter.swapped
            and self.meter.left > 0
            and self.standing.would_have(waiter.consumer, waiter.cost)
        )

    def _fits_no_lease(self, waiter: Waiter[Paid]) -> bool:
        largest = self.standing.largest_lease
        return largest is not None and waiter.cost > largest

    def _read_statement(self, statement: Signed) -> SessionStatement:
        return open_signed(
            statement,
            SessionStatement,
            public_key=self._custodian_key,
            label=Label.SESSION_STATEMENT,
        )

    def _release_viewers(self) -> None:
        _release(self._viewers)

    def _too_large(self, waiter: Waiter[Paid]) -> TooLargeError:
        return TooLargeError(
            "the query costs more than one lease of this loan can hold",
            code="budget.too_large",
            expected=f"at most {self.standing.largest_lease} credits",
            came=f"{waiter.cost} credits",
            mend="send a smaller batch, or ask the custodian for a larger --max-lease-credits",
        )

    def _exhausted(self, waiter: Waiter[Paid]) -> BudgetExhaustedError:
        own = self.standing.own_lacks(waiter.consumer, waiter.cost)
        whose = "your own budget" if own else "the loan's budget"
        lacks_one = self.standing.lacks(waiter.consumer, 1)
        soon = self.standing.leased_elsewhere and self.terms.lease_duration_s > 0
        place = self.queue.place(waiter)
        return BudgetExhaustedError(
            f"{whose} is used up"
            if lacks_one
            else f"the query costs {waiter.cost} credits, and {whose} has fewer left",
            retry_after_s=self._spread(
                self.terms.lease_duration_s if soon else EXHAUSTED_RETRY_AFTER_S
            ),
            place=None if place is None else (place.place, place.of),
            mend="ask for more with `Prefer: wait=N`, and the custodian will be asked",
        )

    def _used_up(self) -> BudgetExhaustedError:
        return BudgetExhaustedError(
            "no more credits came for a query that goes on",
            retry_after_s=self._spread(EXHAUSTED_RETRY_AFTER_S),
            mend="ask the custodian whether the budget, or the consumer's own, was changed",
        )

    def _denied(self, decision: MoreDecided) -> MoreDeniedError:
        return MoreDeniedError(
            f"the custodian denied more credits: {decision.reason or 'no reason given'}",
            retry_after_s=self._spread(EXHAUSTED_RETRY_AFTER_S),
        )

    def _spread(self, least_s: float) -> float:
        """Return when to come back: in turn, one second later each, so that not all do at once."""
        self._refused = (self._refused + 1) % RETRY_SPREAD_S
        return least_s + self._refused

    def _unreachable(self) -> UnavailableError:
        return UnavailableError(
            "the custodian cannot be reached, and no lease is left to serve from",
            code="custodian.unreachable",
            retry_after_s=UNREACHABLE_RETRY_AFTER_S,
        )

    def _out_of_time(self, waiter: Waiter[Paid]) -> AIGovToolError:
        if not self._leasing:
            return self._unreachable()
        if self.standing.lacks(waiter.consumer, waiter.cost):
            return self._exhausted(waiter)
        if self._rate_wait_s or waiter.consumer in self._rated_until_s:
            return self._rated(self._rate_wait_s)
        return UnavailableError(
            "the custodian gave no lease in time",
            code="custodian.slow",
            retry_after_s=UNREACHABLE_RETRY_AFTER_S,
        )


def _sum(one: Mapping[ConsumerId, int], other: Mapping[ConsumerId, int]) -> dict[ConsumerId, int]:
    return {who: one.get(who, 0) + other.get(who, 0) for who in {**one, **other}}


def _release(waiting: list[asyncio.Future[None]]) -> None:
    """Let go on who waits in this list, and empty it."""
    for seen in waiting:
        if not seen.done():
            seen.set_result(None)
    waiting.clear()
