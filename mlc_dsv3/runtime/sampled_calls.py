"""Tool calls in a prompt with exactly the text that they were sampled as, so that the prompt begins as the cache does.

A template writes a mark in place of the arguments of a call whose text is known; then the text takes the place of the
call around the mark.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from mlc_dsv3.runtime.control_tokens import BREAK, SHOWN, ControlTokens
from mlc_dsv3.runtime.messages import Message, argument_object

_MARK = re.compile(rf"{BREAK}{BREAK}(\d+){BREAK}{BREAK}")


class SampledCalls(Protocol):
    """The text of calls that a model has made."""

    def text_of(self, identity: str, name: str, arguments: Mapping[str, Any], *, is_first: bool) -> str | None:
        """The text of a call, the first of its message or not; None where that is not known, or was another call."""
        ...

    def place_of(self, rendered: str, start: int, end: int) -> tuple[int, int] | None:
        """Where in a rendered prompt the call is written that has these characters in its arguments."""
        ...


@dataclass
class Replay:
    """The marks in one conversation. `control` are the tokens that text does not become, where it is to be text."""

    calls: SampledCalls
    control: ControlTokens | None
    _texts: list[str] = field(default_factory=list)

    def marked(self, message: Message, original: Message) -> Message:
        """`message` with marks in its calls, as far as `original`, where no control tokens are broken, is known."""
        if message.get("role") != "assistant" or not message.get("tool_calls"):
            return message
        pairs = zip(message["tool_calls"], original["tool_calls"], strict=True)
        return {**message, "tool_calls": [self._marked(*pair, number == 0) for number, pair in enumerate(pairs)]}

    def _marked(self, call: dict[str, Any], original: dict[str, Any], is_first: bool) -> dict[str, Any]:
        identity, function = original.get("id"), original.get("function")
        if not isinstance(identity, str) or function is None:
            return call
        arguments = argument_object(function["arguments"])
        text = self.calls.text_of(identity, function["name"], arguments, is_first=is_first)
        if text is None:
            return call
        mark = f"{BREAK}{BREAK}{len(self._texts)}{BREAK}{BREAK}"  # nothing else has two breaks together
        # What the model wrote as text, such as a file that it has read, must not become control tokens now.
        self._texts.append(self.control.break_in(text, SHOWN) if self.control else text)
        as_object = isinstance(call["function"]["arguments"], Mapping)
        return {**call, "function": {**call["function"], "arguments": {mark: ""} if as_object else mark}}

    def restored(self, rendered: str) -> str | None:
        """The prompt with the calls' text; None where the template writes a call in another way than the model."""
        pieces, done = [], 0
        for mark in _MARK.finditer(rendered):
            place = self.calls.place_of(rendered, mark.start(), mark.end())
            if place is None or place[0] < done:
                return None
            pieces += [rendered[done : place[0]], self._texts[int(mark[1])]]
            done = place[1]
        return "".join([*pieces, rendered[done:]])
