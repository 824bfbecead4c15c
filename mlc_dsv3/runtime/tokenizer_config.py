"""What a folder's configuration files say of its tokenizer, checked: special tokens, token ids, the chat template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlc_dsv3.errors import UserError
from mlc_dsv3.json_files import naming, read_json
from mlc_dsv3.limits import MOST_TOKEN_ID
from mlc_dsv3.weights.generation import TOKEN_ID_FIELDS, read_token_ids
from relax_model.fields import Fields, shown

SPECIAL_TOKEN_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# An artifact keeps the ids of generation_config.json and config.json in mlc-chat-config.json.
_WITH_TOKEN_IDS = ("generation_config.json", "config.json", "mlc-chat-config.json")


@dataclass(frozen=True)
class AddedToken:
    """A token that stands behind the vocabulary: its text, and whether answers leave it out."""

    content: str
    special: bool


@dataclass(frozen=True)
class TokenizerConfig:
    """The checked contents of `tokenizer_config.json`, `special_tokens_map.json`, and the files that have token ids."""

    special_tokens: dict[str, str]  # role → text
    token_ids: dict[str, tuple[int, ...]]  # field → what all files state, the first file's ids first
    model_vocab_size: int | None  # the model's, where a file states it
    add_bos_token: bool
    added_tokens: dict[int, AddedToken]
    chat_template: Any  # as it stands; `ChatTemplate.load` checks it

    @staticmethod
    def read(folder: Path) -> TokenizerConfig:
        """From a checkpoint's or an artifact's folder, of the files that are there. UserError names a wrong field."""
        path = folder / "tokenizer_config.json"
        fields, special_tokens = _read_if_there(path), {}
        for file in (folder / "special_tokens_map.json", path):
            special_tokens |= _special_tokens(file)
        with naming(path):
            added = fields.object("added_tokens_decoder", Fields({}))
            added_tokens = {
                _token_id(token): _added_token(Fields.of(entry, f"{added.where}{token}"))
                for token, entry in added.values.items()
            }
            add_bos_token = fields.flag("add_bos_token", False)
        vocab_size = _model_vocab_size(folder)
        return TokenizerConfig(
            special_tokens,
            _token_ids(folder, vocab_size),
            vocab_size,
            add_bos_token,
            added_tokens,
            fields.values.get("chat_template"),
        )


def _read_if_there(path: Path) -> Fields:
    return Fields(read_json(path) if path.exists() else {}).without_nulls()


def _special_tokens(path: Path) -> dict[str, str]:
    fields, tokens = _read_if_there(path), {}
    with naming(path):
        for role in SPECIAL_TOKEN_ROLES:
            is_object = isinstance(fields.values.get(role), dict)
            text = fields.object(role).text("content", None) if is_object else fields.text(role, None)
            if text:
                tokens[role] = text
    return tokens


def _model_vocab_size(folder: Path) -> int | None:
    for name in ("config.json", "mlc-chat-config.json"):
        with naming(folder / name):
            stated = _read_if_there(folder / name).integer("vocab_size", None, least=1)
        if stated is not None:
            return stated
    return None


def _token_ids(folder: Path, vocab_size: int | None) -> dict[str, tuple[int, ...]]:
    ids: dict[str, tuple[int, ...]] = dict.fromkeys(TOKEN_ID_FIELDS, ())
    for name in _WITH_TOKEN_IDS:
        fields = _read_if_there(folder / name)
        with naming(folder / name):
            for field in TOKEN_ID_FIELDS:
                ids[field] += read_token_ids(fields, field, vocab_size)
    return ids


def _token_id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 11 and int(text) <= MOST_TOKEN_ID):
        raise UserError(f"added_tokens_decoder has {shown(text)}; it must have token ids")
    return int(text)


def _added_token(fields: Fields) -> AddedToken:
    content = fields.text("content")
    if not content:
        raise UserError(f"{fields.where}content is empty; a token needs a text")
    return AddedToken(content, fields.flag("special", True))
