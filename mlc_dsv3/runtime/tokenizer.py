"""A checkpoint's tokenizer: text to token ids and back, from tokenizer.json or tiktoken.model.

Reads a checkpoint's or an artifact's files; the engine and the terminal session use them through `Tokenizer`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from mlc_dsv3.errors import UserError
from mlc_dsv3.native_names import native_name
from mlc_dsv3.runtime.template import ChatTemplate, Message
from mlc_dsv3.weights.files import read_json

SPECIAL_TOKEN_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """Text to token ids and back; `load` makes one from a folder.

    `eos_token_ids` ends an answer (a frozenset, maybe empty), `bos_token_id` may be None, `vocab_size` is the largest
    id + 1 (a model's own vocabulary may be padded beyond it).
    """

    def __init__(self, folder: Path, vocabulary: _Vocabulary, config: dict[str, Any], configs: list[dict]) -> None:
        self.folder = folder
        self.vocab_size = vocabulary.size
        self._vocabulary = vocabulary
        self._bytes: dict[int, bytes] = {}
        self._special_tokens = {role: name for role in SPECIAL_TOKEN_ROLES if (name := _token_text(config.get(role)))}
        self._template: ChatTemplate | None = None
        self._config = config
        self.bos_token_id: int | None = self._special_id("bos_token", configs)
        self.eos_token_ids = frozenset(_ids(configs, "eos_token_id") + self._named_ids("eos_token"))

    @staticmethod
    def load(folder: Path) -> Tokenizer:
        """The tokenizer of a checkpoint or an artifact. Raises UserError where there is none or it is broken."""
        folder = Path(folder)
        config = _read_if_there(folder / "tokenizer_config.json")
        for role, name in _read_if_there(folder / "special_tokens_map.json").items():
            if config.get(role) is None:
                config[role] = name
        # An artifact keeps the ids of generation_config.json and config.json in mlc-chat-config.json.
        sources = ("generation_config.json", "config.json", "mlc-chat-config.json")
        configs = [_read_if_there(folder / name) for name in sources]
        if (folder / "tokenizer.json").exists():
            vocabulary: _Vocabulary = _TokenizersVocabulary(folder / "tokenizer.json")
        elif (folder / "tiktoken.model").exists():
            vocabulary = _TiktokenVocabulary(folder / "tiktoken.model", config)
        else:
            raise UserError(f"{folder} has no tokenizer: neither tokenizer.json nor tiktoken.model is there")
        return Tokenizer(folder, vocabulary, config, configs)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """The ids of `text`; special tokens written out in it become their ids.

        `add_special_tokens` puts in front what the model expects before plain text (its BOS token, where it has one).
        """
        # Lone surrogates come from terminals and JSON; neither library takes them.
        ids = self._vocabulary.encode(text.encode("utf-8", "replace").decode(), add_special_tokens)
        wants_bos = add_special_tokens and self._config.get("add_bos_token") is True
        if wants_bos and self.bos_token_id is not None and ids[:1] != [self.bos_token_id]:
            ids.insert(0, self.bos_token_id)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens; bytes that are no UTF-8 become U+FFFD."""
        text = b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.strips_leading_space else text

    def token_bytes(self, token: int) -> bytes:
        """The exact bytes that one token stands for: b"" for a special token and for an id without a meaning."""
        piece = self._bytes.get(token)
        if piece is None:
            piece = self._bytes[token] = self._vocabulary.token_bytes(token)
        return piece

    @property
    def strips_leading_space(self) -> bool:
        """Whether a text's first space belongs to the encoding and not to the text (SentencePiece's dummy prefix)."""
        return self._vocabulary.strips_leading_space

    @property
    def chat_template(self) -> ChatTemplate:
        """The checkpoint's chat template. Raises UserError where there is none."""
        if self._template is None:
            self._template = ChatTemplate.load(self.folder, self._config)
        return self._template

    def chat_prompt(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: object
    ) -> list[int]:
        """The ids of a conversation as the checkpoint's chat template writes it; `variables` are the template's own.

        Raises UserError where there is no template, or with the template's words where it refuses the conversation.
        """
        return self.encode(
            self.chat_template.render(
                messages, add_generation_prompt=add_generation_prompt, **{**self._special_tokens, **variables}
            )
        )

    def _named_ids(self, role: str) -> list[int]:
        token = self._vocabulary.token_id(self._special_tokens.get(role, ""))
        return [] if token is None else [token]

    def _special_id(self, role: str, configs: list[dict]) -> int | None:
        return next(iter(self._named_ids(role) + _ids(configs, f"{role}_id")), None)


class _Vocabulary(Protocol):
    """What the two kinds of tokenizer file have in common."""

    size: int
    strips_leading_space: bool

    def encode(self, text: str, add_special_tokens: bool) -> list[int]: ...

    def token_bytes(self, token: int) -> bytes: ...

    def token_id(self, text: str) -> int | None: ...


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte, as character -> byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class _TokenizersVocabulary:
    """tokenizer.json, through the `tokenizers` library."""

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(native_name(path))
            decoder = json.loads(path.read_text(encoding="utf-8")).get("decoder")
        except Exception as error:  # the library raises bare Exception for whatever it cannot read
            raise UserError(f"{path} is not a tokenizer that can be read: {_one_line(error)}") from error
        # Both may be left in the file from training, and would cut or pad prompts.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {token for token, entry in added.items() if entry.special}
        self.size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self._steps = _decoder_steps(decoder)
        kinds = {step["type"] for step in self._steps}
        unknown = kinds - {"ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
        if unknown or not kinds & {"ByteLevel", "Replace", "Metaspace"}:
            named = ", ".join(sorted(unknown)) or "none of a kind that says how tokens become text"
            raise UserError(
                f"{path}: the decoder ({named}) is not supported; ByteLevel, ByteFallback and Metaspace are"
            )
        self._byte_fallback = "ByteFallback" in kinds
        self._alphabet = _byte_level_alphabet() if "ByteLevel" in kinds else None
        self.strips_leading_space = any(
            step.get("prepend_scheme", "always") != "never" if step["type"] == "Metaspace" else step.get("start") == 1
            for step in self._steps
            if step["type"] in ("Metaspace", "Strip")
        )

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def token_id(self, text: str) -> int | None:
        return self._tokenizer.token_to_id(text)

    def token_bytes(self, token: int) -> bytes:
        if token in self._special:
            return b""
        text = self._tokenizer.id_to_token(token)
        if text is None:
            return b""
        if self._alphabet is not None:
            try:
                return bytes([self._alphabet[character] for character in text])
            except KeyError:  # an added token that is written out
                return text.encode()
        if self._byte_fallback and re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", text):
            return bytes([int(text[3:5], 16)])
        for step in self._steps:
            if step["type"] == "Replace" and "String" in step["pattern"]:
                text = text.replace(step["pattern"]["String"], step["content"])
            elif step["type"] == "Metaspace":
                text = text.replace(step["replacement"], " ")
        return text.encode()


def _decoder_steps(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [step for part in decoder["decoders"] for step in _decoder_steps(part)]
    return [decoder]


# How Moonlight and Kimi-K2 cut text before byte-pair encoding (tokenization_kimi.py of the checkpoints): runs of Han
# characters by themselves, words by case without Han, digits in threes, punctuation, line ends, spaces.
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
KIMI_PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SUFFIX}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SUFFIX}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
_RESERVED_TOKENS = 258  # ids behind the ranks that hold special tokens, named or not


class _TiktokenVocabulary:
    """tiktoken.model (ranks of byte strings) with the special tokens that tokenizer_config.json names behind them."""

    strips_leading_space = False

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        import tiktoken

        ranks = _read_ranks(path)
        added = {int(token): entry for token, entry in config.get("added_tokens_decoder", {}).items()}
        names = {token: f"<|reserved_token_{token}|>" for token in range(len(ranks), len(ranks) + _RESERVED_TOKENS)}
        names |= {token: entry["content"] for token, entry in added.items() if token >= len(ranks)}
        self._ids = {name: token for token, name in names.items()}
        self._pieces = {rank: piece for piece, rank in ranks.items()}
        self._pieces |= {token: b"" for token in names}
        self._pieces |= {
            token: entry["content"].encode() for token, entry in added.items() if not entry.get("special", True)
        }
        self.size = max(self._pieces) + 1
        self._encoding = tiktoken.Encoding(
            path.parent.name, pat_str=KIMI_PATTERN, mergeable_ranks=ranks, special_tokens=self._ids
        )

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [
            token for part in _encodable_parts(text) for token in self._encoding.encode(part, allowed_special="all")
        ]

    def token_id(self, text: str) -> int | None:
        return self._ids.get(text)

    def token_bytes(self, token: int) -> bytes:
        return self._pieces.get(token, b"")


def _read_ranks(path: Path) -> dict[bytes, int]:
    # tiktoken's own reader caches by path, and so takes a replaced file for the old one.
    ranks = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line:
            try:
                piece, rank = line.split()
                ranks[base64.b64decode(piece, validate=True)] = int(rank)
            except (ValueError, binascii.Error) as error:
                raise UserError(f"{path}, line {number}: not a token in base64 and its rank") from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise UserError(f"{path}: its {len(ranks)} ranks are not 0 to {len(ranks) - 1}; the file is damaged or cut off")
    return ranks


def _encodable_parts(text: str, most: int = 400_000, longest_run: int = 25_000) -> Iterator[str]:
    """`text` cut as the checkpoints' own code cuts it: tiktoken overflows its stack on more, or on longer runs."""
    for start in range(0, len(text), most):
        part, done = text[start : start + most], 0
        for run in re.finditer(r"\s+|\S+", part):
            for cut in range(run.start() + longest_run, run.end(), longest_run):
                yield part[done:cut]
                done = cut
        yield part[done:]


def _token_text(entry: Any) -> str | None:
    return entry.get("content") if isinstance(entry, dict) else entry


def _ids(configs: list[dict], field: str) -> list[int]:
    values = [config.get(field) for config in configs]
    return [token for value in values if value is not None for token in (value if isinstance(value, list) else [value])]


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
