"""How many tokens each expert gets, and how far from even that is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from mlc_dsv3.experts.reading import STRETCH, Read, moe_layers
from mlc_dsv3.experts.routing import chosen_experts
from mlc_dsv3.experts.watch import RouterWatch
from mlc_dsv3.runtime.messages import ChatOptions, Conversation
from relax_model.config import RouterConfig

if TYPE_CHECKING:
    from mlc_dsv3.runtime.llm import LLM, Prompt


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


def recent_load(
    model: LLM, prompt: Prompt | Conversation, *, last: int = STRETCH, **options: Unpack[ChatOptions]
) -> tuple[int, ExpertLoad] | None:
    """How many tokens, at most `last`, the end of a prompt or a conversation has, and how they load the experts.

    None for a model without experts."""
    config = model.artifact.model_config
    if config.router is None:
        return None
    watch = RouterWatch(config.router)
    count = model.read(prompt, watch.on, last=last, **options)
    layers = moe_layers(config)
    routed = watch.take()
    # A step is a layer after the other, and there may be several.
    steps = [Read(routed[at : at + len(layers)], None) for at in range(0, len(routed), len(layers))]
    return count, count_load(config.router, layers, steps)
