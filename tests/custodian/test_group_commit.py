"""Reports that share a commit: each whole or not at all by itself, none answered before it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from aigovtool.custodian import reporting
from aigovtool.custodian.reporting import Reporting
from aigovtool.errors import AIGovToolError, ConflictError, UnavailableError, VerificationError
from aigovtool.ids import ConsumerId, LoanId, SessionId
from aigovtool.wire.control import Report, ReportAnswer
from tests.custodian.ledgers import Bench, FakeEnclave, bench


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as made:
        yield made


def lent(
    ledger: Bench, credits: int, enclaves: int
) -> tuple[LoanId, ConsumerId, list[FakeEnclave]]:
    loan = ledger.lend(credits).loan
    return loan, ledger.consumer(loan), [ledger.enclave(loan) for _ in range(enclaves)]


def test_reports_together_do_what_they_do_one_by_one(ledger: Bench) -> None:
    loan, consumer, enclaves = lent(ledger, 1000, 3)
    first = ledger.leasing.report_all([(e.session, e.report(want=10)) for e in enclaves])
    leases = [answer.lease for answer in first if isinstance(answer, ReportAnswer)]
    assert all(lease is not None and lease.credits == 10 for lease in leases)
    again = ledger.leasing.report_all(
        [
            (e.session, e.report((e.settlement(lease.lease, {consumer: 4}),), want=5))
            for e, lease in zip(enclaves, leases, strict=True)
            if lease is not None
        ]
    )
    assert all(isinstance(answer, ReportAnswer) for answer in again)
    account = ledger.loan(loan).account
    assert (account.spent, account.leased) == (12, 15)


def test_one_that_no_enclave_sends_takes_nothing_from_its_neighbours(ledger: Bench) -> None:
    loan, consumer, (good, forger, gap, other) = lent(ledger, 1000, 4)
    lease = ledger.lease(forger, 10).lease
    assert lease is not None
    forged = forger.settlement(lease.lease, {consumer: 3})
    forged = msgspec.structs.replace(forged, signature=bytes(64))
    outcomes = ledger.leasing.report_all(
        [
            (good.session, good.report(want=10)),
            (forger.session, forger.report((forged,), want=10)),
            (gap.session, msgspec.structs.replace(gap.report(want=10), number=7)),
            (other.session, other.report(want=10)),
        ]
    )
    assert [type(each) for each in outcomes] == [
        ReportAnswer,
        VerificationError,
        ConflictError,
        ReportAnswer,
    ]
    account = ledger.loan(loan).account
    assert (account.leased, account.spent) == (30, 0)  # the two, and what the forger held
    assert ledger.kinds().count("report.refused") == 2
    assert ledger.kinds().count("session.ended") == 2


def test_one_that_fails_half_way_leaves_no_half_of_itself(ledger: Bench) -> None:
    """Its first settlement was applied when its second is found to be of no lease."""
    loan, consumer, (good, bad) = lent(ledger, 1000, 2)
    lease = ledger.lease(bad, 10).lease
    assert lease is not None
    stray = bad.settlement(msgspec.structs.replace(lease, lease="lease_x").lease, {consumer: 1})
    report = bad.report((bad.settlement(lease.lease, {consumer: 3}), stray))
    outcomes = ledger.leasing.report_all(
        [(bad.session, report), (good.session, good.report(want=10))]
    )
    assert isinstance(outcomes[0], VerificationError)
    assert isinstance(outcomes[1], ReportAnswer)
    assert ledger.loan(loan).account.spent == 0
    assert "lease.settled" not in ledger.kinds()


@pytest.mark.parametrize("how", ["lost", "kept"])
def test_a_commit_that_failed_is_tried_again_one_by_one_and_charges_once(
    ledger: Bench, how: str
) -> None:
    loan, consumer, enclaves = lent(ledger, 1000, 3)
    leases = [ledger.lease(each, 10).lease for each in enclaves]
    reports = [
        (e.session, e.report((e.settlement(lease.lease, {consumer: 4}),), want=5))
        for e, lease in zip(enclaves, leases, strict=True)
        if lease is not None
    ]
    ledger.store.next = how
    outcomes = ledger.leasing.report_all(reports)
    assert all(isinstance(each, ReportAnswer) for each in outcomes)
    account = ledger.loan(loan).account
    assert (account.spent, account.leased) == (12, 15)
    assert ledger.leasing.report_all(reports)[0].lease == outcomes[0].lease  # type: ignore[union-attr]


def test_what_was_undone_is_told_to_nobody(ledger: Bench) -> None:
    """The last credits come back by a settlement that is undone: no push may say so."""
    _, consumer, (good, bad) = lent(ledger, 1, 2)
    lease = ledger.lease(bad, 1).lease
    assert lease is not None
    stray = bad.settlement(msgspec.structs.replace(lease, lease="lease_x").lease, {consumer: 1})
    told = len(ledger.told.pushes)
    ledger.leasing.report_all(
        [
            (bad.session, bad.report((bad.settlement(lease.lease, {}), stray))),
            (good.session, good.report(want=1)),
        ]
    )
    kinds = [type(push.message).__name__ for push in ledger.told.pushes[told:]]
    assert "CreditsFreed" not in kinds


def answer(number: int) -> ReportAnswer:
    return ReportAnswer(
        number=number,
        settled=(),
        lease=None,
        left=0,
        leased_elsewhere=0,
        consumer_left={},
        statement=None,  # type: ignore[arg-type]
    )


async def test_those_that_wait_for_a_commit_go_into_the_next_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reporting, "MAX_TOGETHER", 3)
    batches: list[list[int]] = []
    open_door = asyncio.Event()

    async def apply_all(reports):  # type: ignore[no-untyped-def]
        batches.append([report.number for _, report in reports])
        await open_door.wait()
        return [
            UnavailableError("no") if report.number == 3 else answer(report.number)
            for _, report in reports
        ]

    made = Reporting(apply_all)
    sent: list[int] = []

    async def one(number: int) -> AIGovToolError | None:
        try:
            await made.report(
                SessionId("s"), Report(number=number), lambda said: sent.append(said.number)
            )
        except AIGovToolError as error:
            return error
        return None

    tasks = [asyncio.create_task(one(number)) for number in range(1, 7)]
    for _ in range(5):
        await asyncio.sleep(0)
    tasks[4].cancel()  # its connection is lost while it waits
    open_door.set()
    outcomes = [await task for task in tasks[:4]]
    with contextlib.suppress(asyncio.CancelledError):
        await tasks[4]
    await tasks[5]
    assert batches[0] == [1, 2, 3]
    assert sorted(number for batch in batches for number in batch) == [1, 2, 3, 4, 5, 6]
    assert sent == [1, 2, 4, 6]
    assert isinstance(outcomes[2], UnavailableError)


async def test_a_fault_of_ours_reaches_whoever_waits_and_the_next_is_served() -> None:
    faults = [ValueError("bug")]

    async def apply_all(reports):  # type: ignore[no-untyped-def]
        if faults:
            raise faults.pop()
        return [answer(report.number) for _, report in reports]

    made = Reporting(apply_all)
    sent: list[ReportAnswer] = []
    with pytest.raises(ValueError, match="bug"):
        await made.report(SessionId("s"), Report(number=1), sent.append)
    await made.report(SessionId("s"), Report(number=1), sent.append)
    assert [each.number for each in sent] == [1]
