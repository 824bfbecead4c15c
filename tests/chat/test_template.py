"""Chat templates render as transformers renders them, and say so in one line where they cannot."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from chat_checkpoints import TEMPLATES, byte_level_checkpoint, tiktoken_checkpoint, write_json

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
    "an open end": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "name": "bot"}],
    "content in parts": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}],
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
    messages, options = CONVERSATIONS[conversation], VARIABLES[variables]
    for add_generation_prompt in (False, True):
        try:
            expected = reference.apply_chat_template(
                messages, add_generation_prompt=add_generation_prompt, return_dict=False, **options
            )
        except Exception:  # the templates that take no parts fail on them there too
            with pytest.raises(UserError):
                tokenizer.chat_prompt(messages, add_generation_prompt, **options)
        else:
            assert tokenizer.chat_prompt(messages, add_generation_prompt, **options) == expected


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
