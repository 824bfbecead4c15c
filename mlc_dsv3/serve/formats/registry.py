"""Which format a model answers in: what its chat template writes says it, or the user does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.template import ChatTemplate
from mlc_dsv3.serve.formats.call_grammar import CallGrammar
from mlc_dsv3.serve.formats.deepseek import DeepSeekV3Grammar, DeepSeekV3Reader, DeepSeekV31Grammar, DeepSeekV31Reader
from mlc_dsv3.serve.formats.dsml import DsmlGrammar, DsmlReader
from mlc_dsv3.serve.formats.events import Reader
from mlc_dsv3.serve.formats.glm import GlmGrammar, GlmReader
from mlc_dsv3.serve.formats.hermes import HermesGrammar, HermesReader
from mlc_dsv3.serve.formats.kimi import KimiGrammar, KimiReader
from mlc_dsv3.serve.formats.reader import AnswerReader, PlainReader
from mlc_dsv3.serve.formats.reasoning import END_OF_THINK, ReasoningTags
from mlc_dsv3.serve.formats.replay import CallStore
from mlc_dsv3.serve.formats.tools import Tool, ToolChoice


@dataclass(frozen=True)
class OutputFormat:
    """How a model writes reasoning and calls. The names are those of the command line."""

    reasoning_parser: str
    tool_parser: str

    @property
    def name(self) -> str:
        """Both names."""
        return f"reasoning {self.reasoning_parser}, tools {self.tool_parser}"

    def reader(self, *, opening: str, tools: Sequence[Tool]) -> Reader:
        """A reader for one answer.

        opening: what the template put before the answer, such as "<think>". Without `tools`, calls are content.
        """
        reader, _ = _TOOLS[self.tool_parser]
        return reader(opening, tools, _REASONING[self.reasoning_parser])

    def call_store(self) -> CallStore:
        """An empty store for the text of calls in this format."""
        reader, _ = _TOOLS[self.tool_parser]
        return CallStore(reader.section_begin, reader.call_begin or "", reader.call_end)

    def tool_grammar(self, tools: Sequence[Tool], choice: ToolChoice, *, parallel: bool, opening: str) -> str:
        """A Lark grammar, for llguidance, of answers that call tools as `choice` says, with valid arguments.

        Where `opening` leaves reasoning open, that comes first. UserError where the format has no calls, or a schema
        cannot be kept.
        """
        _, grammar = _TOOLS[self.tool_parser]
        if grammar is None:
            raise UserError("this model's chat template writes no tool calls; --tool-parser names a format for them")
        return grammar.answer(tools, choice, parallel=parallel, opening=opening, tags=_REASONING[self.reasoning_parser])


# The names are vLLM's, which people's scripts have already.
_REASONING = {
    "none": ReasoningTags.NONE,
    "deepseek_r1": ReasoningTags.CLOSED,
    "deepseek_v3": ReasoningTags.CLOSED_BY_CALLS,
    "glm45": ReasoningTags.CLOSED_BY_CALLS,
    "kimi_k2": ReasoningTags.CLOSED_BY_CALLS,
}
_TOOLS: dict[str, tuple[type[AnswerReader], CallGrammar | None]] = {
    "none": (PlainReader, None),
    "deepseek_v3": (DeepSeekV3Reader, DeepSeekV3Grammar()),
    "deepseek_v31": (DeepSeekV31Reader, DeepSeekV31Grammar()),
    "deepseek_v32": (DsmlReader, DsmlGrammar()),
    "kimi_k2": (KimiReader, KimiGrammar()),
    "glm45": (GlmReader, GlmGrammar("\n")),
    "glm47": (GlmReader, GlmGrammar("")),
    "hermes": (HermesReader, HermesGrammar()),
}
REASONING_PARSERS, TOOL_PARSERS = tuple(_REASONING), tuple(_TOOLS)


def output_format(template: ChatTemplate, *, reasoning_parser: str | None, tool_parser: str | None) -> OutputFormat:
    """The format by these names; None chooses by what the template writes. UserError lists the names."""
    tools = _known(tool_parser, TOOL_PARSERS, "tool") or _tool_parser_of(template.text)
    reasoning = _known(reasoning_parser, REASONING_PARSERS, "reasoning") or _reasoning_parser_of(template.text, tools)
    return OutputFormat(reasoning, tools)


def _known(name: str | None, names: Sequence[str], kind: str) -> str | None:
    if name is not None and name not in names:
        raise UserError(f"there is no {kind} parser {name!r}; there are {', '.join(names)}")
    return name


def _tool_parser_of(template: str) -> str:
    if "｜DSML｜" in template:
        return "deepseek_v32"
    if "<｜tool▁sep｜>" in template:
        return "deepseek_v3" if "```json" in template else "deepseek_v31"
    if "<|tool_call_begin|>" in template:
        return "kimi_k2"
    if "<arg_key>" in template:
        return "glm47" if "</arg_key><arg_value>" in template else "glm45"
    if "<tool_call>" in template and '"arguments"' in template:
        return "hermes"
    return "none"


def _reasoning_parser_of(template: str, tools: str) -> str:
    if END_OF_THINK not in template:
        return "none"
    names = {"deepseek_v31": "deepseek_v3", "deepseek_v32": "deepseek_v3", "kimi_k2": "kimi_k2"}
    return names.get(tools, "glm45" if tools.startswith("glm") else "deepseek_r1")
