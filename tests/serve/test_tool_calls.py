"""Reasoning and calls of tools over HTTP: the demo behind a chat template that has both, held to calls by a grammar."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from served import serving

from mlc_dsv3.runtime.template import ChatTemplate

openai = pytest.importorskip("openai", reason="openai is missing: pip install '.[test]'")
anthropic = pytest.importorskip("anthropic", reason="anthropic is missing: pip install '.[test]'")
pytest.importorskip("llguidance", reason="llguidance is missing: pip install llguidance")

# DeepSeek-V3.1's way of calling, in short.
TEMPLATE = """{{ bos_token }}{% for tool in tools or [] %}<|system|>{{ tool | tojson }}{% endfor %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}<|assistant|></think>{{ message.content }}
{%- for call in message.tool_calls or [] %}
{%- if loop.first %}<｜tool▁calls▁begin｜>{% endif -%}
<｜tool▁call▁begin｜>{{ call.function.name }}<｜tool▁sep｜>{{ call.function.arguments }}<｜tool▁call▁end｜>
{%- if loop.last %}<｜tool▁calls▁end｜>{% endif %}
{%- endfor %}{{ eos_token }}
{%- else %}<|{{ 'user' if message.role == 'user' else 'system' }}|>{{ message.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{{ '<think>' if thinking else '</think>' }}{% endif %}"""

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
QUESTION = [{"role": "user", "content": "How is the weather?"}]
TOOLS = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("weather", "tides")]
ASK = {"model": "mlc_dsv3-demo", "messages": QUESTION, "tools": TOOLS, "max_tokens": 200}


@pytest.fixture(scope="module")
def tool_server(demo_llm):
    from mlc_dsv3.serve.formats import output_format
    from mlc_dsv3.serve.service import Service

    with pytest.MonkeyPatch.context() as patch:
        template = ChatTemplate(TEMPLATE, Path("template"))
        patch.setattr(demo_llm.tokenizer, "_template", template)
        answers = output_format(template, reasoning_parser=None, tool_parser=None)
        assert answers.name == "reasoning deepseek_v3, tools deepseek_v31"
        service = Service(demo_llm, ["mlc_dsv3-demo"], demo_llm.default_params, output_format=answers, max_waiting=64)
        with serving(service) as origin:
            yield origin


@pytest.fixture(scope="module")
def gpt(tool_server):
    with openai.OpenAI(base_url=f"{tool_server}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def claude(tool_server):
    with anthropic.Anthropic(base_url=tool_server, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def _is_valid(arguments: dict) -> bool:
    return set(arguments) == {"city", "days"} and isinstance(arguments["city"], str) and 1 <= arguments["days"] <= 9


def test_a_required_call_is_made_whole_and_streamed(gpt):
    whole = gpt.chat.completions.create(**ASK, tool_choice="required", parallel_tool_calls=False).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert not whole.message.content
    (call,) = whole.message.tool_calls
    assert call.function.name in ("weather", "tides")
    assert _is_valid(json.loads(call.function.arguments))
    chunks = gpt.chat.completions.create(**ASK, tool_choice="required", parallel_tool_calls=False, stream=True)
    pieces = [chunk.choices[0] for chunk in chunks]
    calls = [call for piece in pieces for call in piece.delta.tool_calls or []]
    assert calls[0].function.name == call.function.name
    assert len(calls) > 3
    assert [each.id for each in calls[1:]] == [None] * len(calls[1:])
    assert "".join(each.function.arguments for each in calls) == call.function.arguments
    assert pieces[-1].finish_reason == "tool_calls"


def test_an_answer_with_a_form_may_call_tools_in_its_place(gpt):
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": [1, 2]}}}
    reasons = set()
    for seed in range(30):
        ask = {**ASK, "response_format": form, "parallel_tool_calls": False, "temperature": 2.0, "seed": seed}
        (choice,) = gpt.chat.completions.create(**ask).choices
        reasons.add(choice.finish_reason)
        if choice.finish_reason == "stop":
            assert json.loads(choice.message.content) in (1, 2)
        elif choice.finish_reason == "tool_calls":
            assert _is_valid(json.loads(choice.message.tool_calls[0].function.arguments))
    assert {"stop", "tool_calls"} <= reasons


def test_a_named_tool_is_the_one_that_is_called(gpt, claude):
    named = {"type": "function", "function": {"name": "tides"}}
    answer = gpt.chat.completions.create(**ASK, tool_choice=named, temperature=1.5, seed=1).choices[0]
    assert [call.function.name for call in answer.message.tool_calls] == ["tides"]
    tools = [{"name": tool["function"]["name"], "input_schema": SCHEMA} for tool in TOOLS]
    ask = {**ASK, "tools": tools, "tool_choice": {"type": "tool", "name": "tides"}}
    whole = claude.messages.create(**ask)
    assert whole.stop_reason == "tool_use"
    (block,) = whole.content
    assert (block.type, block.name) == ("tool_use", "tides")
    assert _is_valid(block.input)
    with claude.messages.stream(**ask) as stream:
        streamed = stream.get_final_message()
    assert streamed.content[0].input == block.input
    assert streamed.stop_reason == "tool_use"


def test_a_response_calls_tools_and_goes_on_with_their_results(gpt):
    tools = [{"type": "function", "name": tool["function"]["name"], "parameters": SCHEMA} for tool in TOOLS]
    ask = {"model": "mlc_dsv3-demo", "input": "Weather?", "tools": tools, "tool_choice": "required"}
    with gpt.responses.stream(**ask, parallel_tool_calls=False) as stream:
        streamed = stream.get_final_response()
    whole = gpt.responses.create(**ask, parallel_tool_calls=False)
    (call,) = whole.output
    assert (call.type, call.status) == ("function_call", "completed")
    assert _is_valid(json.loads(call.arguments))
    assert [(each.name, each.arguments) for each in streamed.output] == [(call.name, call.arguments)]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}
    later = gpt.responses.create(
        model="mlc_dsv3-demo", input=[result], previous_response_id=whole.id, tools=tools, max_output_tokens=5
    )
    assert later.usage.input_tokens > whole.usage.input_tokens + whole.usage.output_tokens


def test_custom_tools_and_those_of_a_namespace_are_called_as_they_were_offered(gpt):
    ask = {"model": "mlc_dsv3-demo", "input": "Weather?", "tool_choice": "required", "parallel_tool_calls": False}
    ask |= {"max_output_tokens": 150, "temperature": 0}
    inside = {"type": "function", "name": "weather", "parameters": SCHEMA}
    (call,) = gpt.responses.create(**ask, tools=[{"type": "namespace", "name": "mcp", "tools": [inside]}]).output
    assert (call.type, call.namespace, call.name) == ("function_call", "mcp", "weather")
    custom = [{"type": "custom", "name": "say", "description": "Says a text."}]
    whole = gpt.responses.create(**ask, tools=custom)
    (call,) = whole.output
    assert (call.type, call.name) == ("custom_tool_call", "say")
    assert call.input
    with gpt.responses.stream(**ask, tools=custom) as stream:
        events = list(stream)
    pieces = [event.delta for event in events if event.type == "response.custom_tool_call_input.delta"]
    assert "".join(pieces) == call.input


def test_the_next_turn_finds_its_prefix_though_the_client_writes_the_arguments_anew(gpt):
    # With the next turn's, less than 512 tokens: whole blocks of so many are read in another way than sampled ones.
    ask = {**ASK, "tools": TOOLS[:1]}
    first = gpt.chat.completions.create(**ask, tool_choice="required", parallel_tool_calls=False)
    (call,) = first.choices[0].message.tool_calls
    own = json.loads(call.function.arguments)
    for spelling in (json.dumps(own, indent=3), json.dumps(dict(reversed(own.items())))):
        function = {"name": call.function.name, "arguments": spelling}
        history = [
            *QUESTION,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": call.id, "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": call.id, "content": "It rains."},
        ]
        second = gpt.chat.completions.create(**{**ask, "messages": history, "max_tokens": 1})
        assert second.usage.prompt_tokens < 512
        read, sampled = first.usage.prompt_tokens, first.usage.completion_tokens
        assert second.usage.prompt_tokens_details.cached_tokens >= read + sampled - 1  # the last one was not read


def test_results_and_calls_of_an_anthropic_history_become_the_templates(claude, gpt):
    history = [
        *QUESTION,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo", "days": 2}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "Rain."}]},
                {"type": "text", "text": "And then?"},
            ],
        },
    ]
    tokens = claude.messages.count_tokens(model="mlc_dsv3-demo", messages=history).input_tokens
    arguments = '{"city": "Oslo", "days": 2}'
    text = (
        "<|user|>How is the weather?<|assistant|></think>Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather"
        f"<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    )
    same = [
        {"role": "user", "content": "How is the weather?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "Hm.",
            "tool_calls": [{"id": "t1", "type": "function", "function": {"name": "weather", "arguments": arguments}}],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "Rain."},
        {"role": "user", "content": "And then?"},
    ]
    applied = gpt.post("../apply-template", body={"messages": same}, cast_to=object)["prompt"]
    assert text in applied
    counted = gpt.post("../tokenize", body={"messages": same}, cast_to=object)["count"]
    assert tokens == counted


def test_reasoning_is_apart_and_free_of_the_answers_form(gpt, claude):
    form = {"guided_regex": "[a-z]{4}", "chat_template_kwargs": {"thinking": True}, "tool_choice": "none"}
    for seed in range(6):
        ask = {**ASK, "max_tokens": 60, "temperature": 1.0, "seed": seed, "logit_bias": {}, "extra_body": form}
        answer = gpt.chat.completions.create(**ask).choices[0]
        assert answer.message.reasoning_content == answer.message.reasoning
        if answer.finish_reason == "stop":
            assert len(answer.message.content) == 4
        else:
            assert answer.message.content in ("", None)
    whole = claude.messages.create(
        model="mlc_dsv3-demo", messages=QUESTION, max_tokens=20, thinking={"type": "enabled", "budget_tokens": 1024}
    )
    assert whole.content[0].type == "thinking"
    with claude.messages.stream(
        model="mlc_dsv3-demo", messages=QUESTION, max_tokens=20, thinking={"type": "enabled", "budget_tokens": 1024}
    ) as stream:
        assert stream.get_final_message().content == whole.content


def test_effort_switches_thinking_where_the_template_has_a_switch(gpt, claude):
    for effort, opening in (("none", "</think>"), ("high", "<think>"), (None, "</think>")):
        body = {"messages": QUESTION, "reasoning_effort": effort}
        assert gpt.post("../apply-template", body=body, cast_to=object)["prompt"].endswith(f"<|assistant|>{opening}")
    thinks = gpt.responses.create(
        model="mlc_dsv3-demo", input="Weather?", reasoning={"effort": "low"}, max_output_tokens=4
    )
    assert [item.type for item in thinks.output] == ["reasoning"]
    ask = {"model": "mlc_dsv3-demo", "messages": QUESTION, "max_tokens": 4}
    assert claude.messages.create(**ask).content[0].type == "text"
    assert claude.messages.create(**ask, extra_body={"output_config": {"effort": "low"}}).content[0].type == "thinking"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "other"),
        ({"tools": [{"type": "function"}]}, "tool 1"),
        ({"tools": None, "tool_choice": "required"}, "no tools"),
        ({"messages": [*QUESTION, {"role": "assistant", "tool_calls": [{}]}]}, "message 2"),
        ({"messages": [*QUESTION, {"role": "assistant", "tool_calls": {"a": 1}}]}, "message 2"),
    ],
)
def test_mistakes_are_said(tool_server, change, words):
    import httpx

    answer = httpx.post(f"{tool_server}/v1/chat/completions", json={**ASK, **change})
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]["message"]
