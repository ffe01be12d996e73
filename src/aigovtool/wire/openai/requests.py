"""
The bodies of ``/v1/chat/completions``, ``/v1/completions`` and ``/v1/embeddings``.

Rule 1: what would change the answer and is not supported is refused; what only tells OpenAI who
        asks, or where to keep it, is taken and has no meaning.
Rule 2: one request is one prompt and one choice: it costs what its usage says.

Sources: OpenAI's API reference; openai-python, ``types/``; llama.cpp, ``tools/server/README.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from aigovtool.errors import BadPromptError, NotFoundError
from aigovtool.wire.openai.chat import (
    read_messages,
    read_response_format,
    read_tools,
    texts_of,
)
from aigovtool.wire.openai.fields import (
    MAX_BODY_BYTES,
    MAX_NAME_CHARACTERS,
    Fields,
    check_list,
    check_number,
    check_text,
    read_object,
    unsupported,
    wrong_type,
    wrong_value,
)

COMPLETION_TOKENS: Final = 16  # of a completion that does not say how many; OpenAI's
MAX_TOKENS: Final = 1 << 31
MAX_PROMPT_TOKENS: Final = 1 << 17  # given as numbers
MAX_BIASES: Final = 1024
MAX_STOPS: Final = 4  # OpenAI's own limit
MAX_STOP_CHARACTERS: Final = 1024
MAX_EMBEDDED: Final = 2048  # texts; OpenAI's own limit
_MAX_SEED: Final = (1 << 63) - 1

_IGNORED: Final = (
    *("user", "metadata", "store", "service_tier", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRequest:
    """
    What is asked of a language model that is to go on from text.

    Args:
        body: what the runtime is told, in OpenAI's words; nothing else is in it. ``stop`` is a
            list, ``tool_choice`` a word.
        include_usage: a stream ends with a chunk that tells its usage.
        max_output: tokens at the most, None when the request does not say; see `output_room`.
        logprobs: alternatives of each token that are asked for, None for no probabilities.
        tools: whether the answer may call some.
        text: all that the input says, in one piece, to be compared with other inputs.
    """

    kind: Literal["chat", "completion"]
    model: str
    body: Mapping[str, Any]
    stream: bool
    include_usage: bool
    max_output: int | None
    logprobs: int | None
    tools: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingsRequest:
    """
    Args:
        texts: each to be embedded.
        base64: whether vectors are wanted as such, of 4-byte floats, or as numbers.
    """

    model: str
    texts: tuple[str, ...]
    base64: bool

    @property
    def text(self) -> str:
        """All that the input says, as `TextRequest.text`."""
        return "\n".join(self.texts)


def read_chat(data: bytes, *, max_bytes: int = MAX_BODY_BYTES) -> TextRequest:
    """
    Read a request for a chat completion.

    Raises:
        BadPromptError: not one that is served; it names the parameter.
        MalformedError, TooLargeError: as `fields.read_object`.
    """
    request = read_object(data, max_bytes=max_bytes)
    model = _model(request)
    messages = read_messages(request)
    tools = read_tools(request)
    body = {"messages": messages} | tools | read_response_format(request) | _sampling(request)
    top = request.integer("top_logprobs", 0, 20)
    logprobs = None
    if request.flag("logprobs"):
        logprobs = top or 0
        body |= {"logprobs": True, "top_logprobs": logprobs}
    elif top is not None:
        raise wrong_value("top_logprobs", "left out, or `logprobs` is true")
    max_output = request.integer("max_completion_tokens", 1, MAX_TOKENS)
    older = request.integer("max_tokens", 1, MAX_TOKENS)
    if max_output is not None and older is not None:
        raise wrong_value("max_tokens", "left out where there is `max_completion_tokens`")
    stream, include_usage = _streaming(request)
    request.only("modalities", ["text"])
    for name in ("audio", "prediction", "reasoning_effort", "verbosity", "web_search_options"):
        request.only(name)
    for name in ("functions", "function_call"):
        request.only(name)
    request.only("n", 1)
    request.ignore(*_IGNORED)
    request.end()
    return TextRequest(
        kind="chat",
        model=model,
        body=body,
        stream=stream,
        include_usage=include_usage,
        max_output=max_output or older,
        logprobs=logprobs,
        tools=bool(tools),
        text="\n".join(texts_of(messages)),
    )


def read_completion(data: bytes, *, max_bytes: int = MAX_BODY_BYTES) -> TextRequest:
    """
    Read a request for a completion.

    Raises:
        BadPromptError: not one that is served; it names the parameter.
        MalformedError, TooLargeError: as `fields.read_object`.
    """
    request = read_object(data, max_bytes=max_bytes)
    model = _model(request)
    prompt = _prompt(request.need("prompt"))
    body = {"prompt": prompt} | _sampling(request)
    logprobs = request.integer("logprobs", 0, 5)
    if logprobs is not None:
        body["logprobs"] = logprobs
    max_output = request.integer("max_tokens", 1, MAX_TOKENS)
    stream, include_usage = _streaming(request)
    request.only("n", 1)
    request.only("best_of", 1)
    request.only("echo", False)
    request.only("suffix", "")
    request.ignore(*_IGNORED)
    request.end()
    return TextRequest(
        kind="completion",
        model=model,
        body=body,
        stream=stream,
        include_usage=include_usage,
        max_output=max_output,
        logprobs=logprobs,
        tools=False,
        text=prompt if isinstance(prompt, str) else " ".join(map(str, prompt)),
    )


def read_embeddings(data: bytes, *, max_bytes: int = MAX_BODY_BYTES) -> EmbeddingsRequest:
    """
    Read a request for embeddings.

    Raises:
        BadPromptError: not one that is served; it names the parameter.
        MalformedError, TooLargeError: as `fields.read_object`.
    """
    request = read_object(data, max_bytes=max_bytes)
    model = _model(request)
    given = request.need("input")
    if not isinstance(given, str):
        check_list(given, "input", most=MAX_EMBEDDED)
        if not isinstance(given[0], str):
            # Some clients number tokens as OpenAI's models do; here that would be other words
            raise unsupported("input", "a string, or an array of strings")
    texts = (given,) if isinstance(given, str) else tuple(given)
    for number, text in enumerate(texts):
        check_text(text, f"input[{number}]", min_characters=1)
    form = request.take("encoding_format")
    if form not in (None, "float", "base64"):
        raise wrong_value("encoding_format", "float or base64")
    request.only("dimensions")
    request.ignore(*_IGNORED)
    request.end()
    return EmbeddingsRequest(model=model, texts=texts, base64=form == "base64")


def check_model(asked: str, served: str) -> None:
    """Raise NotFoundError unless *asked* is the model that is served."""
    if asked != served:
        raise NotFoundError("the model does not exist", code="model_not_found", expected=served)


def output_room(request: TextRequest, *, tokens: int, context: int) -> int:
    """
    Return how many tokens the answer to *request* may have.

    Args:
        tokens: of its input.
        context: that input and output may have together.

    Raises:
        BadPromptError: there is no room for as many as it asks for, or for one.
    """
    room = context - tokens
    wanted = request.max_output or 1
    if wanted > room:
        raise BadPromptError(
            f"this model's maximum context length is {context} tokens",
            code="context_length_exceeded",
            expected=f"at most {context} tokens, input and output together",
            came=f"{tokens} in the input and {wanted} for the output",
            mend="shorten the input, or ask for fewer tokens",
            param="messages" if request.kind == "chat" else "prompt",
        )
    if request.max_output is not None:
        return request.max_output
    return room if request.kind == "chat" else min(room, COMPLETION_TOKENS)


def _model(request: Fields) -> str:
    return request.need_text("model", max_characters=MAX_NAME_CHARACTERS)


def _prompt(prompt: Any) -> str | list[int]:
    """Return one prompt, which may be the only one of a list."""
    if isinstance(prompt, list):
        check_list(prompt, "prompt", most=MAX_PROMPT_TOKENS)
        if not all(type(each) is int for each in prompt):
            if len(prompt) > 1:
                raise unsupported("prompt", "one prompt a request")
            (prompt,) = prompt
    if isinstance(prompt, str):
        check_text(prompt, "prompt", min_characters=1)
        return prompt
    if not isinstance(prompt, list) or not all(type(each) is int for each in prompt):
        raise wrong_type("prompt", "a string, or an array of tokens")
    check_list(prompt, "prompt", most=MAX_PROMPT_TOKENS)
    if not all(0 <= each < MAX_TOKENS for each in prompt):
        raise wrong_value("prompt", "numbers of tokens")
    return prompt


def _sampling(request: Fields) -> dict[str, Any]:
    """Return how tokens are chosen, and where the answer ends."""
    chosen: dict[str, Any] = {
        "temperature": request.number("temperature", 0, 2),
        "top_p": request.number("top_p", 0, 1),
        "presence_penalty": request.number("presence_penalty", -2, 2),
        "frequency_penalty": request.number("frequency_penalty", -2, 2),
        "seed": request.integer("seed", -_MAX_SEED, _MAX_SEED),
        "stop": _stop(request.take("stop")),
        "logit_bias": _biases(request.take("logit_bias")),
    }
    return {name: value for name, value in chosen.items() if value is not None}


def _stop(stop: Any) -> Sequence[str] | None:
    if stop is None or stop == []:
        return None
    stops = [stop] if isinstance(stop, str) else stop
    check_list(stops, "stop", most=MAX_STOPS)
    for each in stops:
        check_text(each, "stop", min_characters=1, max_characters=MAX_STOP_CHARACTERS)
    return list(stops)


def _biases(biases: Any) -> Mapping[str, float] | None:
    if biases is None:
        return None
    if not isinstance(biases, dict):
        raise wrong_type("logit_bias", "an object of numbers by tokens")
    if len(biases) > MAX_BIASES:
        raise wrong_value("logit_bias", f"at most {MAX_BIASES} tokens")
    for token, bias in biases.items():
        if not (token.isascii() and token.isdecimal() and len(token) <= 10):
            raise wrong_value("logit_bias", "numbers of tokens as names")
        check_number(bias, "logit_bias", -100, 100)
    return dict(biases)


def _streaming(request: Fields) -> tuple[bool, bool]:
    """Return whether the answer is streamed, and whether its usage is told in the stream."""
    stream = request.flag("stream")
    options = request.take("stream_options")
    if options is None:
        return stream, False
    if not stream:
        raise wrong_value("stream_options", "left out where `stream` is not true")
    given = Fields(options, "stream_options")
    include_usage = given.flag("include_usage")
    given.flag("include_obfuscation")  # chunks in TLS records of one size: not made here
    given.end()
    return stream, include_usage
