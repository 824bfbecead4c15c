"""The two kinds of tokenizer file, tokenizer.json and tiktoken.model, behind one interface.

`Tokenizer` reads a folder and keeps one of them.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import tokenizers

from mlc_dsv3.errors import UserError, said
from mlc_dsv3.json_files import parse_json, read_json_bytes
from mlc_dsv3.regular_files import regular_size
from mlc_dsv3.runtime.control_tokens import OWN, SHOWN, ControlTokens
from mlc_dsv3.runtime.tokenizer_config import AddedToken
from relax_model.fields import named, shown

if TYPE_CHECKING:
    import tiktoken


_MOST_IDS = 1 << 24


class Vocabulary(Protocol):
    """What the two kinds of tokenizer file have in common."""

    size: int
    strips_leading_space: bool
    control_tokens: ControlTokens
    hidden_tokens: Mapping[int, str]  # those that text does not show, and their names

    def encode(self, text: str, add_special_tokens: bool) -> list[int]: ...

    def encode_chat(self, text: str) -> list[int]:
        """The ids of text in which only the control tokens behind an OWN mark are tokens."""
        ...

    def token_bytes(self, token: int) -> bytes: ...

    def token_id(self, text: str) -> int | None: ...


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte, as character -> byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class TokenizersVocabulary:
    """tokenizer.json, through the `tokenizers` library."""

    def __init__(self, path: Path) -> None:
        try:
            data = read_json_bytes(path)
            fields = parse_json(data, str(path))
            _check_ids(path, fields)
            self._tokenizer = tokenizers.Tokenizer.from_buffer(data)
        except UserError:
            raise
        except Exception as error:  # the library raises bare Exception for whatever it cannot read
            raise UserError(f"{path} is not a tokenizer that can be read: {said(error)}") from error
        # Both may be left in the file from training, and would cut or pad prompts.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        hidden = {token: entry.content for token, entry in added.items() if entry.special}
        self.hidden_tokens = {token: name for token, name in hidden.items() if name not in SHOWN}
        # Words that count only between spaces are not what templates write.
        self.control_tokens = ControlTokens(
            {entry.content: entry.special for entry in added.values() if not entry.single_word}
        )
        self.size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self._steps = _decoder_steps(fields.get("decoder"))
        kinds = {step["type"] for step in self._steps}
        unknown = kinds - {"ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
        if unknown or not kinds & {"ByteLevel", "Replace", "Metaspace"}:
            kinds_named = ", ".join(map(named, sorted(unknown))) or "none of a kind that says how tokens become text"
            raise UserError(
                f"{path}: the decoder ({kinds_named}) is not supported; ByteLevel, ByteFallback and Metaspace are"
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

    def encode_chat(self, text: str) -> list[int]:
        tokenizer, ids = self._marked
        return [ids.get(token, token) for token in tokenizer.encode(text, add_special_tokens=False).ids]

    @functools.cached_property
    def _marked(self) -> tuple[tokenizers.Tokenizer, dict[int, int]]:
        """A tokenizer whose control tokens begin with OWN, and the real ids of its added tokens."""
        content = json.loads(self._tokenizer.to_str())
        for entry in content["added_tokens"]:
            if entry["content"] in self.control_tokens.names:
                # A normalizer may change the mark.
                entry.update(content=OWN + entry["content"], normalized=False)
        content["post_processor"] = None  # it may name a token by the text that it no longer has
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
        added = tokenizer.get_added_tokens_decoder()
        ids = {token: self._tokenizer.token_to_id(entry.content.removeprefix(OWN)) for token, entry in added.items()}
        return tokenizer, ids

    def token_id(self, text: str) -> int | None:
        return self._tokenizer.token_to_id(text)

    def token_bytes(self, token: int) -> bytes:
        if token in self.hidden_tokens:
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


def _check_ids(path: Path, fields: Mapping[str, Any]) -> None:
    """UserError for an id that no vocabulary has: the library makes room for all ids below it."""
    model, added = fields.get("model"), fields.get("added_tokens")
    ids = model.get("vocab") if isinstance(model, dict) else None
    ids = [*ids.values()] if isinstance(ids, dict) else []
    ids += [entry.get("id") for entry in added if isinstance(entry, dict)] if isinstance(added, list) else []
    wrong = next((token for token in ids if type(token) is not int or not 0 <= token < _MOST_IDS), None)
    if wrong is not None:
        raise UserError(f"{path} has the token id {shown(wrong)}; ids are whole numbers below {_MOST_IDS}")


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


class TiktokenVocabulary:
    """tiktoken.model (ranks of byte strings) with the special tokens that tokenizer_config.json names behind them."""

    strips_leading_space = False

    def __init__(self, path: Path, added: Mapping[int, AddedToken]) -> None:
        ranks = _read_ranks(path)
        names = {token: f"<|reserved_token_{token}|>" for token in range(len(ranks), len(ranks) + _RESERVED_TOKENS)}
        names |= {token: entry.content for token, entry in added.items() if token >= len(ranks)}
        self._ids = {name: token for token, name in names.items()}
        self._pieces = {rank: piece for piece, rank in ranks.items()}
        self._pieces |= {token: b"" for token in names}
        self._pieces |= {
            token: entry.content.encode()
            for token, entry in added.items()
            if not entry.special or entry.content in SHOWN
        }
        self.hidden_tokens = {token: name for token, name in names.items() if not self._pieces[token]}
        self.size = max(self._pieces) + 1
        self.control_tokens = ControlTokens(
            {name: token not in added or added[token].special for name, token in self._ids.items()}
        )
        self._ranks, self._name = ranks, path.parent.name
        self._encoding = self._encoding_with(self._ids)

    def _encoding_with(self, special_tokens: dict[str, int]) -> tiktoken.Encoding:
        import tiktoken

        return tiktoken.Encoding(
            self._name, pat_str=KIMI_PATTERN, mergeable_ranks=self._ranks, special_tokens=special_tokens
        )

    @functools.cached_property
    def _marked(self) -> tiktoken.Encoding:
        """An encoding whose control tokens begin with OWN."""
        names = self.control_tokens.names
        return self._encoding_with({OWN + name if name in names else name: token for name, token in self._ids.items()})

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self._encode(self._encoding, text)

    def encode_chat(self, text: str) -> list[int]:
        return self._encode(self._marked, text)

    def _encode(self, encoding: tiktoken.Encoding, text: str) -> list[int]:
        return [token for part in _encodable_parts(text) for token in encoding.encode(part, allowed_special="all")]

    def token_id(self, text: str) -> int | None:
        return self._ids.get(text)

    def token_bytes(self, token: int) -> bytes:
        return self._pieces.get(token, b"")


def _read_ranks(path: Path) -> dict[bytes, int]:
    # tiktoken's own reader caches by path, and so takes a replaced file for the old one.
    regular_size(path)
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
