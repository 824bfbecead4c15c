"""Grammars on each kind of tokenizer: whatever tokens the masks allow, the text that they become matches."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from chat_checkpoints import byte_fallback_checkpoint, byte_level_checkpoint, tiktoken_checkpoint

from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.grammar import Grammar
from mlc_dsv3.runtime.grammar_compiler import GrammarCompiler
from mlc_dsv3.runtime.grammar_matcher import allowed_tokens
from mlc_dsv3.runtime.tokenizer import Tokenizer

pytest.importorskip("llguidance", reason="llguidance is missing: pip install llguidance")

CHECKPOINTS = {
    "byte level": byte_level_checkpoint,
    "byte fallback": byte_fallback_checkpoint,
    "tiktoken": tiktoken_checkpoint,
}
SCHEMA = {
    "type": "object",
    "properties": {"größe": {"type": "string", "maxLength": 20}, "n": {"type": "integer"}, "中文": {"const": "日本 x"}},
    "required": ["größe", "n", "中文"],
    "additionalProperties": False,
}
PATTERNS = [r"(quick|brown|naïve) (fox|café)(, 한국어){0,3}!", r"[α-ω]{5} 👩‍👩‍👧 (\d{1,3}\n){2}"]
PADDING = 37  # ids that the model has beyond the tokenizer's


@pytest.fixture(params=CHECKPOINTS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    return Tokenizer.load(CHECKPOINTS[request.param](tmp_path))


def walk(tokenizer: Tokenizer, grammar: Grammar, seed: int) -> list[int]:
    """Tokens that the masks allow, drawn with equal chances until the answer can only end."""
    size, rng, tokens = tokenizer.vocab_size + PADDING, np.random.default_rng(seed), []
    matcher = GrammarCompiler(tokenizer, size).matcher(grammar, ignore_eos=True)
    for _ in range(400):
        (mask,) = matcher.masks()
        forced = matcher.forced()
        allowed = np.flatnonzero(allowed_tokens(mask, size))
        assert not forced or allowed.tolist() == forced[:1]
        tokens.append(int(rng.choice(allowed)))
        if matcher.accept(tokens[-1]):
            return tokens
    raise AssertionError("the answer does not end")


def test_whatever_is_allowed_matches(tokenizer: Tokenizer) -> None:
    for seed in range(6):
        value = json.loads(tokenizer.decode(walk(tokenizer, Grammar.json_schema(SCHEMA), seed)))
        assert list(value) == ["größe", "n", "中文"] and len(value["größe"]) <= 20 and value["中文"] == "日本 x"
        for pattern in PATTERNS:
            assert re.fullmatch(pattern, tokenizer.decode(walk(tokenizer, Grammar.regex(pattern), seed)))


def test_a_hidden_token_is_named_and_never_part_of_text(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size)
    token, name = next((token, name) for token, name in tokenizer.hidden_tokens.items() if name.startswith("<"))
    matcher = compiler.matcher(Grammar.lark(f'start: {name} "a"'))
    assert matcher.forced()[:1] == [token]
    hidden = [token for token in tokenizer.hidden_tokens if token not in tokenizer.eos_token_ids]
    anything = allowed_tokens(compiler.matcher(Grammar.regex(r"(.|\n)*")).masks()[0], tokenizer.vocab_size)
    assert not anything[hidden].any() and anything.sum() > 100
    with pytest.raises(UserError, match="unknown special token"):
        compiler.matcher(Grammar.lark("start: <|nobody|>"))
