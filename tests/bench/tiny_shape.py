"""The shape of the benchmark's model made tiny: two layers, one of experts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LITE9 = Path(__file__).parents[1] / "shapes" / "lite9.json"
_TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "num_attention_heads": 2,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "vocab_size": 100,
    "max_position_embeddings": 256,
}


def tiny(**changes: Any) -> dict[str, Any]:
    """Its config.json with `changes`."""
    return {**json.loads(LITE9.read_text()), **_TINY, **changes}
