"""The probability of each token, written for plainness: float64, full sorts, one rule after the other."""

from __future__ import annotations

import numpy as np

from mlc_dsv3.runtime.sampling import SamplingParams


def probabilities(logits: np.ndarray, params: SamplingParams, prompt: list[int], output: list[int]) -> np.ndarray:
    """The probability of each token, float64 (vocab_size,)."""
    scores = [float(value) for value in logits]
    for token, bias in params.logit_bias.items():
        scores[token] += bias
    for token in set(prompt) | set(output):
        factor = params.repetition_penalty
        scores[token] = scores[token] / factor if scores[token] > 0 else scores[token] * factor
    for token in set(output):
        scores[token] -= params.frequency_penalty * output.count(token) + params.presence_penalty
    if params.temperature == 0:
        return np.eye(len(scores))[scores.index(max(scores))]
    weights = np.exp((np.array(scores) - max(scores)) / params.temperature)
    alive = weights >= params.min_p * weights.max()
    ranked = [token for token in sorted(range(len(scores)), key=lambda token: (-weights[token], token)) if alive[token]]
    if params.top_k > 0:
        ranked = ranked[: params.top_k]
    total, mass, kept = sum(weights[ranked]), 0.0, []
    for token in ranked:
        kept.append(token)
        mass += weights[token]
        if mass >= params.top_p * total:
            break
    result = np.zeros(len(scores))
    result[kept] = weights[kept]
    return result / result.sum()
