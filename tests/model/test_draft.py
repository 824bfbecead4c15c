"""The exported draft function (the MTP layer) against transformers' `use_mtp` and the float64 reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from golden import checkpoints
from golden.driver import Driver
from golden.families import CHECKPOINTS
from marks import quick_first

TOLERANCE = 1e-3

WITH_DRAFT = [name for name, checkpoint in CHECKPOINTS.items() if checkpoint.mtp_layers]


@pytest.fixture(scope="module", params=quick_first(WITH_DRAFT, whole=True))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def inputs(name: str, driver: Driver) -> tuple[np.ndarray, np.ndarray]:
    """The tokens after each of the prompt's, and the main model's hidden states."""
    prompt = checkpoints.prompt(name)
    return np.append(prompt[1:], checkpoints.golden(name)["greedy"][0]), driver.prefill(prompt).hidden


@pytest.mark.parametrize("chunk", [None, 1, 7])
def test_draft_logits(name: str, chunk: int | None, driver: Callable[..., Driver]) -> None:
    expected = checkpoints.golden(name)["draft_logits"]
    logits = driver(name).draft(*inputs(name, driver(name)), chunk).logits
    assert np.abs(logits - expected).max() <= TOLERANCE * expected.std()


@pytest.mark.parametrize("chunk", [None, 7])
def test_rows_that_only_follow_leave_the_same_cache(
    name: str, chunk: int | None, driver: Callable[..., Driver]
) -> None:
    chosen = driver(name)
    tokens, hidden = inputs(name, chosen)
    expected = chosen.draft(tokens, hidden).logits
    follow = len(tokens) - 3
    assert np.array_equal(chosen.draft(tokens, hidden, chunk, follow=follow).logits[follow:], expected[follow:])


def test_further_drafts_feed_the_layers_own_output_back(name: str, driver: Callable[..., Driver]) -> None:
    golden = checkpoints.golden(name)
    next_tokens, hidden = inputs(name, driver(name))
    for step, (token, expected) in enumerate(zip(golden["draft_tokens"], golden["draft_chain_logits"], strict=True)):
        result = driver(name).draft(next_tokens, hidden)
        assert np.abs(result.logits[-1] - expected).max() <= TOLERANCE * golden["draft_logits"].std(), step
        assert result.logits[-1].argmax() == token
        next_tokens = np.append(next_tokens, token)
        hidden = np.concatenate([hidden, result.hidden[-1:]])


def test_drafting_leaves_the_main_models_cache_alone(name: str, driver: Callable[..., Driver]) -> None:
    chosen, prompt = driver(name), checkpoints.prompt(name)
    before = chosen.prefill(prompt).logits
    next_tokens, hidden = inputs(name, chosen)
    chosen.draft(next_tokens, hidden)
    tail = chosen.run([prompt], [[(0, len(prompt) - 1, len(prompt))]])[0].logits[-1]
    assert np.array_equal(tail, before[-1])
