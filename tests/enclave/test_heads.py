"""A head that is said again is not parsed again: what comes of it is what the parser would say."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from aigovtool.enclave.api import direct, turn
from aigovtool.enclave.config import Limits
from aigovtool.enclave.runtime import speed

from .conftest import RunningEnclave, query, running_enclave
from .custodian import FakeCustodian
from .test_turn import BOB, Line, lines, receipt_of, request

BUDGET = 100_000


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are quick, whatever else the machine does while they are measured."""
    monkeypatch.setattr(speed, "_fastest_s", lambda *_: 1e-5)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The paths of the heads that were parsed, of queries that go straight."""
    paths: list[bytes] = []

    class Counted(turn.Head):
        def __init__(self, path: bytes, headers: Any) -> None:
            paths.append(path)
            super().__init__(path, headers)

    monkeypatch.setattr(direct, "Head", Counted)
    return paths


@pytest.fixture
async def enclave(custodian: FakeCustodian) -> Any:
    custodian.granted = custodian.left = BUDGET
    custodian.least_lease = BUDGET // 2
    custodian.add_consumer("bob")
    async with running_enclave(custodian) as running:
        assert (await running.infer())[0] == 200  # there is a lease
        yield running


def with_body(value: int, enclave: RunningEnclave) -> bytes:
    """Requests with one head, for values of one digit."""
    return request(query([[value, value]]), enclave.custodian.alice)


async def told(line: Line, *requests: bytes) -> list[float]:
    found = []
    for each in requests:
        line.ask(each)
        found.append((await line.answer()).data[0])
    return found


async def test_a_head_said_again_is_parsed_once_and_each_body_is_its_own(
    enclave: RunningEnclave, parsed: list[bytes]
) -> None:
    async with lines(enclave, 1) as (line,):
        receipts = []
        for value in range(1, 9):
            line.ask(with_body(value, enclave))
            answer = await line.answer()
            assert answer.data == [2.0 * value, 2.0 * value]
            receipts.append(receipt_of(enclave, answer))
    assert len(parsed) == 1
    assert [one.number for one in receipts] == list(range(2, 10))


async def test_what_follows_a_body_shifts_no_body_after_it(
    enclave: RunningEnclave, parsed: list[bytes]
) -> None:
    """A line end after a body is none of it: were the head taken for longer, bodies would shift."""
    async with lines(enclave, 1) as (line,):
        requests = [with_body(value, enclave) + b"\r\n" for value in (1, 2, 3)]
        assert await told(line, *requests, with_body(4, enclave)) == [2.0, 4.0, 6.0, 8.0]
        # and nothing was remembered of a piece that held more than one request
        line.ask(with_body(5, enclave) + with_body(6, enclave))
        assert [(await line.answer()).data[0] for _ in range(2)] == [10.0, 12.0]
        assert await told(line, with_body(7, enclave)) == [14.0]
    assert len(parsed) >= 5


async def test_another_key_of_the_same_length_is_another_consumer(
    enclave: RunningEnclave,
) -> None:
    alice, bob = enclave.custodian.alice, enclave.custodian.consumers[BOB]
    async with lines(enclave, 1) as (line,):
        who = []
        for consumer in (alice, alice, bob, bob, alice):
            line.ask(request(query([[1, 1]]), consumer))
            who.append(receipt_of(enclave, await line.answer()).consumer)
    assert who == [alice.id, alice.id, bob.id, bob.id, alice.id]


async def test_a_head_known_before_a_block_is_refused_after_it_and_pays_nothing(
    enclave: RunningEnclave, parsed: list[bytes]
) -> None:
    custodian = enclave.custodian
    async with lines(enclave, 2) as (line, other):
        for one in (line, other):
            assert await told(one, with_body(1, enclave), with_body(2, enclave)) == [2.0, 4.0]
        custodian.alice.blocked = True
        await custodian.set_roster()
        line.ask(with_body(3, enclave))
        assert (await line.answer()).status == 403
        custodian.alice.blocked = False
        await custodian.set_roster()
        assert await told(other, with_body(4, enclave), with_body(5, enclave)) == [8.0, 10.0]
    assert len(parsed) == 2
    remaining = (await enclave.get("/v1/budget", custodian.alice))[1]["remaining"]
    assert remaining == BUDGET - 7


async def test_an_idle_connection_is_closed_and_one_in_use_is_not(custodian: FakeCustodian) -> None:
    custodian.granted = custodian.left = BUDGET
    custodian.least_lease = BUDGET // 2
    async with running_enclave(custodian, limits=Limits(idle_s=1.0)) as enclave:
        assert (await enclave.infer())[0] == 200
        loop = asyncio.get_running_loop()
        async with lines(enclave, 1) as (line,):
            begin_s = loop.time()
            while loop.time() - begin_s < 2.5:  # the timer that began with the first would be over
                assert await told(line, with_body(1, enclave)) == [2.0]
                await asyncio.sleep(0.1)
            last_s = loop.time()
            assert await line.rest() == b""
            assert loop.time() - last_s > 0.7


def script(seed: int, enclave: RunningEnclave) -> list[list[bytes]]:
    """What a client may send on one connection, each in one piece or in two."""
    chance = random.Random(seed)
    alice, bob = enclave.custodian.alice, enclave.custodian.consumers[BOB]
    good = [request(query([[v, v]]), who) for v in (1, 2, 3) for who in (alice, alice, bob)]
    kinds = [
        *good * 2,
        request(query([[1, 1]]), alice, more="X-More: 1\r\n"),
        request(query([[1, 2, 3]]), alice),  # 422
        b"\r\n" + good[0],
        good[1] + b"\r\n",
        good[2].replace(b"Host: enclave", b"Host: ENCLAVE"),
        b"GET /v2/health/live HTTP/1.1\r\nHost: enclave\r\n\r\n",
        good[0] + good[1],
    ]
    sent = []
    for piece in chance.choices(kinds, k=12):
        cut = chance.randrange(1, len(piece))
        sent.append([piece] if chance.random() < 0.8 else [piece[:cut], piece[cut:]])
    return sent


async def transcript(enclave: RunningEnclave, sent: list[list[bytes]]) -> list[tuple[int, str]]:
    """Send each when what was before it is answered, and return the answers: status and body."""
    answers = []
    async with lines(enclave, 1) as (line,):
        for pieces in sent:
            for piece in pieces:
                line.ask(piece)
                await line.writer.drain()
            for _ in range(b"".join(pieces).count(b" HTTP/1.1\r\n")):
                answers.append(await line.answer())
    return [(answer.status, repr(answer.body)) for answer in answers]


@pytest.mark.parametrize("seed", range(12))
async def test_with_and_without_a_known_head_the_answers_are_the_same(
    enclave: RunningEnclave, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    sent = script(seed, enclave)
    with_it = await transcript(enclave, sent)
    monkeypatch.setattr(direct._Said, "with_", lambda *_: None)
    assert await transcript(enclave, sent) == with_it
