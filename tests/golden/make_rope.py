"""Make rope.json beside this file: transformers' rotary frequencies and factors for the ways of writing a config.

    PYTHONPATH=tests python -m golden.make_rope

Needs the extra `[reference]` (torch, transformers).
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RotaryEmbedding, yarn_apply_mscale

_DEEPSEEK = {
    "type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}

# What the published checkpoints say, and then the fields that they leave out or could have.
CASES: dict[str, dict[str, Any]] = {
    "deepseek_v3": {"rope_theta": 10000, "max_position_embeddings": 163840, "rope_scaling": _DEEPSEEK},
    "deepseek_v2_lite": {
        "rope_theta": 10000,
        "max_position_embeddings": 163840,
        "rope_scaling": {**_DEEPSEEK, "mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "kimi_k2": {
        "rope_theta": 50000.0,
        "max_position_embeddings": 131072,
        "rope_scaling": {**_DEEPSEEK, "beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0},
    },
    "moonlight": {"rope_theta": 50000.0, "max_position_embeddings": 8192, "rope_scaling": None},
    "glm_4_7_flash": {"rope_theta": 1000000, "max_position_embeddings": 202752, "rope_scaling": None},
    "joyai_llm_flash": {"rope_theta": 32000000, "max_position_embeddings": 131072, "rope_scaling": None},
    "youtu": {"max_position_embeddings": 131072, "rope_parameters": {"rope_type": "default", "rope_theta": 1600000}},
    "two_mscales": {
        "rope_theta": 10000,
        "max_position_embeddings": 163840,
        "rope_scaling": {**_DEEPSEEK, "mscale": 1.0, "mscale_all_dim": 0.707},
    },
    "no_mscales": {
        "max_position_embeddings": 65536,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 16.0,
            "original_max_position_embeddings": 4096,
        },
    },
    "only_mscale_all_dim": {
        "max_position_embeddings": 65536,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 16.0,
            "original_max_position_embeddings": 4096,
            "mscale_all_dim": 0.8,
        },
    },
    "attention_factor": {
        "max_position_embeddings": 65536,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 16.0,
            "original_max_position_embeddings": 4096,
            "attention_factor": 1.25,
            "mscale_all_dim": 0.8,
        },
    },
    "not_truncated": {
        "max_position_embeddings": 65536,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 16.0,
            "original_max_position_embeddings": 4096,
            "truncate": False,
        },
    },
}
ROPE_DIM = 64


def make(case: str) -> dict[str, Any]:
    """transformers' values for one case: `inverse_frequencies`, `magnitude` (of cos and sin), `softmax_factor`."""
    config = DeepseekV3Config(qk_rope_head_dim=ROPE_DIM, **copy.deepcopy(CASES[case]))
    rotary = DeepseekV3RotaryEmbedding(config)
    return {
        "config": CASES[case],
        "inverse_frequencies": rotary.inv_freq.tolist(),
        "magnitude": rotary.attention_scaling,
        "softmax_factor": yarn_apply_mscale(config.rope_parameters, 1.0),
    }


if __name__ == "__main__":
    made = {case: make(case) for case in CASES}
    (Path(__file__).parent / "rope.json").write_text(json.dumps(made, indent=1) + "\n")
