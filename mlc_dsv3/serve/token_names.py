"""Tokens and their log-probabilities in words, as OpenAI's objects show them."""

from __future__ import annotations

from typing import Any

from mlc_dsv3.runtime.completion import TokenLogprob
from mlc_dsv3.runtime.tokenizer import Tokenizer

_LEAST_LOGPROB = -9999.0  # JSON has no infinity; OpenAI's own servers send this


def chat_logprobs(tokenizer: Tokenizer, logprobs: list[TokenLogprob]) -> dict[str, Any]:
    """`logprobs` of a chat's choice or delta."""
    content = []
    for entry in logprobs:
        top = [_described(tokenizer, token, logprob) for token, logprob in entry.top]
        content.append({**_described(tokenizer, entry.token_id, entry.logprob), "top_logprobs": top})
    return {"content": content, "refusal": None}


def finite(logprob: float) -> float:
    """A logprob as JSON can have it."""
    return max(logprob, _LEAST_LOGPROB)


def _described(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    spelt = tokenizer.token_bytes(token)
    return {"token": spelt.decode("utf-8", "replace"), "logprob": finite(logprob), "bytes": list(spelt)}
