"""How many tokens each expert gets, and how far from even that is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlc_dsv3.experts.reading import Read
from mlc_dsv3.experts.routing import chosen_experts
from relax_model.config import RouterConfig


@dataclass(frozen=True)
class ExpertLoad:
    """Choices of each expert, int64 (layers, experts), in the model's `layers` with experts."""

    layers: tuple[int, ...]
    counts: np.ndarray

    @property
    def relative(self) -> np.ndarray:
        """float64 (layers, experts): 1 is the mean."""
        return self.counts / self.counts.mean(axis=1, keepdims=True)

    @property
    def violation(self) -> np.ndarray:
        """float64 (layers,): by how much of the mean the busiest expert exceeds it (Wang et al. 2024, MaxVio)."""
        return self.relative.max(axis=1) - 1

    def describe(self) -> list[dict[str, Any]]:
        """An object for each layer."""
        return [
            {
                "layer": layer,
                "violation": float(violation),
                "idle_experts": int((counts == 0).sum()),
                "counts": counts.tolist(),
            }
            for layer, violation, counts in zip(self.layers, self.violation, self.counts, strict=True)
        ]


def count_load(
    router: RouterConfig, layers: Sequence[int], reads: Iterable[Read], *, with_bias: bool = True
) -> ExpertLoad:
    """The load of a text; without the correction bias it is what the same states' scores alone would choose."""
    counts = np.zeros((len(layers), router.n_routed_experts), np.int64)
    for read in reads:
        for place, (logits, ids) in enumerate(read.routed):
            chosen = ids if with_bias else chosen_experts(router, logits, None)
            counts[place] += np.bincount(chosen.ravel(), minlength=router.n_routed_experts)
    return ExpertLoad(tuple(layers), counts)
