"""Sampling against an oracle that is written for plainness."""

from __future__ import annotations

import numpy as np
import pytest
from golden.sampling import probabilities
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc_dsv3.errors import NotFiniteError
from mlc_dsv3.runtime.sampler import TokenHistory, sample, token_logprob, uniform
from mlc_dsv3.runtime.sampling import SamplingParams


def history(prompt: list[int], output: list[int]) -> TokenHistory:
    seen = TokenHistory(prompt)
    for token in output:
        seen.append(token)
    return seen


def assert_follows_the_probabilities(
    logits: np.ndarray, params: SamplingParams, prompt: list[int], output: list[int]
) -> None:
    """The token that is drawn is where the oracle's running sum passes the same random number, up to float32."""
    running = np.concatenate(([0.0], np.cumsum(probabilities(logits, params, prompt, output))))
    before = logits.copy()
    seen = history(prompt, output)
    for position in range(40):
        token = sample(logits, params, seen, 5, position)
        number = 0.0 if params.temperature == 0 else uniform(5, position)
        assert running[token + 1] > running[token], "outside the filters"
        assert running[token] - 1e-5 <= number * running[-1] <= running[token + 1] + 1e-5
    np.testing.assert_array_equal(logits, before)


PARAMS = {
    "plain": {},
    "cold": {"temperature": 0.3},
    "hot": {"temperature": 2.5},
    "greedy": {"temperature": 0},
    "top_p": {"top_p": 0.7},
    "top_p, hardly": {"top_p": 0.999},
    "top_p, nearly greedy": {"top_p": 1e-6},
    "top_k": {"top_k": 5},
    "top_k of one": {"top_k": 1},
    "top_k of all": {"top_k": 10**6},
    "min_p": {"min_p": 0.1},
    "min_p of one": {"min_p": 1.0},
    "all filters": {"temperature": 1.5, "min_p": 0.05, "top_k": 12, "top_p": 0.8},
    "repetition": {"repetition_penalty": 1.7},
    "repetition, rewarded": {"repetition_penalty": 0.6},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.9},
    "bias": {"logit_bias": {3: 9.0, 4: -50.0}},
    "greedy with all that changes logits": {
        "temperature": 0,
        "repetition_penalty": 1.3,
        "presence_penalty": -1.0,
        "frequency_penalty": 0.5,
        "logit_bias": {0: 2.5},
    },
    "everything": {
        "temperature": 0.8,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.3,
        "logit_bias": {7: 3.0},
        "min_p": 0.01,
        "top_k": 20,
        "top_p": 0.9,
    },
}


@pytest.mark.parametrize("options", PARAMS.values(), ids=PARAMS)
@pytest.mark.parametrize("vocab_size", [11, 3000])
def test_each_parameter_does_what_it_says(options: dict, vocab_size: int) -> None:
    generator = np.random.default_rng(vocab_size)
    for _ in range(5):
        logits = generator.normal(0, 3, vocab_size).astype(np.float32)
        prompt = generator.integers(0, 11, 6).tolist()
        output = generator.integers(0, 11, 9).tolist()
        assert_follows_the_probabilities(logits, SamplingParams(**options), prompt, output)


@settings(max_examples=150, deadline=None)
@given(
    # Quarters make ties, which must go to the lower id in every filter.
    quarters=st.lists(st.integers(-12, 12), min_size=1, max_size=30),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_p=st.sampled_from([0.05, 0.35, 0.77, 1.0]),
    top_k=st.integers(-1, 31),
    min_p=st.sampled_from([0.0, 0.03, 0.3]),
)
def test_filters_agree_with_the_oracle_on_ties(
    quarters: list[int], temperature: float, top_p: float, top_k: int, min_p: float
) -> None:
    params = SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    assert_follows_the_probabilities(np.array(quarters, np.float32) / 4, params, [], [])


@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0, 30.0])
def test_top_p_is_exact_on_a_large_vocabulary(spread: float) -> None:
    logits = np.random.default_rng(1).normal(0, spread, 100_000).astype(np.float32)
    ranked = np.argsort(-logits, kind="stable")
    rank = np.empty(len(logits), np.int64)
    rank[ranked] = np.arange(len(logits))
    running = np.cumsum(np.exp(logits[ranked].astype(np.float64) - logits.max()))
    for top_p in (0.1, 0.9, 0.9999):
        kept = int(np.searchsorted(running, top_p * running[-1])) + 1
        params = SamplingParams(temperature=1, top_p=top_p)
        drawn = rank[[sample(logits, params, None, 1, position) for position in range(100)]]
        assert drawn.max() < kept * 1.0001 + 1, "outside the set, but for float32's rounding"
        assert kept < 1000 or drawn.max() > kept // 2, "the less likely half never comes"


def test_draws_have_the_distribution_that_was_asked_for() -> None:
    logits = np.array([2.0, 1.0, 0.0, -1.0, 0.5, -2.0, 1.5, -30.0], np.float32)
    for options in ({}, {"temperature": 0.7, "top_k": 5}, {"temperature": 1.8, "top_p": 0.9}):
        params = SamplingParams(**options)
        expected = probabilities(logits, params, [], []) * 4_000
        drawn = [sample(logits, params, None, seed, position) for seed in range(40) for position in range(100)]
        counts = np.bincount(drawn, minlength=len(logits))
        likely = expected > 5
        chi_square = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
        assert chi_square < 24.3, "p < 0.001 for 7 degrees of freedom"
        assert counts[~likely].sum() <= 5


def test_random_numbers_hang_on_seed_and_position_alone() -> None:
    numbers = np.array([[uniform(seed, position) for position in range(100)] for seed in range(100)])
    assert len(np.unique(numbers)) == numbers.size
    assert abs(numbers.mean() - 0.5) < 0.02
    for shifted in (numbers[1:], numbers[:, 1:]):
        base = numbers[: shifted.shape[0], : shifted.shape[1]]
        assert abs(np.corrcoef(base.ravel(), shifted.ravel())[0, 1]) < 0.05
    assert uniform(2**64 - 1, 5) == uniform(2**64 - 1, 5)


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    assert sample(np.array([1, 3, 3, 0], np.float32), SamplingParams(temperature=0), None, 0, 0) == 1


def test_the_smallest_temperatures_are_greedy_and_masked_tokens_never_come() -> None:
    logits = np.array([1, 3, 2.5, -np.inf], np.float32)
    for temperature in (1e-300, 1e-45, 1e-30, 1e-6):
        drawn = {sample(logits, SamplingParams(temperature=temperature), None, 0, position) for position in range(20)}
        assert drawn == {1}
        tied = np.array([1, 3, 3], np.float32)
        drawn = {sample(tied, SamplingParams(temperature=temperature), None, 0, position) for position in range(20)}
        assert drawn == {1, 2}
    hot = {sample(logits, SamplingParams(temperature=50.0), None, 0, position) for position in range(200)}
    assert hot == {0, 1, 2}


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(broken: float) -> None:
    for temperature in (0, 1):
        with pytest.raises(NotFiniteError, match="not finite"):
            sample(np.array([0, broken], np.float32), SamplingParams(temperature=temperature), None, 0, 3)


def test_logprobs_are_the_models_own_distribution() -> None:
    logits = np.random.default_rng(0).normal(0, 5, 1000).astype(np.float32)
    logits[[17, 400]] = logits.max() + 1  # a tie
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    entry = token_logprob(logits, 5, 20)
    assert (entry.token_id, len(entry.top)) == (5, 20)
    assert entry.logprob == pytest.approx(exact[5], abs=1e-5)
    assert [token for token, _ in entry.top] == np.argsort(-exact, kind="stable")[:20].tolist()
    np.testing.assert_allclose([value for _, value in entry.top], np.sort(exact)[::-1][:20], atol=1e-5)
    assert token_logprob(logits, 5, 0).top == []
