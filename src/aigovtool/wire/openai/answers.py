"""
Answers as OpenAI gives them: in one piece, or as a stream of events.

Rule 1: the account of an answer (all its receipts) is told once, at its very end, so what ends an
        answer is held back until the account is known.
Rule 2: a stream that was whole ends with ``[DONE]``; one that was cut ends with an error event.

Sources: OpenAI's API reference, "The chat completion object" and "The chat completion chunk
object"; WHATWG HTML, "Server-sent events".
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from aigovtool.errors import AIGovToolError, PromiseBrokenError
from aigovtool.wire.openai.errors import describe

Kind = Literal["chat", "completion"]

STREAM_TYPE: Final = "text/event-stream"
JSON_TYPE: Final = "application/json"
_DONE: Final = b"data: [DONE]\n\n"
_ID_PREFIX: Final[Mapping[Kind, str]] = {"chat": "chatcmpl-", "completion": "cmpl-"}
_WHOLE_OBJECT: Final[Mapping[Kind, str]] = {
    "chat": "chat.completion",
    "completion": "text_completion",
}
_CHUNK_OBJECT: Final[Mapping[Kind, str]] = {
    "chat": "chat.completion.chunk",
    "completion": "text_completion",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """
    What every part of one answer says of it.

    Args:
        random: bytes that make its id, which nobody can foresee.
        created: Unix time in whole seconds.
    """

    kind: Kind
    random: bytes
    created: int
    model: str

    def members(self, names: Mapping[Kind, str]) -> dict[str, Any]:
        """Return them, as the object that *names* has for this kind."""
        return {
            "id": _ID_PREFIX[self.kind] + self.random.hex(),
            "object": names[self.kind],
            "created": self.created,
            "model": self.model,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """
    Tokens of one answer.

    Args:
        cached: of those of the input, how many were kept from before; they cost the same.
    """

    input: int
    output: int
    cached: int = 0

    def members(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.input,
            "completion_tokens": self.output,
            "total_tokens": self.input + self.output,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """
    What an answer cost: the member ``aigovtool``.

    Args:
        receipts: each as in the header, in the order in which they were drawn up, refunds too.
        remaining: credits that the consumer has left.
    """

    receipts: Sequence[str]
    remaining: int

    def members(self, usage: Usage) -> dict[str, Any]:
        """Return it with the tokens that it is for, which a stream may not tell elsewhere."""
        told = {"receipts": list(self.receipts), "remaining": self.remaining}
        return told | {"usage": usage.members()}


class Stream:
    """
    The events of one answer: `give` each chunk as the runtime tells it, then `end` or `fail`.

    Args:
        include_usage: whether the last chunk tells the usage, and the others that it is null.
    """

    def __init__(self, head: Head, *, include_usage: bool) -> None:
        self._chat = head.kind == "chat"
        self._members = head.members(_CHUNK_OBJECT)
        self._include_usage = include_usage
        self._begun = False
        self._last: dict[str, Any] | None = None

    def give(self, chunk: Mapping[str, Any]) -> bytes:
        """Return what is to be sent of *chunk*: nothing of the one that ends the answer."""
        (choice,) = chunk["choices"]
        if self._chat and not self._begun:
            choice = {**choice, "delta": {"role": "assistant", **choice["delta"]}}
        self._begun = True
        event = {**self._members, "choices": [choice]}
        if self._include_usage:
            event["usage"] = None
        if choice.get("finish_reason") is not None:
            self._last = event
            return b""
        return _event(event)

    def end(self, usage: Usage, account: Account) -> bytes:
        """
        Return the end of a whole answer.

        Raises:
            PromiseBrokenError: the runtime did not say why the answer ended.
        """
        if self._last is None:
            raise PromiseBrokenError("a runtime that ends an answer without a reason")
        if not self._include_usage:
            return _event(self._last | {"aigovtool": account.members(usage)}) + _DONE
        told = {"choices": [], "usage": usage.members(), "aigovtool": account.members(usage)}
        return _event(self._last) + _event(self._members | told) + _DONE

    def fail(self, error: AIGovToolError, usage: Usage, account: Account) -> bytes:
        """Return the end of an answer that was cut: what was given was paid for."""
        return _event(
            {
                "error": describe(error),
                "usage": usage.members(),
                "aigovtool": account.members(usage),
            }
        )


class Whole:
    """One answer put together: `add` each chunk as the runtime tells it, then `answer`."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._finish_reason: str | None = None
        self._texts: dict[str, list[str]] = {}
        self._calls: dict[int, dict[str, Any]] = {}
        self._logprobs: dict[str, Any] | None = None

    def add(self, chunk: Mapping[str, Any]) -> None:
        (choice,) = chunk["choices"]
        said = choice["delta"] if self._head.kind == "chat" else {"content": choice["text"]}
        for name in ("content", "refusal", "reasoning_content"):
            if (text := said.get(name)) is not None:
                self._texts.setdefault(name, []).append(text)
        for call in said.get("tool_calls") or ():
            self._add_call(call)
        if (logprobs := choice.get("logprobs")) is not None:
            self._add_logprobs(logprobs)
        self._finish_reason = choice.get("finish_reason") or self._finish_reason

    def answer(self, usage: Usage, account: Account) -> bytes:
        """
        Return the whole answer.

        Raises:
            PromiseBrokenError: the runtime did not say why the answer ended.
        """
        if self._finish_reason is None:
            raise PromiseBrokenError("a runtime that ends an answer without a reason")
        choice: dict[str, Any] = {"index": 0}
        if self._head.kind == "chat":
            choice["message"] = self._message()
        else:
            choice["text"] = self._text("content") or ""
        choice |= {"logprobs": self._logprobs, "finish_reason": self._finish_reason}
        return msgspec.json.encode(
            self._head.members(_WHOLE_OBJECT)
            | {
                "choices": [choice],
                "usage": usage.members(),
                "aigovtool": account.members(usage),
            }
        )

    def _message(self) -> dict[str, Any]:
        content = self._text("content")
        if content is None and not self._calls:
            content = ""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content,
            "refusal": self._text("refusal"),
        }
        if (reasoning := self._text("reasoning_content")) is not None:
            message["reasoning_content"] = reasoning
        if self._calls:
            message["tool_calls"] = [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": "".join(call["arguments"])},
                }
                for _, call in sorted(self._calls.items())
            ]
        return message

    def _text(self, name: str) -> str | None:
        return "".join(self._texts[name]) if name in self._texts else None

    def _add_call(self, part: Mapping[str, Any]) -> None:
        """Add to a call: its id and name come with its first part, its arguments in any number."""
        call = self._calls.setdefault(part["index"], {"id": "", "name": "", "arguments": []})
        function = part.get("function") or {}
        call["id"] = part.get("id") or call["id"]
        call["name"] = function.get("name") or call["name"]
        call["arguments"].append(function.get("arguments") or "")

    def _add_logprobs(self, logprobs: Mapping[str, Any]) -> None:
        """Add lists by their names; those of chats and of completions have different ones."""
        if self._logprobs is None:
            self._logprobs = {}
        for name, more in logprobs.items():
            known = self._logprobs.get(name)
            self._logprobs[name] = known if more is None else [*(known or ()), *more]


def embedding(vector: Sequence[float], *, as_base64: bool) -> msgspec.Raw:
    """Write one embedding, as `embeddings` takes it; base64 is of little-endian 4-byte floats."""
    return msgspec.Raw(msgspec.json.encode(_base64(vector) if as_base64 else list(vector)))


def embeddings(
    written: Sequence[msgspec.Raw], *, model: str, usage: Usage, account: Account
) -> bytes:
    """Return the answer to a request for embeddings."""
    return msgspec.json.encode(
        {
            "object": "list",
            "data": [
                {
                    "object": "embedding",
                    "index": number,
                    "embedding": each,
                }
                for number, each in enumerate(written)
            ],
            "model": model,
            "usage": {"prompt_tokens": usage.input, "total_tokens": usage.input},
            "aigovtool": account.members(usage),
        }
    )


def model(name: str, *, created: int, owned_by: str) -> dict[str, Any]:
    """Return the answer to ``GET /v1/models/NAME``; *created* is a Unix time in seconds."""
    return {"id": name, "object": "model", "created": created, "owned_by": owned_by}


def models(*each: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to ``GET /v1/models``, of what `model` gives."""
    return {"object": "list", "data": list(each)}


def _base64(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _event(members: Mapping[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(members) + b"\n\n"  # JSON of msgspec is one line
