"""What a config.json of each model type means where it leaves a field out.

deepseek_v2, deepseek_v3, glm4_moe_lite and youtu have the defaults of transformers' configuration classes (5.24).
transformers lacks kimi_k2 and joyai_llm_flash; the code that runs them takes DeepSeek-V3's defaults: the file
configuration_deepseek.py of the Kimi-K2 checkpoint, and mlx-lm for joyai_llm_flash. `scoring_func`, `topk_method` and
`rope_interleave` have no default in some classes; their modeling code knows one value.
"""

from __future__ import annotations

from typing import Any

_COMMON: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "rope_theta": 1e4,  # also of glm4_moe_lite and youtu, whose published checkpoints state 1e6 and 1.6e6
    "rope_interleave": True,
    "moe_layer_freq": 1,
    # transformers' deepseek_v3 says 1, and looks for the layer only where `generate(use_mtp=True)` asks for it.
    "num_nextn_predict_layers": 0,
}
_ROUTED_BY_SIGMOID = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True}
_DEEPSEEK_V3 = {
    **_COMMON,
    **_ROUTED_BY_SIGMOID,
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "n_group": 8,
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
    "max_position_embeddings": 4096,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "deepseek_v2": {
        **_COMMON,
        "scoring_func": "softmax",
        "topk_method": "greedy",
        "norm_topk_prob": False,
        "vocab_size": 102400,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "moe_intermediate_size": 1407,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "first_k_dense_replace": 0,
        "routed_scaling_factor": 1.0,
        "max_position_embeddings": 2048,
    },
    "deepseek_v3": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "glm4_moe_lite": {
        **_COMMON,
        **_ROUTED_BY_SIGMOID,
        "vocab_size": 154880,
        "hidden_size": 2048,
        "intermediate_size": 10240,
        "moe_intermediate_size": 1536,
        "num_hidden_layers": 47,
        "num_attention_heads": 20,
        "n_routed_experts": 64,
        "n_shared_experts": 1,
        "num_experts_per_tok": 4,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.8,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 202752,
    },
    "joyai_llm_flash": _DEEPSEEK_V3,
    "youtu": {
        **_COMMON,
        "n_routed_experts": None,  # dense
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
}
MODEL_TYPES = tuple(FAMILIES)
