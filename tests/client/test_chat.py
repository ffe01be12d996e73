"""The SDK's questions to a language model, against a stand-in: whole, as they come, and cut."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aigovtool.client.blocking import Client, connect
from aigovtool.client.receipt_store import default_folder, find_files, read_files
from aigovtool.client.session import AsyncClient, connect_async
from aigovtool.errors import (
    AIGovToolError,
    BudgetExhaustedError,
    LoanNotActiveError,
    MalformedError,
    RefusedError,
    UnauthenticatedError,
    UnavailableError,
    VerificationError,
)
from aigovtool.proof.receipts import check_receipts
from aigovtool.wire.enrolment import TokenPrice
from aigovtool.wire.headers import RECEIPT
from tests.channel.stand_in import API_KEY, Asked, Platform, Session, World, answer
from tests.client.lender import PRICE, Lender
from tests.client.talker import MODEL, USED_UP, Gate, Talker, language_world
from tests.client.test_proxy_tokens import ATTACKS, COST
from tests.client.test_session import until
from tests.enclave import talkers

MESSAGES = [{"role": "user", "content": "Hello"}]
WORDS = "Good day, wörld"


@pytest.fixture(scope="module")
def world() -> World:
    return language_world(Platform.make())


@pytest.fixture
def enclave(world: World) -> Iterator[Talker]:
    with Talker(Session(world)) as talker:
        yield talker


@pytest.fixture
async def client(enclave: Talker, world: World) -> AsyncIterator[AsyncClient]:
    client = await connect_async(
        enclave.address, manifest=world.policy, api_key=API_KEY, timeout_s=5
    )
    async with client:
        yield client


@pytest.fixture
def blocking(enclave: Talker, world: World) -> Iterator[Client]:
    with connect(enclave.address, manifest=world.policy, api_key=API_KEY, timeout_s=5) as client:
        yield client


def kept_costs() -> list[int]:
    checked = check_receipts(*read_files(find_files([default_folder()])))
    assert not checked.findings
    return [each.receipt.cost for each in checked.genuine]


def asked_of(enclave: Talker) -> Any:
    return msgspec.json.decode(enclave.queries[-1].body)


async def text_of(client: AsyncClient, streams: bool) -> str:
    """Ask, in one way or the other."""
    if not streams:
        return (await client.chat(MESSAGES)).text
    async with client.chat_stream(MESSAGES) as stream:
        return "".join([text async for text in stream])


async def test_whole(enclave: Talker, client: AsyncClient) -> None:
    answered = await client.chat(
        MESSAGES, max_tokens=50, temperature=0.0, parameters={"seed": 7}, reason="a test"
    )
    assert (answered.text, answered.finish_reason, answered.tool_calls) == (WORDS, "stop", ())
    assert answered.settled.cost == COST
    assert answered.settled.remaining == enclave.credits == 10_000 - COST
    assert answered.settled.usage is not None
    assert answered.settled.usage.completion_tokens == 5
    assert [each.receipt.cost for each in answered.settled.receipts] == kept_costs()
    assert asked_of(enclave) == {
        "model": MODEL, "messages": MESSAGES, "seed": 7, "max_tokens": 50, "temperature": 0.0,
    }  # fmt: skip
    headers = enclave.queries[-1].headers
    assert len(headers["idempotency-key"]) == 32
    assert headers["aigovtool-reason"] == "a test"


async def test_as_it_comes(enclave: Talker, client: AsyncClient) -> None:
    gate = Gate(enclave, 1)
    async with client.chat_stream(MESSAGES) as stream:
        assert await anext(stream) == "Good"
        assert (stream.text, stream.settled) == ("Good", None)
        gate.open()
        assert "".join([text async for text in stream]) == " day, wörld"
    assert (stream.text, stream.finish_reason) == (WORDS, "stop")
    assert stream.settled is not None
    assert (stream.settled.cost, stream.settled.remaining) == (COST, enclave.credits)
    assert sum(kept_costs()) == COST
    assert asked_of(enclave)["stream_options"] == {"include_usage": True}
    assert "idempotency-key" not in enclave.queries[-1].headers


def test_without_asyncio(blocking: Client) -> None:
    assert blocking.chat(MESSAGES).text == WORDS
    with blocking.chat_stream(MESSAGES, max_tokens=9) as stream:
        assert list(stream) == ["Good", " ", "day", ", ", "wörld"]
        assert stream.settled is not None
        assert stream.settled.cost == COST
        assert (stream.text, stream.finish_reason) == (WORDS, "stop")
    assert blocking.budget().remaining == 10_000 - 2 * COST


async def test_tools(enclave: Talker, client: AsyncClient) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}

    def tools(end: dict[str, Any]) -> dict[str, Any]:
        said = {"role": "assistant", "content": None, "tool_calls": [call]}
        return end | {"choices": [{"index": 0, "finish_reason": "tool_calls", "message": said}]}

    enclave.spoil = tools
    answered = await client.chat(MESSAGES, parameters={"tools": []})
    assert (answered.text, answered.tool_calls) == ("", (call,))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("streams", [True, False])
async def test_an_end_that_does_not_hold(
    enclave: Talker, client: AsyncClient, attack: str, streams: bool
) -> None:
    enclave.spoil, code = ATTACKS[attack]
    with pytest.raises(AIGovToolError) as refused:
        await text_of(client, streams)
    assert refused.value.reasons[0].code == code


async def test_a_cut_answer_says_why_and_what_it_cost(enclave: Talker, client: AsyncClient) -> None:
    enclave.cut = LoanNotActiveError("the loan was stopped")
    async with client.chat_stream(MESSAGES) as stream:
        with pytest.raises(UnavailableError, match="stopped"):
            async for _ in stream:
                pass
    assert stream.settled is not None
    assert stream.settled.cost == COST == sum(kept_costs())
    assert stream.text == WORDS


async def test_leaving_early_cuts_the_answer(enclave: Talker, client: AsyncClient) -> None:
    Gate(enclave, 1)  # which stays shut
    async with client.chat_stream(MESSAGES) as stream:
        assert await anext(stream) == "Good"
        assert enclave.alive
    await until(lambda: not enclave.alive)
    assert stream.settled is None
    assert kept_costs() == [8]
    enclave.pause = None
    assert (await client.chat(MESSAGES)).text == WORDS


async def test_waiting(enclave: Talker, client: AsyncClient) -> None:
    waits: list[float] = []
    serve = enclave.infer

    def held(asked: Asked) -> Any:
        if "prefer" in asked.headers:
            enclave.refusal = None
        return serve(asked)

    enclave.reply = held
    enclave.refusal = USED_UP
    with pytest.raises(BudgetExhaustedError) as refused:
        await client.chat(MESSAGES)
    assert refused.value.retry_after_s == 7
    for streams in (True, False):
        enclave.refusal = USED_UP
        if streams:
            async with client.chat_stream(
                MESSAGES, wait_s=math.inf, on_wait=lambda why, waited_s: waits.append(waited_s)
            ) as stream:
                assert "".join([text async for text in stream]) == WORDS
        else:
            assert (await client.chat(MESSAGES, wait_s=60)).text == WORDS
        assert int(enclave.queries[-1].headers["prefer"].removeprefix("wait=")) >= 59
    assert waits


async def test_a_whole_answer_is_asked_for_again_under_the_same_key(
    enclave: Talker, client: AsyncClient
) -> None:
    serve, asked_before = enclave.infer, []

    def broken(asked: Asked) -> Any:
        if asked.method == "POST":
            asked_before.append(asked.headers["idempotency-key"])
            if len(asked_before) == 1:
                return None
        return serve(asked)

    enclave.reply = broken
    assert (await client.chat(MESSAGES)).text == WORDS
    assert len(asked_before) == 2
    assert len(set(asked_before)) == 1


@pytest.mark.parametrize("streams", [True, False])
async def test_errors(enclave: Talker, world: World, streams: bool) -> None:
    other = await connect_async(enclave.address, manifest=world.policy, api_key="other")
    async with other:
        with pytest.raises(UnauthenticatedError):
            await text_of(other, streams)


@pytest.mark.parametrize(
    "reply",
    [
        lambda receipt: answer(b"{}"),
        lambda receipt: answer(b"{}", headers={RECEIPT: receipt}),
        lambda receipt: answer(b"nonsense", 500),
        lambda receipt: answer(b'{"error":{"message":"no"}}', 403),
    ],
    ids=["no receipt", "no bill", "no error", "refused"],
)
async def test_answers_that_are_none(enclave: Talker, client: AsyncClient, reply: Any) -> None:
    serve = enclave.infer
    enclave.reply = lambda asked: (
        serve(asked) if asked.method == "GET" else reply(enclave.charge(8))
    )
    expected = (VerificationError, MalformedError, UnavailableError, RefusedError)
    for streams in (True, False):
        with pytest.raises(expected):
            await text_of(client, streams)


async def test_a_silent_stream_has_a_limit(enclave: Talker, world: World) -> None:
    Gate(enclave, 1)
    hasty = await connect_async(
        enclave.address, manifest=world.policy, api_key=API_KEY, timeout_s=0.3
    )
    async with hasty, hasty.chat_stream(MESSAGES) as stream:
        with pytest.raises(UnavailableError, match=r"within 0\.3 s"):
            async for _ in stream:
                pass


async def test_many_streams_at_once(enclave: Talker, client: AsyncClient) -> None:
    """More than there are places for connections, each of which asks for the price at its end."""

    await client.chat(MESSAGES)
    enclave.tokens = TokenPrice(input=3, output=1)  # so that no sum fits the price that is known
    found = await asyncio.gather(*(text_of(client, streams=True) for _ in range(100)))
    assert found == [WORDS] * 100
    assert sum(kept_costs()) == COST + 100 * (3 * 4 + 5)


# --- with a real enclave --------------------------------------------------------------------------


@pytest.fixture
def lent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lender]:
    with Lender(tmp_path, talkers.Talker(context=256), monkeypatch) as lender:
        yield lender


def test_a_real_enclave(lent: Lender) -> None:
    with connect(lent.address, manifest=lent.policy, api_key=lent.api_key) as client:
        whole = client.chat(MESSAGES, max_tokens=4)
        with client.chat_stream(MESSAGES, max_tokens=4) as stream:
            pieces = list(stream)
    assert "".join(pieces) == stream.text == whole.text == "one two three four"
    assert len(pieces) > 1
    assert stream.settled is not None
    assert stream.settled.cost == whole.settled.cost == PRICE.cost(input=1, output=4)
    assert stream.finish_reason == whole.finish_reason == "length"
    assert sum(kept_costs()) == 2 * stream.settled.cost


def test_waiting_for_a_real_enclave(lent: Lender) -> None:
    places: list[tuple[int, int]] = []

    def on_wait(why: BudgetExhaustedError, waited_s: float) -> None:
        if why.place is not None and not places:
            places.append(why.place)
            threading.Thread(target=lambda: lent.leave(100)).start()

    lent.use_up()
    with (
        connect(lent.address, manifest=lent.policy, api_key=lent.api_key) as client,
        client.chat_stream(MESSAGES, max_tokens=4, wait_s=60, on_wait=on_wait) as stream,
    ):
        assert "".join(stream) == "one two three four"
    assert places == [(1, 1)]
