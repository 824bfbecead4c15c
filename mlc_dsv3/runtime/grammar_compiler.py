"""From a `Grammar` to a `GrammarMatcher` for one model's vocabulary, by llguidance."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlc_dsv3.errors import UserError, said
from mlc_dsv3.runtime.grammar import JSON_WHITE_SPACE, Grammar
from mlc_dsv3.runtime.grammar_matcher import GrammarMatcher, reason_of
from mlc_dsv3.runtime.grammar_trial import excess

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from mlc_dsv3.runtime.tokenizer import Tokenizer

_MOST_TRIED = 256
# Lazy: the first </think> ends the reasoning.
_REASONING = {
    "begun": r"""
start: thought space @answer
thought[lazy]: /(.|\n)*<\/think>/
space: /\s*/
""",
    "own": r"""
start: (space thought)? space @answer
thought[lazy]: /<think>(.|\n)*<\/think>/
space: /\s*/
""",
}


class GrammarCompiler:
    """Compiles grammars for the tokens of one tokenizer; any thread may use it. llguidance is loaded when it is needed.

    `vocab_size` is the model's. It may differ from the tokenizer's: no grammar allows an id that one of them lacks.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._hidden = {token: name for token, name in tokenizer.hidden_tokens.items() if token < vocab_size}
        self._eos = sorted(token for token in tokenizer.eos_token_ids if token < vocab_size)
        self._lock = threading.Lock()
        # What an earlier request has tried is not tried again.
        self._excess = functools.lru_cache(_MOST_TRIED)(self._try)

    def matcher(self, grammar: Grammar, *, ignore_eos: bool = False) -> GrammarMatcher:
        """At the beginning of an answer; with `ignore_eos` the answer goes on for as long as the grammar allows.

        Raises UserError where llguidance is missing, or with its reason where the grammar is invalid, unsatisfiable or
        too complex.
        """
        with self._lock:
            vocabulary = self._vocabulary
        matcher = self._compiled(grammar, vocabulary)
        eos = frozenset(vocabulary.eos_tokens)
        return GrammarMatcher(matcher, vocabulary.vocab_size, self._vocab_size, eos if ignore_eos else frozenset())

    def _compiled(self, grammar: Grammar, vocabulary: LLTokenizer) -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        try:
            text = _in_llguidances_terms(grammar)
        except ValueError as error:
            raise UserError(f"the {grammar.kind} is invalid: {said(error)}") from None
        if too_much := self._excess(text):
            raise UserError(f"the {grammar.kind} is too complex: {too_much}")
        matcher = LLMatcher(vocabulary, text, log_level=0, limits=LLParserLimits(verbose_errors=False))
        if not matcher.is_error():
            matcher.compute_bitmask()  # finds that nothing can begin an answer
        if matcher.is_error():
            raise UserError(f"the {grammar.kind} cannot be used: {reason_of(matcher)}")
        return matcher

    def _try(self, text: str) -> str | None:
        return excess(text, self._vocab_size, self._hidden)

    @functools.cached_property
    def _vocabulary(self) -> LLTokenizer:
        try:
            from llguidance import LLTokenizer
        except ImportError:
            raise UserError(
                "llguidance is missing, which keeps answers to a grammar; run: pip install llguidance"
            ) from None
        adapter = _Adapter(self._tokenizer, self._vocab_size, self._hidden, self._eos)
        # Without an end-of-text token llguidance makes one of its own, behind the vocabulary.
        vocabulary = LLTokenizer(adapter, eos_token=self._eos or None)
        adapter.vocabulary = vocabulary
        return vocabulary


class _Adapter:
    """A tokenizer in llguidance's terms."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, hidden: Mapping[int, str], eos: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self.vocabulary: LLTokenizer | None = None
        self.eos_token_id = eos[0] if eos else None
        self.special_token_ids = [*hidden]
        pieces = [tokenizer.token_bytes(token) for token in range(vocab_size)]
        # llguidance marks hidden tokens by this byte, which no text in UTF-8 has.
        self.tokens = [b"" if piece.startswith(b"\xff") else piece for piece in pieces]
        for token, name in hidden.items():
            self.tokens[token] = name.encode()

    def __call__(self, text: str) -> list[int]:
        """The tokens that a forced text becomes."""
        ids = self._tokenizer.encode(text)
        # Not so where the encoding puts a space in front, the text spells out a hidden token, or the model lacks one.
        same = b"".join(map(self._tokenizer.token_bytes, ids)) == text.encode()
        if same and all(token < len(self.tokens) for token in ids):
            return ids
        assert self.vocabulary is not None
        return self.vocabulary.greedy_tokenize(text)


def _in_llguidances_terms(grammar: Grammar) -> str:
    form = _form_in_llguidances_terms(grammar)
    answer = [{**form, "name": "answer"}]
    if grammar.other is not None:
        either = {"name": "answer", "lark_grammar": "start: @form | @other"}
        answer = [either, {**form, "name": "form"}, {"name": "other", "lark_grammar": grammar.other}]
    if grammar.reasoning != "none":  # the first grammar is the whole output's
        answer.insert(0, {"name": "whole", "lark_grammar": _REASONING[grammar.reasoning]})
    return json.dumps({"grammars": answer})


def _form_in_llguidances_terms(grammar: Grammar) -> dict[str, Any]:
    from llguidance import LLMatcher

    if grammar.kind == "Lark grammar":
        return {"lark_grammar": grammar.text}
    if grammar.kind == "regular expression":
        text = LLMatcher.grammar_from_regex(grammar.text)
    else:
        schema = json.loads(grammar.text)
        options = schema.get("x-guidance")
        # A pattern would have precedence over what the schema itself says of white space.
        stated = isinstance(options, dict) and "whitespace_flexible" in options
        defaults = {} if stated else {"whitespace_pattern": JSON_WHITE_SPACE}
        text = LLMatcher.grammar_from_json_schema(grammar.text, defaults=defaults)
    (answer,) = json.loads(text)["grammars"]
    return answer
