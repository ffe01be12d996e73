"""The conversation without its socket, against a ledger whose messages may be lost or repeated."""

from __future__ import annotations

import asyncio
import math
import sys
from datetime import UTC, datetime, timedelta

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aigovtool.clock import SystemClock
from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.demand import Demand
from aigovtool.enclave.meter import Meter
from aigovtool.enclave.receipts import Receipts
from aigovtool.enclave.renewal import Renewal
from aigovtool.enclave.till import Paid, Till
from aigovtool.enclave.waiting import WaitingQueue
from aigovtool.ids import ConsumerId, LeaseId, LoanId, SessionId
from aigovtool.wire.codec import open_signed, sign
from aigovtool.wire.control import Lease, Report, ReportAnswer, Settlement, Welcome
from aigovtool.wire.enrolment import Keys, LedgerHead, RosterEntry, SessionStatement, Terms

LOAN, SESSION = LoanId("loan_x"), SessionId("ses_x")
ALICE, BOB = ConsumerId("con_alice"), ConsumerId("con_bob")
KEYS = Keys(tls_spki_sha256=bytes(32), signing_key=bytes(32), hpke_key=bytes(1216))
CUSTODIAN, ENCLAVE = SigningKey.generate(), SigningKey.generate()
DURATION_S = 5.0


class Ledger:
    """The custodian's side, as pure as the enclave's."""

    def __init__(
        self, budget: int, *, duration_s: float = DURATION_S, largest: int = sys.maxsize
    ) -> None:
        self.granted = self.left = budget
        self.largest = largest  # lease
        self.spent = 0
        self.duration_s = duration_s
        self.leases: dict[LeaseId, Lease] = {}
        self.answers: dict[int, tuple[Report, ReportAnswer]] = {}

    def statement(self, lease: Lease | None = None):
        now = datetime.now(UTC)
        return sign(
            SessionStatement(
                loan=LOAN,
                session=SESSION,
                keys=KEYS,
                model_digest=bytes(32),
                lease=None if lease is None else lease.lease,
                left=self.left,
                head=LedgerHead(incarnation=bytes(16), event=1, digest=bytes(32)),
                issued=now,
                expires=now + timedelta(minutes=2),
            ),
            CUSTODIAN,
            Label.SESSION_STATEMENT,
        )

    def welcome(self) -> Welcome:
        return Welcome(
            state="active",
            state_reason="",
            terms=self.terms(),
            roster=(),
            left=self.left,
            model_digest=bytes(32),
        )

    def terms(self) -> Terms:
        return Terms(lease_duration_s=self.duration_s, wipe_after_s=3600.0, expires=None)

    def answer(self, report: Report) -> ReportAnswer:
        if report.number in self.answers:
            before, answer = self.answers[report.number]
            assert before == report
            return answer
        settled = []
        for signed in report.settlements:
            one = open_signed(
                signed, Settlement, public_key=ENCLAVE.public_key, label=Label.SETTLEMENT
            )
            settled.append(one.lease)
            lease = self.leases.pop(one.lease, None)
            if lease is not None:  # a repeated settlement was applied before
                assert one.used == sum(one.by_consumer.values()) <= lease.credits
                self.spent += one.used
                self.left += lease.credits - one.used
        lease = None
        if report.want is not None and (
            credits := min(report.want.credits, self.left, self.largest)
        ):
            self.left -= credits
            lease = Lease(
                lease=LeaseId(f"lease{report.number}"),
                credits=credits,
                caps={},
                duration_s=self.duration_s,
            )
            self.leases[lease.lease] = lease
        answer = ReportAnswer(
            number=report.number,
            settled=tuple(settled),
            lease=lease,
            left=self.left,
            leased_elsewhere=0,
            consumer_left={},
            statement=self.statement(lease),
        )
        self.answers[report.number] = (report, answer)
        return answer


def make(ledger: Ledger, *, max_waiting: int = 100) -> tuple[Renewal, Till]:
    receipts = Receipts(
        loan=LOAN, session=SESSION, model_digest=bytes(32), key=ENCLAVE, clock=SystemClock()
    )
    till = Till(Meter(), receipts)
    renewal = Renewal(
        loan=LOAN,
        session=SESSION,
        key=ENCLAVE,
        custodian_key=CUSTODIAN.public_key,
        till=till,
        queue=WaitingQueue(max_waiting),
        terms=ledger.terms(),
        statement=ledger.statement(),
        wake=lambda: None,
        now_s=0.0,
    )
    return renewal, till


def talk(renewal: Renewal, ledger: Ledger, now_s: float) -> int:
    """Exchange reports until nothing is due; returns how many."""
    reports = 0
    while (report := renewal.due(now_s)) is not None:
        renewal.answered(ledger.answer(report), now_s)
        reports += 1
        assert reports < 100, "the conversation does not come to rest"
    return reports


async def ask(renewal: Renewal, till: Till, consumer: ConsumerId, now_s: float) -> asyncio.Task:
    """Begin a query as the API does."""
    paid = till.pay(consumer, 1, now_s)
    if isinstance(paid, Paid):
        return asyncio.create_task(asyncio.sleep(0, paid))
    task = asyncio.create_task(
        renewal.acquire(consumer, 1, now_s=now_s, lease_wait_s=60, patience_s=0, reason="")
    )
    await asyncio.sleep(0)
    return task


async def test_nothing_is_said_while_nothing_is_asked() -> None:
    ledger = Ledger(10)
    renewal, _ = make(ledger)
    renewal.welcomed(ledger.welcome(), 0.0)
    assert renewal.due(0.0) is None
    assert renewal.due(1000.0) is None


async def test_a_lease_in_use_is_renewed_at_half_its_time_and_an_idle_one_is_not() -> None:
    ledger = Ledger(1000)
    renewal, till = make(ledger)
    renewal.welcomed(ledger.welcome(), 0.0)
    query = await ask(renewal, till, ALICE, 0.0)
    assert talk(renewal, ledger, 0.0) == 1
    await query
    assert talk(renewal, ledger, 2.4) == 0
    assert talk(renewal, ledger, 2.5) == 1  # it was used
    assert talk(renewal, ledger, 4.9) == 0
    assert talk(renewal, ledger, 5.0) == 1  # the first one is settled, the second is idle
    assert talk(renewal, ledger, 7.5) == 1  # and is settled in its turn
    assert (ledger.spent, ledger.left, ledger.leases) == (1, 999, {})


async def test_freed_credits_that_nobody_waits_for_are_not_leased() -> None:
    ledger = Ledger(2)
    renewal, till = make(ledger)
    renewal.welcomed(ledger.welcome(), 0.0)
    query = await ask(renewal, till, ALICE, 0.0)
    talk(renewal, ledger, 0.0)
    await query
    await ask(renewal, till, ALICE, 0.1)
    assert talk(renewal, ledger, 6.0) == 1
    ledger.granted, ledger.left = 4, 2
    renewal.freed(2)
    assert renewal.due(7.0) is None


async def test_a_lease_grows_with_the_demand() -> None:
    ledger = Ledger(10**6)
    renewal, till = make(ledger)
    renewal.welcomed(ledger.welcome(), 0.0)
    now_s, reports = 0.0, 0
    for _ in range(10_000):  # ten seconds of a thousand queries a second
        query = await ask(renewal, till, ALICE, now_s)
        reports += talk(renewal, ledger, now_s)
        await query
        now_s += 0.001
    assert reports < 60
    assert max(x.credits for _, x in _leases(ledger)) < 20_000


def _leases(ledger: Ledger) -> list[tuple[int, Lease]]:
    return [
        (number, answer.lease)
        for number, (_, answer) in ledger.answers.items()
        if answer.lease is not None
    ]


async def test_an_unanswered_report_is_the_same_when_sent_again() -> None:
    ledger = Ledger(10)
    renewal, till = make(ledger)
    renewal.welcomed(ledger.welcome(), 0.0)
    query = await ask(renewal, till, ALICE, 0.0)
    report = renewal.due(0.0)
    assert report is not None
    lost = ledger.answer(report)
    assert renewal.due(3.0) is None  # one at a time
    renewal.lost()
    renewal.welcomed(ledger.welcome(), 0.0)
    assert renewal.unanswered is report
    renewal.answered(ledger.answer(report), 4.9)
    assert (await query).charge.lease == lost.lease.lease
    renewal.answered(lost, 4.9)  # come twice
    assert till.meter.credits(4.9) == 1
    assert till.meter.credits(5.0) == 0  # its time ran from when it was first sent


async def test_an_answer_after_its_leases_time_serves_nobody_and_is_settled() -> None:
    ledger = Ledger(10)
    renewal, till = make(ledger)
    renewal.welcomed(ledger.welcome(), 0.0)
    query = await ask(renewal, till, ALICE, 0.0)
    report = renewal.due(0.0)
    assert report is not None
    renewal.answered(ledger.answer(report), 6.0)
    assert not query.done()
    talk(renewal, ledger, 6.0)
    assert (await query).charge.lease == "lease2"


async def test_a_request_for_more_is_made_again_after_a_lost_connection() -> None:
    ledger = Ledger(0)
    renewal, _ = make(ledger)
    renewal.welcomed(ledger.welcome(), 0.0)
    waiting = asyncio.create_task(
        renewal.acquire(ALICE, 1, now_s=0.0, lease_wait_s=60, patience_s=60, reason="why")
    )
    await asyncio.sleep(0)
    assert [one.consumer for one in renewal.more_due(0.0)] == [ALICE]
    assert renewal.more_due(0.0) == []
    renewal.lost()
    renewal.welcomed(ledger.welcome(), 0.0)
    assert [one.reason for one in renewal.more_due(0.0)] == ["why"]
    waiting.cancel()
    await asyncio.wait({waiting})


async def test_numbers_of_who_waits_are_told_again_when_they_change_and_not_too_often() -> None:
    ledger = Ledger(0)
    renewal, _ = make(ledger)
    renewal.welcomed(ledger.welcome(), 0.0)
    waiting: list[asyncio.Task] = []

    async def waits(now_s: float) -> None:
        waiting.append(
            asyncio.create_task(
                renewal.acquire(ALICE, 2, now_s=now_s, lease_wait_s=60, patience_s=60, reason="why")
            )
        )
        await asyncio.sleep(0)

    def told(now_s: float) -> list[tuple[int, int, float]]:
        return [(one.waiting, one.credits, one.waited_s) for one in renewal.more_due(now_s)]

    await waits(10.0)
    assert told(10.0) == [(1, 2, 0.0)]
    await waits(10.5)
    assert renewal.wake_at(11.0) == 12.0
    assert told(11.0) == []
    assert told(12.0) == [(2, 4, 2.0)]
    assert told(20.0) == []
    renewal.lost()
    assert told(20.0) == []
    renewal.welcomed(ledger.welcome(), 20.0)
    assert told(20.0) == [(2, 4, 10.0)]  # who knows whether it arrived
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert told(22.0) == [(0, 0, 0.0)]
    assert told(30.0) == []
    assert renewal.wake_at(30.0) == math.inf


async def test_who_gave_up_before_it_was_said_is_not_asked_for() -> None:
    ledger = Ledger(0)
    renewal, _ = make(ledger)
    renewal.welcomed(ledger.welcome(), 0.0)
    waiting = asyncio.create_task(
        renewal.acquire(ALICE, 1, now_s=0.0, lease_wait_s=60, patience_s=60, reason="why")
    )
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert renewal.more_due(0.0) == []
    assert ALICE not in renewal.asking


async def test_roster_and_cap_of_a_waiting_consumer() -> None:
    ledger = Ledger(10)
    renewal, till = make(ledger)
    renewal.welcomed(ledger.welcome(), 0.0)
    renewal.set_roster(
        [RosterEntry(consumer=BOB, api_key_sha256=bytes(32), blocked=False, budgeted=True, left=5)]
    )
    query = await ask(renewal, till, BOB, 0.0)
    report = renewal.due(0.0)
    assert report is not None
    assert report.want is not None
    assert report.want.by_consumer == {BOB: 1}
    query.cancel()
    await asyncio.wait({query})


def test_demand_rises_at_once_and_falls_slowly() -> None:
    demand = Demand(0.0)
    demand.observe(1000, 1.0)
    assert demand.credits_for(5.0) == 5000
    demand.observe(0, 2.0)
    assert demand.credits_for(5.0) == 2500
    assert demand.low_mark() == 125


EVENTS = st.lists(
    st.sampled_from(
        ["query", "query", "query", "answer", "lose", "cut", "tick", "tick", "long", "again"]
    ),
    max_size=60,
)


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(events=EVENTS, budget=st.integers(0, 12), duration_s=st.sampled_from([0.0, 5.0]))
async def test_never_more_than_the_budget_whatever_is_lost_or_repeated(
    events: list[str], budget: int, duration_s: float
) -> None:
    """I1 and I3: served = spent in the end, and never more than was granted."""
    ledger = Ledger(budget, duration_s=duration_s)
    renewal, till = make(ledger)
    renewal.welcomed(ledger.welcome(), 0.0)
    now_s, served = 0.0, 0
    queries: list[asyncio.Task] = []
    in_flight: Report | None = None
    answers: list[ReportAnswer] = []
    for event in events:
        now_s += {"tick": 1.3, "long": 6.0}.get(event, 0.01)
        match event:
            case "query":
                queries.append(await ask(renewal, till, ALICE, now_s))
            case "answer" if in_flight is not None and renewal.connected:
                answers.append(ledger.answer(in_flight))
                in_flight = None
                renewal.answered(answers[-1], now_s)
            case "lose" if in_flight is not None:
                ledger.answer(in_flight)  # decided and recorded, and the answer is lost
            case "cut":
                renewal.lost()
                in_flight = None
            case "again" if answers:
                renewal.answered(answers[-1], now_s)
        if not renewal.connected and event in ("tick", "long"):
            renewal.welcomed(ledger.welcome(), 0.0)
            in_flight = renewal.unanswered
        if (report := renewal.due(now_s)) is not None:
            assert in_flight is None
            in_flight = report
        assert ledger.granted == ledger.left + ledger.spent + sum(
            lease.credits for lease in ledger.leases.values()
        )
    if not renewal.connected:
        renewal.welcomed(ledger.welcome(), 0.0)
    if renewal.unanswered is not None:
        renewal.answered(ledger.answer(renewal.unanswered), now_s)
    renewal.suspend()
    for query in queries:
        query.cancel()
    await asyncio.gather(*queries, return_exceptions=True)
    now_s += 2.0
    while renewal.unsettled:
        assert talk(renewal, ledger, now_s) > 0
    served = till.receipts.count
    assert ledger.spent == served <= budget
    assert ledger.leases == {}
    assert ledger.left == budget - served
