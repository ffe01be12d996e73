"""
What a conversation is made of: messages, tools, and the form that its answer is to have.

What comes out is made anew of what was understood, so nothing else gets to a model's template.

Source: OpenAI's API reference, "Create chat completion".
"""

from __future__ import annotations

import re
from typing import Any, Final

from aigovtool.wire.openai.fields import (
    MAX_NAME_CHARACTERS,
    Fields,
    check_text,
    unsupported,
    wrong_type,
    wrong_value,
)

MAX_MESSAGES: Final = 2048
MAX_PARTS: Final = 1024  # of one message
MAX_TOOLS: Final = 128  # OpenAI's own limit, and for calls of one message
_ROLES: Final = ("developer", "system", "user", "assistant", "tool")
_FUNCTION_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}\Z")


def read_messages(request: Fields) -> list[dict[str, Any]]:
    """
    Return the messages as a model's template takes them.

    Raises:
        BadPromptError: one of them is not as it should be, or there is none.
    """
    read = [_message(each) for each in request.objects("messages", most=MAX_MESSAGES)]
    if not read:
        request.need("messages")
    return read


def texts_of(messages: list[dict[str, Any]]) -> list[str]:
    """Return all that *messages* say, in their order, calls of tools included."""
    texts = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            texts.append(content)
        elif content is not None:
            texts += [part["text"] for part in content]
        if "reasoning_content" in message:
            texts.append(message["reasoning_content"])
        for call in message.get("tool_calls", ()):
            texts += [call["function"]["name"], call["function"]["arguments"]]
    return texts


def read_tools(request: Fields) -> dict[str, Any]:
    """
    Return ``tools``, ``tool_choice`` and ``parallel_tool_calls``; nothing when there is no tool.

    A choice of one function is the choice of any, with no other there.

    Raises:
        BadPromptError: they are not as they should be, or the chosen one is not among them.
    """
    tools = [_tool(each) for each in request.objects("tools", most=MAX_TOOLS)]
    choice = request.take("tool_choice")
    parallel = request.flag("parallel_tool_calls", default=True)
    if isinstance(choice, dict):
        name = _chosen_function(Fields(choice, "tool_choice"))
        tools = [each for each in tools if each["function"]["name"] == name]
        if not tools:
            raise wrong_value("tool_choice", "a function of `tools`")
        choice = "required"
    elif choice not in (None, "none", "auto", "required"):
        raise wrong_value("tool_choice", "none, auto, required, or a function of `tools`")
    if not tools:
        if choice == "required":
            raise wrong_value("tool_choice", "none or auto where there are no `tools`")
        return {}
    return {"tools": tools, "tool_choice": choice or "auto", "parallel_tool_calls": parallel}


def read_response_format(request: Fields) -> dict[str, Any]:
    """
    Return ``response_format``; nothing for plain text.

    Raises:
        BadPromptError: not text, a JSON object, or JSON of a schema.
    """
    if (value := request.take("response_format")) is None:
        return {}
    given = Fields(value, "response_format")
    kind = given.choice("type", ("text", "json_object", "json_schema"))
    form: dict[str, Any] = {"type": kind}
    if kind == "json_schema":
        described = given.object("json_schema")
        form["json_schema"] = {
            "name": _function_name(described, "name"),
            "schema": _schema(described, "schema") or {},
        }
        described.text("description")
        described.flag("strict")  # the runtime holds the answer to the schema in any case
        described.end()
    given.end()
    return {} if kind == "text" else {"response_format": form}


def _message(given: Fields) -> dict[str, Any]:
    role = given.choice("role", _ROLES)
    # What OpenAI calls developer now, models' templates know as system
    message: dict[str, Any] = {"role": "system" if role == "developer" else role}
    content = given.take("content")
    if content is not None:
        message["content"] = _content(content, given.param("content"), role)
    if (name := given.text("name", max_characters=MAX_NAME_CHARACTERS)) is not None:
        message["name"] = name
    if role == "tool":
        message["tool_call_id"] = given.need_text(
            "tool_call_id", max_characters=MAX_NAME_CHARACTERS
        )
    if role == "assistant":
        _assistant(given, message)
    if "content" not in message and "tool_calls" not in message:
        given.need("content")
    given.end()
    return message


def _assistant(given: Fields, message: dict[str, Any]) -> None:
    """Read what only answers have; they come back as they were given."""
    if calls := [_call(each) for each in given.objects("tool_calls", most=MAX_TOOLS)]:
        message["tool_calls"] = calls
        message.setdefault("content", "")
    if (refusal := given.text("refusal")) is not None:
        message.setdefault("content", refusal)
    if (reasoning := given.text("reasoning_content")) is not None:
        message["reasoning_content"] = reasoning
    given.only("annotations", [])


def _content(content: Any, param: str, role: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong_type(param, "a string, or an array of parts")
    if not 1 <= len(content) <= MAX_PARTS:
        raise wrong_value(param, f"1 to {MAX_PARTS} items")
    return [_part(Fields(part, f"{param}[{number}]"), role) for number, part in enumerate(content)]


def _part(given: Fields, role: str) -> dict[str, Any]:
    kind = given.need("type")
    if kind == "refusal" and role == "assistant":
        text = given.need("refusal")
        check_text(text, given.param("refusal"))
    elif kind == "text":
        text = given.need("text")
        check_text(text, given.param("text"))
    else:
        raise unsupported(given.param("type"), "text")
    given.end()
    return {"type": "text", "text": text}


def _call(given: Fields) -> dict[str, Any]:
    given.ignore("index")  # of the stream in which it was given
    call = {
        "id": given.need_text("id", max_characters=MAX_NAME_CHARACTERS),
        "type": given.choice("type", ("function",)),
    }
    function = given.object("function")
    arguments = function.need("arguments")
    check_text(arguments, function.param("arguments"))
    called = {"name": _function_name(function, "name"), "arguments": arguments}
    function.end()
    given.end()
    return call | {"function": called}


def _tool(given: Fields) -> dict[str, Any]:
    if given.need("type") != "function":
        raise unsupported(given.param("type"), "function")
    function = given.object("function")
    described: dict[str, Any] = {"name": _function_name(function, "name")}
    if (description := function.text("description")) is not None:
        described["description"] = description
    described["parameters"] = _schema(function, "parameters") or {
        "type": "object",
        "properties": {},
    }
    function.flag("strict")  # no call is checked here: the consumer reads it anyway
    function.end()
    given.end()
    return {"type": "function", "function": described}


def _chosen_function(given: Fields) -> str:
    if given.need("type") != "function":
        raise unsupported("tool_choice.type", "function")
    function = given.object("function")
    name = _function_name(function, "name")
    function.end()
    given.end()
    return name


def _function_name(given: Fields, name: str) -> str:
    value = given.need_text(name, max_characters=MAX_NAME_CHARACTERS)
    if _FUNCTION_NAME.match(value) is None:
        raise wrong_value(given.param(name), "1 to 64 letters, digits, underscores and dashes")
    return value


def _schema(given: Fields, name: str) -> dict[str, Any] | None:
    value = given.take(name)
    if value is not None and not isinstance(value, dict):
        raise wrong_type(given.param(name), "a JSON schema")
    return value
