"""Calls of tools in a conversation's history, in the form that the chat template reads, and as they were sampled.

A prompt finds its prefix in the cache only where it repeats an earlier answer to the letter. Clients parse a call's
arguments and write them anew, so that what was sampled is remembered here by the call's id.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.messages import Message
from mlc_dsv3.runtime.tokenizer import Tokenizer

_MOST_CHARACTERS = 2**24
_PROBE = {"probed key": "probed value"}


class ToolHistory:
    """May be used from several threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._reads_objects = _reads_objects(tokenizer)
        self._sampled: OrderedDict[str, str] = OrderedDict()
        self._characters = 0
        self._lock = threading.Lock()

    def remember(self, identity: str, arguments: str) -> None:
        """Keep the arguments of a call that an answer has made; the oldest go when there are too many."""
        with self._lock:
            self._characters += len(arguments) - len(self._sampled.pop(identity, ""))
            self._sampled[identity] = arguments
            while self._characters > _MOST_CHARACTERS:
                self._characters -= len(self._sampled.popitem(last=False)[1])

    def in_templates_form(self, message: Message, number: int) -> Message:
        """A conversation's message, whose calls the template can read. UserError for what is no call."""
        calls = message.get("tool_calls")
        if not calls:
            return message
        if not isinstance(calls, (list, tuple)):
            raise UserError(f"tool_calls of message {number} is not a list")
        return {**message, "tool_calls": [self._call(call, f"a tool call of message {number}") for call in calls]}

    def _call(self, call: object, where: str) -> dict[str, Any]:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise UserError(f'{where} is not {{"type": "function", "function": {{"name": …, "arguments": …}}}}')
        arguments = function.get("arguments")
        if arguments is not None and not isinstance(arguments, (str, Mapping)):
            raise UserError(f"{where} has arguments that are neither JSON text nor an object")
        text = arguments or "{}" if not isinstance(arguments, Mapping) else json.dumps(arguments, ensure_ascii=False)
        text = self._as_sampled(call.get("id"), text)
        return {**call, "function": {**function, "arguments": as_object(text) if self._reads_objects else text}}

    def _as_sampled(self, identity: object, text: str) -> str:
        with self._lock:
            sampled = self._sampled.get(identity) if isinstance(identity, str) else None
        return sampled if sampled is not None and as_object(sampled) == as_object(text) else text


def as_object(arguments: str) -> dict[str, Any]:
    """A call's arguments. What is not an object, as of an answer that broke off, comes under one name, as it is."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"unreadable_arguments": arguments}


def _reads_objects(tokenizer: Tokenizer) -> bool:
    """Whether the chat template wants arguments as an object, and not as JSON text: what it makes of the text tells."""
    text = json.dumps(_PROBE)
    call = {"id": "call_0", "type": "function", "function": {"name": "probe", "arguments": text}}
    conversation = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_0", "content": "x"},
    ]
    for arguments, reads_objects in ((text, False), (_PROBE, True)):
        call["function"]["arguments"] = arguments
        try:
            written = tokenizer.chat_text(conversation)
        except UserError:  # the template takes the other form, or knows no calls at all
            continue
        if _PROBE["probed key"] in written and json.dumps(text)[1:-1] not in written:  # text that is escaped once more
            return reads_objects
    return False
