"""The `openai` package asks and reads: its requests are read here, its answers are made here."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx2
import openai
import pytest

from aigovtool.errors import BadPromptError, LoanNotActiveError
from aigovtool.wire.openai.answers import (
    STREAM_TYPE,
    Account,
    Head,
    Stream,
    Usage,
    embedding,
    embeddings,
)
from aigovtool.wire.openai.errors import encode_error, error_of
from aigovtool.wire.openai.requests import read_chat, read_completion, read_embeddings

USAGE = Usage(input=2, output=1)
ACCOUNT = Account(receipts=["r"], remaining=7)


def client_of(answer: Callable[[httpx2.Request], httpx2.Response]) -> openai.OpenAI:
    return openai.OpenAI(
        api_key="k",
        base_url="http://enclave.test/v1",
        max_retries=0,
        http_client=httpx2.Client(transport=httpx2.MockTransport(answer)),
    )


def serve_chat(request: httpx2.Request) -> httpx2.Response:
    try:
        asked = read_chat(request.content)
    except BadPromptError as error:
        status, body = encode_error(error)
        return httpx2.Response(status, content=body, headers={"Content-Type": "application/json"})
    assert asked.stream
    head = Head(kind="chat", random=b"\x01", created=1, model=asked.model)
    stream = Stream(head, include_usage=asked.include_usage)
    words = [stream.give({"choices": [{"index": 0, "delta": {"content": asked.text}}]})]
    if asked.max_output == 1:
        words.append(stream.fail(LoanNotActiveError("the loan is stopped"), USAGE, ACCOUNT))
    else:
        end = {"index": 0, "delta": {}, "finish_reason": "stop"}
        words += [stream.give({"choices": [end]}), stream.end(USAGE, ACCOUNT)]
    return httpx2.Response(200, content=b"".join(words), headers={"Content-Type": STREAM_TYPE})


def test_a_stream_is_read_to_its_end_with_its_account() -> None:
    with client_of(serve_chat) as client:
        chunks = list(
            client.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": "hello"}],
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    said = "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)
    assert said == "hello"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 3
    assert chunks[-1].model_extra is not None
    assert chunks[-1].model_extra["aigovtool"]["receipts"] == ["r"]


def test_a_cut_stream_raises_what_cut_it() -> None:
    with client_of(serve_chat) as client:
        chunks = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hello"}], stream=True, max_tokens=1
        )
        assert next(iter(chunks)).choices[0].delta.content == "hello"
        with pytest.raises(openai.APIError, match="the loan is stopped") as caught:
            list(chunks)
    assert caught.value.code == "loan.not_active"
    event = {"error": caught.value.body}
    assert str(error_of(200, json.dumps(event).encode())) == "the loan is stopped"


def test_a_refusal_names_its_parameter_to_the_client() -> None:
    with client_of(serve_chat) as client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hello"}], n=2
        )
    assert (caught.value.param, caught.value.code) == ("n", "unsupported_value")
    assert caught.value.type == "invalid_request_error"


def test_the_client_asks_for_base64_and_reads_it() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        asked = read_embeddings(request.content)
        assert asked.base64
        written = [embedding([0.5, float(len(text))], as_base64=True) for text in asked.texts]
        body = embeddings(written, model="m", usage=USAGE, account=ACCOUNT)
        return httpx2.Response(200, content=body, headers={"Content-Type": "application/json"})

    with client_of(answer) as client:
        read = client.embeddings.create(model="m", input=["a", "bc"])
    assert [each.embedding for each in read.data] == [[0.5, 1.0], [0.5, 2.0]]


def test_a_completion_is_asked_for_as_the_client_does() -> None:
    asked = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(read_completion(request.content))
        status, body = encode_error(LoanNotActiveError("the loan is stopped"))
        return httpx2.Response(status, content=body)

    with client_of(answer) as client, pytest.raises(openai.InternalServerError):
        client.completions.create(model="m", prompt="once", logprobs=2, max_tokens=4, stop=["."])
    assert asked[0].body == {"prompt": "once", "stop": ["."], "logprobs": 2}
    assert (asked[0].max_output, asked[0].stream) == (4, False)
