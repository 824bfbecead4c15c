"""Tools as the Responses API offers them, and the functions that the model is told of in their place.

Functions can be called, custom tools, whose input is a text, and either of them within a namespace, such as an MCP
server's. Others run on OpenAI's servers; agents offer them unasked, and the model is not told of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mlc_dsv3.errors import warn_once
from mlc_dsv3.runtime.messages import argument_object
from mlc_dsv3.serve.request import Items, Lenient

_INPUT = "input"
_TEXT_INPUT = {
    "type": "object",
    "properties": {_INPUT: {"type": "string"}},
    "required": [_INPUT],
    "additionalProperties": False,
}


class ResponsesTool(Lenient):
    """A tool that a request offers. A namespace has `tools` of its own."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    tools: Items[ResponsesTool] | None = None


@dataclass(frozen=True)
class OfferedTool:
    """One tool that can be called."""

    name: str | None
    namespace: str | None = None
    description: str = ""
    parameters: dict[str, Any] | None = None
    is_custom: bool = False

    @property
    def function_name(self) -> str | None:
        """What the model calls it."""
        return function_name(self.namespace, self.name)

    def for_chat(self) -> dict[str, Any]:
        """The function as chat templates read it."""
        parameters = _TEXT_INPUT if self.is_custom else self.parameters or {}
        function = {"name": self.function_name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


def offered_tools(tools: Iterable[ResponsesTool]) -> list[OfferedTool]:
    """Those of a request's tools that can be called."""
    return list(_offered(tools, None))


def _offered(tools: Iterable[ResponsesTool], namespace: str | None) -> Iterator[OfferedTool]:
    for tool in tools:
        match tool.type:
            case "function" | "custom":
                yield OfferedTool(
                    tool.name, namespace, tool.description or "", tool.parameters, is_custom=tool.type == "custom"
                )
            case "namespace" if namespace is None:
                yield from _offered(tool.tools or (), tool.name)
            case _:
                warn_once("a client of /v1/responses offers tools of OpenAI's servers; the model is not told of them")


def function_name(namespace: str | None, name: str | None) -> str | None:
    """What the model calls a tool."""
    return name if namespace is None or name is None else f"{namespace}__{name}"


def custom_arguments(text: str) -> str:
    """The arguments of a function that stands for a custom tool, from the tool's input."""
    return json.dumps({_INPUT: text}, ensure_ascii=False)


def custom_input(arguments: str) -> str:
    """A custom tool's input from the function's arguments; malformed arguments are returned unchanged."""
    text = argument_object(arguments).get(_INPUT)
    return text if isinstance(text, str) else arguments
