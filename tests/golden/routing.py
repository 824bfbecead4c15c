"""The choice of experts in float64 NumPy, a plain reading of the papers' equations, and routers of every kind.

DeepSeek-V3 report, equations 13-16; DeepSeek-V2, section 2.2.2.
"""

from __future__ import annotations

import numpy as np

from relax_model.config import RouterConfig

ROUTERS = {
    "noaux_tc with groups": RouterConfig(16, 4, "sigmoid", "noaux_tc", 4, 2, True, 2.5),
    "noaux_tc, one group": RouterConfig(9, 2, "sigmoid", "noaux_tc", 1, 1, True, 1.8),
    "noaux_tc, not normalised": RouterConfig(12, 3, "sigmoid", "noaux_tc", 3, 2, False, 2.0),
    "greedy": RouterConfig(11, 3, "softmax", "greedy", 1, 1, False, 1.0),
    "greedy, normalised": RouterConfig(8, 3, "softmax", "greedy", 1, 1, True, 4.0),
    "group_limited_greedy": RouterConfig(20, 4, "softmax", "group_limited_greedy", 5, 2, False, 16.0),
    "every group chosen": RouterConfig(8, 8, "sigmoid", "noaux_tc", 2, 2, True, 1.0),
}


def choose(router: RouterConfig, logits: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Experts and weights of one token."""
    logits = logits.astype(np.float64)
    if router.scoring_func == "sigmoid":
        scores = 1 / (1 + np.exp(-logits))
    else:
        scores = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    choice = scores + bias if router.has_correction_bias else scores.copy()
    grouped = choice.reshape(router.n_group, -1)
    best = 2 if router.topk_method == "noaux_tc" else 1
    group_scores = np.sort(grouped, axis=1)[:, -best:].sum(axis=1)
    dropped = np.argsort(-group_scores, kind="stable")[router.topk_group :]
    grouped[dropped] = -np.inf
    experts = np.argsort(-choice, kind="stable")[: router.num_experts_per_tok]
    weights = scores[experts]
    if router.norm_topk_prob:
        weights = weights / weights.sum()
    if router.scoring_func == "sigmoid" or not router.norm_topk_prob:
        weights = weights * router.routed_scaling_factor
    return experts, weights
