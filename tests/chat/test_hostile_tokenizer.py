"""Whatever stands in a field of a tokenizer's files: it works, or it is refused in one line."""

from __future__ import annotations

import codecs
import json
import shutil
from pathlib import Path

import hostile
import pytest
from chat_checkpoints import tiktoken_checkpoint
from hypothesis import given
from hypothesis import strategies as st

from mlc_dsv3.demo import checkpoint_path
from mlc_dsv3.runtime.tokenizer import Tokenizer

CONFIG = {
    "add_bos_token": True,
    "bos_token": {"content": "<|bos|>", "special": True},
    "eos_token": "<|eos|>",
    "chat_template": [
        {"name": "default", "template": "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}"},
        {"name": "tool_use", "template": "{{ tools }}"},
    ],
    "added_tokens_decoder": {"0": {"content": "<|bos|>", "special": True}, "400": {"content": "<x>", "special": False}},
}
SPECIAL = {"bos_token": "<|bos|>", "pad_token": {"content": "<|pad|>"}, "additional_special_tokens": ["<x>"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "tokenizer"
    folder.mkdir()
    shutil.copyfile(checkpoint_path() / "tokenizer.json", folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    (folder / "special_tokens_map.json").write_text(json.dumps(SPECIAL))
    for name in ("generation_config.json", "config.json", "mlc-chat-config.json"):
        (folder / name).write_text(json.dumps({"eos_token_id": [1, 2], "bos_token_id": 0, "pad_token_id": None}))
    return folder


@pytest.fixture(scope="module")
def tiktoken_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiktoken_checkpoint(tmp_path_factory.mktemp("tiktoken"))


def use(folder: Path) -> None:
    """Read a folder's tokenizer and go through what a session asks of it."""
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode("Hello, 中文 <|eos|>!", add_special_tokens=True)
    assert all(isinstance(token, int) for token in (*ids, *tokenizer.eos_token_ids))
    tokenizer.decode(ids)
    tokenizer.chat_prompt([{"role": "user", "content": "hello <|eos|>"}])
    tokenizer.chat_prompt([{"role": "user", "content": "hello"}], tools=[{"name": "f"}])


@pytest.mark.parametrize(
    "name",
    [
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
        *("generation_config.json", "config.json", "mlc-chat-config.json"),
    ],
)
@hostile.EXAMPLES
@given(data=st.data())
def test_a_tokenizers_files(folder: Path, name: str, data: st.DataObject) -> None:
    changed = hostile.draw_change(json.loads((folder / name).read_bytes()), data)
    with hostile.replaced(folder / name, changed.encode()):
        hostile.check(use, folder)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("tokenizer.json", ("model", "vocab", "<|bos|>"), "2147483648"),
        ("tokenizer.json", ("added_tokens", 0, "id"), "1e30"),
        ("tokenizer_config.json", ("eos_token",), "5"),
        ("tokenizer_config.json", ("eos_token",), r'"\ud800"'),
        ("tokenizer_config.json", ("chat_template", 1, "name"), "[]"),
        ("tokenizer_config.json", ("added_tokens_decoder", "0", "content"), '""'),
        ("special_tokens_map.json", ("bos_token",), "[]"),
        ("config.json", ("eos_token_id", 0), '{"a": 1}'),
    ],
)
def test_what_no_file_may_say_is_refused_by_the_files_name(
    folder: Path, name: str, place: tuple[str | int, ...], value: str
) -> None:
    path = folder / name
    with hostile.replaced(path, hostile.changed(json.loads(path.read_bytes()), place, value).encode()):
        assert name in (hostile.check(use, folder) or "")


@hostile.EXAMPLES
@given(data=st.data())
def test_a_configuration_beside_tiktoken(tiktoken_folder: Path, data: st.DataObject) -> None:
    path = tiktoken_folder / "tokenizer_config.json"
    with hostile.replaced(path, hostile.draw_change(json.loads(path.read_bytes()), data).encode()):
        hostile.check(use, tiktoken_folder)


@hostile.EXAMPLES
@given(value=hostile.values)
def test_a_template_file(folder: Path, value: str | object) -> None:
    path = folder / "chat_template.json"
    path.write_text(hostile.changed({"chat_template": None}, ("chat_template",), value))
    try:
        hostile.check(use, folder)
    finally:
        path.unlink()


@pytest.mark.parametrize("text", [b"", b"[", b"\xff", b"3", b"null", b"[" * 100_000, b'{"a": ' * 100_000, b"{}"])
def test_files_that_are_no_objects(folder: Path, text: bytes) -> None:
    for path in folder.iterdir():
        with hostile.replaced(path, text):
            hostile.check(use, folder)


def test_end_tokens_are_in_the_models_vocabulary(folder: Path) -> None:
    fields = {"vocab_size": 768, "eos_token_id": 700_000}
    with hostile.replaced(folder / "config.json", json.dumps(fields).encode()):
        said = hostile.check(use, folder)
    assert said == f"{folder}/config.json: eos_token_id has 700000; the model's vocabulary has 768 tokens"
    # The tokenizer's own <|eos|> has an id that such a model cannot say.
    with (
        hostile.replaced(folder / "config.json", b'{"vocab_size": 1}'),
        hostile.replaced(folder / "generation_config.json", b"{}"),
        hostile.replaced(folder / "mlc-chat-config.json", b"{}"),
    ):
        assert Tokenizer.load(folder).eos_token_ids == frozenset()


def test_a_byte_order_mark_is_read_over(folder: Path) -> None:
    for path in folder.glob("*.json"):
        with hostile.replaced(path, codecs.BOM_UTF8 + path.read_bytes()):
            assert hostile.check(use, folder) is None
