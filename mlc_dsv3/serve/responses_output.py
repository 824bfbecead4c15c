"""The output items of a response as they grow, and the events that a stream tells of them."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

from mlc_dsv3.serve.formats import Content, Event, Reasoning, ToolCallArguments, ToolCallStart
from mlc_dsv3.serve.responses_tools import OfferedTool, custom_input

Frame = tuple[str, dict[str, Any]]  # an event's type and its fields
Item = dict[str, Any]
Logprobs = list[dict[str, Any]]


class Output:
    """Items one after the other: reasoning, messages and calls of `tools`. Ended ones are in `items`."""

    def __init__(self, tools: Iterable[OfferedTool]) -> None:
        self.items: list[Item] = []
        self._tools = {tool.function_name: tool for tool in tools}
        self._growing: _Growing | None = None

    def add(self, event: Event, logprobs: Logprobs) -> Iterator[Frame]:
        """Add an event, with the logprobs of its tokens; yields what a stream says of it."""
        match event:
            case Content(text) if text:
                yield from self._grow(_Message, text, logprobs)
            case Reasoning(text) if text:
                yield from self._grow(_Thought, text, logprobs)
            case ToolCallStart(_, identity, name):
                tool = self._tools.get(name, OfferedTool(name))
                yield from self._begin((_CustomCall if tool.is_custom else _Call)(identity, tool))
            case ToolCallArguments(_, text):
                yield from self._grow(_Call, text, logprobs)

    def end(self, status: str) -> Iterator[Frame]:
        """End the last item; `status` is "completed" or "incomplete"."""
        growing = self._growing
        if growing is None:
            return
        for kind, fields in growing.ended():
            yield kind, {**self._place(growing), **fields}
        yield "output_item.done", {"output_index": len(self.items), "item": growing.item(status)}
        self.items.append(growing.item(status))
        self._growing = None

    def _grow(self, kind: type[_Growing], text: str, logprobs: Logprobs) -> Iterator[Frame]:
        if not isinstance(self._growing, kind):
            yield from self._begin(kind())
        assert self._growing is not None
        for name, fields in self._growing.grow(text, logprobs):
            yield name, {**self._place(self._growing), **fields}

    def _begin(self, growing: _Growing) -> Iterator[Frame]:
        yield from self.end("completed")
        self._growing = growing
        yield "output_item.added", {"output_index": len(self.items), "item": growing.item("in_progress")}
        for kind, fields in growing.began():
            yield kind, {**self._place(growing), **fields}

    def _place(self, growing: _Growing) -> dict[str, Any]:
        return {"item_id": growing.id, "output_index": len(self.items)}


class _Growing(ABC):
    """One item. The frames of the methods lack its place, which they share."""

    prefix: str

    def __init__(self) -> None:
        self.id = f"{self.prefix}_{uuid.uuid4().hex}"
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self._texts)

    def began(self) -> list[Frame]:
        """Behind the item's own beginning."""
        return []

    @abstractmethod
    def grow(self, text: str, logprobs: Logprobs) -> list[Frame]:
        """Add text."""

    @abstractmethod
    def ended(self) -> list[Frame]:
        """Before the item's own end."""

    @abstractmethod
    def item(self, status: str) -> Item:
        """The item as it is now."""


class _Message(_Growing):
    prefix = "msg"

    def __init__(self) -> None:
        super().__init__()
        self._logprobs: Logprobs = []

    def began(self) -> list[Frame]:
        return [("content_part.added", {"content_index": 0, "part": self._part()})]

    def grow(self, text: str, logprobs: Logprobs) -> list[Frame]:
        self._texts.append(text)
        self._logprobs += logprobs
        return [("output_text.delta", {"content_index": 0, "delta": text, "logprobs": logprobs})]

    def ended(self) -> list[Frame]:
        return [
            ("output_text.done", {"content_index": 0, "text": self.text, "logprobs": self._logprobs}),
            ("content_part.done", {"content_index": 0, "part": self._part()}),
        ]

    def item(self, status: str) -> Item:
        content = [] if status == "in_progress" else [self._part()]
        return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _part(self) -> dict[str, Any]:
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": list(self._logprobs)}


class _Thought(_Growing):
    prefix = "rs"

    def began(self) -> list[Frame]:
        return [("content_part.added", {"content_index": 0, "part": self._part()})]

    def grow(self, text: str, logprobs: Logprobs) -> list[Frame]:
        self._texts.append(text)
        return [("reasoning_text.delta", {"content_index": 0, "delta": text})]

    def ended(self) -> list[Frame]:
        return [
            ("reasoning_text.done", {"content_index": 0, "text": self.text}),
            ("content_part.done", {"content_index": 0, "part": self._part()}),
        ]

    def item(self, status: str) -> Item:
        content = [] if status == "in_progress" else [self._part()]
        return {"id": self.id, "type": "reasoning", "status": status, "summary": [], "content": content}

    def _part(self) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": self.text}


class _Call(_Growing):
    prefix = "fc"

    def __init__(self, call_id: str, tool: OfferedTool) -> None:
        super().__init__()
        self._call = {"call_id": call_id, "name": tool.name}
        if tool.namespace is not None:
            self._call["namespace"] = tool.namespace

    def grow(self, text: str, logprobs: Logprobs) -> list[Frame]:
        self._texts.append(text)
        return [("function_call_arguments.delta", {"delta": text})]

    def ended(self) -> list[Frame]:
        return [("function_call_arguments.done", {"arguments": self.text, "name": self._call["name"]})]

    def item(self, status: str) -> Item:
        return {"id": self.id, "type": "function_call", "status": status, **self._call, "arguments": self.text}


class _CustomCall(_Call):
    """Its input is a string within the JSON that the model writes, and comes when that is complete."""

    prefix = "ctc"

    def grow(self, text: str, logprobs: Logprobs) -> list[Frame]:
        self._texts.append(text)
        return []

    def ended(self) -> list[Frame]:
        text = custom_input(self.text)
        return [("custom_tool_call_input.delta", {"delta": text}), ("custom_tool_call_input.done", {"input": text})]

    def item(self, status: str) -> Item:
        text = "" if status == "in_progress" else custom_input(self.text)
        return {"id": self.id, "type": "custom_tool_call", "status": status, **self._call, "input": text}
