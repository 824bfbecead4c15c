"""The format is chosen by what the chat template writes, or by name."""

from __future__ import annotations

from pathlib import Path

import call_templates
import pytest

from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.control_tokens import SHOWN
from mlc_dsv3.runtime.template import ChatTemplate
from mlc_dsv3.serve.formats import TOOL_PARSERS, OutputFormat, Tool, openai_tools, output_format


@pytest.mark.parametrize(
    ("text", "reasoning", "tools"),
    [
        ("User: {{ messages }}", "none", "none"),
        ("{{ x.split('</think>')[-1] }}", "deepseek_r1", "none"),
        ("<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + '\\n' + '```json'", "none", "deepseek_v3"),
        ("</think><｜tool▁call▁begin｜>function<｜tool▁sep｜>' + '```json'", "deepseek_r1", "deepseek_v3"),
        ("</think><｜tool▁call▁begin｜>' + name + '<｜tool▁sep｜>", "deepseek_v3", "deepseek_v31"),
        ('{% set dsml_token = "｜DSML｜" %}</think>', "deepseek_v3", "deepseek_v32"),
        ("<|tool_call_begin|>{{ id }}", "none", "kimi_k2"),
        ("<think></think><|tool_call_begin|>{{ id }}", "kimi_k2", "kimi_k2"),
        ("<think></think><arg_key>{{ k }}</arg_key>\n<arg_value>", "glm45", "glm45"),
        ("</think><arg_key>{{ k }}</arg_key><arg_value>", "glm45", "glm47"),
        ('</think><tool_call>{"name": {{ n }}, "arguments": {{ a }}', "deepseek_r1", "hermes"),
        ("<tool_call><function={{ n }}>", "none", "none"),
    ],
)
def test_the_template_tells_the_format(text: str, reasoning: str, tools: str) -> None:
    template = ChatTemplate(f"{{% raw %}}{text}{{% endraw %}}", Path("x"))
    found = output_format(template, reasoning_parser=None, tool_parser=None)
    assert (found.reasoning_parser, found.tool_parser) == (reasoning, tools)


@pytest.mark.parametrize(
    ("name", "reasoning", "tools"),
    [
        ("DEEPSEEK_V3", "none", "deepseek_v3"),
        ("DEEPSEEK_R1", "deepseek_r1", "deepseek_v3"),
        ("DEEPSEEK_V31", "deepseek_v3", "deepseek_v31"),
        ("DEEPSEEK_V32", "deepseek_v3", "deepseek_v32"),
        ("KIMI", "kimi_k2", "kimi_k2"),
        ("GLM45", "glm45", "glm45"),
        ("GLM47", "glm45", "glm47"),
    ],
)
def test_the_familys_templates_tell_their_formats(name: str, reasoning: str, tools: str) -> None:
    template = ChatTemplate(getattr(call_templates, name), Path("x"))
    found = output_format(template, reasoning_parser=None, tool_parser=None)
    assert (found.reasoning_parser, found.tool_parser) == (reasoning, tools)


def test_text_shows_what_readers_look_for() -> None:
    """Of DSML's tags one token is part of each."""
    for name in TOOL_PARSERS:
        store = OutputFormat("none", name).call_store()
        for marker in (store.section_begin, store.call_begin, store.call_end):
            assert not marker or marker in SHOWN or "｜DSML｜" in marker


def test_names_win_over_the_template() -> None:
    template = ChatTemplate("</think>", Path("x"))
    found = output_format(template, reasoning_parser="none", tool_parser="glm47")
    assert found.name == "reasoning none, tools glm47"


def test_unknown_names_are_refused_with_those_that_exist() -> None:
    template = ChatTemplate("", Path("x"))
    with pytest.raises(UserError, match=r"no tool parser 'json'; there are none, deepseek_v3, .*glm47"):
        output_format(template, reasoning_parser=None, tool_parser="json")
    with pytest.raises(UserError, match=r"no reasoning parser 'qwen3'; there are none, deepseek_r1, "):
        output_format(template, reasoning_parser="qwen3", tool_parser=None)


def test_tools_in_openais_form() -> None:
    schema = {"type": "object"}
    tools = [{"type": "function", "function": {"name": "a", "parameters": schema}}, {"function": {"name": "b"}}]
    assert openai_tools(tools) == [Tool("a", schema), Tool("b")]


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        ("a", "tool 1 is not"),
        ({"type": "web_search"}, "tool 1 is not"),
        ({"type": "function", "function": {}}, "tool 1 has the name null; names have letters"),
        ({"type": "function", "function": {"name": 'a" b'}}, "tool 1 has the name"),
        ({"type": "function", "function": {"name": "a", "parameters": []}}, r"parameters of tool 1 \(a\)"),
    ],
)
def test_what_is_no_tool_is_refused(tool: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        openai_tools([tool])
