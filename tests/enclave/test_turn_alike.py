"""The short way and the long way of a query: whatever bytes come, both give the same answer."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator

import pytest

from aigovtool.enclave.api import turn
from aigovtool.enclave.runtime import speed

from .conftest import INFER, RunningEnclave, query, running_enclave
from .custodian import FakeCustodian
from .test_turn import lines

SEED = 2026
CASES = 150

ODD = 0.12  # how often each part of a request is not as it should be
METHODS = ("GET", "HEAD", "PUT", "post", "OPTIONS")
PATHS = (
    INFER + "/", INFER + "?x=1", INFER + "#f", "/" + INFER,
    "/v2/models/double/versions/1/infer", "/v2/models/double/versions/9/infer",
    "/v2/models/dou%62le/infer", "/v2/models/other/infer", "/v2/models//infer",
    "/v2/models/double/../double/infer", "http://enclave" + INFER, "/v2/models/infer",
)  # fmt: skip
HEADERS = (
    "Connection: close", "Connection: keep-alive", "Connection: Upgrade\r\nUpgrade: h2c",
    "Expect: 100-continue", "Accept-Encoding: gzip", "Accept-Encoding: identity",
    "Content-Encoding: gzip", "Content-Encoding: identity", "Content-Type: text/plain",
    "Prefer: wait=0", "Aigovtool-Reason: more", "X-Many: 1\r\nX-Many: 2", "Host: other",
    "Authorization: Bearer nobodys", "Authorization: Basic eDp5", "Content-Length: 3",
    "Transfer-Encoding: chunked", "Inference-Header-Content-Length: 5",
    "Inference-Header-Content-Length: -1", "Inference-Header-Content-Length: 100000",
    "X-Space : 1", "X-Long: " + "y" * 3000, "Idempotency-Key: ",
)  # fmt: skip
BODIES = (
    query([[1, 2], [3, 4]]), query([[1, 2]] * 40), query([]),
    query([[1, 2, 3]]), {"inputs": []},
    {"inputs": "x"}, [], {}, {**query([[1, 2]]), "id": "one"},
    {**query([[1, 2]]), "outputs": [{"name": "y"}]},
    {**query([[1, 2]]), "outputs": [{"name": "q"}]},
    {**query([[1, 2]]), "parameters": {"binary_data_output": True}},
)  # fmt: skip


@pytest.fixture
async def rich(
    custodian: FakeCustodian, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RunningEnclave]:
    monkeypatch.setattr(speed, "_fastest_s", lambda *_: 1e-5)
    custodian.granted = custodian.left = 1_000_000
    custodian.least_lease = 500_000
    async with running_enclave(custodian) as running:
        yield running


def made(dice: random.Random, authorization: str) -> bytes:
    """A request, most often nearly a good one."""

    def odd() -> bool:
        return dice.random() < ODD

    body = json.dumps(dice.choice(BODIES) if odd() else query([[1, 2]])).encode()
    if odd():
        at = dice.randrange(len(body))
        body = body[:at] + bytes([dice.randrange(256)]) + body[at + 1 :]
    length = max(0, len(body) + (dice.choice((-1, 5)) if odd() else 0))
    headers = ["Host: enclave", f"Content-Length: {length}"]
    if not odd():
        headers.append(f"Authorization: {authorization}")
    headers += dice.sample(HEADERS, dice.choice((0, 0, 0, 1, 2)))
    dice.shuffle(headers)
    method = dice.choice(METHODS) if odd() else "POST"
    path = dice.choice(PATHS) if odd() else INFER
    first = f"{method} {path} HTTP/1.{0 if odd() else 1}"
    return "\r\n".join((first, *headers, "", "")).encode() + body


async def answered(enclave: RunningEnclave, request: bytes, cuts: list[int]) -> tuple[object, ...]:
    """Send *request* in pieces, then the end; return what can be compared of all that comes."""
    async with lines(enclave, 1) as (line,):
        for begin, end in zip([0, *cuts], [*cuts, len(request)], strict=True):
            line.ask(request[begin:end])
            await line.writer.drain()
            await asyncio.sleep(0)
        # whatever is left of a body that was promised; then a request that every server answers
        line.ask(b"GET /v2/health/live HTTP/1.1\r\nHost: enclave\r\nConnection: close\r\n\r\n")
        try:
            came = await line.rest()
        except ConnectionError:
            came = b"reset"
    statuses = re.findall(rb"HTTP/1\.1 (\d{3})", came)
    outputs = re.findall(rb'"outputs".*?\]\}\]\}', came)
    codes = re.findall(rb'"(?:code|title|detail)":\s*"[^"]*"', came)
    names = sorted(
        name.lower() for name in re.findall(rb"\r\n([A-Za-z-]+): ", came) if name.lower() != b"date"
    )
    return statuses, outputs, codes, names


async def test_both_ways_answer_alike_and_charge_alike(
    rich: RunningEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(SEED)
    alice = rich.custodian.alice
    assert (await rich.infer())[0] == 200
    served = 0
    for number in range(CASES):
        request = made(dice, alice.authorization["Authorization"])
        cuts = sorted(dice.sample(range(1, len(request)), dice.choice((0, 0, 0, 1, 2))))
        came, charged = [], []
        for short in (True, False):
            before = (await rich.get("/v1/budget", alice))[1]["remaining"]
            with monkeypatch.context() as patch:
                if not short:
                    patch.setattr(turn.Turns, "open", property(lambda _: False))
                came.append(await answered(rich, request, cuts))
            charged.append(before - (await rich.get("/v1/budget", alice))[1]["remaining"])
        assert came[0] == came[1], (number, request)
        assert charged[0] == charged[1], (number, request)
        served += charged[0] > 0
    assert CASES / 10 < served < CASES / 2  # there are good and bad ones among them
