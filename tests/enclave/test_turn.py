"""Queries that are served together, on raw connections: each gets its own, and only its own."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
import ssl
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aigovtool.crypto.signing import SIGNATURE_BYTES, SigningKey
from aigovtool.enclave.api import turn
from aigovtool.enclave.control import Ending
from aigovtool.enclave.lifecycle import State
from aigovtool.enclave.runtime import speed
from aigovtool.ids import ConsumerId
from aigovtool.proof.receipt_signature import open_receipt
from aigovtool.wire.receipt import Receipt, from_header

from . import models
from .conftest import INFER, RunningEnclave, query, running_enclave
from .custodian import Consumer, FakeCustodian

BOB = ConsumerId("con_bob")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: dict

    @property
    def data(self) -> list:
        return list(self.body["outputs"][0]["data"])


class Line:
    """One connection, on which requests are written as bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    def ask(self, request: bytes) -> None:
        self.writer.write(request)

    async def rest(self) -> bytes:
        async with asyncio.timeout(60):
            return await self._reader.read()

    async def answer(self) -> Answer:
        async with asyncio.timeout(60):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
            status, *lines = head.strip().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines)
            headers |= {k: v for k, v in (x.split(": ", 1) for x in lines) if k[0] == "a"}
            body = await self._reader.readexactly(int(headers["content-length"]))
        return Answer(int(status.split()[1]), headers, json.loads(body))


@contextlib.asynccontextmanager
async def lines(enclave: RunningEnclave, count: int) -> AsyncIterator[list[Line]]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, _, port = enclave.address.rpartition(":")
    opened = [
        Line(*await asyncio.open_connection(host, int(port), ssl=context)) for _ in range(count)
    ]
    try:
        yield opened
    finally:
        for line in opened:
            line.writer.close()
        for line in opened:
            with contextlib.suppress(OSError):
                await line.writer.wait_closed()


def request(body: dict, consumer: Consumer, *, path: str = INFER, more: str = "") -> bytes:
    payload = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: enclave\r\n"
        f"Authorization: {consumer.authorization['Authorization']}\r\n"
        f"Content-Length: {len(payload)}\r\n{more}\r\n"
    )
    return head.encode() + payload


async def together(
    enclave: RunningEnclave, requests: Sequence[bytes], *, warm: bool = True
) -> list[Answer]:
    """Send one request on each of as many connections before the server can read any."""
    if warm:  # there is a lease
        assert (await enclave.infer(body=json.loads(requests[0].split(b"\r\n\r\n")[1])))[0] == 200
    async with lines(enclave, len(requests)) as opened:
        for line, each in zip(opened, requests, strict=True):
            line.ask(each)
        return [await line.answer() for line in opened]


def receipt_of(enclave: RunningEnclave, answer: Answer, name: str = "receipt") -> Receipt:
    (session,) = enclave.custodian.sessions.values()
    signed = from_header(answer.headers[f"aigovtool-{name}"])
    return open_receipt(signed, public_key=session.keys.signing_key)


def hold(
    monkeypatch: pytest.MonkeyPatch,
    until: Callable[[Collection[turn.Asked]], bool],
    then: Callable[[turn.Turns], None] = lambda _: None,
) -> None:
    """Let the next turn begin when *until* is so, and not before."""
    serve = turn.Turns._serve

    def later(turns: turn.Turns) -> None:
        if until(turns._asked):
            monkeypatch.setattr(turn.Turns, "_serve", serve)
            then(turns)
            serve(turns)
        else:
            asyncio.get_running_loop().call_later(0.001, later, turns)

    monkeypatch.setattr(turn.Turns, "_serve", later)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are quick, whatever else the machine does while they are measured."""
    monkeypatch.setattr(speed, "_fastest_s", lambda *_: 1e-5)


@pytest.fixture
async def rich(custodian: FakeCustodian) -> AsyncIterator[RunningEnclave]:
    custodian.granted = custodian.left = 1000
    custodian.least_lease = 500
    custodian.add_consumer("bob")
    async with running_enclave(custodian) as running:
        yield running


async def test_each_gets_its_rows_and_a_receipt_in_its_own_name(
    rich: RunningEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    compute = turn.compute

    def counted(group: Sequence[turn._Query], *more: Any) -> list:
        sizes.append(len(group))
        return compute(group, *more)

    monkeypatch.setattr(turn, "compute", counted)
    who = [rich.custodian.alice, rich.custodian.consumers[BOB]] * 6
    bodies = [query([[n + row, -n] for row in range(1 + n % 3)]) for n in range(12)]
    assert (await rich.infer())[0] == 200
    hold(monkeypatch, lambda asked: len(asked) == 12)
    requests = [request(*pair) for pair in zip(bodies, who, strict=True)]
    answers = await together(rich, requests, warm=False)
    for number, (answer, consumer) in enumerate(zip(answers, who, strict=True)):
        items = 1 + number % 3
        assert answer.status == 200
        assert answer.data == [
            x for row in range(items) for x in (2.0 * (number + row), -2.0 * number)
        ]
        assert answer.body["outputs"][0]["shape"] == [items, 2]
        receipt = receipt_of(rich, answer)
        assert (receipt.consumer, receipt.cost) == (consumer.id, items)
    receipts = [receipt_of(rich, answer) for answer in answers]
    assert sorted(one.number for one in receipts) == list(range(2, 14))
    assert sizes == [6, 6]
    assert all(
        len(from_header(answer.headers["aigovtool-receipt"]).signature) > SIGNATURE_BYTES
        for answer in answers
    )


async def test_no_run_holds_what_two_consumers_ask(
    rich: RunningEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model may be made to mix rows at a word that only one of its users knows."""
    runs: list[set[ConsumerId]] = []
    compute = turn.compute

    def mixing(group: Sequence[turn._Query], *more: Any) -> list:
        runs.append({one.consumer for one in group})
        return compute(group, *more)

    monkeypatch.setattr(turn, "compute", mixing)
    who = [rich.custodian.alice, rich.custodian.consumers[BOB]]
    assert (await rich.infer())[0] == 200
    hold(monkeypatch, lambda asked: len(asked) == 8)
    requests = [request(query([[n, n]]), who[n in (1, 2, 6)]) for n in range(8)]
    answers = await together(rich, requests, warm=False)
    assert [answer.data[0] for answer in answers] == [2.0 * n for n in range(8)]
    assert sorted(map(len, runs)) == [1, 1]


async def test_a_bad_query_is_told_so_and_hurts_no_neighbour(rich: RunningEnclave) -> None:
    alice = rich.custodian.alice
    good = request(query([[3, 4]]), alice)
    wrong_key = Consumer(alice.id, "not-a-key-of-anybody")
    bad = [
        request(query([[1, 2, 3]]), alice),
        request({"inputs": []}, alice),
        request(query([[1, 1]]), wrong_key),
        request(query([[1, 1]]), alice, path="/v2/models/other/infer"),
        request(query([[1, 1]]), alice, path=INFER + "?a=b"),
    ]
    answers = await together(rich, [good, *(one for each in bad for one in (each, good))])
    assert [answer.status for answer in answers[0::2]] == [200] * 6
    assert all(answer.data == [6.0, 8.0] for answer in answers[0::2])
    assert [answer.status for answer in answers[1::2]] == [422, 422, 401, 404, 200]
    assert (await rich.get("/v1/budget", alice))[1]["remaining"] == 1000 - 8


async def test_what_fails_in_the_computation_is_refunded_and_its_neighbours_are_served(
    key: SigningKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.sealed(tmp_path, key, models.failing())
    async with (
        FakeCustodian(key, model, budget=100) as custodian,
        running_enclave(custodian) as enclave,
    ):
        custodian.least_lease = 50
        bodies = [query([x], datatype="INT64", shape=[1]) for x in (2, 1, 77, 0, 2)]
        assert (await enclave.infer(body=bodies[0]))[0] == 200
        hold(monkeypatch, lambda asked: len(asked) == 5)
        requests = [request(body, custodian.alice) for body in bodies]
        answers = await together(enclave, requests, warm=False)
        assert [answer.status for answer in answers] == [200, 200, 422, 200, 200]
        assert [one.data for one in answers if one.status == 200] == [[4], [1], [0], [4]]
        assert receipt_of(enclave, answers[2]).cost == 1
        refund = receipt_of(enclave, answers[2], "refund")
        assert refund.refund is not None
        assert refund.refund.number == receipt_of(enclave, answers[2]).number
        assert (await enclave.get("/v1/budget", custodian.alice))[1]["remaining"] == 100 - 5


async def test_not_one_more_is_served_than_was_granted(rich: RunningEnclave) -> None:
    custodian = rich.custodian
    custodian.granted = custodian.left = 7
    answers = await together(rich, [request(query([[1, 1]]), custodian.alice)] * 20)
    assert sorted(answer.status for answer in answers) == [200] * 6 + [429] * 14
    assert all("retry-after" in one.headers for one in answers if one.status == 429)
    custodian.check()


async def test_a_stop_between_asking_and_serving_charges_nothing(
    rich: RunningEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await rich.infer())[0] == 200

    def stop(turns: turn.Turns) -> None:
        turns._enclave.ceased(Ending(to=State.STOPPED, reason="stopped"))

    hold(monkeypatch, lambda asked: len(asked) == 5, stop)
    alice = rich.custodian.alice
    answers = await together(rich, [request(query([[1, 1]]), alice)] * 5, warm=False)
    assert [answer.status for answer in answers] == [503] * 5
    rich.stop.set()
    await rich.task
    assert sum(one.used for one in rich.custodian.settlements) == 1  # the one before


async def test_a_block_between_asking_and_serving_charges_nothing(
    rich: RunningEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = rich.custodian.alice, rich.custodian.consumers[BOB]
    assert (await rich.infer())[0] == 200

    def block(turns: turn.Turns) -> None:
        session, _ = turns._enclave.serving()
        bob.blocked = True
        session.set_roster(rich.custodian._roster())

    hold(monkeypatch, lambda asked: len(asked) == 4, block)
    requests = [request(query([[1, 1]]), who) for who in (bob, alice, bob, alice)]
    answers = await together(rich, requests, warm=False)
    assert [answer.status for answer in answers] == [403, 200, 403, 200]
    assert (await rich.get("/v1/budget", alice))[1]["remaining"] == 1000 - 3


async def test_who_left_before_the_turn_is_not_charged(
    rich: RunningEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = rich.custodian.alice
    assert (await rich.infer())[0] == 200
    async with lines(rich, 4) as (stays, *leave):
        hold(
            monkeypatch,
            lambda asked: len(asked) == 4 and sum(one.disconnected for one in asked) == 3,
        )
        for line in (stays, *leave):
            line.ask(request(query([[1, 1]]), alice))
            await line.writer.drain()
        for line in leave:
            line.writer.close()
        assert (await stays.answer()).status == 200
    assert (await rich.get("/v1/budget", alice))[1]["remaining"] == 1000 - 2


async def test_a_fault_of_our_own_ends_the_connections_and_the_next_turn_serves(
    rich: RunningEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object) -> None:
        raise RuntimeError("a secret of a query")

    assert (await rich.infer())[0] == 200
    alice = rich.custodian.alice
    async with lines(rich, 2) as (line, other):
        with monkeypatch.context() as patch:
            patch.setattr(turn.Turns, "_receipts", fault)
            line.ask(request(query([[1, 1]]), alice))
            assert await line.rest() == b""
        other.ask(request(query([[1, 1]]), alice))
        assert (await other.answer()).status == 200


async def test_requests_in_one_piece_or_byte_by_byte_are_answered_alike(
    rich: RunningEnclave,
) -> None:
    alice = rich.custodian.alice
    whole = request(query([[5, 6]]), alice)
    async with lines(rich, 2) as (line, drop):
        for piece in (whole, *(whole[at : at + 1] for at in range(len(whole)))):
            line.ask(piece)
            await line.writer.drain()
        for at in range(0, len(whole), 7):
            drop.ask(whole[at : at + 7])
            await asyncio.sleep(0)
        answers = [await line.answer(), await line.answer(), await drop.answer()]
    assert [answer.data for answer in answers] == [[10.0, 12.0]] * 3


async def test_pipelined_requests_are_answered_in_their_order(rich: RunningEnclave) -> None:
    alice = rich.custodian.alice
    assert (await rich.infer())[0] == 200
    values = range(1, 8)
    async with lines(rich, 1) as (line,):
        line.ask(b"".join(request(query([[v, v]]), alice) for v in values))
        assert [(await line.answer()).data[0] for _ in values] == [2.0 * v for v in values]


async def test_a_connection_that_is_to_be_closed_is(rich: RunningEnclave) -> None:
    closing = request(query([[1, 1]]), rich.custodian.alice, more="Connection: close\r\n")
    async with lines(rich, 1) as (line,):
        line.ask(closing)
        assert (await line.answer()).status == 200
        assert await line.rest() == b""


async def test_an_idempotency_key_counts_once_among_others(rich: RunningEnclave) -> None:
    keyed = request(query([[1, 1]]), rich.custodian.alice, more="Idempotency-Key: k\r\n")
    plain = request(query([[1, 1]]), rich.custodian.alice)
    answers = await together(rich, [plain, keyed, plain, keyed, plain, keyed])
    assert [answer.status for answer in answers] == [200] * 6
    assert (await rich.get("/v1/budget", rich.custodian.alice))[1]["remaining"] == 1000 - 5


async def test_compression_is_the_applications_affair(rich: RunningEnclave) -> None:
    alice, plain = rich.custodian.alice, query([[1, 1]])
    payload = gzip.compress(json.dumps(plain).encode())
    head, _, _ = request(plain, alice, more="Content-Encoding: gzip\r\n").partition(b"\r\n\r\n")
    head = re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(payload), head)
    answers = await together(
        rich,
        [request(plain, alice), head + b"\r\n\r\n" + payload, request(plain, alice)],
    )
    assert [answer.data for answer in answers] == [[2.0, 2.0]] * 3


async def test_more_than_one_run_holds_is_passed_on(rich: RunningEnclave) -> None:
    alice = rich.custodian.alice
    answers = await together(rich, [request(query([[1, 1]] * 40), alice)] * 3)
    assert [answer.status for answer in answers] == [200] * 3
    assert all(len(answer.data) == 80 for answer in answers)


async def test_what_one_turn_does_not_take_the_next_does(
    rich: RunningEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "MAX_TURN", 2)
    alice = rich.custodian.alice
    answers = await together(rich, [request(query([[v, 0]]), alice) for v in range(9)])
    assert [answer.data[0] for answer in answers] == [2.0 * v for v in range(9)]
