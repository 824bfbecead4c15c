"""The choice of experts on the host, from a router's logits: what a model chooses, and would choose by another bias."""

from __future__ import annotations

import numpy as np

from relax_model.config import RouterConfig


def chosen_experts(router: RouterConfig, logits: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """Experts of each row, int64 (rows, top-k) in no order, from float32 logits (rows, experts) and bias (experts,).

    DeepSeek-V3 report, equations 13-16; DeepSeek-V2, section 2.2.2.
    """
    if router.scoring_func == "sigmoid":
        choice = 1 / (1 + np.exp(-logits))
    else:
        choice = np.exp(logits - logits.max(axis=1, keepdims=True))
        choice /= choice.sum(axis=1, keepdims=True)
    if bias is not None:
        choice = choice + bias
    rows, experts = choice.shape
    if router.topk_group < router.n_group:
        grouped = choice.reshape(rows, router.n_group, -1)
        best = np.sort(grouped, axis=2)[:, :, -router.group_score_experts :].sum(axis=2)
        dropped = np.argsort(-best, axis=1, kind="stable")[:, router.topk_group :]
        np.put_along_axis(grouped, dropped[:, :, None], -np.inf, axis=1)
        choice = grouped.reshape(rows, experts)
    return np.argsort(-choice, axis=1, kind="stable")[:, : router.num_experts_per_tok]
