"""`CallGrammar`: a grammar of answers that do nothing but call tools, with arguments valid by the tools' schemas."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from mlc_dsv3.errors import UserError
from mlc_dsv3.serve.formats.lark import Lark, json_value, literal
from mlc_dsv3.serve.formats.reasoning import END_OF_THINK, THINK, ReasoningTags
from mlc_dsv3.serve.formats.tools import Tool, ToolChoice


class CallGrammar(ABC):
    """How one format writes calls. The attributes are Lark expressions: what stands around and between calls."""

    before = ""
    between = ""
    after = ""

    @abstractmethod
    def call(self, lark: Lark, tool: Tool) -> str:
        """An expression for a call of `tool`; what it needs besides becomes rules of `lark`."""

    def answer(
        self, tools: Sequence[Tool], choice: ToolChoice, *, parallel: bool, opening: str, tags: ReasoningTags
    ) -> str:
        """The grammar's text. A tool that is chosen by its name is called once.

        Raises UserError where there is no such tool, or a schema that this format cannot be held to.
        """
        chosen = [tool for tool in tools if choice.name in (None, tool.name)]
        if not chosen:
            raise UserError(_nothing_to_call(tools, choice))
        lark = Lark()
        call = lark.rule(" | ".join(f"({self.call(lark, tool)})" for tool in chosen))
        others = f"({self.between} {call})*" if parallel and choice.name is None else ""
        return lark.text(f"{_reasoning(lark, opening, tags)} {self.before} {call} {others} {self.after}")


def _nothing_to_call(tools: Sequence[Tool], choice: ToolChoice) -> str:
    if choice.name is None:
        return "tool_choice wants calls, and the request has no tools"
    known = ", ".join(tool.name for tool in tools) or "none"
    return f"tool_choice names the tool {choice.name!r}, and the request's tools are: {known}"


def _reasoning(lark: Lark, opening: str, tags: ReasoningTags) -> str:
    """What comes before the calls: the rest of a thought, a thought if the model begins one, or nothing."""
    if tags is ReasoningTags.NONE or END_OF_THINK in opening:
        return ""
    thought = lark.rule("/(?s:.*)/", f"suffix={literal(END_OF_THINK)}")
    return thought if THINK in opening else f'("\\n"? {literal(THINK)} {thought})?'


_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


class JsonCallGrammar(CallGrammar):
    """Calls whose arguments are JSON."""

    def arguments(self, tool: Tool) -> str:
        """An expression for the arguments."""
        return json_value({"type": "object", **tool.parameters} if tool.parameters else _NO_PARAMETERS)
