"""Tokens and their log-probabilities as OpenAI's objects show them: by their text and bytes."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from mlc_dsv3.runtime.completion import TokenLogprob
from mlc_dsv3.runtime.tokenizer import Tokenizer

_LEAST_LOGPROB = -9999.0  # JSON has no infinity; OpenAI's own servers send this


def chat_logprobs(tokenizer: Tokenizer, logprobs: list[TokenLogprob]) -> dict[str, Any]:
    """`logprobs` of a chat's choice or delta: of the tokens that its text shows, and not of the one that ends it."""
    content = []
    for entry in _shown(tokenizer, logprobs):
        top = [_described(tokenizer, token, logprob) for token, logprob in entry.top]
        content.append({**_described(tokenizer, entry.token_id, entry.logprob), "top_logprobs": top})
    return {"content": content, "refusal": None}


class CompletionLogprobs:
    """`logprobs` of one answer to a request for completions, which grow with its text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._length = 0  # characters so far

    def prompt(self, first: int, others: Sequence[TokenLogprob]) -> dict[str, list[Any]]:
        """Those of an echoed prompt. Its first token has no logprob."""
        start = {
            "tokens": [_text(self._tokenizer, first)],
            "token_logprobs": [None],
            "top_logprobs": [None],
            "text_offset": [self._offset(first)],
        }
        return {name: start[name] + entries for name, entries in self._of(others).items()}

    def generated(self, logprobs: Sequence[TokenLogprob]) -> dict[str, list[Any]]:
        """Those of generated tokens, without the one that ends the text."""
        return self._of(_shown(self._tokenizer, logprobs))

    def _of(self, logprobs: Sequence[TokenLogprob]) -> dict[str, list[Any]]:
        return {
            "tokens": [_text(self._tokenizer, entry.token_id) for entry in logprobs],
            "token_logprobs": [_finite(entry.logprob) for entry in logprobs],
            "top_logprobs": [
                {_text(self._tokenizer, token): _finite(logprob) for token, logprob in entry.top} for entry in logprobs
            ],
            "text_offset": [self._offset(entry.token_id) for entry in logprobs],
        }

    def _offset(self, token: int) -> int:
        """Where the text of the next token begins, in characters of the whole text."""
        offset = self._length
        self._length += len(self._decoder.decode(self._tokenizer.token_bytes(token)))
        return offset


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST_LOGPROB)


def _shown(tokenizer: Tokenizer, logprobs: Sequence[TokenLogprob]) -> list[TokenLogprob]:
    return [entry for entry in logprobs if entry.token_id not in tokenizer.hidden_tokens]


def _text(tokenizer: Tokenizer, token: int) -> str:
    """A name that no other token has: its text, the name of one that text does not show, or its bytes as OpenAI writes
    those that are no text by themselves."""
    if token in tokenizer.hidden_tokens:
        return tokenizer.hidden_tokens[token]
    spelt = tokenizer.token_bytes(token)
    try:
        return spelt.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelt)


def _described(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    spelt = list(tokenizer.token_bytes(token))
    return {"token": _text(tokenizer, token), "logprob": _finite(logprob), "bytes": spelt}
