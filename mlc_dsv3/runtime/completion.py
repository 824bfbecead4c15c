"""What a request gives back: a whole `Completion`, or `Update`s while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class TokenLogprob:
    """A generated token's log-probability under the model's own distribution, before any sampling parameter.

    `top` holds the likeliest alternatives as (token id, logprob), best first, as many as `logprobs` asked for.
    """

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Update:
    """What one engine step added to a request; the updates' texts and tokens, joined, are the completion's.

    Text that might be the beginning of a stop string or of a character is held back, so `text` may lag `token_ids`.
    `reused_tokens` of the `prompt_tokens` came out of the cache. `error` is why a request ended with "error".
    `accepted` of the `drafted` tokens, over all steps so far, were the model's own. `stop` is the stop string that
    ended the text.
    """

    request_id: int
    token_ids: list[int]
    text: str
    finish_reason: FinishReason | None
    logprobs: list[TokenLogprob] | None
    prompt_tokens: int
    reused_tokens: int
    error: Exception | None = None
    drafted: int = 0
    accepted: int = 0
    stop: str | None = None


@dataclass(frozen=True)
class Completion:
    """A finished request.

    `token_ids` has every token sampled, the end-of-text token or the one that completed a stop string included;
    `text` ends before either. `reused_tokens` of the `prompt_tokens` came out of the cache. `error` is why a request
    ended with "error".
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenLogprob] | None
    prompt_tokens: int
    reused_tokens: int
    error: Exception | None = None


def joined(updates: Sequence[Update]) -> Completion:
    """The completion that a finished request's updates make up."""
    last = updates[-1]
    with_logprobs = last.logprobs is not None
    return Completion(
        text="".join(update.text for update in updates),
        token_ids=[token for update in updates for token in update.token_ids],
        finish_reason=last.finish_reason,
        logprobs=[entry for update in updates for entry in update.logprobs] if with_logprobs else None,
        prompt_tokens=last.prompt_tokens,
        reused_tokens=last.reused_tokens,
        error=last.error,
    )
