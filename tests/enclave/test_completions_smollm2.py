"""OpenAI's API of an enclave over a real language model: real tokens, real streams, real stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from aigovtool.crypto.signing import SigningKey
from aigovtool.sealing.manifest import ModelSignature
from tests import smollm2

from . import models
from .conftest import RunningEnclave, running_enclave
from .custodian import FakeCustodian

MESSAGES: Any = [{"role": "user", "content": "Count from one to five."}]


@contextlib.asynccontextmanager
async def lent(tmp_path: Path, *, budget: int) -> AsyncIterator[RunningEnclave]:
    key = SigningKey.generate()
    files = {"model.gguf": smollm2.gguf().read_bytes()}
    sealed = models.sealed(
        tmp_path,
        key,
        (files, ModelSignature()),
        name="smollm2",
        format="gguf",
        entry="model.gguf",
    )
    async with FakeCustodian(key, sealed, budget=budget) as custodian:
        custodian.max_lease = 100_000
        async with running_enclave(custodian) as enclave:
            yield enclave


def client_of(enclave: RunningEnclave) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"https://{enclave.address}/v1",
        api_key=enclave.custodian.alice.key,
        http_client=openai.DefaultAsyncHttpxClient(verify=False),
        max_retries=0,
    )


async def settled(enclave: RunningEnclave) -> int:
    enclave.stop.set()
    await enclave.task
    enclave.custodian.check()
    return enclave.custodian.spent


async def test_what_is_charged_is_what_the_model_counts(tmp_path: Path) -> None:
    async with lent(tmp_path, budget=10_000) as enclave, client_of(enclave) as client:
        chat = client.chat.completions
        whole = await chat.create(model="smollm2", messages=MESSAGES, max_tokens=24, temperature=0)
        assert whole.choices[0].message.content
        text, usage = "", None
        async for event in await chat.create(
            model="smollm2",
            messages=MESSAGES,
            max_tokens=24,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        ):
            text += (event.choices[0].delta.content or "") if event.choices else ""
            usage = event.usage or usage
        assert text == whole.choices[0].message.content
        assert whole.usage is not None
        assert usage is not None
        assert usage.total_tokens == whole.usage.total_tokens
        vectors = await client.embeddings.create(model="smollm2", input=["hello", "good bye"])
        assert len(vectors.data) == 2
        told = 2 * usage.total_tokens + vectors.usage.prompt_tokens
        assert await settled(enclave) == told


async def test_streams_race_for_a_small_budget(tmp_path: Path) -> None:
    async with lent(tmp_path, budget=400) as enclave, client_of(enclave) as client:

        async def one() -> int:
            try:
                answer = await client.chat.completions.create(
                    model="smollm2", messages=MESSAGES, max_tokens=16
                )
            except openai.RateLimitError:
                return 0
            assert answer.usage is not None
            return answer.usage.total_tokens

        totals = await asyncio.gather(*(one() for _ in range(32)))
        assert 0 < sum(totals) <= 400
        assert 0 in totals
        assert await settled(enclave) == sum(totals)


async def test_a_stop_ends_thirty_two_running_streams(tmp_path: Path) -> None:
    async with lent(tmp_path, budget=100_000) as enclave, client_of(enclave) as client:
        begun = asyncio.Event()

        async def one() -> tuple[str, bool]:
            try:
                async for _ in await client.chat.completions.create(
                    model="smollm2", messages=MESSAGES, max_tokens=1500, stream=True
                ):
                    begun.set()
            except openai.APIStatusError as error:  # its first token had not come
                return error.message, False
            except openai.APIError as error:
                return error.message, True
            raise AssertionError("it was not stopped")

        streams = [asyncio.create_task(one()) for _ in range(32)]
        await begun.wait()
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        await enclave.custodian.set_state("stopped", "enough")
        messages = await asyncio.gather(*streams)
        assert loop.time() - begin_s < 5
        assert all("enough" in message for message, _ in messages)
        assert any(running for _, running in messages)
        await enclave.custodian.until(lambda: bool(enclave.custodian.proofs))
        await settled(enclave)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_input_longer_than_the_context_costs_nothing(tmp_path: Path, stream: bool) -> None:
    long: Any = [{"role": "user", "content": "word " * 9000}]
    async with lent(tmp_path, budget=10_000) as enclave, client_of(enclave) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(
                model="smollm2", messages=long, max_tokens=1, stream=stream
            )
        assert refused.value.code == "context_length_exceeded"
        assert await settled(enclave) == 0
