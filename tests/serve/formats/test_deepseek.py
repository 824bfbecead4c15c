"""DeepSeek R1, V3 and V3.1: reasoning and calls of real shape, and of broken shape, cut everywhere."""

from __future__ import annotations

import pytest
from reading import WEATHER, call, read, read_every_way

from mlc_dsv3.serve.formats import Content, OutputFormat, Reasoning, ToolCallArguments, ToolCallEnd, ToolCallStart

R1 = OutputFormat("deepseek_r1", "none")
V3 = OutputFormat("deepseek_r1", "deepseek_v3")
V31 = OutputFormat("deepseek_v3", "deepseek_v31")
BEGIN, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, SEP, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"


def v3_call(name: str, arguments: str) -> str:
    return f"{CALL}function{SEP}{name}\n```json\n{arguments}\n```{CALL_END}"


def v31_call(name: str, arguments: str) -> str:
    return f"{CALL}{name}{SEP}{arguments}{CALL_END}"


def test_reasoning_that_the_template_has_opened_goes_to_its_end_tag() -> None:
    text = "Is 3 < 4?\n</thin k> </thinking>\n</think>\n\nYes: 3 < 4 </think>"
    assert read_every_way(R1, text, opening="<think>\n") == [
        Reasoning("Is 3 < 4?\n</thin k> </thinking>\n"),
        Content("Yes: 3 < 4 </think>"),
    ]


def test_reasoning_that_the_model_opens_begins_the_answer() -> None:
    assert read_every_way(R1, "\n<think>a</think>b<think>c") == [Reasoning("a"), Content("b<think>c")]
    assert read_every_way(R1, " <thinking>a</think>") == [Content(" <thinking>a</think>")]
    assert read_every_way(R1, "a<think>b</think>c") == [Content("a<think>b</think>c")]


def test_a_second_opening_tag_is_dropped() -> None:
    assert read_every_way(R1, "\n<think>\na</think>b", opening="<think>\n") == [Reasoning("\na"), Content("b")]
    assert read_every_way(R1, "\n<thin", opening="<think>\n") == [Reasoning("\n<thin")]


def test_reasoning_that_is_switched_off_leaves_all_to_the_answer() -> None:
    assert read_every_way(R1, "\n<think>a</think>\n", opening="<think></think>") == [Content("<think>a</think>\n")]


def test_an_answer_that_ends_in_its_reasoning_has_no_content() -> None:
    assert read_every_way(R1, "a</thi", opening="<think>") == [Reasoning("a</thi")]
    assert read_every_way(R1, "", opening="<think>") == []


def test_a_plain_answer_is_content_whatever_it_holds() -> None:
    text = f"<think>a</think>{BEGIN}{v3_call('get_weather', '{}')}{END}"
    assert read_every_way(OutputFormat("none", "none"), text, opening="<think>") == [Content(text)]


def test_v3_calls_behind_reasoning_and_content() -> None:
    first, second = v3_call("get_weather", '{"city": "Köln", "days": 2}'), v3_call("get_time", "{}")
    text = f"Hm.\n</think>\n\nLet me look.\n\n{BEGIN}{first}\n{second}{END}"
    assert read_every_way(V3, text, opening="<think>\n") == [
        Reasoning("Hm.\n"),
        Content("Let me look."),
        *call(0, "get_weather", '{"city": "Köln", "days": 2}', f"\n\n{BEGIN}{first}"),
        *call(1, "get_time", "{}", f"\n{second}"),
    ]


def test_v31_calls_are_chained_without_space() -> None:
    first, second = v31_call("get_weather", '{"city":"{[\\"Oslo\\"]}"}'), v31_call("get_time", "")
    assert read_every_way(V31, f"{BEGIN}{first}{second}{END}", opening="</think>") == [
        *call(0, "get_weather", '{"city":"{[\\"Oslo\\"]}"}', f"{BEGIN}{first}"),
        *call(1, "get_time", "{}", second),
    ]


@pytest.mark.parametrize(("format", "text"), [(V3, v3_call("get_time", "{}")), (V31, v31_call("NAME", "{…}"))])
def test_markers_in_reasoning_are_reasoning(format: OutputFormat, text: str) -> None:
    text = f"I could write {BEGIN}{text}{END}, but no.</think>No."
    assert read_every_way(format, text, opening="<think>") == [
        Reasoning(text.split("</think>")[0]),
        Content("No."),
    ]


def test_v31_may_call_before_its_reasoning_is_closed() -> None:
    text = BEGIN + v31_call("get_time", "{}")
    assert read_every_way(V31, f"Hm. {text}{END}", opening="<think>") == [
        Reasoning("Hm. "),
        *call(0, "get_time", "{}", text),
    ]


@pytest.mark.parametrize(("format", "written"), [(V3, v3_call), (V31, v31_call)])
def test_an_argument_may_hold_the_markers(format: OutputFormat, written: object) -> None:
    arguments = f'{{"city": "\\\\{CALL_END}\\"}}{END}"}}'
    text = BEGIN + written("get_weather", arguments)
    assert read_every_way(format, text + END) == call(0, "get_weather", arguments, text)


@pytest.mark.parametrize(
    "text",
    [
        f"{BEGIN} no call",
        f"a\n{BEGIN}\n{CALL}get_weather says",
        f"{CALL}function{SEP}get_weather\n```python\nprint()\n```{CALL_END}",
        f"{CALL}{SEP}\n```json\n{{}}\n```{CALL_END}",
        f"a {BEGIN[:-1]}  ",
        f"{BEGIN}{CALL}function{SEP}get_weather",
        "<｜tool▁calls▁begin",
        "a \n",
    ],
)
@pytest.mark.parametrize("format", [V3, V31])
def test_what_is_no_call_is_content(format: OutputFormat, text: str) -> None:
    assert read_every_way(format, text) == [Content(text)]


def test_without_tools_a_call_is_content() -> None:
    text = f"{BEGIN}{v31_call('get_time', '{}')}{END} "
    assert read_every_way(V31, text, tools=[]) == [Content(text)]


def test_content_goes_on_behind_calls_and_behind_what_is_none() -> None:
    written = v31_call("get_time", "{}")
    assert read_every_way(V31, f"{BEGIN}{written}{END}\nDone. {BEGIN}x{written} \n") == [
        *call(0, "get_time", "{}", BEGIN + written),
        Content(f"Done. {BEGIN}x"),
        *call(1, "get_time", "{}", written),
    ]


def test_the_answer_may_end_within_a_call_or_behind_it() -> None:
    text = BEGIN + v31_call("get_weather", '{"city": "Bonn"}')
    assert read_every_way(V31, text) == call(0, "get_weather", '{"city": "Bonn"}', text)
    assert read_every_way(V31, text.removesuffix(CALL_END)) == call(0, "get_weather", '{"city": "Bonn"}', "")
    assert read_every_way(V31, text[: text.index("Bonn") + 2]) == call(0, "get_weather", '{"city": "Bo', "")


def test_text_behind_the_arguments_is_not_lost() -> None:
    text = BEGIN + v3_call("get_time", '{"a": 1}}, what?')
    assert read_every_way(V3, text) == call(0, "get_time", '{"a": 1}}, what?', text)


def test_arguments_stream_and_only_what_may_be_a_marker_waits() -> None:
    reader = V31.reader(opening="</think>", tools=[WEATHER])
    assert reader.feed("Hi <") == [Content("Hi")]
    assert reader.feed("b>") == [Content(" <b>")]
    [start] = reader.feed(f"{BEGIN}{CALL}get_weather{SEP}{{")[:1]
    assert isinstance(start, ToolCallStart)
    assert reader.feed('"city"') == [ToolCallArguments(0, '"city"')]
    assert reader.feed(': "Rome <｜tool') == [ToolCallArguments(0, ': "Rome <｜tool')]
    raw = BEGIN + v31_call("get_weather", '{"city": "Rome <｜tool"}')
    assert reader.feed(f'"}}{CALL_END}')[-1] == ToolCallEnd(0, raw)


def test_long_answers_are_read_in_time_that_grows_with_their_length() -> None:
    assert read(V31, ["word "] * 20_000) == [Content("word " * 20_000)]
