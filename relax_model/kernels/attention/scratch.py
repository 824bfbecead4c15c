"""How much memory attention's kernels allocate beside what goes in and comes out, as formulas that need no TVM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relax_model.config import ModelConfig
from relax_model.layout import CACHE_GROUP

_FLOAT = 4
# `cpu_absorbed.absorbed_attention`: from 16 rows on, a task keeps one part of a row at a time.
_ROWS_SIDE_BY_SIDE = 15
# Beside a channel's sum of each head: three rows of softmax state on the CPU, a run of 4 on a GPU.
_STATE = 4


def absorbed_scratch(config: ModelConfig, family: str, tile: Mapping[str, Any], tokens: int) -> int:
    """Bytes of the parts that few rows' pasts of `tokens` are cut into, at most. `tile` has the tuned fields of the
    kernel `absorbed_attention` on the family "cpu", of `absorbed_values` on "gpu"."""
    rows, lanes = (_ROWS_SIDE_BY_SIDE, tile["lanes"]) if family == "cpu" else (tile["few"], 1)
    heads = -(-config.num_attention_heads // lanes) * lanes
    parts = -(-tokens // tile["split"])
    return _FLOAT * rows * parts * heads * (config.kv_lora_rank + _STATE)


def expanded_scratch(config: ModelConfig, family: str, tile: Mapping[str, Any], cache_dtype: str, tokens: int) -> int:
    """Bytes of what the expanded form makes of `tokens` cached tokens before it attends to them: on the CPU the codes
    of latents, on a GPU keys and values of as many heads as fit in the tile's `scratch`, and of one at least."""
    if family == "cpu":
        groups = -(-config.kv_lora_rank // CACHE_GROUP)
        return tokens * groups * (CACHE_GROUP + 2 * _FLOAT)
    itemsize = 4 if cache_dtype == "float32" else 2
    head = tokens * (config.qk_nope_head_dim + config.v_head_dim) * itemsize
    return min(config.num_attention_heads * head, max(tile["scratch"], head))
