"""What is asked in OpenAI's words: what is served gets through whole, and nothing else does."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigovtool.errors import BadPromptError, MalformedError, NotFoundError, TooLargeError
from aigovtool.wire.openai.fields import MAX_DEPTH, MAX_VALUES
from aigovtool.wire.openai.requests import (
    COMPLETION_TOKENS,
    EmbeddingsRequest,
    TextRequest,
    check_model,
    output_room,
    read_chat,
    read_completion,
    read_embeddings,
)

HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
OTHER = {"type": "function", "function": {"name": "leap"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}

Reader = Callable[[bytes], TextRequest | EmbeddingsRequest]
READERS: dict[Reader, dict[str, Any]] = {
    read_chat: {"model": "m", "messages": HELLO},
    read_completion: {"model": "m", "prompt": "once"},
    read_embeddings: {"model": "m", "input": "once"},
}


def chat(**more: Any) -> TextRequest:
    return read_chat(json.dumps(READERS[read_chat] | more).encode())


def completion(**more: Any) -> TextRequest:
    return read_completion(json.dumps(READERS[read_completion] | more).encode())


def embedded(**more: Any) -> EmbeddingsRequest:
    return read_embeddings(json.dumps(READERS[read_embeddings] | more).encode())


def refused(ask: Callable[..., Any], **more: Any) -> tuple[str, str | None]:
    with pytest.raises(BadPromptError) as caught:
        ask(**more)
    return caught.value.reasons[0].code, caught.value.param


def test_a_chat_gets_through_with_what_it_asks_for() -> None:
    request = chat(
        temperature=0,
        top_p=0.5,
        seed=7,
        stop="\n",
        presence_penalty=-1,
        frequency_penalty=1.5,
        logit_bias={"5": -100},
        logprobs=True,
        top_logprobs=3,
        max_completion_tokens=9,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert request == TextRequest(
        kind="chat",
        model="m",
        body={
            "messages": HELLO,
            "temperature": 0,
            "top_p": 0.5,
            "presence_penalty": -1,
            "frequency_penalty": 1.5,
            "seed": 7,
            "stop": ["\n"],
            "logit_bias": {"5": -100},
            "logprobs": True,
            "top_logprobs": 3,
        },
        stream=True,
        include_usage=True,
        max_output=9,
        logprobs=3,
        tools=False,
        text="hello",
    )


def test_what_only_tells_openai_who_asks_has_no_meaning_and_null_is_left_out() -> None:
    ignored = {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"}
    ignored |= {"safety_identifier": "s", "prompt_cache_key": "k", "n": 1, "reasoning_effort": None}
    assert chat(**ignored) == chat()
    assert chat(temperature=None, stop=None, tools=None, stream_options=None) == chat()
    assert completion(best_of=1, echo=False, suffix="", user="u") == completion()
    assert embedded(user="u", dimensions=None) == embedded()


def test_a_conversation_with_tools_reaches_the_model_as_it_went() -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "name": "ann", "content": [{"type": "text", "text": "look"}]},
        {"role": "assistant", "content": None, "refusal": None, "annotations": []}
        | {"function_call": None, "audio": None, "tool_calls": [CALL | {"index": 0}]},
        {"role": "tool", "tool_call_id": "c1", "content": "nothing"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    ]
    request = chat(messages=messages, tools=[TOOL], parallel_tool_calls=False)
    assert request.body == {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "look"}], "name": "ann"},
            {"role": "assistant", "tool_calls": [CALL], "content": ""},
            {"role": "tool", "content": "nothing", "tool_call_id": "c1"},
            {"role": "assistant", "content": [{"type": "text", "text": "no"}]},
        ],
        "tools": [TOOL],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
    }
    assert request.tools
    assert request.text == "be brief\nlook\n\nlook\n{}\nnothing\nno"


def test_a_chosen_function_is_the_only_one_and_must_be_called() -> None:
    choice = {"type": "function", "function": {"name": "leap"}}
    body = chat(tools=[TOOL, OTHER], tool_choice=choice).body
    assert [each["function"]["name"] for each in body["tools"]] == ["leap"]
    assert body["tool_choice"] == "required"
    assert body["parallel_tool_calls"]
    assert refused(chat, tools=[TOOL], tool_choice=choice) == ("invalid_value", "tool_choice")


def test_a_form_of_the_answer_is_passed_on_and_plain_text_needs_none() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}}
    assert chat(response_format={"type": "text"}) == chat()
    assert chat(response_format={"type": "json_object"}).body["response_format"] == {
        "type": "json_object"
    }
    assert chat(response_format=form).body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "a", "schema": schema},
    }


@pytest.mark.parametrize(
    ("prompt", "read", "text"),
    [
        ("once", "once", "once"),
        (["once"], "once", "once"),
        ([5, 6], [5, 6], "5 6"),
        ([[5, 6]], [5, 6], "5 6"),
    ],
)
def test_a_prompt_is_one_however_it_is_written(prompt: Any, read: Any, text: str) -> None:
    request = completion(prompt=prompt, logprobs=0)
    assert (request.body, request.text, request.logprobs) == (
        {"prompt": read, "logprobs": 0},
        text,
        0,
    )


def test_texts_to_embed_are_one_or_many() -> None:
    assert embedded() == EmbeddingsRequest(model="m", texts=("once",), base64=False)
    many = embedded(input=["a", "b"], encoding_format="base64")
    assert (many.texts, many.base64, many.text) == (("a", "b"), True, "a\nb")


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ({"model": None}, "missing_required_parameter", "model"),
        ({"model": 5}, "invalid_type", "model"),
        ({"messages": None}, "missing_required_parameter", "messages"),
        ({"messages": "hello"}, "invalid_type", "messages"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": ["hello"]}, "invalid_type", "messages[0]"),
        ({"messages": [{"content": "a"}]}, "missing_required_parameter", "messages[0].role"),
        ({"messages": [{"role": "god", "content": "a"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "invalid_type", "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": "a", "id_slot": 1}]},
            "unknown_parameter",
            "messages[0].id_slot",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "unsupported_value",
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "tool", "content": "a"}]},
            "missing_required_parameter",
            "messages[0].tool_call_id",
        ),
        ({"n": 2}, "unsupported_value", "n"),
        ({"n": True}, "unsupported_value", "n"),
        ({"modalities": ["audio"]}, "unsupported_value", "modalities"),
        ({"reasoning_effort": "high"}, "unsupported_value", "reasoning_effort"),
        ({"functions": []}, "unsupported_value", "functions"),
        ({"temperature": 2.1}, "invalid_value", "temperature"),
        ({"temperature": "0"}, "invalid_type", "temperature"),
        ({"top_p": True}, "invalid_type", "top_p"),
        ({"seed": 1.5}, "invalid_type", "seed"),
        ({"stop": ["a"] * 5}, "invalid_value", "stop"),
        ({"stop": ""}, "invalid_value", "stop"),
        ({"logit_bias": {"a": 1}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {"1": 101}}, "invalid_value", "logit_bias"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "invalid_value", "max_tokens"),
        ({"logprobs": 1}, "invalid_type", "logprobs"),
        ({"top_logprobs": 1}, "invalid_value", "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "invalid_value", "top_logprobs"),
        ({"stream": "yes"}, "invalid_type", "stream"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
        ({"stream": True, "stream_options": {"a": 1}}, "unknown_parameter", "stream_options.a"),
        ({"tools": []}, "invalid_value", "tools"),
        ({"tools": [{"type": "custom"}]}, "unsupported_value", "tools[0].type"),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "invalid_value",
            "tools[0].function.name",
        ),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "perhaps"}, "invalid_value", "tool_choice"),
        ({"response_format": {"type": "xml"}}, "invalid_value", "response_format.type"),
        (
            {"response_format": {"type": "json_schema"}},
            "missing_required_parameter",
            "response_format.json_schema",
        ),
        # what llama.cpp would take of a body
        ({"cache_prompt": False}, "unknown_parameter", "cache_prompt"),
        ({"id_slot": 0}, "unknown_parameter", "id_slot"),
        ({"n_predict": -1}, "unknown_parameter", "n_predict"),
        ({"grammar": "root ::= x"}, "unknown_parameter", "grammar"),
        ({"chat_template_kwargs": {}}, "unknown_parameter", "chat_template_kwargs"),
    ],
)
def test_a_refused_chat_names_what_is_wrong(more: Any, code: str, param: str) -> None:
    assert refused(chat, **more) == (code, param)


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ({"prompt": None}, "missing_required_parameter", "prompt"),
        ({"prompt": ""}, "invalid_value", "prompt"),
        ({"prompt": []}, "invalid_value", "prompt"),
        ({"prompt": 5}, "invalid_type", "prompt"),
        ({"prompt": [[]]}, "invalid_value", "prompt"),
        ({"prompt": [["a"]]}, "invalid_type", "prompt"),
        ({"prompt": [True]}, "invalid_type", "prompt"),
        ({"prompt": [-1]}, "invalid_value", "prompt"),
        ({"prompt": ["a", "b"]}, "unsupported_value", "prompt"),
        ({"prompt": [[1], [2]]}, "unsupported_value", "prompt"),
        ({"best_of": 2}, "unsupported_value", "best_of"),
        ({"echo": True}, "unsupported_value", "echo"),
        ({"suffix": "x"}, "unsupported_value", "suffix"),
        ({"logprobs": 6}, "invalid_value", "logprobs"),
        ({"logprobs": True}, "invalid_type", "logprobs"),
        ({"messages": HELLO}, "unknown_parameter", "messages"),
    ],
)
def test_a_refused_completion_names_what_is_wrong(more: Any, code: str, param: str) -> None:
    assert refused(completion, **more) == (code, param)


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ({"input": None}, "missing_required_parameter", "input"),
        ({"input": 5}, "invalid_type", "input"),
        ({"input": ""}, "invalid_value", "input[0]"),
        ({"input": ["a", 5]}, "invalid_type", "input[1]"),
        ({"input": [5, 6]}, "unsupported_value", "input"),
        ({"input": [[5]]}, "unsupported_value", "input"),
        ({"encoding_format": "hex"}, "invalid_value", "encoding_format"),
        ({"dimensions": 64}, "unsupported_value", "dimensions"),
    ],
)
def test_refused_embeddings_name_what_is_wrong(more: Any, code: str, param: str) -> None:
    assert refused(embedded, **more) == (code, param)


def test_an_unknown_parameter_is_called_as_openai_calls_it() -> None:
    with pytest.raises(BadPromptError, match=r"^Unrecognized request argument supplied: top_k$"):
        chat(top_k=5)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", MalformedError),
        (b"{", MalformedError),
        (b"\xff", MalformedError),
        (b'{"model": "a", "model": "b"}', MalformedError),
        (b'{"a": {"b": 1, "b": 1}}', MalformedError),
        (b'{"a": NaN}', MalformedError),
        (b'{"a": 1e999}', MalformedError),
        (b'{"a": 9223372036854775808}', MalformedError),
        (b'{"a": ' + b"9" * 5000 + b"}", MalformedError),
        (b'{"a": "\\ud800"}', MalformedError),
        (b'{"\\ud800": 1}', MalformedError),
        (b'{"a": ' + b"[" * MAX_DEPTH + b"1" + b"]" * MAX_DEPTH + b"}", MalformedError),
        (b"[" * 100_000, MalformedError),
        (b"[" + b"1," * MAX_VALUES + b"1]", TooLargeError),
        (b"[]", BadPromptError),
    ],
)
@pytest.mark.parametrize("read", READERS)
def test_what_is_no_request_is_refused_before_it_is_looked_at(
    read: Reader, body: bytes, kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        read(body)


def test_a_request_is_not_read_beyond_its_limit() -> None:
    body = json.dumps(READERS[read_chat]).encode()
    assert read_chat(body, max_bytes=len(body)).text == "hello"
    with pytest.raises(TooLargeError):
        read_chat(body, max_bytes=len(body) - 1)


def test_no_refusal_says_what_came() -> None:
    secret = "canary-7c1d"
    for more in (
        {"messages": [{"role": secret, "content": secret}]},
        {"messages": [{"role": "user", "content": [{"type": secret}]}]},
        {"stop": [secret, 5]},
        {"tool_choice": secret},
        {"response_format": {"type": secret}},
        {"model": [secret]},
    ):
        with pytest.raises(BadPromptError) as caught:
            chat(**more)
        assert secret not in str(caught.value)


def test_an_answer_gets_the_room_that_is_left() -> None:
    assert output_room(chat(), tokens=60, context=100) == 40
    assert output_room(chat(max_tokens=40), tokens=60, context=100) == 40
    assert output_room(completion(), tokens=60, context=100) == COMPLETION_TOKENS
    assert output_room(completion(), tokens=95, context=100) == 5
    for request, tokens, param in (
        (chat(max_tokens=41), 60, "messages"),
        (chat(), 100, "messages"),
        (completion(), 100, "prompt"),
    ):
        with pytest.raises(BadPromptError, match="maximum context length is 100") as caught:
            output_room(request, tokens=tokens, context=100)
        assert caught.value.reasons[0].code == "context_length_exceeded"
        assert caught.value.param == param


def test_only_the_model_that_is_served_is_found() -> None:
    check_model("m", "m")
    with pytest.raises(NotFoundError, match="expected m") as caught:
        check_model("gpt-4o", "m")
    assert caught.value.reasons[0].code == "model_not_found"


NAMES = st.sampled_from(
    (
        *("model", "messages", "prompt", "input", "role", "content", "type", "text", "tools"),
        *("tool_calls", "tool_choice", "function", "name", "arguments", "parameters", "stop"),
        *("response_format", "json_schema", "schema", "stream", "stream_options", "n", "logprobs"),
        *("top_logprobs", "logit_bias", "max_tokens", "seed", "temperature", "id", "refusal"),
    )
)
WORDS = st.sampled_from(("user", "assistant", "tool", "text", "function", "json_schema", "1", ""))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=20,
)


def read_safely(read: Reader, body: bytes) -> None:
    try:
        request = read(body)
    except (BadPromptError, MalformedError):
        return
    assert isinstance(request.text, str)
    if isinstance(request, TextRequest):
        json.dumps(request.body, allow_nan=False).encode()


@given(body=st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    for read in READERS:
        read_safely(read, body)


@given(more=st.dictionaries(NAMES, JSON, max_size=3))
def test_any_parameters_beside_good_ones_are_read_or_refused(more: dict[str, Any]) -> None:
    for read, good in READERS.items():
        read_safely(read, json.dumps(good | more).encode())


@given(
    role=st.sampled_from(("user", "assistant", "tool")),
    more=st.dictionaries(NAMES, JSON, max_size=3),
)
def test_any_message_is_read_or_refused(role: str, more: dict[str, Any]) -> None:
    message = {"role": role, "content": "a", "tool_call_id": "c"} | more
    read_safely(read_chat, json.dumps({"model": "m", "messages": [message]}).encode())
