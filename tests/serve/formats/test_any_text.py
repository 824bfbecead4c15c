"""Whatever a model writes, cut however: the events are the same, and no text is lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import read

from mlc_dsv3.runtime.control_tokens import SHOWN
from mlc_dsv3.serve.formats import (
    TOOL_PARSERS,
    Content,
    Event,
    OutputFormat,
    Reasoning,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)

FORMATS = [
    *(OutputFormat("glm45", name) for name in TOOL_PARSERS),
    OutputFormat("none", "deepseek_v31"),
    OutputFormat("kimi_k2", "kimi_k2"),
    OutputFormat("deepseek_r1", "glm47"),
]
PIECES = [
    *sorted(SHOWN - {"｜DSML｜"}),
    *(
        "<｜DSML｜function_calls>",
        "</｜DSML｜function_calls>",
        '<｜DSML｜invoke name="get_weather">',
        "</｜DSML｜invoke>",
    ),
    *('<｜DSML｜parameter name="city" string="true">', '<｜DSML｜parameter name="days">', "</｜DSML｜parameter>"),
    *("function", "get_weather", "get_time", "functions.get_weather:0", "city", "days", "```json", "```", "<", ">"),
    *('{"city": "a"}', "{", "}", "[", '"', "\\", "{}", "1", "null", "\n", " ", "word", "ü", "<|tool", "</", "｜"),
]
# Longer ones, since few of the texts above become calls by chance.
CALL_PIECES = [
    '<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{"city": "word',
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n{}\n```<｜tool▁call▁end｜>",
    '<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "word',
    "<｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{}<｜tool▁call▁end｜>",
    '<|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{"city": "word',
    "<|tool_call_begin|>functions.get_time:1<|tool_call_argument_begin|>{}<|tool_call_end|>",
    "<tool_call>get_weather<arg_key>city</arg_key><arg_value>word",
    "<arg_key>where</arg_key><arg_value>[",
    "<tool_call>get_time</tool_call>",
    '<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" string="true">word',
    '<｜DSML｜invoke name="get_time">\n</｜DSML｜invoke>',
    *('"}', '"}\n```<｜tool▁call▁end｜>', '"}<｜tool▁call▁end｜>', '"}<|tool_call_end|>', "</arg_value></tool_call>"),
    *("]</arg_value>", "</｜DSML｜parameter>\n</｜DSML｜invoke>", "</think>", "word"),
]


@st.composite
def answers(draw: st.DrawFn) -> list[str]:
    """A text of pieces of all formats, cut into several anywhere."""
    text = "".join(draw(st.lists(st.sampled_from(PIECES) | st.sampled_from(CALL_PIECES), max_size=20)))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: f"{format.reasoning_parser}-{format.tool_parser}")
@settings(max_examples=60, deadline=None)
@given(answers(), st.sampled_from(["", "<think>\n", "</think>"]))
def test_events_do_not_depend_on_cuts_and_hold_all_of_the_text(
    format: OutputFormat, pieces: list[str], opening: str
) -> None:
    text = "".join(pieces)
    events = read(format, pieces, opening=opening)
    assert read(format, [text], opening=opening) == events
    assert read(format, list(text), opening=opening) == events
    check_order(events)
    if not events or events[-1] != ToolCallEnd(getattr(events[-1], "index", 0), ""):
        assert words(events) == text.count("word")


def check_order(events: list[Event]) -> None:
    """Calls are numbered, each is begun and ended once, and whole ones of one JSON object."""
    open_call: ToolCallStart | None = None
    arguments = ""
    calls = 0
    for event in events:
        match event:
            case ToolCallStart(index):
                assert (open_call, index) == (None, calls)
                open_call, arguments, calls = event, "", calls + 1
            case ToolCallArguments(index, text):
                assert open_call is not None
                assert index == open_call.index
                assert text
                arguments = text
            case ToolCallEnd(index, raw):
                assert open_call is not None
                assert index == open_call.index
                assert not raw or arguments.startswith("{")
                open_call = None
            case Reasoning(text) | Content(text):
                assert open_call is None
                assert text
    assert open_call is None


def words(events: list[Event]) -> int:
    """How often "word" is in the events, a whole call's text in place of its arguments."""
    count = 0
    arguments = 0
    for event in events:
        match event:
            case ToolCallArguments(_, text):
                arguments = text.count("word")
            case ToolCallEnd(_, raw):
                count += raw.count("word") if raw else arguments
                arguments = 0
            case Reasoning(text) | Content(text):
                count += text.count("word")
    return count
