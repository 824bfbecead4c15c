"""The oracle itself: stored goldens are of use, belong to the checkpoints made here, and two oracles agree on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from golden import checkpoints
from golden.families import CHECKPOINTS
from golden.reference import ReferenceModel

# In standard deviations of the logits: what float32 costs transformers against float64, on average and at the most.
MEAN_TOLERANCE = 1e-5
TOLERANCE = 5e-5

WITH_DRAFT = [name for name, checkpoint in CHECKPOINTS.items() if checkpoint.mtp_layers]
WITH_LONG = [name for name, checkpoint in CHECKPOINTS.items() if checkpoint.long]


def assert_equal_but_for_rounding(logits: np.ndarray, expected: np.ndarray) -> None:
    difference = (logits - expected) / expected.std()
    assert np.sqrt(np.mean(difference**2)) < MEAN_TOLERANCE
    assert np.abs(difference).max() < TOLERANCE


@pytest.fixture(scope="module", params=CHECKPOINTS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def reference(name: str) -> ReferenceModel:
    return ReferenceModel(CHECKPOINTS[name].config, checkpoints.tensors(name))


def test_the_checkpoint_is_made_with_the_bits_that_the_golden_belongs_to(name: str) -> None:
    assert checkpoints.digest(name) == str(checkpoints.golden(name)["weights_digest"])


def test_goldens_are_spread_like_a_trained_models_and_far_from_ties(name: str) -> None:
    golden = checkpoints.golden(name)
    assert 2.5 < golden["logits"].std() < 6
    assert golden["greedy_margin"] > 0.02
    assert golden.get("routing_margin", 1) > 2e-5


def test_correction_bias_and_group_limit_change_which_experts_are_chosen(name: str) -> None:
    config, golden = CHECKPOINTS[name].config, checkpoints.golden(name)
    if not config.get("n_routed_experts"):
        pytest.skip("a dense model has no router")
    if config["topk_method"] == "noaux_tc":
        assert golden["bias_changes"] > 0.2
    if config["n_group"] > 1:
        assert golden["groups_bite"] > 0.2


def test_goldens_stay_small() -> None:
    assert sum(file.stat().st_size for file in Path(__file__).parent.glob("*.npz")) < 3_000_000


def test_reference_gives_transformers_logits(name: str) -> None:
    logits = reference(name).forward(checkpoints.prompt(name)).logits
    assert_equal_but_for_rounding(logits, checkpoints.golden(name)["logits"])


def test_reference_gives_transformers_greedy_tokens(name: str) -> None:
    prompt, greedy = checkpoints.prompt(name), checkpoints.golden(name)["greedy"]
    logits = reference(name).forward(np.concatenate([prompt, greedy[:-1]])).logits
    assert np.array_equal(logits[len(prompt) - 1 :].argmax(axis=1), greedy)


@pytest.mark.parametrize("name", WITH_LONG)
def test_reference_gives_transformers_logits_past_the_original_context(name: str) -> None:
    prompt = checkpoints.prompt(name, checkpoints.LONG_LENGTH)
    assert len(prompt) > 2 * CHECKPOINTS[name].config["rope_scaling"]["original_max_position_embeddings"]
    logits = reference(name).forward(prompt).logits[-checkpoints.LONG_KEPT :]
    assert_equal_but_for_rounding(logits, checkpoints.golden(name)["long_logits"])


@pytest.mark.parametrize("name", WITH_DRAFT)
def test_reference_gives_transformers_draft_logits(name: str) -> None:
    prompt, golden = checkpoints.prompt(name), checkpoints.golden(name)
    model = reference(name)
    next_tokens = np.append(prompt[1:], golden["greedy"][0])
    hidden = model.forward(prompt).hidden
    assert_equal_but_for_rounding(model.draft(next_tokens, hidden).logits, golden["draft_logits"])
    drafts, logits = model.draft_chain(next_tokens, hidden, len(golden["draft_tokens"]))
    assert np.array_equal(drafts, golden["draft_tokens"])
    assert_equal_but_for_rounding(logits, golden["draft_chain_logits"])
