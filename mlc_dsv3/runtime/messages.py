"""OpenAI-style messages, checked and brought into the form that chat templates read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from mlc_dsv3.errors import UserError

Message = dict[str, Any]  # "role" and "content", and what else the template reads
Conversation = Sequence[Message]

_REASONING = ("reasoning_content", "reasoning")


class ChatOptions(TypedDict, total=False):
    """How a conversation becomes a prompt.

    tools: JSON schemas of functions that the model may call; UserError where the chat template does not read them.
    template_kwargs: variables of the chat template, such as `{"enable_thinking": False}`; UserError for others.
    parse_control_tokens: let control tokens in the text of messages (`<|user|>`) act as such. By default text is text.
    """

    tools: Sequence[Mapping[str, Any]] | None
    template_kwargs: Mapping[str, Any] | None
    parse_control_tokens: bool


def template_messages(conversation: Conversation) -> list[Message]:
    """The messages with text for content, reasoning under both of its names, and without fields that are None.

    Raises UserError, with the message's number, for what is not a message.
    """
    return [_template_message(message, f"message {number}") for number, message in enumerate(conversation, 1)]


def _template_message(message: object, where: str) -> Message:
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
    return fields


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
