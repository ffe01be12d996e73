"""One question and its answer: limits, and patience with those who ask for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from aigovtool.endorsements.fetch import (
    LONGEST_RETRY_AFTER_S,
    Answer,
    HttpTransport,
    Question,
    http_session,
    retry_after_s,
)
from aigovtool.endorsements.patience import ATTEMPTS, BURST, PATIENCE_S, PatientTransport
from aigovtool.errors import (
    ConfigurationError,
    MalformedError,
    NotFoundError,
    RefusedError,
    TooLargeError,
    UnavailableError,
)
from tests.endorsements.stand_in import FakeClock, Reply, Vendor, running


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    async with running(Vendor()) as server:
        yield server


async def ask(vendor: Vendor, *, timeout_s: float = 5.0, **how: object) -> Answer:
    async with http_session(timeout_s=timeout_s, connect_timeout_s=timeout_s) as session:
        question = Question(url=f"{vendor.url}/a", **how)  # type: ignore[arg-type]
        return await HttpTransport(session, clock=FakeClock()).ask(question)


async def test_only_the_headers_asked_for_are_part_of_the_answer(vendor: Vendor) -> None:
    vendor.set("/a", Reply(body=b"yes", headers={"X-Chain": "c", "X-Other": "o"}))
    answer = await ask(vendor, headers=("x-chain", "x-missing"))
    assert answer == Answer(body=b"yes", headers={"x-chain": "c"})


async def test_a_vendor_that_never_answers_is_given_up(vendor: Vendor) -> None:
    vendor.set("/a", Reply(hang=True))
    with pytest.raises(UnavailableError, match="did not answer in time"):
        await ask(vendor, timeout_s=0.05)


async def test_an_answer_that_breaks_off_is_none(vendor: Vendor) -> None:
    vendor.set("/a", Reply(body=b"half of it", cut=True))
    with pytest.raises(UnavailableError, match=r"broke off|cannot be reached"):
        await ask(vendor)


async def test_nobody_there() -> None:
    async with running(Vendor()) as gone:
        pass
    with pytest.raises(UnavailableError, match="cannot be reached"):
        await ask(gone)


@pytest.mark.parametrize("size", [10, 11])
async def test_a_body_is_not_read_past_its_limit(vendor: Vendor, size: int) -> None:
    vendor.set("/a", Reply(body=b"x" * size))
    if size == 10:
        assert len((await ask(vendor, max_bytes=10)).body) == 10
    else:
        with pytest.raises(TooLargeError, match="too much"):
            await ask(vendor, max_bytes=10)


async def test_a_packed_body_is_not_unpacked(vendor: Vendor) -> None:
    import gzip

    bomb = gzip.compress(bytes(10 << 20))
    vendor.set("/a", Reply(body=bomb, headers={"Content-Encoding": "gzip"}))
    assert (await ask(vendor)).body == bomb


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_leads_nowhere(vendor: Vendor, status: int) -> None:
    async with running(Vendor()) as elsewhere:
        elsewhere.set("/b", Reply(body=b"mine"))
        vendor.set("/a", Reply(status=status, headers={"Location": f"{elsewhere.url}/b"}))
        with pytest.raises(ConfigurationError, match="no redirect is followed"):
            await ask(vendor)
        assert elsewhere.asked == []


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, NotFoundError),
        (404, NotFoundError),
        (410, NotFoundError),
        (401, RefusedError),
        (403, RefusedError),
        (418, RefusedError),
        (204, RefusedError),
        (429, UnavailableError),
        (500, UnavailableError),
        (503, UnavailableError),
    ],
)
async def test_each_status_is_what_the_caller_can_do(
    vendor: Vendor, status: int, error: type[Exception]
) -> None:
    vendor.set("/a", Reply(status=status))
    with pytest.raises(error):
        await ask(vendor)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://vendor/a", "no address", "http://"])
async def test_what_is_no_web_address_is_not_asked(url: str) -> None:
    async with http_session() as session:
        with pytest.raises(ConfigurationError, match="not the address"):
            await HttpTransport(session, clock=FakeClock()).ask(Question(url=url))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, 0),
        ("0", 0),
        ("120", 120),
        (" 7 ", 7),
        ("-5", 0),
        ("soon", 0),
        ("1e9", 0),
        ("9" * 400, LONGEST_RETRY_AFTER_S),
        ("Thu, 01 Jan 2026 00:01:30 GMT", 90),
        ("Thu, 01 Jan 2026 00:01:30 -0000", 90),
        ("Wed, 31 Dec 2025 23:00:00 GMT", 0),
        ("Fri, 01 Jan 2100 00:00:00 GMT", LONGEST_RETRY_AFTER_S),
        ("٣", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, expected: float) -> None:
    assert retry_after_s(value, now=datetime(2026, 1, 1, tzinfo=UTC)) == expected


class Scripted:
    """A transport that does what it is told, attempt by attempt."""

    def __init__(self, *does: Exception | Answer) -> None:
        self.does = list(does)
        self.asked = 0
        self.was_asked = asyncio.Event()

    async def ask(self, question: Question) -> Answer:
        self.was_asked.set()
        does = self.does[min(self.asked, len(self.does) - 1)]
        self.asked += 1
        if isinstance(does, Exception):
            raise does
        return does


def busy(retry_after_s: float = 0.0) -> UnavailableError:
    return UnavailableError("busy", retry_after_s=retry_after_s)


QUESTION = Question(url="https://vendor.example/a")
YES = Answer(body=b"yes")


def patient(transport: Scripted, clock: FakeClock, jitter: float = 1.0) -> PatientTransport:
    return PatientTransport(transport, clock=clock, sleep=clock.sleep, jitter=lambda: jitter)


async def test_waits_double_and_end() -> None:
    clock, transport = FakeClock(), Scripted(busy())
    with pytest.raises(UnavailableError, match="busy"):
        await patient(transport, clock).ask(QUESTION)
    assert transport.asked == ATTEMPTS
    assert clock.slept == [0.5, 1.0, 2.0]


async def test_jitter_spreads_the_waits() -> None:
    clock, transport = FakeClock(), Scripted(busy(), busy(), YES)
    assert await patient(transport, clock, jitter=0.25).ask(QUESTION) == YES
    assert clock.slept == [0.125, 0.25]


@pytest.mark.parametrize(
    "error",
    [NotFoundError("no"), MalformedError("no"), ConfigurationError("no"), TooLargeError("no")],
)
async def test_what_would_fail_again_is_not_asked_again(error: Exception) -> None:
    clock, transport = FakeClock(), Scripted(error)
    with pytest.raises(type(error)):
        await patient(transport, clock).ask(QUESTION)
    assert (transport.asked, clock.slept) == (1, [])


async def test_retry_after_holds_for_the_whole_origin() -> None:
    clock, transport = FakeClock(), Scripted(busy(15.0), YES)
    asker = patient(transport, clock)
    start = clock.monotonic
    first = asyncio.create_task(asker.ask(QUESTION))
    await transport.was_asked.wait()
    other = await asker.ask(Question(url="https://vendor.example/other"))
    assert other == YES
    assert clock.monotonic - start >= 15.0
    assert await first == YES


async def test_a_vendor_that_wants_a_long_rest_is_not_visited_until_then() -> None:
    clock, transport = FakeClock(), Scripted(busy(3600.0), YES)
    asker = patient(transport, clock)
    with pytest.raises(UnavailableError) as first:
        await asker.ask(QUESTION)
    assert (transport.asked, clock.slept, first.value.retry_after_s) == (1, [], 3600.0)
    with pytest.raises(UnavailableError, match="not to be visited now") as second:
        await asker.ask(QUESTION)
    assert transport.asked == 1
    assert second.value.retry_after_s == pytest.approx(3600.0)
    assert await asker.ask(Question(url="https://other.example/a")) == YES
    clock.monotonic += 3600.0
    assert await asker.ask(QUESTION) == YES


async def test_a_burst_is_spread_over_time() -> None:
    clock, transport = FakeClock(), Scripted(YES)
    asker = patient(transport, clock)
    for _ in range(BURST):
        await asker.ask(QUESTION)
    assert clock.slept == []
    for _ in range(3):
        await asker.ask(QUESTION)
    assert sum(clock.slept) == pytest.approx(3.0)


async def test_a_queue_longer_than_anybodys_patience_is_refused() -> None:
    clock, transport = FakeClock(), Scripted(YES)

    async def never(seconds: float) -> None:
        await asyncio.Event().wait()

    asker = PatientTransport(transport, clock=clock, sleep=never, jitter=lambda: 1.0)
    waiting = [asyncio.create_task(asker.ask(QUESTION)) for _ in range(BURST + int(PATIENCE_S))]
    await asyncio.sleep(0)
    with pytest.raises(UnavailableError, match="too often"):
        await asker.ask(QUESTION)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
