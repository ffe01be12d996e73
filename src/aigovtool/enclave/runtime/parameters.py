"""
From a request in OpenAI's words to one that llama.cpp takes, and from its chunks to OpenAI's.

Rule 1: what is not listed here does not get to llama.cpp, which takes much more from a request's
        body than OpenAI does: slots, adapters, grammars, samplers, how much it keeps and produces.
Rule 2: one run is one choice of one prompt. llama.cpp counts the tokens of one when there are more.
Rule 3: nobody gets more alternatives of a token than were asked for: llama.cpp gives 20 when the
        number is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aigovtool.enclave.runtime.base import Kind, Prompt
from aigovtool.errors import BadPromptError

_SAMPLING = (
    *("stop", "seed", "temperature", "top_p"),
    *("presence_penalty", "frequency_penalty", "logit_bias"),
)
_INPUT: Mapping[Kind, Sequence[str]] = {
    "chat": ("messages", "tools", "tool_choice", "parallel_tool_calls", "response_format"),
    "completion": ("prompt",),
}


def input_of(kind: Kind, body: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the parameters that decide which tokens the input has.

    Raises:
        BadPromptError: several prompts, or none.
    """
    chosen = _chosen(body, _INPUT[kind])
    if kind == "completion" and not _is_one_prompt(chosen.get("prompt")):
        raise BadPromptError(
            "not one prompt", expected="a text, or the numbers of its tokens", param="prompt"
        )
    return chosen


def run_of(prompt: Prompt, *, slot: int, cached: bool) -> dict[str, Any]:
    """
    Return the body of a run that streams.

    Args:
        slot: that computes it.
        cached: whether what that slot has kept may be used.

    Raises:
        BadPromptError: nothing may be produced, or as `input_of`.
    """
    if prompt.max_output < 1:  # of which llama.cpp would make 1
        raise BadPromptError("an answer has at least one token", param="max_tokens")
    body = input_of(prompt.kind, prompt.body) | _chosen(prompt.body, _SAMPLING)
    if (alternatives := alternatives_of(prompt)) is not None:
        if prompt.kind == "chat":
            body |= {"logprobs": True, "top_logprobs": max(1, alternatives)}
        else:
            body["logprobs"] = max(1, alternatives)
    return body | {
        "max_tokens": prompt.max_output,
        "stream": True,
        "timings_per_token": True,  # which count tokens, where a chunk may stand for several
        "return_progress": True,  # so that there are chunks to answer while the input is read
        "id_slot": slot,
        "cache_prompt": cached,
    }


def alternatives_of(prompt: Prompt) -> int | None:
    """Return how many alternatives of each token are asked for; None for no probabilities."""
    asked = prompt.body.get("logprobs")
    if prompt.kind == "completion":
        return None if asked is None else int(asked)
    return int(prompt.body.get("top_logprobs") or 0) if asked else None


def trimmed(logprobs: Mapping[str, Any], alternatives: int) -> dict[str, Any]:
    """Return the probabilities of a chat's chunk with so many alternatives of each token."""
    return {
        "content": [
            _plain(one)
            | {"top_logprobs": [_plain(top) for top in one["top_logprobs"]][:alternatives]}
            for one in logprobs["content"]
        ],
        "refusal": None,
    }


def as_completion(logprobs: Mapping[str, Any], alternatives: int, offset: int) -> dict[str, Any]:
    """
    Return probabilities as completions have them; llama.cpp gives those of chats for both.

    Args:
        offset: characters of the answer before this chunk.
    """
    tokens = logprobs["content"]
    offsets = []
    for one in tokens:
        offsets.append(offset)
        offset += len(one["token"])
    return {
        "tokens": [one["token"] for one in tokens],
        "token_logprobs": [one["logprob"] for one in tokens],
        "top_logprobs": [
            {top["token"]: top["logprob"] for top in one["top_logprobs"][:alternatives]}
            for one in tokens
        ]
        if alternatives
        else None,
        "text_offset": offsets,
    }


def _plain(token: Mapping[str, Any]) -> dict[str, Any]:
    return {name: token[name] for name in ("token", "bytes", "logprob")}


def _chosen(body: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: body[name] for name in names if body.get(name) is not None}


def _is_one_prompt(prompt: Any) -> bool:
    if isinstance(prompt, list):
        return bool(prompt) and all(type(one) is int for one in prompt)
    return isinstance(prompt, str)
