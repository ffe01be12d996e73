"""Limits on extraction through OpenAI's API of an enclave: never more than a day has, and why."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aigovtool.wire.control import ExtractionSeen, OutputSeen, TermsChanged
from aigovtool.wire.extraction import ExtractionLimits

from .conftest import RunningEnclave
from .talkers import Gate, Talker
from .test_completions import CHAT, HELLO, ask, streamed, talking


async def limit(enclave: RunningEnclave, **limits: int) -> None:
    """Set limits, and wait until the enclave has read them: messages are read in their order."""
    custodian = enclave.custodian
    custodian.extraction = ExtractionLimits(**limits)
    await custodian.push(TermsChanged(terms=custodian._terms()))
    custodian.add_consumer("mark")
    await custodian.set_roster()
    mark = custodian.consumers[list(custodian.consumers)[-1]]
    async with asyncio.timeout(30):
        while (await enclave.get("/v1/budget", mark))[0] != 200:
            pass


async def test_no_concurrency_of_answers_gives_more_than_the_day_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with talking(tmp_path, monkeypatch, Talker(), budget=10_000) as enclave:
        await limit(enclave, output_tokens_per_day=12)
        asked = [ask(enclave, CHAT, HELLO | {"max_tokens": 5}) for _ in range(8)]
        answers = await asyncio.gather(*asked)
        given = [one["usage"]["completion_tokens"] for status, one, _ in answers if status == 200]
        assert sum(given) == 12
        refused = [(one, headers) for status, one, headers in answers if status == 429]
        assert len(given) + len(refused) == 8
        for answer, headers in refused:
            assert "Aigovtool-Receipt" not in headers
            assert answer["error"]["code"] == "extraction.output"
        status, _, headers = await ask(enclave, CHAT, HELLO)
        assert (status, int(headers["Retry-After"]) > 60) == (429, True)
        custodian = enclave.custodian
        alice = custodian.alice.id
        await custodian.until(
            lambda: any(isinstance(x, ExtractionSeen) for x in custodian.requests)
        )
        (alarm,) = [one for one in custodian.requests if isinstance(one, ExtractionSeen)]
        assert (alarm.consumer, alarm.kind, alarm.count) == (alice, "output", 12)
        told = [one for one in custodian.requests if isinstance(one, OutputSeen)]
        assert told[-1].tokens == {alice: 12}
        assert "say what you can" not in "".join(custodian.raw)


async def test_a_stream_that_is_left_gives_back_what_it_did_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    slow = Talker(step=gate.step, wake=gate.wake)
    async with talking(tmp_path, monkeypatch, slow, budget=10_000) as enclave:
        await limit(enclave, output_tokens_per_day=10)
        gate.let(1)
        async with streamed(enclave, max_tokens=10) as stream:
            await stream.word()
            assert (await ask(enclave, CHAT, HELLO))[0] == 429
            stream.answer.close()
        await asyncio.to_thread(slow.idle.wait, 30)  # or the tokens are those of the answer before
        gate.let(100)
        async with asyncio.timeout(30):
            while (await ask(enclave, CHAT, HELLO | {"max_tokens": 1}))[0] != 200:
                pass


async def test_more_log_probabilities_than_the_loan_gives_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with talking(tmp_path, monkeypatch, Talker(), budget=10_000) as enclave:
        await limit(enclave, top_logprobs=1)
        wanted = HELLO | {"max_tokens": 1, "logprobs": True}
        status, answer, headers = await ask(enclave, CHAT, wanted | {"top_logprobs": 2})
        assert (status, answer["error"]["param"]) == (400, "top_logprobs")
        assert answer["error"]["code"] == "extraction.logprobs"
        assert "Aigovtool-Receipt" not in headers
        assert (await ask(enclave, CHAT, wanted | {"top_logprobs": 1}))[0] == 200
