"""OpenAI-style messages, checked and brought into the form that chat templates read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import TYPE_CHECKING, Any, TypedDict

from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.call_form import CallForm

if TYPE_CHECKING:
    from mlc_dsv3.runtime.sampled_calls import SampledCalls

Message = dict[str, Any]  # "role" and "content", and what else the template reads
Conversation = Sequence[Message]

_REASONING = ("reasoning_content", "reasoning")


class ChatOptions(TypedDict, total=False):
    """How a conversation becomes a prompt.

    tools: JSON schemas of functions that the model may call; UserError where the chat template does not read them.
    template_kwargs: variables of the chat template, such as `{"enable_thinking": False}`; UserError for others.
    parse_control_tokens: let control tokens in the text of messages (`<|user|>`) act as such. By default text is text.
    sampled_calls: tool calls that keep the text that the model wrote them as.
    """

    tools: Sequence[Mapping[str, Any]] | None
    template_kwargs: Mapping[str, Any] | None
    parse_control_tokens: bool
    sampled_calls: SampledCalls | None


def template_messages(conversation: Conversation, form: Callable[[], CallForm] = CallForm) -> list[Message]:
    """The messages with text for content, reasoning under both of its names, and without fields that are None.

    Tool calls are brought into the `form` that the template reads, which is asked for where there are calls.
    Raises UserError, with the message's number, for what is not a message.
    """
    return [_template_message(message, f"message {number}", form) for number, message in enumerate(conversation, 1)]


def _template_message(message: object, where: str, form: Callable[[], CallForm]) -> Message:
    if not isinstance(message, Mapping):
        raise UserError(f"{where} is of the type {type(message).__name__}; it must be an object with role and content")
    fields = {name: value for name, value in message.items() if value is not None}
    if not isinstance(fields.get("role"), str):
        raise UserError(f"{where} has no role, such as user or assistant")
    if "content" in fields:
        fields["content"] = _text(fields["content"], where)
    said = {name: fields[name] for name in _REASONING if name in fields}
    if len(said) == 2 and len(set(map(str, said.values()))) == 2:
        raise UserError(f"{where} has both reasoning_content and reasoning, and they differ; leave one out")
    for name in _REASONING if said else ():
        fields[name] = _text(next(iter(said.values())), where)
    if not fields.get("tool_calls", True):
        del fields["tool_calls"]  # templates take an empty list for calls
    if "tool_calls" in fields:
        fields["tool_calls"] = _calls(fields["tool_calls"], where, form())
        fields["content"] = fields.get("content") or form().empty_content
    return fields


def _calls(calls: object, where: str, form: CallForm) -> list[dict[str, Any]]:
    if not isinstance(calls, (list, tuple)):
        raise UserError(f"{where} has tool_calls of the type {type(calls).__name__}; they must be a list")
    return [_call(call, f"call {number} of {where}", form) for number, call in enumerate(calls, 1)]


def _call(call: object, where: str, form: CallForm) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UserError(f'{where} is not {{"id": …, "type": "function", "function": {{"name": …, "arguments": …}}}}')
    arguments = function.get("arguments")
    if not isinstance(arguments, (str, Mapping, NoneType)):
        raise UserError(
            f"{where} has arguments of the type {type(arguments).__name__}; they must be JSON text or an object"
        )
    if form.objects is not None:
        arguments = argument_object(arguments) if form.objects else argument_text(arguments)
    function = {**function, "arguments": arguments}
    return {"type": "function", **call, "function": function} if "function" in call else function


def argument_text(arguments: str | Mapping[str, Any] | None) -> str:
    """A call's arguments as JSON text, as they are where they are text."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)


def argument_object(arguments: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """A call's arguments as an object. What is none, as of an answer that broke off, comes under one name, as it is."""
    if isinstance(arguments, Mapping):
        return dict(arguments)
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"unreadable_arguments": arguments}


def _text(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise UserError(
            f"{where} has content of the type {type(content).__name__}; it must be text or a list of text parts"
        )
    return "".join(_part_text(part, f"part {number} of {where}") for number, part in enumerate(content, 1))


def _part_text(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind != "text":
        raise UserError(f"{where} is of the type {kind!r}; only text parts are read")
    if not isinstance(part.get("text"), str):
        raise UserError(f"{where} has no text; a text part is {{'type': 'text', 'text': '…'}}")
    return part["text"]
