"""
The official `openai` client, unchanged, through the proxy: whole, streaming, async, and refused.

Whatever lends a language model can be tried with it: a fixture that gives a `Service`.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import openai
import pytest

from aigovtool.client.receipt_store import default_folder, find_files, read_files
from aigovtool.errors import AIGovToolError, BlockedError, LoanNotActiveError
from aigovtool.proof.receipts import check_receipts
from tests.channel.stand_in import API_KEY, Platform, Session
from tests.client import lender
from tests.client.lender import Lender
from tests.client.talker import MODEL, USED_UP, Gate, Talker, language_world
from tests.client.test_proxy import Running
from tests.client.test_proxy_tokens import without
from tests.enclave import talkers

MESSAGES: Any = [{"role": "user", "content": "Hello, who are you?"}]


class Service(Protocol):
    """
    A lent language model behind a proxy.

    Args:
        base_url: of the proxy, with ``/v1``.
        api_key, model: by which it is asked.
    """

    base_url: str
    api_key: str
    model: str

    def spent(self) -> int:
        """Return how many credits were charged."""
        ...

    def cost(self, usage: Any) -> int:
        """Return what the loan asks for so many tokens."""
        ...

    def block(self) -> None:
        """Block the consumer."""
        ...

    def use_up(self) -> None:
        """Let nothing be left."""
        ...

    def stop(self) -> None:
        """Stop the loan."""
        ...

    def stop_in_the_middle(self) -> Callable[[], None]:
        """Return what stops the loan when a stream that is begun next has said something."""
        ...


@dataclass
class StandInService:
    """The stand-in enclave."""

    enclave: Talker
    base_url: str
    api_key: str = API_KEY
    model: str = MODEL
    _begin: int = field(init=False)

    def __post_init__(self) -> None:
        self._begin = self.enclave.credits

    def spent(self) -> int:
        return self._begin - self.enclave.credits

    def cost(self, usage: Any) -> int:
        return self.enclave.tokens.cost(
            input=usage.prompt_tokens, output=getattr(usage, "completion_tokens", 0)
        )

    def block(self) -> None:
        self._refuse(BlockedError("the consumer is blocked"))

    def use_up(self) -> None:
        self._refuse(USED_UP)

    def stop(self) -> None:
        self._refuse(LoanNotActiveError("the loan was stopped", retry_after_s=7))

    def stop_in_the_middle(self) -> Callable[[], None]:
        gate = Gate(self.enclave, 2)

        def stop() -> None:
            self.enclave.cut = LoanNotActiveError("the loan was stopped")
            gate.open()

        return stop

    def _refuse(self, error: AIGovToolError) -> None:
        self.enclave.refusal = error


@dataclass
class LenderService:
    """A real enclave server, whose model says a word a token."""

    lender: Lender
    talker: talkers.Talker
    base_url: str
    model: str = lender.MODEL

    @property
    def api_key(self) -> str:
        return self.lender.api_key

    def spent(self) -> int:
        return lender.BUDGET - self._budget()["remaining"]

    def cost(self, usage: Any) -> int:
        return lender.PRICE.cost(
            input=usage.prompt_tokens, output=getattr(usage, "completion_tokens", 0)
        )

    def block(self) -> None:
        self.lender.block()
        self._until(lambda: "error" in self._budget())

    def use_up(self) -> None:
        self.lender.use_up()
        self._until(lambda: self._budget()["remaining"] == 0)

    def stop(self) -> None:
        self.lender.stop()
        self._until(lambda: self._budget().get("state") != "active")

    def stop_in_the_middle(self) -> Callable[[], None]:
        gate = talkers.Gate()
        self.talker.step, self.talker.wake = gate.step, gate.wake
        gate.let(2)
        return self.stop

    def _budget(self) -> Any:
        url = urllib.request.Request(
            f"{self.base_url}/budget", headers={"Authorization": f"Bearer {self.api_key}"}
        )
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return json.load(error)

    @staticmethod
    def _until(condition: Callable[[], bool]) -> None:
        """Wait for what the enclave hears from its custodian."""
        limit_s = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < limit_s
            time.sleep(0.02)


@pytest.fixture
def enclave() -> Iterator[Talker]:
    with Talker(Session(language_world(Platform.make()))) as talker:
        yield talker


@pytest.fixture
def stand_in(enclave: Talker) -> Iterator[Service]:
    with Running(enclave) as proxy:
        yield StandInService(enclave, f"http://127.0.0.1:{proxy.port}/v1")


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    model = talkers.Talker(context=256)
    with (
        Lender(tmp_path, model, monkeypatch) as lending,
        Running(lending, lending.api_key) as proxy,
    ):
        yield LenderService(lending, model, f"http://127.0.0.1:{proxy.port}/v1")


@pytest.fixture(params=["stand_in", "real"])
def service(request: pytest.FixtureRequest) -> Service:
    """Return each service in turn; a name more in `params` is all that another one takes."""
    found: Service = request.getfixturevalue(request.param)
    return found


def client_of(service: Service) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=service.base_url, api_key=service.api_key, max_retries=0, timeout=60
    )


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with client_of(service) as client:
        yield client


def kept() -> int:
    """Return the cost of all receipts that the proxy kept, which must be genuine and complete."""
    checked = check_receipts(*read_files(find_files([default_folder()])))
    assert not checked.findings
    return checked.cost


# --- answers --------------------------------------------------------------------------------------


def test_chat(service: Service, client: openai.OpenAI) -> None:
    came = client.chat.completions.create(model=service.model, messages=MESSAGES, max_tokens=16)
    (choice,) = came.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert came.usage is not None
    assert kept() == service.spent() == service.cost(came.usage)
    told = came.model_extra or {}
    assert len(told["aigovtool"]["receipts"]) >= 2


@pytest.mark.parametrize("usage", [True, False])
def test_chat_as_it_comes(service: Service, client: openai.OpenAI, usage: bool) -> None:
    more: Any = {"stream_options": {"include_usage": True}} if usage else {}
    stream = client.chat.completions.create(
        model=service.model, messages=MESSAGES, max_tokens=16, stream=True, **more
    )
    chunks = list(stream)
    assert sum(1 for chunk in chunks if chunk.choices and chunk.choices[0].delta.content) > 1
    assert any(chunk.choices and chunk.choices[0].finish_reason for chunk in chunks)
    if usage:
        assert service.cost(chunks[-1].usage) == service.spent()
    assert kept() == service.spent()


def test_completions(service: Service, client: openai.OpenAI) -> None:
    came = client.completions.create(model=service.model, prompt="Once upon", max_tokens=8)
    assert came.choices[0].text
    assert service.cost(came.usage) == service.spent()
    pieces = client.completions.create(
        model=service.model, prompt="Once upon", max_tokens=8, stream=True
    )
    assert "".join(piece.choices[0].text for piece in pieces)
    assert kept() == service.spent()


def test_the_headers_can_be_seen(service: Service, client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=service.model, messages=MESSAGES, max_tokens=8
    )
    assert raw.headers["aigovtool-receipt"] == raw.parse().model_extra["aigovtool"]["receipts"][0]  # type: ignore[index]
    assert int(raw.headers["aigovtool-remaining"]) >= 0


async def test_async(service: Service) -> None:
    async with openai.AsyncOpenAI(
        base_url=service.base_url, api_key=service.api_key, max_retries=0
    ) as client:
        whole = await client.chat.completions.create(
            model=service.model, messages=MESSAGES, max_tokens=8
        )
        assert whole.choices[0].message.content
        stream = await client.chat.completions.create(
            model=service.model, messages=MESSAGES, max_tokens=8, stream=True
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text
    assert kept() == service.spent()


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
def test_embeddings(service: Service, client: openai.OpenAI, encoding: Any) -> None:
    """The client asks for base64 when it is told nothing, and gives numbers."""
    more = {} if encoding is None else {"encoding_format": encoding}
    came = client.embeddings.create(model=service.model, input="Hello", **more)
    embedding = came.data[0].embedding
    assert isinstance(embedding, str if encoding == "base64" else list)
    assert len(embedding) > 1
    assert service.cost(came.usage) == service.spent() == kept()


def test_models(service: Service, client: openai.OpenAI) -> None:
    assert [one.id for one in client.models.list()] == [service.model]


def test_many_at_once(service: Service, client: openai.OpenAI) -> None:
    texts: list[str] = []

    def talk() -> None:
        stream = client.chat.completions.create(
            model=service.model, messages=MESSAGES, max_tokens=8, stream=True
        )
        texts.append("".join(chunk.choices[0].delta.content or "" for chunk in stream))

    threads = [threading.Thread(target=talk) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(texts) == 12
    assert all(texts)
    assert kept() == service.spent()


# --- errors ---------------------------------------------------------------------------------------


def ask(service: Service, client: openai.OpenAI, *, stream: bool) -> None:
    client.chat.completions.create(
        model=service.model, messages=MESSAGES, max_tokens=8, stream=stream
    )


@pytest.mark.parametrize("stream", [True, False])
def test_another_key(service: Service, stream: bool) -> None:
    with (
        openai.OpenAI(base_url=service.base_url, api_key="other", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        ask(service, client, stream=stream)
    assert refused.value.code == "invalid_api_key"
    assert service.spent() == 0


@pytest.mark.parametrize("stream", [True, False])
def test_blocked(service: Service, client: openai.OpenAI, stream: bool) -> None:
    service.block()
    with pytest.raises(openai.PermissionDeniedError):
        ask(service, client, stream=stream)


def test_another_model(service: Service, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="gpt-other", messages=MESSAGES)
    assert refused.value.code == "model_not_found"
    assert service.spent() == 0


@pytest.mark.parametrize("stream", [True, False])
def test_used_up(service: Service, client: openai.OpenAI, stream: bool) -> None:
    service.use_up()
    with pytest.raises(openai.RateLimitError) as refused:
        ask(service, client, stream=stream)
    assert refused.value.type == "insufficient_quota"
    assert int(refused.value.response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("stream", [True, False])
def test_stopped(service: Service, client: openai.OpenAI, stream: bool) -> None:
    service.stop()
    with pytest.raises(openai.InternalServerError) as refused:
        ask(service, client, stream=stream)
    assert refused.value.status_code == 503
    assert int(refused.value.response.headers["retry-after"]) >= 1


def test_stopped_in_a_stream(service: Service, client: openai.OpenAI) -> None:
    """The stream says why, and its receipts are kept."""
    stop = service.stop_in_the_middle()
    stream = client.chat.completions.create(
        model=service.model, messages=MESSAGES, max_tokens=64, stream=True
    )
    assert next(stream).choices[0].delta is not None
    stop()
    with pytest.raises(openai.APIError, match="stopped"):
        list(stream)
    assert kept() > 0


# --- what only a stand-in does --------------------------------------------------------------------


def test_a_stream_whose_receipts_are_missing_is_an_error(
    enclave: Talker, stand_in: Service
) -> None:
    enclave.spoil = without
    with (
        client_of(stand_in) as client,
        pytest.raises(openai.APIError, match="without the receipts") as refused,
    ):
        list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
    assert refused.value.code == "receipt.missing"


def test_what_was_charged_is_not_repeated(enclave: Talker, stand_in: Service) -> None:
    """The client repeats by itself what fails with 5xx, and each time would be charged."""
    enclave.spoil = without
    with (
        openai.OpenAI(base_url=stand_in.base_url, api_key=stand_in.api_key) as client,
        pytest.raises(openai.InternalServerError, match="without the receipts"),
    ):
        ask(stand_in, client, stream=False)
    assert [one.method for one in enclave.queries].count("POST") == 1


def test_an_enclave_that_is_gone(enclave: Talker, stand_in: Service) -> None:
    enclave._stop_listening()
    with client_of(stand_in) as client, pytest.raises(openai.InternalServerError) as refused:
        ask(stand_in, client, stream=False)
    enclave._listen()
    assert refused.value.status_code == 503
    assert refused.value.code == "unavailable"
