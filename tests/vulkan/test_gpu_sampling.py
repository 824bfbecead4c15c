"""The kernel that samples, against the float64 oracle and the host's sampler, with which it agrees token by token."""

from __future__ import annotations

import numpy as np
import pytest
from golden.sampling import probabilities
from gpu_harness import run_gpu
from marks import quick_first
from on_device import needs_gpu

from mlc_dsv3.errors import NotFiniteError
from mlc_dsv3.runtime.sampler import Draw, uniform
from mlc_dsv3.runtime.sampling import SamplingParams
from relax_model.sampling import CHUNK, MASK_BITS, mask_words

pytestmark = needs_gpu
SEED = 5
OPTIONS = {
    "plain": {},
    "greedy": {"temperature": 0},
    "cold": {"temperature": 0.3},
    "hot": {"temperature": 2.5},
    "top_p": {"top_p": 0.7},
    "top_p, hardly": {"top_p": 0.999},
    "top_p, nearly greedy": {"top_p": 1e-12},
    "top_k": {"top_k": 5},
    "top_k of many": {"top_k": 1500},
    "top_k of all": {"top_k": 2**31 - 1},
    "min_p": {"min_p": 0.1},
    "min_p of one": {"min_p": 1.0},
    "top_k and top_p": {"top_k": 40, "top_p": 0.9},
    "all filters": {"temperature": 1.5, "min_p": 0.05, "top_k": 12, "top_p": 0.8},
}


def draws(params: list[SamplingParams], masks: list[np.ndarray] | None = None) -> list[Draw]:
    """One a row of logits, each with a random number of its own."""
    each_mask = masks or [None] * len(params)
    return [
        Draw(row, each, None, SEED, row, mask) for row, (each, mask) in enumerate(zip(params, each_mask, strict=True))
    ]


def mask_of(allowed: np.ndarray) -> np.ndarray:
    """The mask of a row of booleans."""
    padded = np.zeros(mask_words(len(allowed)) * MASK_BITS, bool)
    padded[: len(allowed)] = allowed
    return np.packbits(padded, bitorder="little").view(np.int32)


def on_device(logits: np.ndarray, wanted: list[Draw]) -> list[int]:
    vocabulary, rows = logits.shape[1], len(wanted)
    inputs, has_mask = [logits, np.stack([draw.words() for draw in wanted])], wanted[0].mask is not None
    if has_mask:
        inputs.append(np.stack([draw.mask for draw in wanted]))
    out = [((rows,), "int32"), ((rows, -(-vocabulary // CHUNK)), "int64")]
    return run_gpu("sample", (vocabulary, has_mask), inputs, *out)[0].tolist()


def assert_is_the_oracles(token: int, logits: np.ndarray, draw: Draw) -> None:
    """The token is where the oracle's running sum passes the same random number, up to float32."""
    running = np.concatenate(([0.0], np.cumsum(probabilities(logits, draw.params, [], []))))
    number = 0.0 if draw.params.temperature == 0 else uniform(draw.seed, draw.position)
    assert running[token + 1] > running[token], "outside the filters"
    assert running[token] - 1e-5 <= number <= running[token + 1] + 1e-5


@pytest.mark.parametrize("vocabulary", quick_first([127, 1, 7, 1000]))
def test_each_parameter_does_what_it_says(vocabulary: int) -> None:
    generator = np.random.default_rng(vocabulary)
    params = [SamplingParams(**options) for options in OPTIONS.values() for _ in range(4)]
    logits = generator.normal(0, 3, (len(params), vocabulary)).astype(np.float32)
    for token, row, draw in zip(on_device(logits, draws(params)), logits, draws(params), strict=True):
        assert_is_the_oracles(token, row, draw)
        assert token == draw.from_logits(logits)


@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("vocabulary", quick_first([129_280, 10_007, 163_840]))
def test_large_vocabularies_are_sampled_as_by_the_host(vocabulary: int, spread: float) -> None:
    """Up to the rounding of float32: the flatter the distribution, the more tokens lie near every random number."""
    params = [SamplingParams(**options) for options in OPTIONS.values()]
    logits = np.random.default_rng(1).normal(0, spread, (len(params), vocabulary)).astype(np.float32)
    found = on_device(logits, draws(params))
    expected = [draw.from_logits(logits) for draw in draws(params)]
    assert sum(a != b for a, b in zip(found, expected, strict=True)) <= (1 if spread > 1 else 2)
    # A neighbour in the order of ids, where the token is another one.
    assert np.abs(np.subtract(found, expected)).max() <= vocabulary * 1e-4


@pytest.mark.full
def test_equal_logits_go_to_the_lower_ids() -> None:
    generator = np.random.default_rng(3)
    params = [
        SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
        for temperature in (0.0, 0.5, 1.0, 2.0)
        for top_p in (0.05, 0.77, 1.0)
        for top_k in (0, 1, 3)
        for min_p in (0.0, 0.03, 0.3)
    ]
    logits = (generator.integers(-12, 13, (len(params), 31)) / 4).astype(np.float32)
    logits[:, 3] = -0.0
    for token, row, draw in zip(on_device(logits, draws(params)), logits, draws(params), strict=True):
        assert_is_the_oracles(token, row, draw)
    zeros = np.array([[-1.0, -0.0, 0.0]], np.float32)
    assert on_device(zeros, draws([SamplingParams(temperature=0)])) == [1]


@pytest.mark.full
def test_more_tokens_than_shared_memory_holds_are_filtered_exactly() -> None:
    """Equal weights: which tokens are kept can be counted."""
    logits = np.zeros((60, 5000), np.float32)
    for options, kept in (({"top_k": 3000}, 3000), ({"top_p": 0.5}, 2500), ({"top_k": 3000, "top_p": 0.5}, 1500)):
        found = on_device(logits, draws([SamplingParams(**options)] * 60))
        expected = [int(uniform(SEED, position) * kept) for position in range(60)]
        assert np.abs(np.subtract(found, expected)).max() <= 1 and max(found) < kept


@pytest.mark.full
def test_draws_have_the_distribution_that_was_asked_for() -> None:
    logits = np.array([2.0, 1.0, 0.0, -1.0, 0.5, -2.0, 1.5, -30.0], np.float32)
    rows = 1500
    for options in ({}, {"temperature": 0.7, "top_k": 5}, {"temperature": 1.8, "top_p": 0.9}):
        params = SamplingParams(**options)
        wanted = [Draw(0, params, None, position % 15, position) for position in range(rows)]
        expected = probabilities(logits, params, [], []) * rows
        counts = np.bincount(on_device(logits[None], wanted), minlength=len(logits))
        likely = expected > 5
        chi_square = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
        assert chi_square < 24.3, "p < 0.001 for 7 degrees of freedom"
        assert counts[~likely].sum() <= 5


@pytest.mark.full
def test_rows_may_be_some_of_the_step_s_in_any_order() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (5, 500)).astype(np.float32)
    wanted = [Draw(row, SamplingParams(temperature=0), None, 0, 0) for row in (4, 0, 2)]
    assert on_device(logits, wanted) == logits[[4, 0, 2]].argmax(axis=1).tolist()


@pytest.mark.full
def test_extreme_temperatures_and_masked_tokens() -> None:
    row = np.array([1, 3, 2.5, -np.inf, -3e38], np.float32)
    for temperature in (1e-300, 1e-45, 1e-30, 1e-6):
        logits = np.tile(row, (20, 1))
        assert set(on_device(logits, draws([SamplingParams(temperature=temperature)] * 20))) == {1}
        logits[:, 2] = 3
        assert set(on_device(logits, draws([SamplingParams(temperature=temperature)] * 20))) == {1, 2}
    for temperature in (50.0, 1e6):
        logits = np.tile(row[:4], (60, 1))
        assert set(on_device(logits, draws([SamplingParams(temperature=temperature)] * 60))) == {0, 1, 2}


@pytest.mark.parametrize("options", [{"temperature": 0}, {}, {"top_k": 3, "top_p": 0.5}])
def test_logits_that_are_not_finite_give_no_token(options: dict) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (6, 5000)).astype(np.float32)
    logits[0, 4999], logits[1, 0], logits[2, 17] = np.nan, -np.float32(np.nan), np.inf
    logits[3] = -np.inf
    logits[4, 9] = -np.inf
    wanted = draws([SamplingParams(**options)] * 6)
    found = on_device(logits, wanted)
    assert found[:4] == [-1] * 4 and min(found[4:]) >= 0
    error = Draw(0, SamplingParams(**options), None, 0, 7).from_device(found[0])
    assert isinstance(error, NotFiniteError) and "logits at position 6 are not finite" in str(error)


@pytest.mark.parametrize("vocabulary", quick_first([127, 1, 31, 33, 1000]))
def test_of_the_tokens_that_a_mask_allows_each_parameter_chooses_as_the_host_does(vocabulary: int) -> None:
    generator = np.random.default_rng(vocabulary)
    params = [SamplingParams(**options) for options in OPTIONS.values() for _ in range(4)]
    logits = generator.normal(0, 3, (len(params), vocabulary)).astype(np.float32)
    allowed = generator.random((len(params), vocabulary)) < np.repeat([0.02, 0.3, 0.9, 1.0], len(params) // 4)[:, None]
    allowed[np.arange(len(params)), generator.integers(0, vocabulary, len(params))] = True
    wanted = draws(params, [mask_of(row) for row in allowed])
    found = on_device(logits, wanted)
    assert allowed[np.arange(len(params)), found].all()
    for token, row, allowed_here, draw in zip(found, logits, allowed, wanted, strict=True):
        assert_is_the_oracles(token, np.where(allowed_here, row, -np.inf), draw)
        assert token == draw.from_logits(logits)


def test_a_mask_of_one_token_leaves_it_however_unlikely() -> None:
    vocabulary = 129_280
    params = [SamplingParams(**options) for options in OPTIONS.values()]
    logits = np.random.default_rng(2).normal(0, 3, (len(params), vocabulary)).astype(np.float32)
    only = np.linspace(0, vocabulary - 1, len(params)).astype(np.int64)
    logits[np.arange(len(params)), only] = -1e30
    assert (
        on_device(logits, draws(params, [mask_of(np.arange(vocabulary) == token) for token in only])) == only.tolist()
    )


def test_a_mask_hides_no_logits_that_are_not_finite() -> None:
    logits = np.zeros((4, 40), np.float32)
    logits[0, 7], logits[1, 7], logits[2, 7], logits[3, 3] = np.nan, np.inf, -np.inf, -np.inf
    allowed = mask_of(np.arange(40) == 3)
    for params in (SamplingParams(temperature=0), SamplingParams()):
        assert on_device(logits, draws([params] * 4, [allowed] * 4)) == [-1, -1, 3, -1]
