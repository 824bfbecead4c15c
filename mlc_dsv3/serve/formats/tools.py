"""`Tool` and `ToolChoice`: what a request says of the functions that the model may call."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlc_dsv3.errors import UserError
from relax_model.fields import shown

_NAME = re.compile(r"[\w.-]{1,128}")


@dataclass(frozen=True)
class Tool:
    """A function. `parameters` is the JSON schema of its arguments, an object's."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolChoice:
    """The answer has to call tools: the one named, or where `name` is None any of them."""

    name: str | None = None


def openai_tools(tools: Iterable[object]) -> list[Tool]:
    """Tools as OpenAI's chat API describes them: `{"type": "function", "function": {"name": …, "parameters": …}}`.

    UserError, with the tool's number, for what is not one.
    """
    return [_tool(tool, f"tool {number}") for number, tool in enumerate(tools, 1)]


def _tool(tool: object, where: str) -> Tool:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or tool.get("type", "function") != "function":
        raise UserError(f'{where} is not {{"type": "function", "function": {{"name": …, "parameters": …}}}}')
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(f"{where} has the name {shown(name)}; names have letters, digits, _, - and dots")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise UserError(f"the parameters of {where} ({name}) are no JSON schema, such as {{'type': 'object'}}")
    return Tool(name, parameters or {})
