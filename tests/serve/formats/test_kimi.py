"""Kimi K2: calls whose ids name the function, in a section, maybe before the reasoning is closed."""

from __future__ import annotations

import pytest
from reading import call, read_every_way

from mlc_dsv3.serve.formats import Content, OutputFormat, Reasoning

KIMI = OutputFormat("kimi_k2", "kimi_k2")
BEGIN, END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"


def written(identity: str, arguments: str) -> str:
    return f"<|tool_call_begin|>{identity}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>"


def test_a_calls_id_is_the_models_own() -> None:
    first = written("functions.get_weather:3", '{"city": "<|tool_call_end|>"}')
    second = written(" functions.get_time:4\n", "\n{}\n")
    assert read_every_way(KIMI, f"<think>Hm.</think>Wait. {BEGIN}{first}{second}{END}") == [
        Reasoning("Hm."),
        Content("Wait."),
        *call(0, "get_weather", '{"city": "<|tool_call_end|>"}', f" {BEGIN}{first}", "functions.get_weather:3"),
        *call(1, "get_time", "{}", second, "functions.get_time:4"),
    ]


def test_an_id_that_would_not_tell_calls_apart_is_replaced() -> None:
    first, unnumbered = written("functions.get_time:0", "{}"), written("get_time", "{}")
    assert read_every_way(KIMI, f"{BEGIN}{first}{first}{unnumbered}{END}") == [
        *call(0, "get_time", "{}", BEGIN + first, "functions.get_time:0"),
        *call(1, "get_time", "{}", first),
        *call(2, "get_time", "{}", unnumbered),
    ]


def test_a_call_ends_reasoning_that_was_not_closed() -> None:
    text = written("functions.get_time:0", "{}")
    assert read_every_way(KIMI, f"<think>Hm.{BEGIN}{text}{END}Well.") == [
        Reasoning("Hm."),
        *call(0, "get_time", "{}", BEGIN + text, "functions.get_time:0"),
        Content("Well."),
    ]


def test_reasoning_about_calls_goes_on() -> None:
    thought = f"I write {BEGIN} and {written('functions.NAME:0', '{}')}."
    assert read_every_way(KIMI, f"<think>{thought}</think>Yes.") == [Reasoning(thought), Content("Yes.")]


@pytest.mark.parametrize(
    "text", [f"{BEGIN}{END}", f"{BEGIN}<|tool_call_begin|> x y", "<|tool_call_begin|>get_time:0<|tool_call_end|>"]
)
def test_what_is_no_call_is_content(text: str) -> None:
    assert read_every_way(KIMI, text) == [Content(text)]
