"""Youtu-LLM: calls as JSON objects with a name in front."""

from __future__ import annotations

import pytest
from reading import call, read_every_way

from mlc_dsv3.serve.formats import Content, OutputFormat, Reasoning

HERMES = OutputFormat("deepseek_r1", "hermes")


def test_calls_behind_reasoning_and_content() -> None:
    first = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "</tool_call>}"}}\n</tool_call>'
    second = '<tool_call>{"name":"get_time","arguments":{}}</tool_call>'
    assert read_every_way(HERMES, f"<think>Hm.</think>\n\nLet me look.\n{first}\n{second}") == [
        Reasoning("Hm."),
        Content("Let me look."),
        *call(0, "get_weather", '{"city": "</tool_call>}"}', f"\n{first}"),
        *call(1, "get_time", "{}", f"\n{second}"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>get_time</tool_call>",
        '<tool_call>{"arguments": {}, "name": "get_time"}</tool_call>',
        '<tool_call>{"name": "get_time"}</tool_call>',
        '<tool_call>{"name": "get_time", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "get_ti',
    ],
)
def test_what_is_no_call_is_content(text: str) -> None:
    assert read_every_way(HERMES, text) == [Content(text)]
