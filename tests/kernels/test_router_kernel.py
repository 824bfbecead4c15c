"""The choice of experts against a plain float64 reading of the papers' equations."""

from __future__ import annotations

import numpy as np
import pytest
from golden.routing import ROUTERS, choose
from kernel_harness import run

from relax_model.config import RouterConfig


def route(router: RouterConfig, x: np.ndarray, gate: np.ndarray, *bias: np.ndarray) -> list[np.ndarray]:
    """Logits, ids and weights of rows x (rows, hidden) with the router's weights (experts, hidden)."""
    rows, top_k = len(x), router.num_experts_per_tok
    return run(
        "route",
        (router, x.shape[1]),
        [x, gate, *bias],
        ((rows, len(gate)), "float32"),
        ((rows, top_k), "int32"),
        ((rows, top_k), "float32"),
        ((rows, top_k), "int32"),
        ((len(gate) + 1,), "int32"),
    )[:3]


@pytest.mark.parametrize("name", ROUTERS)
def test_routing_chooses_and_weighs_as_the_papers_say(name: str) -> None:
    router = ROUTERS[name]
    random = np.random.default_rng(7)
    rows, experts, hidden = 200, router.n_routed_experts, 27
    x = random.standard_normal((rows, hidden), np.float32)
    gate = random.standard_normal((experts, hidden), np.float32) * (2 / hidden**0.5)
    bias = random.standard_normal(experts, np.float32) * 0.3
    logits, ids, weights = route(router, x, gate, *([bias] if router.has_correction_bias else []))
    assert np.abs(logits - x.astype(np.float64) @ gate.T).max() < 1e-5
    for row in range(rows):
        expected_ids, expected_weights = choose(router, logits[row], bias)
        assert ids[row].tolist() == expected_ids.tolist()
        assert np.allclose(weights[row], expected_weights, rtol=1e-5)


def test_the_bias_changes_the_choice_and_not_the_weights() -> None:
    router = ROUTERS["noaux_tc, one group"]
    logits = np.zeros((1, 9), np.float32)
    bias = np.zeros(9, np.float32)
    bias[[3, 8]] = 0.1, 0.2
    _, ids, weights = route(router, logits, np.eye(9, dtype=np.float32), bias)
    assert ids.tolist() == [[8, 3]]
    assert np.allclose(weights, 0.9)


def test_the_lower_index_wins_a_tie() -> None:
    router = ROUTERS["greedy"]
    _, ids, _ = route(router, np.zeros((1, 11), np.float32), np.eye(11, dtype=np.float32))
    assert ids.tolist() == [[0, 1, 2]]
