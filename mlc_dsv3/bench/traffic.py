"""Bytes that a kernel's call has to move, from the tensors that it is given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from relax_model.config import ModelConfig
from relax_model.layout import layout_of
from relax_model.parameters import parameters


@dataclass(frozen=True)
class StepSize:
    """A step: its `tokens`, and how many tokens all its sequences have in the cache when it is through."""

    tokens: int
    cached: int


class Traffic:
    """Counts each tensor of a call once, in or out, but of what kernels read in part that part:

    of the latent cache (of shape `cache`) what the step's sequences have there, of the embedding its tokens' rows, of
    kv_b_proj the half for keys or for values, and of the experts' matrices the expected number of distinct ones among
    the tokens' choices, as `counting.step_bytes` has it. What a kernel keeps for itself between its launches is left
    out.
    """

    def __init__(self, config: ModelConfig, quantization: str, cache: tuple[int, ...]) -> None:
        self._config, self._cache, layout = config, cache, layout_of(quantization)
        stored = {each.name: {spec.shape for spec in each.buffers(layout).values()} for each in parameters(config)}

        def shapes(part: str) -> set[tuple[int, ...]]:
            return {shape for name, found in stored.items() if part in name for shape in found}

        self._experts, self._kv_b = shapes(".mlp.experts."), shapes("kv_b_proj")

    def call_bytes(self, operator: str, tensors: Sequence[Any], size: StepSize) -> int:
        """Bytes that one call of `operator` moves in a step of `size`."""
        return round(sum(self._share(operator, _shape(each), size) * _nbytes(each) for each in tensors))

    def _share(self, operator: str, shape: tuple[int, ...], size: StepSize) -> float:
        config, router = self._config, self._config.router
        if shape == self._cache:
            return (size.tokens if "append" in operator else size.cached) / (shape[0] * shape[1])
        if operator.startswith("embedding") and shape[0] == config.vocab_size:
            return min(1.0, size.tokens / config.vocab_size)
        if shape in self._kv_b and operator.startswith(("query_absorb", "absorb_append")):
            return config.qk_nope_head_dim / (config.qk_nope_head_dim + config.v_head_dim)
        if shape in self._kv_b and operator.startswith(("value_project", "absorbed_values")):
            return config.v_head_dim / (config.qk_nope_head_dim + config.v_head_dim)
        if router and shape in self._experts:
            return 1 - (1 - router.num_experts_per_tok / router.n_routed_experts) ** size.tokens
        return 1.0


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(map(int, tensor.shape))


def _nbytes(tensor: Any) -> int:
    return math.prod(_shape(tensor)) * np.dtype(str(tensor.dtype)).itemsize
