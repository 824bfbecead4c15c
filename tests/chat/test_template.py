"""Chat templates render as transformers renders them, and say so in one line where they cannot."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
import tokenizers
from chat_checkpoints import BOS, EOS, TEMPLATES, byte_level_checkpoint, tiktoken_checkpoint, write_json

from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.template import ChatTemplate
from mlc_dsv3.runtime.tokenizer import Tokenizer

CONVERSATIONS = {
    "one question": [{"role": "user", "content": "Where is <b>the ball</b>? & 'why' \"so\""}],
    "a system prompt": [
        {"role": "system", "content": "  Be brief.\n"},
        {"role": "user", "content": "Größe?\n"},
    ],
    "turns with thoughts": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "  2 + 2?"},
        {"role": "assistant", "content": "<think>\nadd them\n</think>\n\n4 "},
        {"role": "user", "content": "And 中文?"},
        {"role": "assistant", "content": "混合", "tool_calls": None, "reasoning_content": "because"},
        {"role": "user", "content": "Thanks."},
    ],
    "reasoning by its other name": [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4", "reasoning": "add them"},
    ],
    "an open end": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "name": "bot"}],
    "content in parts": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
}
VARIABLES = {
    "plain": {},
    "with tools": {"tools": [{"type": "function", "function": {"name": "größe", "parameters": {"<a>": [1, 2]}}}]},
    "without thinking": {"enable_thinking": False, "extra": {"k": "<v>'&"}, "provider": "us"},
}


@pytest.mark.parametrize("variables", VARIABLES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_rendering_equals_transformers(tmp_path: Path, name: str, conversation: str, variables: str) -> None:
    transformers = pytest.importorskip("transformers")
    byte_level_checkpoint(tmp_path, TEMPLATES[name])
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    messages, options = CONVERSATIONS[conversation], dict(VARIABLES[variables])
    tools = options.pop("tools", None)
    # Parts of text are one text here, also for templates that take no parts.
    joined = [message if isinstance(message["content"], str) else {**message, "content": "ab"} for message in messages]
    for add_generation_prompt in (False, True):
        asked = {"add_generation_prompt": add_generation_prompt, "tools": tools}
        try:
            expected = reference.apply_chat_template(joined, return_dict=False, **asked, **options)
        except Exception:
            with pytest.raises(UserError):
                tokenizer.chat_prompt(messages, **asked, template_kwargs=options)
        else:
            assert tokenizer.chat_prompt(messages, **asked, template_kwargs=options) == expected


def test_deepseek_conversation_reads_as_published(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(byte_level_checkpoint(tmp_path))
    ids = tokenizer.chat_prompt(CONVERSATIONS["turns with thoughts"])
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids) == (
        "Be brief.<｜User｜>  2 + 2?<｜Assistant｜>\n\n4 <｜User｜>"
        "And 中文?<｜Assistant｜>混合<｜User｜>Thanks.<｜Assistant｜><think>\n"
    )


def test_tiktoken_checkpoint_renders_special_tokens_as_ids(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(tiktoken_checkpoint(tmp_path))
    ids = tokenizer.chat_prompt([{"role": "user", "content": "x"}])
    base = tokenizer.bos_token_id
    assert base is not None
    assert [token - base for token in ids if token >= base] == [5, 6, 2, 3, 6, 2, 4, 6]


def test_generation_block_keeps_what_it_sets_inside(tmp_path: Path) -> None:
    template = ChatTemplate("{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x is defined }}", tmp_path)
    assert template.render([]) == "1False"


def test_tools_and_documents_are_there_and_none(tmp_path: Path) -> None:
    template = ChatTemplate("{{ tools is none }} {{ documents is none }} {{ nothing is defined }}", tmp_path)
    assert template.render([]) == "True True False"


def test_strftime_now_is_local_time(tmp_path: Path) -> None:
    year = ChatTemplate("{{ strftime_now('%Y') }}", tmp_path).render([])
    assert year in {str(datetime.datetime.now().year), str(datetime.datetime.now().year - 1)}


def test_named_templates_and_files_of_their_own(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    byte_level_checkpoint(tmp_path, named)
    assert Tokenizer.load(tmp_path).chat_template.render([]) == "plain"
    write_json(tmp_path / "chat_template.json", {"chat_template": "from json"})
    assert Tokenizer.load(tmp_path).chat_template.render([]) == "from json"
    (tmp_path / "chat_template.jinja").write_text("{{ messages | length }} from jinja")
    assert Tokenizer.load(tmp_path).chat_template.render([]) == "0 from jinja"


def test_a_template_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(byte_level_checkpoint(tmp_path))
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff{{ 1 }}")
    with pytest.raises(UserError, match=r"chat_template\.jinja cannot be read: .*utf-8"):
        _ = tokenizer.chat_template


@pytest.mark.parametrize("names", [["default"], ["default", "tool_use"], ["default", "rag"], ["tool_use"]])
@pytest.mark.parametrize("saved_anew", [False, True])
def test_tools_choose_the_template_that_transformers_chooses(
    tmp_path: Path, names: list[str], saved_anew: bool
) -> None:
    transformers = pytest.importorskip("transformers")
    byte_level_checkpoint(tmp_path, [{"name": name, "template": f"{name} template"} for name in names])
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    if saved_anew:  # in files of their own
        reference.save_pretrained(tmp_path)
        assert "chat_template" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
    tokenizer = Tokenizer.load(tmp_path)
    messages = [{"role": "user", "content": "x"}]
    for tools in (None, [{"type": "function", "function": {"name": "f"}}]):
        try:
            expected = reference.apply_chat_template(messages, tools=tools, return_dict=False)
        except ValueError:
            with pytest.raises(UserError, match="names no default chat template"):
                tokenizer.chat_prompt(messages, tools=tools)
        else:
            assert tokenizer.chat_prompt(messages, tools=tools) == expected


def test_reasoning_goes_by_either_name(tmp_path: Path) -> None:
    template = "{{ messages[0].reasoning }} {{ messages[0].reasoning_content }}"
    tokenizer = Tokenizer.load(byte_level_checkpoint(tmp_path, template))
    for name in ("reasoning", "reasoning_content"):
        message = {"role": "assistant", "content": "4", name: [{"type": "text", "text": "because"}]}
        assert tokenizer.decode(tokenizer.chat_prompt([message])) == "because because"


# After DeepSeek-V3.1: the variable gets a default where it is not given.
DEEPSEEK_V31 = """{% if not thinking is defined %}{% set thinking = false %}{% endif %}{{ bos_token }}\
{% for m in messages %}{{ '<｜User｜>' + m.content }}{% endfor %}\
{% if add_generation_prompt %}<｜Assistant｜>{{ '<think>' if thinking else '</think>' }}{% endif %}"""


@pytest.mark.parametrize(
    ("template", "variables", "opening", "switched"),
    [
        (TEMPLATES["deepseek_v3"], (), "<think>\n", "<think>\n"),
        (TEMPLATES["glm4"], ("enable_thinking",), "<think>", "</think>"),
        (TEMPLATES["kimi"], (), "", ""),
        (TEMPLATES["youtu"], ("enable_thinking",), "", "<think>\n\n</think>\n\n"),
        (DEEPSEEK_V31, ("thinking",), "</think>", "<think>"),
    ],
)
def test_what_a_template_says_of_thinking_is_known(
    tmp_path: Path, template: str, variables: tuple[str, ...], opening: str, switched: str
) -> None:
    tokenizer = Tokenizer.load(byte_level_checkpoint(tmp_path, template))
    assert tokenizer.thinking_variables == variables
    assert set(variables) <= tokenizer.chat_template.variables
    messages = [{"role": "user", "content": "x"}]
    assert tokenizer.answer_opening(messages) == opening
    options = dict.fromkeys(variables, template == DEEPSEEK_V31)
    assert tokenizer.answer_opening(messages, template_kwargs=options) == switched


def test_tags_that_a_tokenizers_file_calls_special_are_shown(tmp_path: Path) -> None:
    byte_level_checkpoint(tmp_path)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    library.add_special_tokens(["<think>", "</think>", "<tool_call>", "<other>"])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.answer_opening([{"role": "user", "content": "x"}]) == "<think>\n"
    assert tokenizer.decode(tokenizer.encode("a</think><other><tool_call>")) == "a</think><tool_call>"
    assert set(tokenizer.hidden_tokens.values()) == {BOS, EOS, "<other>"}


def test_a_users_tag_at_the_prompts_end_is_no_opening(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(byte_level_checkpoint(tmp_path, "{{ messages[0].content }}"))
    assert tokenizer.answer_opening([{"role": "user", "content": "what is <think>"}]) == ""


def test_a_template_has_its_conversation_from_the_caller_alone(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(byte_level_checkpoint(tmp_path))
    for name in ("messages", "tools", "add_generation_prompt"):
        with pytest.raises(UserError, match=f"the variable {name} of the chat template"):
            tokenizer.chat_prompt([{"role": "user", "content": "x"}], template_kwargs={name: 1})


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("hello", "message 2 is of the type str; it must be an object with role and content"),
        ({"content": "x"}, "message 2 has no role"),
        ({"role": "user", "content": 5}, "message 2 has content of the type int"),
        ({"role": "user", "content": {"type": "text", "text": "x"}}, "message 2 has content of the type dict"),
        ({"role": "user", "content": ["x", {"type": "image_url"}]}, "part 2 of message 2 is of the type 'image_url'"),
        ({"role": "user", "content": [{"type": "text"}]}, "part 1 of message 2 has no text"),
        ({"role": "user", "content": [7]}, "part 1 of message 2 is of the type 'int'"),
        ({"role": "assistant", "reasoning": "a", "reasoning_content": "b"}, "both reasoning_content and reasoning"),
    ],
)
def test_what_is_no_message_is_refused_by_its_number(tmp_path: Path, message: object, said: str) -> None:
    tokenizer = Tokenizer.load(byte_level_checkpoint(tmp_path))
    with pytest.raises(UserError) as raised:
        tokenizer.chat_prompt([{"role": "user", "content": "x"}, message])
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('only users\n may speak') }}", "refuses the conversation: only users may speak"),
        ("{{ nothing.there }}", "'nothing' is undefined"),
        ("{{ 1 + 'a' }}", "unsupported operand"),
        ("{{ messages.append(1) }}", "refuses the conversation"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% if %}", "not valid Jinja"),
        ([{"name": "tool_use", "template": "x"}], "no default chat template, only tool_use"),
        ([{"name": "default"}], "it must be text, or named texts"),
        ({}, "chat --raw"),
        (None, "chat --raw"),
    ],
)
def test_templates_that_fail_say_why_in_one_line(tmp_path: Path, template: str | list | None, said: str) -> None:
    tokenizer = Tokenizer.load(byte_level_checkpoint(tmp_path, template))
    with pytest.raises(UserError) as raised:
        tokenizer.chat_prompt([{"role": "user", "content": "x"}])
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)
