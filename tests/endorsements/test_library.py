"""What is kept, for how long, and what happens when the vendor or the disk does not play along."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from aigovtool.endorsements import library as library_module
from aigovtool.endorsements.cache import DiskCache
from aigovtool.endorsements.fetch import Answer, Question
from aigovtool.endorsements.library import Item, Library
from aigovtool.errors import MalformedError, NotFoundError, UnavailableError
from tests.attestation.fake_vendors import FakeAmd
from tests.endorsements.stand_in import FakeClock, Reply, Vendor, library_for, running

START = datetime(2026, 1, 1, tzinfo=UTC)
LIFE = timedelta(days=30)
AMD = FakeAmd()


def crl(start: datetime = START, life: timedelta = LIFE) -> bytes:
    return AMD.crl(last_update=start, next_update=start + life)


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    async with running(Vendor()) as server:
        server.set("/crl", Reply(body=crl()))
        yield server


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(wall=START)


def files(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted(folder.glob(pattern))


def item(vendor: Vendor, **how: Any) -> Item:
    return replace(
        Item(
            question=Question(url=f"{vendor.url}/crl"),
            read=lambda answer: {"crl": answer.body},
            names=("crl",),
            longest_age=None,
        ),
        **how,
    )


async def test_it_is_fetched_once(vendor: Vendor, clock: FakeClock) -> None:
    async with library_for(clock) as library:
        for _ in range(5):
            assert await library.get(item(vendor), now=clock.now()) == {
                "crl": vendor.replies["/crl"][0].body
            }
    assert vendor.count("/crl") == 1


async def test_callers_at_the_same_time_share_one_request(vendor: Vendor, clock: FakeClock) -> None:
    gate = asyncio.Event()
    vendor.set("/crl", Reply(body=crl(), gate=gate))
    async with library_for(clock) as library:
        callers = [
            asyncio.create_task(library.get(item(vendor), now=clock.now())) for _ in range(50)
        ]
        await vendor.was_asked.wait()
        callers[0].cancel()  # who started it goes away; the others are served all the same
        gate.set()
        results = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert all(result == results[1] for result in results[1:])
    assert vendor.count("/crl") == 1


async def test_a_shared_failure_is_everybodys_and_not_kept(
    vendor: Vendor, clock: FakeClock
) -> None:
    good = vendor.replies["/crl"][0]
    vendor.set("/crl", Reply(status=404), good)
    async with library_for(clock) as library:
        results = await asyncio.gather(
            *(library.get(item(vendor), now=clock.now()) for _ in range(3)),
            return_exceptions=True,
        )
        assert all(isinstance(result, NotFoundError) for result in results)
        assert await library.get(item(vendor), now=clock.now()) == {"crl": good.body}


async def test_it_survives_a_restart_on_disk(
    vendor: Vendor, clock: FakeClock, tmp_path: Path
) -> None:
    for _ in range(2):
        async with library_for(clock, cache=tmp_path / "new" / "cache") as library:
            await library.get(item(vendor), now=clock.now())
    assert vendor.count("/crl") == 1
    (description,) = (tmp_path / "new" / "cache").glob("*.json")
    known = json.loads(description.read_text())
    assert known["source"] == f"{vendor.url}/crl"
    assert known["fetched"] == "2026-01-01T00:00:00Z"
    assert known["next_update"] == "2026-01-31T00:00:00Z"
    assert description.stat().st_mode & 0o077 == 0


async def test_what_is_due_is_renewed(vendor: Vendor, clock: FakeClock) -> None:
    newer = crl(START + timedelta(days=16))
    vendor.set("/crl", *vendor.replies["/crl"], Reply(body=newer))
    async with library_for(clock) as library:
        await library.get(item(vendor), now=clock.now())
        clock.advance(timedelta(days=14))
        await library.get(item(vendor), now=clock.now())
        assert vendor.count("/crl") == 1
        clock.advance(timedelta(days=3))
        assert await library.get(item(vendor), now=clock.now()) == {"crl": newer}
    assert vendor.count("/crl") == 2


async def test_what_can_change_early_is_renewed_at_its_longest_age(
    vendor: Vendor, clock: FakeClock
) -> None:
    daily = item(vendor, longest_age=timedelta(days=1))
    async with library_for(clock) as library:
        await library.get(daily, now=clock.now())
        clock.advance(timedelta(hours=25))
        await library.get(daily, now=clock.now())
    assert vendor.count("/crl") == 2


async def test_an_unreachable_vendor_does_not_stop_what_is_still_valid(
    vendor: Vendor, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    good = vendor.replies["/crl"][0]
    vendor.set("/crl", good, Reply(status=500))
    async with library_for(clock) as library:
        await library.get(item(vendor), now=clock.now())
        clock.advance(timedelta(days=20))
        assert await library.get(item(vendor), now=clock.now()) == {"crl": good.body}
        asked = len(vendor.asked)
        assert await library.get(item(vendor), now=clock.now()) == {"crl": good.body}
        assert len(vendor.asked) == asked  # not asked again at once
        assert "cannot be renewed, and serves until 2026-01-31" in caplog.text
        clock.advance(timedelta(minutes=2))
        await library.get(item(vendor), now=clock.now())
        assert len(vendor.asked) > asked


async def test_nothing_is_served_past_its_validity(
    vendor: Vendor, clock: FakeClock, tmp_path: Path
) -> None:
    vendor.set("/crl", *vendor.replies["/crl"], Reply(status=500))
    async with library_for(clock, cache=tmp_path) as library:
        await library.get(item(vendor), now=clock.now())
    clock.advance(LIFE + timedelta(seconds=1))
    async with library_for(clock, cache=tmp_path) as library:
        with pytest.raises(UnavailableError, match="answered 500"):
            await library.get(item(vendor), now=clock.now())


async def test_a_vendor_that_serves_what_has_expired(vendor: Vendor, clock: FakeClock) -> None:
    clock.advance(LIFE * 2)
    async with library_for(clock) as library:
        with pytest.raises(UnavailableError, match="nothing that is valid at this time"):
            await library.get(item(vendor), now=clock.now())


async def test_a_mirror_cannot_turn_back_time(
    vendor: Vendor, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    newer = crl(START - timedelta(days=1))
    older = crl(START - timedelta(days=10))
    vendor.set("/crl", Reply(body=newer), Reply(body=older))
    async with library_for(clock) as library:
        await library.get(item(vendor), now=clock.now())
        clock.advance(timedelta(days=15))
        assert await library.get(item(vendor), now=clock.now()) == {"crl": newer}
    assert vendor.count("/crl") == 2
    assert "older than before" in caplog.text


async def test_an_answer_of_another_shape_is_not_kept(
    vendor: Vendor, clock: FakeClock, tmp_path: Path
) -> None:
    vendor.set("/crl", Reply(body=b"<html>"))
    async with library_for(clock, cache=tmp_path) as library:
        with pytest.raises(MalformedError, match="CRL cannot be read"):
            await library.get(item(vendor), now=clock.now())
    assert files(tmp_path) == []


async def test_only_what_is_required_stops_the_rest(
    vendor: Vendor, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    missing = Item(
        question=Question(url=f"{vendor.url}/none"),
        read=lambda answer: {"rim.a": answer.body},
        names=("rim.a",),
        longest_age=None,
        required=False,
    )
    async with library_for(clock) as library:
        filled = await library.fill([item(vendor), missing], {}, now=clock.now())
        assert set(filled) == {"crl"}
        assert "goes without rim.a" in caplog.text
        with pytest.raises(NotFoundError):
            await library.fill([item(vendor), replace(missing, required=True)], {}, now=clock.now())


# In the background


async def run_background(
    library: Library, clock: FakeClock, *, until: Callable[[], bool], limit: int = 200_000
) -> None:
    task = asyncio.create_task(library.keep_fresh())
    for _ in range(limit):
        if until():
            break
        assert not task.done()
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert until()


@pytest.fixture
def long_naps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_module, "CHECK_INTERVAL_S", 3600.0)  # days pass in few rounds


@pytest.mark.usefixtures("long_naps")
async def test_it_is_renewed_in_the_background_before_it_expires(
    vendor: Vendor, clock: FakeClock
) -> None:
    newer = crl(START + timedelta(days=10))
    vendor.set("/crl", *vendor.replies["/crl"], Reply(body=newer))
    async with library_for(clock) as library:
        await library.get(item(vendor), now=clock.now())
        start = clock.now()

        async def keep_using() -> None:
            while True:
                await library.get(item(vendor), now=clock.now())
                await asyncio.sleep(0)

        user = asyncio.create_task(keep_using())
        await run_background(library, clock, until=lambda: vendor.count("/crl") >= 2)
        user.cancel()
        await asyncio.gather(user, return_exceptions=True)
        assert timedelta(days=15) <= clock.now() - start < LIFE
        assert await library.get(item(vendor), now=clock.now()) == {"crl": newer}


@pytest.mark.usefixtures("long_naps")
async def test_what_nobody_uses_is_forgotten(vendor: Vendor, clock: FakeClock) -> None:
    async with library_for(clock) as library:
        await library.get(item(vendor), now=clock.now())
        start = clock.now()
        await run_background(library, clock, until=lambda: clock.now() > start + timedelta(days=20))
    assert vendor.count("/crl") == 1


async def test_a_failure_in_the_background_is_said_and_survived(
    vendor: Vendor, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    good = vendor.replies["/crl"][0]
    vendor.set("/crl", good, Reply(status=404), good)
    daily = item(vendor, longest_age=timedelta(hours=1))
    async with library_for(clock) as library:
        await library.get(daily, now=clock.now())
        await run_background(library, clock, until=lambda: vendor.count("/crl") >= 3)
    assert "cannot be renewed" in caplog.text


async def test_closing_ends_what_is_under_way(vendor: Vendor, clock: FakeClock) -> None:
    vendor.set("/crl", Reply(hang=True))
    async with library_for(clock) as library:
        caller = asyncio.create_task(library.get(item(vendor), now=clock.now()))
        await vendor.was_asked.wait()
        await library.aclose()
        with pytest.raises(asyncio.CancelledError):
            await caller


# On disk


def damage_body(folder: Path) -> None:
    (body,) = folder.glob("*.body")
    data = bytearray(body.read_bytes())
    data[50] ^= 1
    body.write_bytes(data)


def cut_body(folder: Path) -> None:
    (body,) = folder.glob("*.body")
    body.write_bytes(body.read_bytes()[:-1])


def swap_source(folder: Path) -> None:
    (path,) = folder.glob("*.json")
    known = json.loads(path.read_text())
    path.write_text(json.dumps(known | {"source": "https://elsewhere.example/crl"}))


def another_shape(folder: Path) -> None:
    import hashlib

    (path,), (body,) = folder.glob("*.json"), folder.glob("*.body")
    body.write_bytes(b"sound, and no CRL")
    known = json.loads(path.read_text())
    digest = hashlib.sha256(b"sound, and no CRL").hexdigest()
    path.write_text(json.dumps(known | {"sha256": digest}))


def break_description(folder: Path) -> None:
    (path,) = folder.glob("*.json")
    path.write_text(path.read_text()[:-5])


def unknown_member(folder: Path) -> None:
    (path,) = folder.glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"more": 1}))


@pytest.mark.parametrize(
    "damage",
    [damage_body, cut_body, swap_source, another_shape, break_description, unknown_member],
)
async def test_a_damaged_entry_is_fetched_again_and_said(
    vendor: Vendor,
    clock: FakeClock,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
) -> None:
    async with library_for(clock, cache=tmp_path) as library:
        first = await library.get(item(vendor), now=clock.now())
    damage(tmp_path)
    async with library_for(clock, cache=tmp_path) as library:
        assert await library.get(item(vendor), now=clock.now()) == first
    assert vendor.count("/crl") == 2
    assert "damaged in the cache" in caplog.text
    async with library_for(clock, cache=tmp_path) as library:
        assert await library.get(item(vendor), now=clock.now()) == first
    assert vendor.count("/crl") == 2


async def test_a_cache_without_its_body_or_description_is_empty(
    vendor: Vendor, clock: FakeClock, tmp_path: Path
) -> None:
    for ending in ("*.body", "*.json"):
        async with library_for(clock, cache=tmp_path) as library:
            await library.get(item(vendor), now=clock.now())
        (path,) = files(tmp_path, ending)
        path.unlink()
    async with library_for(clock, cache=tmp_path) as library:
        await library.get(item(vendor), now=clock.now())
    assert vendor.count("/crl") == 3


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
async def test_a_disk_that_cannot_be_written_is_a_warning(
    vendor: Vendor,
    clock: FakeClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("aigovtool.endorsements.cache.tempfile.mkstemp", fail)
    async with library_for(clock, cache=tmp_path) as library:
        assert await library.get(item(vendor), now=clock.now())
    assert f"cannot write to the cache {tmp_path}: {os.strerror(number)}" in caplog.text
    assert files(tmp_path) == []


async def test_a_disk_that_fills_up_while_writing_leaves_nothing_behind(
    vendor: Vendor, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(Path, "replace", fail)
    async with library_for(clock, cache=tmp_path) as library:
        assert await library.get(item(vendor), now=clock.now())
    assert files(tmp_path) == []


async def test_a_cache_that_is_a_file_is_a_warning(
    vendor: Vendor, clock: FakeClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "cache"
    place.write_text("not a folder")
    async with library_for(clock, cache=place) as library:
        assert await library.get(item(vendor), now=clock.now())
    assert "cannot read the cache" in caplog.text
    assert "cannot write to the cache" in caplog.text
    assert place.read_text() == "not a folder"


async def test_a_link_in_the_cache_is_not_followed(
    vendor: Vendor, clock: FakeClock, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    async with library_for(clock, cache=cache) as library:
        await library.get(item(vendor), now=clock.now())
    (body,) = cache.glob("*.body")
    secret = tmp_path / "secret"
    body.rename(secret)
    body.symlink_to(secret)
    before = secret.read_bytes()
    async with library_for(clock, cache=cache) as library:
        await library.get(item(vendor), now=clock.now())
    assert vendor.count("/crl") == 2
    assert not body.is_symlink()
    assert secret.read_bytes() == before


def test_the_cache_stays_below_its_size_and_keeps_the_newest(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, max_bytes=10_000)
    questions = [Question(url=f"https://vendor.example/{number}") for number in range(20)]
    for number, question in enumerate(questions):
        cache.put(question, Answer(body=bytes(1000)), fetched=START, until=START + LIFE)
        for path in tmp_path.glob(f"{question.key}.*"):
            os.utime(path, (number, number))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 10_000
    held = [cache.get(question) is not None for question in questions]
    assert held == sorted(held)
    assert 5 <= sum(held) < 10


def test_questions_of_different_bodies_are_different(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    first = Question(url="https://vendor.example/ocsp", post=b"a")
    cache.put(first, Answer(body=b"1"), fetched=START, until=START + LIFE)
    assert cache.get(replace(first, post=b"b")) is None
    assert cache.get(replace(first, post=None)) is None
    kept = cache.get(first)
    assert kept is not None
    assert kept.answer.body == b"1"


@pytest.fixture(autouse=True)
def hear(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
