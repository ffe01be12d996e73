"""Real processes: who waits at two enclaves, for credits or a place, and what it is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aigovtool
from aigovtool.client.session import AsyncClient
from aigovtool.demo.stage import Stage
from aigovtool.demo.story import ASSETS
from aigovtool.errors import AIGovToolError

IMAGE = np.zeros((1, 8, 8), np.float32)
PATIENCE_S = 90.0  # of a test with a machine that does much else


@pytest.fixture
def stage(tmp_path: Path) -> Any:
    with Stage(tmp_path) as made:
        assert made.init().code == 0
        made.serve_custodian(
            "--upload", str(ASSETS / "digits.onnx"),
            "--interface", str(ASSETS / "interface.json"),
            "--num-requests", "1",
        )  # fmt: skip
        yield made


def done(stage: Stage, *arguments: str) -> Any:
    outcome = stage.custodian(*arguments)
    assert outcome.code == 0, outcome.stderr
    return json.loads(outcome.stdout)


@contextlib.asynccontextmanager
async def clients(stage: Stage, *asked: tuple[int, str]) -> AsyncIterator[list[AsyncClient]]:
    """Connect to ports with keys."""
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                await aigovtool.connect_async(
                    f"127.0.0.1:{port}",
                    manifest=stage.data / "manifest.toml",
                    api_key=key,
                    receipts=stage.folder / f"receipts{number}",
                )
            )
            for number, (port, key) in enumerate(asked)
        ]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    begin = time.monotonic()
    while not await condition():
        assert time.monotonic() - begin < PATIENCE_S
        await asyncio.sleep(0.05)


def first_key(stage: Stage) -> str:
    return (stage.data / "consumer.key").read_text().strip()


def another_consumer(stage: Stage, name: str) -> str:
    return str(done(stage, "consumer", "create", "--name", name)["api_key"])


async def test_credits_that_trickle_in_starve_nobody_at_two_enclaves(stage: Stage) -> None:
    """
    Two consumers wait at two enclaves, one with many queries and one with few. Each grant of one
    credit serves just one query, soon; within an enclave the consumers take turns, and all
    are served in the end.
    """
    ports = [stage.serve_enclave(name)[1] for name in ("first", "second")]
    keys = [first_key(stage), another_consumer(stage, "few")]
    served: list[tuple[int, int]] = []
    asked = [(port, key) for port in ports for key in keys]
    many, few = 4, 2
    async with clients(stage, *asked) as connected:
        await connected[0].infer({"image": IMAGE})  # the one that there was

        async def wait(at: int, who: int) -> None:
            await connected[2 * at + who].infer({"image": IMAGE}, wait_s=600.0, reason=f"by {who}")
            served.append((at, who))

        async def waiting_at(at: int) -> int:
            return (await connected[2 * at].waiting()).waiting

        tasks: list[asyncio.Task[None]] = []
        for at in range(2):
            for who, count in ((0, many), (1, few)):
                tasks += [asyncio.create_task(wait(at, who)) for _ in range(count)]

                async def all_there(at: int = at, who: int = who) -> bool:
                    return await waiting_at(at) == (many if who == 0 else many + few)

                await until(all_there)

        places = [[query.place for query in (await one.waiting()).queries] for one in connected]
        assert places == [[1, 3, 5, 6], [2, 4]] * 2

        async def told() -> bool:
            requests = await asyncio.to_thread(done, stage, "request", "list")
            return sorted(one["waiting"] for one in requests) == [2 * few, 2 * many]

        await until(told)
        before = account(stage)
        for number in range(1, 2 * (many + few) + 1):
            await asyncio.to_thread(done, stage, "grant", "1")

            async def one_more(number: int = number) -> bool:
                return len(served) >= number

            await until(one_more)
            assert len(served) == number  # one credit serves one query
        await asyncio.gather(*tasks)
    # neither enclave gets every credit until it needs no more
    assert {where for where, _ in served[: many + few]} == {0, 1}
    for at in range(2):
        here = [who for where, who in served if where == at]
        assert Counter(here) == {0: many, 1: few}
        assert here.index(1) <= 1  # the second consumer's first query is not behind six others
        assert [number for number, who in enumerate(here) if who == 1][1] <= 3
    after = account(stage)
    assert (after["spent"], after["left"], after["leased"]) == (1 + 2 * (many + few), 0, 0)
    leases = done(stage, "lease", "list")
    # no herd: for each credit one lease or none, and as few that came to nothing
    assert len(leases) <= 2 + 3 * (after["granted"] - before["granted"])


async def test_two_portions_are_dealt_in_turns_to_three_consumers_at_two_enclaves(
    stage: Stage,
) -> None:
    ports = [stage.serve_enclave(name)[1] for name in ("first", "second")]
    keys = [first_key(stage), *(another_consumer(stage, name) for name in ("second", "third"))]
    served: list[tuple[int, int]] = []
    each = 2  # queries of each consumer at each enclave
    async with clients(stage, *[(port, key) for port in ports for key in keys]) as connected:
        await connected[0].infer({"image": IMAGE})  # the one that there was

        async def wait(at: int, who: int) -> None:
            await connected[3 * at + who].infer({"image": IMAGE}, wait_s=600.0)
            served.append((at, who))

        tasks = [
            asyncio.create_task(wait(at, who))
            for at in range(2)
            for who in range(3)
            for _ in range(each)
        ]

        async def all_wait() -> bool:
            views = [await connected[3 * at].waiting() for at in range(2)]
            return [view.waiting for view in views] == [3 * each] * 2

        await until(all_wait)
        for portion in (5, 7):
            due = len(served) + portion
            await asyncio.to_thread(done, stage, "grant", str(portion))

            async def dealt(due: int = due) -> bool:
                return len(served) >= due

            await until(dealt)
            assert len(served) == due
            for at in range(2):
                turns = Counter(who for where, who in served if where == at)
                counts = [turns[who] for who in range(3)]
                assert max(counts) - min(counts) <= 1, served
        await asyncio.gather(*tasks)
    assert Counter(served) == {(at, who): each for at in range(2) for who in range(3)}
    seen = account(stage)
    assert (seen["spent"], seen["left"], seen["forfeited"]) == (13, 0, 0)
    # no herd: about a lease for each enclave and portion, and some for what came back unused
    assert len(done(stage, "lease", "list")) <= 2 + 3 * 12


def account(stage: Stage) -> Any:
    """Return the loan's account once nothing is leased."""
    begin = time.monotonic()
    while (found := done(stage, "loan", "list")[0]["account"])["leased"]:
        assert time.monotonic() - begin < PATIENCE_S, found
        time.sleep(0.05)
    return found


async def test_a_place_is_shared_by_two_enclaves_and_the_next_one_gets_it(stage: Stage) -> None:
    """Queries that wait for credits hold their places: three of a consumer over two enclaves."""
    done(stage, "loan", "set", "--concurrency", "5")
    done(stage, "consumer", "set", "consumer", "--concurrency", "3")
    ports = [stage.serve_enclave(name)[1] for name in ("first", "second")]
    keys = [first_key(stage), another_consumer(stage, "other")]
    async with clients(stage, *[(port, key) for port in ports for key in keys]) as connected:
        mine, others = connected[::2], connected[1::2]
        await mine[0].infer({"image": IMAGE})
        shares = await running(mine, 6)
        assert sum(shares) == 3, shares
        assert sorted(shares) == [1, 2]
        done(stage, "consumer", "set", "consumer", "--concurrency", "none")
        shares = await running(others, 6)
        assert sum(shares) == 5, shares  # of the loan, whoever asks
        assert sorted(shares) == [2, 3]


async def running(connected: list[AsyncClient], at_once: int) -> list[int]:
    """
    Let queries come to each, and return how many of them got a place there.

    One that has its place waits for credits; another was refused at once (`limit.concurrency`), or
    waits for a place.
    """
    tasks = [[asyncio.create_task(refusal_of(one)) for _ in range(at_once)] for one in connected]
    places: list[int] = []

    async def all_are_somewhere() -> bool:
        views = [await one.waiting() for one in connected]
        places[:] = [len(view.queries) for view in views]
        return all(
            len(view.queries) + view.limited + sum(task.done() for task in here) == at_once
            for view, here in zip(views, tasks, strict=True)
        )

    await until(all_are_somewhere)
    said = {task.result() for here in tasks for task in here if task.done()}
    assert said <= {"limit.concurrency"}, said
    for here in tasks:
        for task in here:
            task.cancel()
        await asyncio.gather(*here, return_exceptions=True)

    async def gone() -> bool:
        views = [await one.waiting() for one in connected]
        return not any(view.waiting + view.limited for view in views)

    await until(gone)
    return places


async def refusal_of(client: AsyncClient) -> str:
    try:
        await client.infer({"image": IMAGE}, wait_s=600.0)
    except AIGovToolError as error:
        return error.reasons[0].code
    return "served"


async def test_who_waits_is_told_what_was_decided_and_why_by_the_command(stage: Stage) -> None:
    _, port = stage.serve_enclave()
    image = stage.folder / "image.npy"
    np.save(image, IMAGE)
    query = stage.client("query", port, "--input", str(image), "--reason", "a ward")
    assert stage.run(*query, "--no-wait").code == 0
    outcomes = [
        asyncio.create_task(asyncio.to_thread(stage.run, *query, *more))
        for more in ((), ("--json",))
    ]

    async def both_wait() -> bool:
        requests = await asyncio.to_thread(done, stage, "request", "list")
        return bool(requests) and requests[0]["waiting"] == 2

    await until(both_wait)
    (request,) = done(stage, "request", "list")
    assert request["waiting_since"] is not None
    listed = stage.run("custodian", "request", "list", "--data", str(stage.data)).stdout
    assert "2 since" in " ".join(listed.split())
    approved = stage.run(
        "custodian", "request", "approve", request["request"], "--credits", "2",
        "--reason", "for the night", "--data", str(stage.data),
    )  # fmt: skip
    assert approved.code == 0, approved.stderr
    assert "approved: 2 credits; 2 queries of" in approved.stdout
    people, machine = await asyncio.gather(*outcomes)
    assert (people.code, machine.code) == (0, 0), people.stderr + machine.stderr
    assert "the custodian granted 2 credits: for the night" in " ".join(people.stderr.split())
    told = machine.json()["granted_while_waiting"]
    assert told == [{"credits": 2, "reason": "for the night"}]

    denied = asyncio.create_task(asyncio.to_thread(stage.run, *query))

    async def asked() -> bool:
        requests = await asyncio.to_thread(done, stage, "request", "list")
        return requests[0]["state"] == "open"

    await until(asked)
    (again, _) = done(stage, "request", "list")
    done(stage, "request", "deny", again["request"], "--reason", "not in May")
    outcome = await denied
    assert outcome.code == 1
    assert "not in May" in outcome.stderr
