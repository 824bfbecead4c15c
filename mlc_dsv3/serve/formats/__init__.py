"""How models write reasoning and tool calls: an answer's text as events, and the text of calls that were made."""

from mlc_dsv3.serve.formats.events import (
    Content,
    Event,
    Reader,
    Reasoning,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from mlc_dsv3.serve.formats.registry import REASONING_PARSERS, TOOL_PARSERS, OutputFormat, output_format
from mlc_dsv3.serve.formats.replay import CallStore
from mlc_dsv3.serve.formats.tools import Tool, ToolChoice, openai_tools

__all__ = [
    "REASONING_PARSERS",
    "TOOL_PARSERS",
    "CallStore",
    "Content",
    "Event",
    "OutputFormat",
    "Reader",
    "Reasoning",
    "Tool",
    "ToolCallArguments",
    "ToolCallEnd",
    "ToolCallStart",
    "ToolChoice",
    "openai_tools",
    "output_format",
]
