"""GLM and DeepSeek V3.2: arguments that are written parameter by parameter, made into JSON by the tool's schema."""

from __future__ import annotations

import json

import pytest
from reading import TIME, WEATHER, call, read_every_way

from mlc_dsv3.serve.formats import (
    Content,
    OutputFormat,
    Reasoning,
    Tool,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)

GLM = OutputFormat("glm45", "glm47")
DSML = OutputFormat("deepseek_v3", "deepseek_v32")
BEGIN, END = "<｜DSML｜function_calls>", "</｜DSML｜function_calls>"

TYPED = Tool(
    "typed",
    {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "count": {"type": "integer"},
            "maybe": {"type": ["string", "null"]},
            "either": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/list"}]},
            "colour": {"enum": ["1", "2"]},
            "list": {"$ref": "#/$defs/list"},
            "any": {},
        },
        "$defs": {"list": {"type": "array"}},
    },
)


def glm(name: str, *parameters: tuple[str, str], breaks: bool = False) -> str:
    line = "\n" if breaks else ""
    written = "".join(
        f"<arg_key>{key}</arg_key>{line}<arg_value>{value}</arg_value>{line}" for key, value in parameters
    )
    return f"<tool_call>{name}{line}{written}</tool_call>"


def dsml(name: str, *parameters: tuple[str, str, str]) -> str:
    written = "".join(
        f'<｜DSML｜parameter name="{key}" string="{string}">{value}</｜DSML｜parameter>\n'
        for key, value, string in parameters
    )
    return f'<｜DSML｜invoke name="{name}">\n{written}</｜DSML｜invoke>'


@pytest.mark.parametrize("breaks", [False, True])
def test_glm_calls_behind_reasoning_and_content(breaks: bool) -> None:
    first = glm("get_weather", ("city", 'Köln "am\n Rhein"\\ '), ("days", " 2\n"), breaks=breaks)
    second = glm("get_time", breaks=breaks)
    assert read_every_way(GLM, f"\n<think>Hm.</think>\nLet me look.\n{first}\n{second}\n") == [
        Reasoning("Hm."),
        Content("Let me look."),
        *call(0, "get_weather", '{"city": "Köln \\"am\\n Rhein\\"\\\\ ", "days": 2}', f"\n{first}"),
        *call(1, "get_time", "{}", f"\n{second}"),
    ]


@pytest.mark.parametrize(
    ("parameter", "text", "value"),
    [
        ("text", "12", "12"),
        ("text", " null ", " null "),
        ("text", "", ""),
        ("count", "12", 12),
        ("count", "twelve", "twelve"),
        ("count", "NaN", "NaN"),
        ("maybe", "null", None),
        ("maybe", "12", "12"),
        ("maybe", '"quoted"', '"quoted"'),
        ("either", "[1, {}]", [1, {}]),
        ("either", "[1, ", "[1, "),
        ("colour", "1", "1"),
        ("list", "[1]", [1]),
        ("any", "1.5", 1.5),
        ("any", "1.5.1", "1.5.1"),
        ("unknown", "true", True),
    ],
)
def test_the_schema_tells_text_from_json(parameter: str, text: str, value: object) -> None:
    events = read_every_way(GLM, glm("typed", (parameter, text)), tools=[TYPED], opening="</think>")
    assert json.loads(events[1].text) == {parameter: value}


def test_dsml_calls_behind_reasoning_and_content() -> None:
    first = dsml(
        "get_weather", ("city", "</｜DSML｜Köln\n", "true"), ("days", "2", "false"), ("where", '{"a": []}', "false")
    )
    second = dsml("get_time")
    assert read_every_way(DSML, f"Hm.</think>Let me look.\n\n{BEGIN}\n{first}\n{second}\n{END}", opening="<think>") == [
        Reasoning("Hm."),
        Content("Let me look."),
        *call(
            0,
            "get_weather",
            '{"city": "</｜DSML｜Köln\\n", "days": 2, "where": {"a": []}}',
            f"\n\n{BEGIN}\n{first}",
        ),
        *call(1, "get_time", "{}", f"\n{second}"),
    ]


def test_json_may_hold_the_marker_behind_it() -> None:
    text = glm("typed", ("list", ' ["</arg_value>", "\\""]'), ("text", "a"))
    assert read_every_way(GLM, text, tools=[TYPED], opening="</think>") == call(
        0, "typed", '{"list": ["</arg_value>", "\\""], "text": "a"}', text
    )
    text = glm("typed", ("list", "[1"), ("text", "a"))
    assert read_every_way(GLM, text, tools=[TYPED], opening="</think>") == call(
        0, "typed", '{"list": "[1", "text": "a"}', text
    )


def test_dsml_says_itself_what_is_a_string() -> None:
    text = dsml("typed", ("count", "1", "true"), ("text", "1", "false"), ("any", "[1", "false"))
    events = read_every_way(DSML, BEGIN + text, tools=[TYPED], opening="</think>")
    assert json.loads(events[1].text) == {"count": "1", "text": 1, "any": "[1"}
    text = text.replace(' string="true"', "").replace(' string="false"', "")
    events = read_every_way(DSML, BEGIN + text, tools=[TYPED], opening="</think>")
    assert json.loads(events[1].text) == {"count": 1, "text": "1", "any": "[1"}


@pytest.mark.parametrize(
    ("format", "text"),
    [
        (GLM, "<tool_call>get weather<arg_key>"),
        (GLM, "<tool_call>get_weather"),
        (GLM, "<tool_call>\n</tool_call>"),
        (GLM, "a <tool_cal"),
        (DSML, f'{BEGIN}\n<｜DSML｜invoke name="get_time" x>'),
        (DSML, f"{BEGIN}{END}"),
        (DSML, '<｜DSML｜invoke name="get_time">text'),
        (DSML, '<｜DSML｜invoke name="get_ti\nme">'),
    ],
)
def test_what_is_no_call_is_content(format: OutputFormat, text: str) -> None:
    assert read_every_way(format, text, opening="</think>") == [Content(text)]


def test_glm_may_call_before_its_reasoning_is_closed() -> None:
    known, unknown = glm("get_time"), glm("name", ("key", "value"))
    assert read_every_way(GLM, f"So {unknown}. {known}", opening="<think>") == [
        Reasoning(f"So {unknown}. "),
        *call(0, "get_time", "{}", known),
    ]


def test_dsml_of_a_tool_that_there_is_not_is_reasoning() -> None:
    text = f"{BEGIN}\n{dsml('NAME')}\n{END}"
    assert read_every_way(DSML, f"{text}</think>", opening="<think>") == [Reasoning(text)]
    text = dsml("get_time")
    assert read_every_way(DSML, text, opening="<think>") == call(0, "get_time", "{}", text)


@pytest.mark.parametrize(
    ("format", "text", "left"),
    [
        (GLM, "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Bonn</arg_value>", " and so on"),
        (GLM, "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Bonn</arg_value>", "<arg_key>days</arg_key>2"),
        (
            DSML,
            '<｜DSML｜invoke name="get_weather"><｜DSML｜parameter name="city" string="true">Bonn</｜DSML｜parameter>',
            '<｜DSML｜parameter days="2">',
        ),
    ],
)
def test_a_call_ends_at_what_is_no_parameter_which_is_content(format: OutputFormat, text: str, left: str) -> None:
    events = read_every_way(format, text + left, opening="</think>")
    assert events == [*call(0, "get_weather", '{"city": "Bonn"}', ""), Content(left)]


@pytest.mark.parametrize(
    ("format", "text"),
    [(GLM, glm("get_weather", ("city", "Bonn"))), (DSML, dsml("get_weather", ("city", "Bonn", "true")))],
)
def test_an_answer_that_ends_within_a_call_leaves_its_arguments_open(format: OutputFormat, text: str) -> None:
    for end in range(text.index("Bonn") + 4, len(text)):
        events = read_every_way(format, text[:end], opening="</think>")
        assert [type(event) for event in events] == [ToolCallStart, ToolCallArguments, ToolCallEnd]
        assert events[1].text.startswith('{"city": "Bonn')
        assert not events[1].text.endswith("}")
        assert events[2] == ToolCallEnd(0, "")


def test_text_streams_into_a_string() -> None:
    reader = GLM.reader(opening="</think>", tools=[WEATHER, TIME])
    reader.feed("<tool_call>get_weather<arg_key>city</arg_key><arg_value>")
    assert reader.feed('New\n"') == [ToolCallArguments(0, '"'), ToolCallArguments(0, 'New\\n\\"')][-1:]
    assert reader.feed("York</arg_") == [ToolCallArguments(0, "York")]
