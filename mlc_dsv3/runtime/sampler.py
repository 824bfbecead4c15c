"""From a row of logits to a token: penalties, filters and the draw, as `SamplingParams` describes them.

Works on the few candidates that survive the filters and never sorts a vocabulary unless the distribution is flat. A GPU
chooses by itself, in the same order and with the same random number (`relax_model/kernels/sampling`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlc_dsv3.errors import NotFiniteError
from mlc_dsv3.runtime.completion import TokenLogprob
from mlc_dsv3.runtime.grammar_matcher import allowed_tokens
from mlc_dsv3.runtime.sampling import SamplingParams
from relax_model.sampling import sampling_words

_LEAST_TEMPERATURE = float(np.finfo(np.float32).tiny)
_BLOCK = 512


class TokenHistory:
    """The tokens that penalties look at: the prompt's, and how often each was put out."""

    def __init__(self, prompt: Iterable[int]) -> None:
        self._prompt = frozenset(prompt)
        self._seen = list(self._prompt)
        self._counts: dict[int, int] = {}

    def append(self, token: int) -> None:
        """Count one more token of the output."""
        if token not in self._prompt and token not in self._counts:
            self._seen.append(token)
        self._counts[token] = self._counts.get(token, 0) + 1

    def extended(self, tokens: Iterable[int]) -> TokenHistory:
        """A history of its own, with these tokens behind."""
        other = TokenHistory(())
        other._prompt, other._seen, other._counts = self._prompt, list(self._seen), dict(self._counts)
        for token in tokens:
            other.append(token)
        return other

    def seen(self) -> np.ndarray:
        """Distinct ids of prompt and output, int64."""
        return np.array(self._seen, np.int64)

    def output_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct ids of the output, int64, and how often each occurs, float32."""
        size = len(self._counts)
        return np.fromiter(self._counts, np.int64, size), np.fromiter(self._counts.values(), np.float32, size)


@dataclass(frozen=True)
class Draw:
    """A token to choose: for `position`, from a row of a step's logits."""

    row: int
    params: SamplingParams
    history: TokenHistory | None  # may be None where `params.penalises` is false
    seed: int
    position: int
    mask: np.ndarray | None = None  # int32 (mask_words(vocab_size),): tokens that may be chosen; None: all

    def from_logits(self, logits: np.ndarray) -> int | NotFiniteError:
        """The token, by the host, from a step's logits (wanted, vocab_size), or why there is none."""
        try:
            return sample(logits[self.row], self.params, self.history, self.seed, self.position, self.mask)
        except NotFiniteError as error:
            return error

    def words(self) -> np.ndarray:
        """What a device is told: int32 (WORDS,)."""
        assert not self.params.needs_logits
        params, number = self.params, uniform(self.seed, self.position)
        return sampling_words(
            self.row,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            min_p=params.min_p,
            number=number,
        )

    def from_device(self, token: int) -> int | NotFiniteError:
        """The token that a device chose, which is negative where there was none to choose, or why there is none."""
        return token if token >= 0 else _not_finite(self.position)


def sample(
    logits: np.ndarray,
    params: SamplingParams,
    history: TokenHistory | None,
    seed: int,
    position: int,
    mask: np.ndarray | None = None,
) -> int:
    """The token for `position` from float32 `logits` (vocab_size,), which stay as they are.

    `history` may be None where `params.penalises` is false. The random number hangs on (seed, position) alone. `mask`
    has a bit for each token that may be chosen, as `Draw.mask`.
    """
    scores = _adjusted(logits, params, history)
    likeliest = int(np.argmax(scores))  # the first NaN, if there is one
    if mask is not None and np.isfinite(scores[likeliest]):
        scores = np.where(allowed_tokens(mask, scores.size), scores, np.float32(-np.inf))
        likeliest = int(np.argmax(scores))
    if not np.isfinite(scores[likeliest]):
        raise _not_finite(position)
    if params.temperature == 0:
        return likeliest
    with np.errstate(over="ignore", under="ignore"):
        # A temperature that float32 rounds to zero would make 0 / 0 of the likeliest.
        temperature = np.float32(max(params.temperature, _LEAST_TEMPERATURE))
        scaled = (scores - scores[likeliest]) / temperature
        ids, weights = _candidates(scaled, params)
    chosen = _draw(weights, uniform(seed, position))
    return int(chosen if ids is None else ids[chosen])


def token_logprob(logits: np.ndarray, token: int, alternatives: int) -> TokenLogprob:
    """`token`'s log-softmax under float32 `logits` (vocab_size,), with the likeliest `alternatives`."""
    peak = logits.max()
    log_total = float(peak) + float(np.log(np.exp(logits - peak).sum(dtype=np.float64)))
    ids = _largest(logits, alternatives) if alternatives else np.empty(0, np.int64)
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    top = [(int(i), float(logits[i]) - log_total) for i in ids]
    return TokenLogprob(token, float(logits[token]) - log_total, top)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that hangs on nothing but `seed` (below 2**64) and `position`: Philox (Salmon et al. 2011)."""
    return (int(np.random.Philox(key=seed, counter=position).random_raw()) >> 11) * 2.0**-53


def _not_finite(position: int) -> NotFiniteError:
    return NotFiniteError(f"the model's logits at position {position - 1} are not finite")


def _adjusted(logits: np.ndarray, params: SamplingParams, history: TokenHistory | None) -> np.ndarray:
    """The logits with bias and penalties; the same array where there are none."""
    if not params.logit_bias and not params.penalises:
        return logits
    scores = logits.astype(np.float32, copy=True)
    for token, bias in params.logit_bias.items():
        scores[token] += np.float32(bias)
    if params.penalises:
        assert history is not None
        seen = history.seen()
        values = scores[seen]
        penalty = np.float32(params.repetition_penalty)
        scores[seen] = np.where(values > 0, values / penalty, values * penalty)
        put_out, counts = history.output_counts()
        scores[put_out] -= np.float32(params.frequency_penalty) * counts + np.float32(params.presence_penalty)
    return scores


def _candidates(scaled: np.ndarray, params: SamplingParams) -> tuple[np.ndarray | None, np.ndarray]:
    """Ids that pass the filters, ascending (None: all), and their weights, the likeliest one's being 1.

    `scaled` (vocab_size,) is logits over temperature, relative to the largest.
    """
    ids = None
    if params.min_p > 0:
        ids = np.flatnonzero(scaled >= np.float32(np.log(params.min_p)))
        scaled = scaled[ids]
    if 0 < params.top_k < scaled.size:
        kept = _largest(scaled, params.top_k)
        ids = kept if ids is None else ids[kept]
        scaled = scaled[kept]
    weights = np.exp(scaled)
    if params.top_p < 1:
        kept = _nucleus(weights, params.top_p)
        ids = kept if ids is None else ids[kept]
        weights = weights[kept]
    return ids, weights


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest, ascending; among equals the lower index."""
    if count >= values.size:
        return np.arange(values.size)
    bound = np.partition(values, values.size - count)[values.size - count]
    kept = values > bound
    kept[np.flatnonzero(values == bound)[: count - np.count_nonzero(kept)]] = True
    return np.flatnonzero(kept)


def _nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """Indices, ascending, of the fewest largest weights that make up `top_p` of the sum; the largest weight is 1."""
    goal = top_p * weights.sum(dtype=np.float64)
    # Whatever weighs less than a set that reaches the goal is outside: usually few are left to sort.
    for least in (2.0**-6, 2.0**-12, 2.0**-18, 0.0):
        heavy = weights[np.flatnonzero(weights >= np.float32(least))]
        if heavy.sum(dtype=np.float64) >= goal:
            break
    return _largest(weights, _running_sum_reaches(np.sort(heavy)[::-1], goal, "left") + 1)


def _draw(weights: np.ndarray, number: float) -> int:
    """The index where the running sum of `weights` passes `number` in [0, 1) of the total."""
    return _running_sum_reaches(weights, number * weights.sum(dtype=np.float64), "right")


def _running_sum_reaches(weights: np.ndarray, goal: float, side: Literal["left", "right"]) -> int:
    """The first index whose running sum is at least ("left") or above ("right") `goal`.

    Where rounding leaves none, the last index that adds anything.
    """
    # Sums of blocks first: a running sum over a vocabulary takes longer than everything else.
    starts = np.arange(0, weights.size, _BLOCK)
    blocks = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    block = _search(blocks, goal, side)
    start = int(starts[block])
    before = blocks[block - 1] if block else 0.0
    return start + _search(before + np.cumsum(weights[start : start + _BLOCK], dtype=np.float64), goal, side)


def _search(running: np.ndarray, goal: float, side: Literal["left", "right"]) -> int:
    return min(int(np.searchsorted(running, goal, side)), int(np.searchsorted(running, running[-1])))
