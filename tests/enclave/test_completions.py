"""OpenAI's API of an enclave on a real socket: charged by the token, streamed, stopped, refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.config import Limits
from aigovtool.enclave.loader import Loader
from aigovtool.enclave.runtime.base import Kind
from aigovtool.ids import sha256
from aigovtool.proof.receipt_signature import open_receipt
from aigovtool.wire.enrolment import TokenPrice
from aigovtool.wire.openai import answers
from aigovtool.wire.receipt import Receipt, from_header

from . import models
from .conftest import RunningEnclave, running_enclave
from .custodian import FakeCustodian
from .talkers import Gate, Talker
from .test_cut_off_attacks import follow_with

CHAT, COMPLETE, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
PRICE = TokenPrice(input=2, output=3)
HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "say what you can"}]}
INPUT = 4 * PRICE.input


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def model() -> Talker:
    return Talker()


@pytest.fixture
def slow(gate: Gate) -> Talker:
    return Talker(step=gate.step, wake=gate.wake)


@contextlib.asynccontextmanager
async def talking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Talker, *, budget: int, **limits: Any
) -> AsyncIterator[RunningEnclave]:
    """Run an enclave whose model is *model*."""

    async def load(*_: object) -> Talker:
        model.name = "tiny"
        return model

    monkeypatch.setattr(Loader, "load", load)
    key = SigningKey.generate()
    sealed = models.sealed(tmp_path, key, models.doubling())
    async with FakeCustodian(key, sealed, budget=budget) as custodian:
        custodian.tokens = PRICE
        async with running_enclave(custodian, limits=Limits(**limits)) as enclave:
            yield enclave


async def ask(
    enclave: RunningEnclave, path: str, body: dict[str, Any], **headers: str
) -> tuple[int, dict[str, Any], Any]:
    names = {name.replace("_", "-"): text for name, text in headers.items()}
    async with enclave.http.post(
        path, json=body, headers=enclave.custodian.alice.authorization | names
    ) as answer:
        return answer.status, json.loads(await answer.read()), answer.headers


class Streamed:
    """An answer as it comes."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer
        self.text = ""
        self.last: dict[str, Any] = {}
        self.done = False

    async def word(self) -> str | None:
        """Return what the next event says, None at the end."""
        async for line in self.answer.content:
            data = line.decode().removeprefix("data: ").strip()
            if data == "[DONE]":
                self.done = True
            elif data:
                self.last = json.loads(data)
                choices = self.last.get("choices") or [{}]
                said = choices[0].get("delta", choices[0])
                word = said.get("content", said.get("text")) or ""
                self.text += word
                return word
        return None

    async def rest(self) -> None:
        while await self.word() is not None:
            pass


@contextlib.asynccontextmanager
async def streamed(
    enclave: RunningEnclave, path: str = CHAT, body: dict[str, Any] = HELLO, **more: Any
) -> AsyncIterator[Streamed]:
    async with enclave.http.post(
        path,
        json={**body, "stream": True, **more},
        headers=enclave.custodian.alice.authorization,
    ) as answer:
        yield Streamed(answer)


def receipts_of(enclave: RunningEnclave, answer: Any, headers: Any) -> list[Receipt]:
    """Return the receipts of an answer: signed, a chain of the consumer's, the header's first."""
    told = answer["aigovtool"]["receipts"]
    assert told[0] == headers["Aigovtool-Receipt"]
    (session,) = enclave.custodian.sessions.values()
    signed = [from_header(one) for one in told]
    opened = [open_receipt(one, public_key=session.keys.signing_key) for one in signed]
    for before, after, one in zip(opened, opened[1:], signed, strict=False):
        assert after.own_number == before.own_number + 1
        assert after.own_previous == sha256(one.payload)
    return opened


async def settled(enclave: RunningEnclave) -> int:
    """Return what the custodian was told of, once all is."""
    enclave.stop.set()
    await enclave.task
    enclave.custodian.check()
    return enclave.custodian.spent


# --- what is answered, and what it costs ----------------------------------------------------------


async def test_no_answer_is_cut_whenever_in_the_life_of_a_lease_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Talker(step=lambda ended: ended.wait(0.03))
    async with talking(tmp_path, monkeypatch, slow, budget=100_000) as enclave:
        enclave.custodian.lease_duration_s = 1.0
        for _ in range(25):  # of some 0.13 s each
            async with streamed(enclave, max_tokens=4) as answer:
                await answer.rest()
            assert answer.done, answer.last
        assert await settled(enclave) == 25 * (INPUT + 4 * PRICE.output)


async def test_a_chat_costs_its_tokens_and_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Talker
) -> None:
    async with talking(tmp_path, monkeypatch, model, budget=1000) as enclave:
        status, answer, headers = await ask(enclave, CHAT, HELLO | {"max_tokens": 5})
        assert status == 200
        assert answer["choices"][0]["message"]["content"] == "one two three four five"
        assert answer["usage"]["prompt_tokens"] == 4
        assert answer["usage"]["completion_tokens"] == 5
        receipts = receipts_of(enclave, answer, headers)
        assert [one.cost for one in receipts] == [INPUT, 15]
        assert answer["aigovtool"]["remaining"] == int(headers["Aigovtool-Remaining"]) == 1000 - 23
        assert await settled(enclave) == 23


async def test_a_stream_ends_with_its_usage_and_its_receipts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Talker
) -> None:
    async with talking(tmp_path, monkeypatch, model, budget=1000) as enclave:
        options = {"include_usage": True}
        async with streamed(enclave, max_tokens=3, stream_options=options) as stream:
            assert stream.answer.content_type == "text/event-stream"
            await stream.rest()
        assert stream.done
        assert stream.text == "one two three"
        assert stream.last["usage"]["completion_tokens"] == 3
        costs = [one.cost for one in receipts_of(enclave, stream.last, stream.answer.headers)]
        assert costs == [INPUT, 9]
        assert await settled(enclave) == INPUT + 9


async def test_a_completion_and_its_stream_say_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Talker
) -> None:
    body = {"model": "tiny", "prompt": "go on", "max_tokens": 4}
    async with talking(tmp_path, monkeypatch, model, budget=1000) as enclave:
        _, answer, _ = await ask(enclave, COMPLETE, body)
        async with streamed(enclave, COMPLETE, body) as stream:
            await stream.rest()
        assert stream.text == answer["choices"][0]["text"] == "one two three four"


async def test_an_answer_that_outlives_many_leases_has_a_receipt_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: Talker, gate: Gate
) -> None:
    async with talking(tmp_path, monkeypatch, slow, budget=INPUT + 60) as enclave:
        enclave.custodian.lease_duration_s = 1.0
        gate.let(1)
        async with streamed(enclave, max_tokens=20) as stream:
            for number in range(20):  # the last credits of the budget, through several leases
                await stream.word()
                gate.let(1)
                if number % 5 == 4:
                    leases = len(enclave.custodian.settlements)
                    await enclave.custodian.until(
                        lambda leases=leases: len(enclave.custodian.settlements) > leases
                    )
            await stream.rest()
        assert stream.done
        receipts = receipts_of(enclave, stream.last, stream.answer.headers)
        assert len({one.lease for one in receipts}) >= 4
        assert sum(one.cost for one in receipts) == INPUT + 60
        assert await settled(enclave) == INPUT + 60


async def test_embeddings_cost_their_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Talker
) -> None:
    async with talking(tmp_path, monkeypatch, model, budget=1000) as enclave:
        body = {"model": "tiny", "input": ["one two", "three"]}
        status, answer, headers = await ask(enclave, EMBED, body)
        assert status == 200
        assert [one["embedding"] for one in answer["data"]] == [[7.0, 0.5], [5.0, 0.5]]
        assert [one.cost for one in receipts_of(enclave, answer, headers)] == [6]
        assert await settled(enclave) == 6


async def test_an_embedding_does_not_wait_for_a_slot_of_the_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    model = Talker(slots=1, step=gate.step, wake=gate.wake)
    async with talking(tmp_path, monkeypatch, model, budget=1000) as enclave:
        gate.let(1)
        async with streamed(enclave, max_tokens=2) as stream:
            assert await stream.word() == "one"
            status, _, _ = await ask(enclave, EMBED, {"model": "tiny", "input": "three"})
            assert status == 200
            gate.let(1)
            await stream.rest()
        assert stream.done


async def test_an_embedding_that_cannot_be_written_is_taken_back_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Talker
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OverflowError("a number that no float holds")

    monkeypatch.setattr(answers, "embedding", broken)
    async with talking(tmp_path, monkeypatch, model, budget=1000) as enclave:
        body = {"model": "tiny", "input": ["one two", "three"]}
        status, answer, headers = await ask(enclave, EMBED, body)
        assert status == 500
        assert "no float" not in json.dumps(answer)
        assert [one.cost for one in receipts_of(enclave, answer, headers)] == [6, -6]
        assert await settled(enclave) == 0


async def test_a_body_takes_its_room_until_its_stream_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: Talker, gate: Gate
) -> None:
    room = {"max_body_bytes": 1000, "max_bodies_bytes": 1500}
    long = HELLO | {"max_tokens": 1, "user": "x" * 800}
    async with talking(tmp_path, monkeypatch, slow, budget=1000, **room) as enclave:
        gate.let(1)
        async with streamed(enclave, body=long | {"max_tokens": 2}) as stream:
            assert await stream.word() == "one"
            status, answer, _ = await ask(enclave, CHAT, long)
            assert (status, answer["error"]["code"]) == (503, "queue.bodies")
            gate.let(1)
            await stream.rest()
        assert stream.done
        gate.let(1)
        assert (await ask(enclave, CHAT, long))[0] == 200


async def test_who_names_no_number_gets_what_can_be_paid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Talker(context=4096)
    async with talking(tmp_path, monkeypatch, model, budget=INPUT + 300) as enclave:
        status, answer, _ = await ask(enclave, CHAT, HELLO)
        assert status == 200
        assert answer["usage"]["completion_tokens"] == 100
        assert answer["choices"][0]["finish_reason"] == "length"
        assert enclave.custodian.left == 0


# --- what is cut ----------------------------------------------------------------------------------


async def test_a_stop_ends_a_stream_which_says_why_and_what_it_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: Talker, gate: Gate
) -> None:
    async with talking(tmp_path, monkeypatch, slow, budget=1000) as enclave:
        gate.let(2)
        async with streamed(enclave, max_tokens=50) as stream:
            assert [await stream.word(), await stream.word()] == ["one", " two"]
            await enclave.custodian.set_state("stopped", "the contract ended")
            await stream.rest()
        assert not stream.done
        assert "the contract ended" in stream.last["error"]["message"]
        assert stream.last["usage"]["completion_tokens"] == 2
        receipts = receipts_of(enclave, stream.last, stream.answer.headers)
        assert sum(one.cost for one in receipts) == INPUT + 6
        await enclave.custodian.until(lambda: bool(enclave.custodian.proofs))
        assert await settled(enclave) == INPUT + 6
        assert slow.produced < 5


async def test_an_enclave_that_ends_cuts_a_stream_that_takes_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: Talker, gate: Gate
) -> None:
    async with talking(tmp_path, monkeypatch, slow, budget=1000) as enclave:
        gate.let(2)
        async with streamed(enclave, max_tokens=50) as stream:
            assert [await stream.word(), await stream.word()] == ["one", " two"]
            enclave.stop.set()  # and no token comes within the time to drain
            await stream.rest()
        assert "the server is ending" in stream.last["error"]["message"]
        assert stream.last["usage"]["completion_tokens"] == 2
        assert await settled(enclave) == INPUT + 6


async def test_a_blocked_consumers_stream_ends_and_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: Talker, gate: Gate
) -> None:
    async with talking(tmp_path, monkeypatch, slow, budget=1000) as enclave:
        bob = enclave.custodian.add_consumer("bob")
        await enclave.custodian.set_roster()
        gate.let(2)
        async with (
            streamed(enclave, max_tokens=2) as stream,
            enclave.http.post(
                CHAT,
                json=HELLO | {"stream": True, "max_tokens": 50},
                headers=bob.authorization,
            ) as other,
        ):
            bobs = Streamed(other)
            bob.blocked = True
            await enclave.custodian.set_roster()
            await bobs.rest()
            gate.let(2)
            await stream.rest()
        assert stream.done
        assert not bobs.done


async def test_a_consumers_stream_ends_with_its_time_whatever_lease_pays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: Talker, gate: Gate
) -> None:
    async with talking(tmp_path, monkeypatch, slow, budget=1000) as enclave:
        enclave.custodian.lease_duration_s = 0.0
        gate.let(1)
        async with streamed(enclave, max_tokens=50) as stream:
            assert await stream.word() == "one"
            enclave.custodian.alice.expires_in_s = 0.2
            await enclave.custodian.set_roster()
            async with asyncio.timeout(10):
                await stream.rest()
        assert not stream.done
        assert stream.last["error"]["code"] == "consumer.expired"
        assert await settled(enclave) == INPUT + 3


async def test_a_stop_does_not_wait_for_all_texts_of_an_embedding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Talker
) -> None:
    entered, go = threading.Event(), threading.Event()
    embedded: list[str] = []

    def embed(texts: Sequence[str]) -> list[list[float]]:
        embedded.extend(texts)
        entered.set()
        go.wait(10)
        return [[0.5]] * len(texts)

    monkeypatch.setattr(model, "embed", embed)
    async with talking(tmp_path, monkeypatch, model, budget=1000) as enclave:
        body = {"model": "tiny", "input": ["one"] * 100}
        asking = asyncio.create_task(ask(enclave, EMBED, body))
        assert await asyncio.to_thread(entered.wait, 10)
        await enclave.custodian.set_state("stopped", "the contract ended")
        _, answer, _ = await asking
        assert "the contract ended" in answer["error"]["message"]
        go.set()
        await enclave.custodian.until(lambda: bool(enclave.custodian.proofs))
        assert embedded == ["one"]


async def test_one_consumers_long_inputs_keep_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Talker
) -> None:
    begun, go = threading.Event(), threading.Event()
    count = model.count

    def slowly(kind: Kind, body: Mapping[str, Any]) -> int:
        if body["messages"][0]["content"] == "long":
            begun.set()
            go.wait(20)
        return count(kind, body)

    monkeypatch.setattr(model, "count", slowly)
    async with talking(tmp_path, monkeypatch, model, budget=1000, max_queue=40) as enclave:
        custodian = enclave.custodian
        bob = custodian.add_consumer("bob")
        await custodian.set_roster()
        body = HELLO | {"messages": [{"role": "user", "content": "long"}]}
        asking = [asyncio.create_task(ask(enclave, CHAT, body)) for _ in range(40)]
        assert await asyncio.to_thread(begun.wait, 10)
        async with (
            asyncio.timeout(5),
            enclave.http.post(CHAT, json=HELLO, headers=bob.authorization) as answer,
        ):
            assert answer.status == 200
        await custodian.set_state("stopped", "the contract ended")
        await custodian.until(lambda: bool(custodian.proofs))
        assert not go.is_set()
        go.set()
        told = await asyncio.gather(*asking)
    assert {status for status, *_ in told} == {503}
    codes = [answer["error"]["code"] for _, answer, _ in told]
    assert codes.count("queue.full") == 10


async def test_nothing_is_embedded_for_who_was_blocked_in_the_step_that_paid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Talker
) -> None:
    async with talking(tmp_path, monkeypatch, model, budget=1000) as enclave:
        took = follow_with(monkeypatch, enclave.custodian, "a block")
        status, answer, headers = await ask(enclave, EMBED, {"model": "tiny", "input": "one two"})
        assert took
        assert (status, answer["error"]["code"]) == (403, "blocked")
        assert [one.cost for one in receipts_of(enclave, answer, headers)] == [4, -4]
        assert await settled(enclave) == 0


async def test_a_client_that_leaves_pays_for_what_was_given_and_frees_its_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    model = Talker(slots=1, step=gate.step, wake=gate.wake)
    async with talking(tmp_path, monkeypatch, model, budget=1000) as enclave:
        gate.let(3)
        async with streamed(enclave, max_tokens=50) as stream:
            for _ in range(3):
                await stream.word()
            stream.answer.close()
        assert await asyncio.to_thread(model.idle.wait, 10)
        gate.let(2)
        assert (await ask(enclave, CHAT, HELLO | {"max_tokens": 2}))[0] == 200
        assert await settled(enclave) == INPUT * 2 + 9 + 6


async def test_a_budget_that_is_taken_away_ends_a_stream_with_its_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: Talker, gate: Gate
) -> None:
    async with talking(tmp_path, monkeypatch, slow, budget=1000) as enclave:
        enclave.custodian.lease_duration_s = 1.0
        gate.let(1)
        async with streamed(enclave, max_tokens=50) as stream:
            await stream.word()
            enclave.custodian.max_lease = 10
            await stream.rest()
        assert stream.last["error"]["type"] == "insufficient_quota"
        assert await settled(enclave) == INPUT + 3


async def test_without_the_custodian_a_stream_ends_with_its_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: Talker, gate: Gate
) -> None:
    async with talking(tmp_path, monkeypatch, slow, budget=1000) as enclave:
        enclave.custodian.lease_duration_s = 0.5
        gate.let(1)
        async with streamed(enclave, max_tokens=50) as stream:
            await stream.word()
            await enclave.custodian.cut()
            async with asyncio.timeout(5):
                await stream.rest()
        assert stream.last["error"]["type"] == "service_unavailable"
        assert stream.last["usage"]["completion_tokens"] == 1


async def test_thirty_two_streams_race_for_a_small_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Talker
) -> None:
    async with talking(tmp_path, monkeypatch, model, budget=200) as enclave:

        async def one() -> tuple[int, int]:
            async with streamed(enclave, max_tokens=10) as stream:
                await stream.rest()
                return stream.answer.status, len(stream.text.split())

        outcomes = await asyncio.gather(*(one() for _ in range(32)))
        served = [words for status, words in outcomes if status == 200]
        assert {status for status, _ in outcomes} == {200, 429}
        assert served == [10] * len(served)
        assert sum(served) == model.produced
        assert model.most_running <= model.slots
        spent = await settled(enclave)
    assert spent == len(served) * (INPUT + 30) <= 200


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"model": "other"}, 404, "model_not_found"),
        ({"surprise": 1}, 400, "unknown_parameter"),
        ({"n": 2}, 400, "unsupported_value"),
        ({"max_tokens": 61}, 400, "context_length_exceeded"),
        ({"messages": []}, 400, None),
    ],
)
async def test_a_request_that_cannot_be_served_costs_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: Talker,
    change: dict[str, Any],
    status: int,
    code: str | None,
) -> None:
    async with talking(tmp_path, monkeypatch, model, budget=1000) as enclave:
        came, answer, headers = await ask(enclave, CHAT, HELLO | change)
        assert came == status
        assert answer["error"]["code"] == code or code is None
        assert "Aigovtool-Receipt" not in headers
        assert await settled(enclave) == 0


async def test_a_model_that_fails_before_its_first_token_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Talker
) -> None:
    model.fails_at = 0
    async with talking(tmp_path, monkeypatch, model, budget=1000) as enclave:
        for more in ({}, {"stream": True}):
            status, answer, headers = await ask(enclave, CHAT, HELLO | {"max_tokens": 5} | more)
            assert status == 400
            assert [one.cost for one in receipts_of(enclave, answer, headers)] == [INPUT, -INPUT]
        assert await settled(enclave) == 0


async def test_a_budget_that_is_used_up_is_said_and_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Talker
) -> None:
    async with talking(tmp_path, monkeypatch, model, budget=10) as enclave:
        body = HELLO | {"max_tokens": 5}
        status, answer, headers = await ask(enclave, CHAT, body)
        assert (status, answer["error"]["type"]) == (429, "insufficient_quota")
        assert int(headers["Retry-After"]) >= 1
        waiting = asyncio.create_task(ask(enclave, CHAT, body, Prefer="wait=20"))
        await enclave.custodian.until(lambda: bool(enclave.custodian.wanted))
        await enclave.custodian.grant(100)
        assert (await waiting)[0] == 200


async def test_a_retry_is_charged_once_and_a_stream_takes_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Talker
) -> None:
    async with talking(tmp_path, monkeypatch, model, budget=1000) as enclave:
        body = HELLO | {"max_tokens": 5}
        first = await ask(enclave, CHAT, body, Idempotency_Key="k")
        again = await ask(enclave, CHAT, body, Idempotency_Key="k")
        assert again[1] == first[1]
        assert again[2]["Aigovtool-Replayed"] == "1"
        other = await ask(enclave, CHAT, body | {"max_tokens": 6}, Idempotency_Key="k")
        assert other[0] == 422
        assert (await ask(enclave, CHAT, body | {"stream": True}, Idempotency_Key="s"))[0] == 400
        assert await settled(enclave) == INPUT + 15


async def test_keys_and_kinds_of_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Talker
) -> None:
    async with talking(tmp_path, monkeypatch, model, budget=1000) as enclave:
        for path in (CHAT, COMPLETE, EMBED):
            async with enclave.http.post(
                path, json={}, headers={"Authorization": "Bearer x"}
            ) as no:
                assert no.status == 401
                assert (await no.json())["error"]["code"] == "invalid_api_key"
        status, answer, _ = await enclave.infer()
        assert status == 404
        assert "chat/completions" in answer["error"]
        assert (await enclave.get("/v2/models/tiny", enclave.custodian.alice))[0] == 200


async def test_a_tensor_model_is_no_language_model(enclave: RunningEnclave) -> None:
    status, answer, _ = await ask(enclave, CHAT, HELLO)
    assert status == 404
    assert "/v2/models" in answer["error"]["message"]
    assert (await enclave.get("/v1/models", enclave.custodian.alice))[0] == 404


async def test_the_openai_client_asks_directly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Talker
) -> None:
    async with talking(tmp_path, monkeypatch, model, budget=1000) as enclave:
        client = openai.AsyncOpenAI(
            base_url=f"https://{enclave.address}/v1",
            api_key=enclave.custodian.alice.key,
            http_client=openai.DefaultAsyncHttpxClient(verify=False),
            max_retries=0,
        )
        async with client:
            messages: Any = HELLO["messages"]
            assert [one.id async for one in client.models.list()] == ["tiny"]
            assert (await client.models.retrieve("tiny")).id == "tiny"
            whole = await client.chat.completions.create(
                model="tiny", messages=messages, max_completion_tokens=3
            )
            assert whole.choices[0].message.content == "one two three"
            text = ""
            async for event in await client.chat.completions.create(
                model="tiny", messages=messages, max_tokens=3, stream=True
            ):
                text += event.choices[0].delta.content or ""
            assert text == "one two three"
            vectors = await client.embeddings.create(model="tiny", input="one two")
            assert vectors.data[0].embedding == [7.0, 0.5]
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model="other", messages=messages)
