"""Answers in OpenAI's shape, as the `openai` package itself reads them."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from aigovtool.errors import PromiseBrokenError, UnavailableError
from aigovtool.wire.openai.answers import (
    Account,
    Head,
    Stream,
    Usage,
    Whole,
    embedding,
    embeddings,
    model,
    models,
)

CHAT = Head(kind="chat", random=b"\x01\xff", created=1_700_000_000, model="m")
COMPLETION = Head(kind="completion", random=b"\x01\xff", created=1_700_000_000, model="m")
USAGE = Usage(input=5, output=3, cached=2)
ACCOUNT = Account(receipts=["first", "second"], remaining=7)
TOLD_USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 3,
    "total_tokens": 8,
    "prompt_tokens_details": {"cached_tokens": 2},
}
TOLD_ACCOUNT = {"receipts": ["first", "second"], "remaining": 7, "usage": TOLD_USAGE}

Chunk = dict[str, Any]


def said(delta: dict[str, Any], *, logprobs: Any = None, ended: str | None = None) -> Chunk:
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": ended}
    return {"choices": [choice]}


def text(part: str, *, logprobs: Any = None, ended: str | None = None) -> Chunk:
    choice = {"index": 0, "text": part, "logprobs": logprobs, "finish_reason": ended}
    return {"choices": [choice]}


def call(index: int, **more: Any) -> Chunk:
    return said({"tool_calls": [{"index": index, **more}]})


def token(word: str) -> dict[str, Any]:
    top = {"token": word, "bytes": list(word.encode()), "logprob": -0.5}
    return top | {"top_logprobs": [top]}


def events(stream: bytes) -> Iterator[dict[str, Any]]:
    """Yield the events before the end, as a reader of server-sent events finds them."""
    assert stream.endswith(b"\n\n")
    for event in stream[:-2].split(b"\n\n"):
        assert event.startswith(b"data: ")
        assert b"\n" not in event
        if event != b"data: [DONE]":
            yield json.loads(event[6:])


def streamed(head: Head, chunks: Sequence[Chunk], *, include_usage: bool = False) -> bytes:
    stream = Stream(head, include_usage=include_usage)
    return b"".join(map(stream.give, chunks)) + stream.end(USAGE, ACCOUNT)


def whole(head: Head, chunks: Sequence[Chunk]) -> dict[str, Any]:
    answer = Whole(head)
    for chunk in chunks:
        answer.add(chunk)
    read: dict[str, Any] = json.loads(answer.answer(USAGE, ACCOUNT))
    return read


HELLO = [said({"content": "hel"}), said({"content": "lo"}), said({}, ended="stop")]


def test_a_stream_begins_with_its_role_and_ends_with_its_account() -> None:
    stream = streamed(CHAT, HELLO)
    assert stream.endswith(b"data: [DONE]\n\n")
    told = list(events(stream))
    assert [each["choices"][0]["delta"] for each in told] == [
        {"role": "assistant", "content": "hel"},
        {"content": "lo"},
        {},
    ]
    assert [each.get("aigovtool") for each in told] == [None, None, TOLD_ACCOUNT]
    assert not any("usage" in each for each in told)
    for each in told:
        chunk = ChatCompletionChunk.model_validate(each, strict=True)
        assert (chunk.id, chunk.created, chunk.model) == ("chatcmpl-01ff", 1_700_000_000, "m")
        assert chunk.object == "chat.completion.chunk"


def test_usage_comes_in_a_chunk_of_its_own_when_it_is_asked_for() -> None:
    *parts, last = events(streamed(CHAT, HELLO, include_usage=True))
    assert [each["usage"] for each in parts] == [None] * 3
    assert not any("aigovtool" in each for each in parts)
    assert (last["choices"], last["usage"], last["aigovtool"]) == ([], TOLD_USAGE, TOLD_ACCOUNT)
    usage = ChatCompletionChunk.model_validate(last, strict=True).usage
    assert usage is not None
    assert usage.total_tokens == 8


def test_what_ends_an_answer_is_held_back_until_it_is_paid() -> None:
    stream = Stream(CHAT, include_usage=False)
    assert stream.give(said({"content": "a"}, ended="length")) == b""
    (last,) = events(stream.end(USAGE, ACCOUNT))
    assert last["choices"][0]["delta"] == {"role": "assistant", "content": "a"}
    assert last["choices"][0]["finish_reason"] == "length"


def test_a_cut_stream_ends_with_an_error_and_not_as_a_whole_one() -> None:
    stream = Stream(CHAT, include_usage=True)
    stream.give(HELLO[0])
    end = stream.fail(UnavailableError("the loan is stopped", code="loan.stopped"), USAGE, ACCOUNT)
    assert b"[DONE]" not in end
    (event,) = events(end)
    assert event == {
        "error": {
            "message": "the loan is stopped",
            "type": "service_unavailable",
            "param": None,
            "code": "loan.stopped",
        },
        "usage": TOLD_USAGE,
        "aigovtool": TOLD_ACCOUNT,
    }


def test_an_answer_without_an_end_is_given_as_none() -> None:
    stream = Stream(CHAT, include_usage=False)
    stream.give(HELLO[0])
    with pytest.raises(PromiseBrokenError):
        stream.end(USAGE, ACCOUNT)
    with pytest.raises(PromiseBrokenError):
        whole(CHAT, HELLO[:2])


def test_a_chat_in_one_piece() -> None:
    answer = whole(CHAT, HELLO)
    assert answer == {
        "id": "chatcmpl-01ff",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": TOLD_USAGE,
        "aigovtool": TOLD_ACCOUNT,
    }
    assert ChatCompletion.model_validate(answer, strict=True).choices[0].message.content == "hello"


def test_calls_are_put_together_by_their_index() -> None:
    answer = whole(
        CHAT,
        [
            call(0, id="c0", type="function", function={"name": "look", "arguments": ""}),
            call(0, function={"arguments": '{"a"'}),
            call(1, id="c1", type="function", function={"name": "leap", "arguments": "{"}),
            call(0, function={"arguments": ":1}"}),
            call(1, function={"arguments": "}"}),
            said({}, ended="tool_calls"),
        ],
    )
    assert answer["choices"][0]["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [
            {"id": "c0", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}},
            {"id": "c1", "type": "function", "function": {"name": "leap", "arguments": "{}"}},
        ],
    }
    assert ChatCompletion.model_validate(answer, strict=True).choices[0].message.tool_calls


def test_thoughts_and_refusals_are_put_together_beside_what_is_said() -> None:
    message = whole(
        CHAT,
        [
            said({"role": "assistant", "content": None}),
            said({"reasoning_content": "hm"}),
            said({"reasoning_content": "m"}),
            said({"refusal": "no"}),
            said({}, ended="stop"),
        ],
    )["choices"][0]["message"]
    assert message == {
        "role": "assistant",
        "content": "",
        "refusal": "no",
        "reasoning_content": "hmm",
    }


def test_probabilities_of_a_chat_are_put_together() -> None:
    answer = whole(
        CHAT,
        [
            said({"content": "a"}, logprobs={"content": [token("a")], "refusal": None}),
            said({"content": "b"}, logprobs={"content": [token("b")], "refusal": None}),
            said({}, ended="stop"),
        ],
    )
    logprobs = ChatCompletion.model_validate(answer, strict=True).choices[0].logprobs
    assert logprobs is not None
    assert [each.token for each in logprobs.content or ()] == ["a", "b"]
    assert logprobs.refusal is None


def test_probabilities_of_a_completion_are_put_together() -> None:
    def odds(word: str, offset: int) -> dict[str, Any]:
        tops = {"tokens": [word], "token_logprobs": [-0.5], "top_logprobs": [{word: -0.5}]}
        return tops | {"text_offset": [offset]}

    parts = [
        text("a", logprobs=odds("a", 0)),
        text("b", logprobs=odds("b", 1)),
        text("", ended="length"),
    ]
    answer = whole(COMPLETION, parts)
    assert (answer["id"], answer["object"]) == ("cmpl-01ff", "text_completion")
    read = Completion.model_validate(answer, strict=True)
    assert read.choices[0].text == "ab"
    assert read.choices[0].finish_reason == "length"
    assert read.choices[0].logprobs is not None
    assert read.choices[0].logprobs.model_dump() == {
        "tokens": ["a", "b"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"a": -0.5}, {"b": -0.5}],
        "text_offset": [0, 1],
    }
    for each in events(streamed(COMPLETION, parts)):
        assert each["choices"][0]["text"] in ("a", "b", "")
        assert each["object"] == "text_completion"


def parts_of(given: tuple[str, list[int]]) -> list[str]:
    words, cuts = given
    edges = sorted({0, len(words), *(cut % (len(words) + 1) for cut in cuts)})
    return [words[one:next_] for one, next_ in pairwise(edges)]


@given(
    st.tuples(st.text(alphabet=st.characters(exclude_categories=["Cs"])), st.lists(st.integers(0)))
)
def test_however_a_text_is_split_it_is_given_whole(given: tuple[str, list[int]]) -> None:
    words = parts_of(given)
    chats = [*(said({"content": word}) for word in words), said({}, ended="stop")]
    calls = [call(0, id="c", function={"name": "f", "arguments": word}) for word in words]
    completions = [*map(text, words), text("", ended="stop")]
    assert whole(CHAT, chats)["choices"][0]["message"]["content"] == given[0]
    assert whole(COMPLETION, completions)["choices"][0]["text"] == given[0]
    if words:
        message = whole(CHAT, [*calls, chats[-1]])["choices"][0]["message"]
        assert message["tool_calls"][0]["function"]["arguments"] == given[0]
    told = [each["choices"][0]["delta"] for each in events(streamed(CHAT, chats))]
    assert "".join(delta.get("content", "") for delta in told) == given[0]


@pytest.mark.parametrize("as_base64", [False, True])
def test_embeddings_are_numbers_or_bytes(as_base64: bool) -> None:
    vectors = [[0.5, -1.0], [2.0, 0.25]]
    written = [embedding(vector, as_base64=as_base64) for vector in vectors]
    answer = json.loads(embeddings(written, model="m", usage=USAGE, account=ACCOUNT))
    assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert answer["aigovtool"] == TOLD_ACCOUNT
    told = [each["embedding"] for each in answer["data"]]
    if as_base64:
        assert [list(struct.unpack("<2f", base64.b64decode(each))) for each in told] == vectors
    else:
        assert told == vectors
        read = CreateEmbeddingResponse.model_validate(answer, strict=True)
        assert [each.index for each in read.data] == [0, 1]


def test_models_are_listed() -> None:
    one = model("m", created=1_700_000_000, owned_by="custodian")
    assert Model.model_validate(one, strict=True).id == "m"
    assert models(one) == {"object": "list", "data": [one]}
