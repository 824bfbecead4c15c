"""The tiny checkpoints by name: one config.json for every way in which members of the family differ.

Widths are deliberately odd, contexts short and expert counts small; what is a power of two or a multiple of 32 is so by
accident. `checkpoints.py` makes the tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

VOCAB_SIZE = 307


@dataclass(frozen=True)
class TinyCheckpoint:
    """One checkpoint: its config.json, how its tensors are stored and how its random weights are scaled."""

    config: dict[str, Any]
    seed: int
    dtype: str = "BF16"  # as in a safetensors header; the values are rounded to it, so that every reader sees the same
    shards: int = 1
    expert_scale: float = 1.0  # keeps the routed experts' share of the residual stream near that of the other parts
    mtp_copies_embedding: bool = False  # DeepSeek's checkpoints repeat embedding and head under the MTP layer
    long: bool = False  # whether a golden of LONG_LENGTH tokens exists
    near_epsilon: bool = False  # makes what the norms divide by so small that a wrong epsilon shows
    oracle: str | None = (
        None  # model_type under which transformers runs it, where it does not know the checkpoint's own
    )

    @property
    def mtp_layers(self) -> int:
        return int(self.config.get("num_nextn_predict_layers") or 0)


_YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 1024, "beta_fast": 32, "beta_slow": 1}
_BASE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_act": "silu",
    "attention_bias": False,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
}
_V3 = {
    **_BASE,
    "model_type": "deepseek_v3",
    "architectures": ["DeepseekV3ForCausalLM"],
    "hidden_size": 160,
    "intermediate_size": 224,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "q_lora_rank": 72,
    "kv_lora_rank": 40,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "n_group": 4,
    "topk_group": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 40960,
    "rope_theta": 10000,
    "rope_scaling": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
}


def _v3(**changes: Any) -> dict[str, Any]:
    return {**_V3, **changes}


_V2 = {
    **_BASE,
    "model_type": "deepseek_v2",
    "architectures": ["DeepseekV2ForCausalLM"],
    "moe_layer_freq": 1,
    "first_k_dense_replace": 1,
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "num_hidden_layers": 3,
    "max_position_embeddings": 40960,
    "rope_theta": 10000,
}

CHECKPOINTS: dict[str, TinyCheckpoint] = {
    "deepseek_v3": TinyCheckpoint(_v3(), seed=0, shards=3, mtp_copies_embedding=True, long=True),
    "deepseek_v3_two_mscales": TinyCheckpoint(
        {
            **{field: value for field, value in _V3.items() if field not in ("rope_theta", "rope_scaling")},
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 40.0,
                "original_max_position_embeddings": 1024,
                "mscale": 1.0,
                "mscale_all_dim": 0.707,
            },
            "num_nextn_predict_layers": 0,
        },
        seed=1,
    ),
    "deepseek_v2_lite": TinyCheckpoint(
        {
            **_V2,
            "hidden_size": 96,
            "intermediate_size": 200,
            "moe_intermediate_size": 40,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "q_lora_rank": None,
            "kv_lora_rank": 48,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "n_routed_experts": 12,
            "num_experts_per_tok": 3,
            "n_shared_experts": 2,
            "topk_method": "greedy",
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 1.0,
            "rope_scaling": {
                **_YARN,
                "original_max_position_embeddings": 512,
                "mscale": 0.707,
                "mscale_all_dim": 0.707,
            },
        },
        seed=10,
        dtype="F32",
        expert_scale=2.0,
        long=True,
    ),
    "deepseek_v2": TinyCheckpoint(
        {
            **_V2,
            "hidden_size": 160,
            "intermediate_size": 216,
            "moe_intermediate_size": 56,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "q_lora_rank": 56,
            "kv_lora_rank": 40,
            "qk_nope_head_dim": 24,
            "qk_rope_head_dim": 16,
            "v_head_dim": 32,
            "n_routed_experts": 20,
            "num_experts_per_tok": 3,
            "n_shared_experts": 2,
            "topk_method": "group_limited_greedy",
            "n_group": 5,
            "topk_group": 2,
            "routed_scaling_factor": 16.0,
            "rope_scaling": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
        seed=1,
        dtype="F16",
        shards=2,
        expert_scale=0.15,
    ),
    "glm4_moe_lite": TinyCheckpoint(
        {
            **_BASE,
            "model_type": "glm4_moe_lite",
            "architectures": ["Glm4MoeLiteForCausalLM"],
            "hidden_size": 144,
            "intermediate_size": 208,
            "moe_intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "q_lora_rank": 48,
            "kv_lora_rank": 56,
            "qk_nope_head_dim": 24,
            "qk_rope_head_dim": 16,
            "v_head_dim": 40,
            "n_routed_experts": 10,
            "num_experts_per_tok": 4,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "topk_method": "noaux_tc",
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.8,
            "num_nextn_predict_layers": 1,
            "partial_rotary_factor": 1.0,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000,
            "rope_scaling": None,
            "max_position_embeddings": 202752,
        },
        seed=0,
        mtp_copies_embedding=True,
        near_epsilon=True,
    ),
    "youtu": TinyCheckpoint(
        {
            **_BASE,
            "model_type": "youtu",
            "architectures": ["YoutuForCausalLM"],
            "hidden_size": 96,
            "intermediate_size": 136,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "q_lora_rank": 40,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "rope_interleave": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1600000},
            "max_position_embeddings": 131072,
        },
        seed=0,
    ),
    "deepseek_v3_half_rope": TinyCheckpoint(
        _v3(
            rope_interleave=False,
            rope_theta=50000.0,
            rope_scaling=None,
            q_lora_rank=None,
            n_group=1,
            topk_group=1,
            num_nextn_predict_layers=0,
            routed_scaling_factor=2.446,
            max_position_embeddings=8192,
        ),
        seed=0,
        dtype="F32",
    ),
    "kimi_k2": TinyCheckpoint(
        _v3(
            model_type="kimi_k2",
            hidden_size=128,
            num_attention_heads=4,
            num_key_value_heads=4,
            n_routed_experts=24,
            n_group=1,
            topk_group=1,
            routed_scaling_factor=2.827,
            num_nextn_predict_layers=0,
            rope_theta=50000.0,
            rope_scaling={
                "type": "yarn",
                "factor": 32.0,
                "original_max_position_embeddings": 4096,
                "beta_fast": 1.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
            max_position_embeddings=131072,
        ),
        seed=0,
        oracle="deepseek_v3",
    ),
    "joyai_llm_flash": TinyCheckpoint(
        _v3(
            model_type="joyai_llm_flash",
            hidden_size=136,
            n_group=1,
            topk_group=1,
            rope_theta=32000000,
            rope_scaling=None,
            max_position_embeddings=131072,
        ),
        seed=2,
        oracle="deepseek_v3",
    ),
    "deepseek_v3_fp8": TinyCheckpoint(
        _v3(
            hidden_size=160,
            intermediate_size=288,
            moe_intermediate_size=136,
            num_hidden_layers=2,
            q_lora_rank=136,
            kv_lora_rank=144,
            n_routed_experts=8,
            num_experts_per_tok=3,
            n_group=2,
            topk_group=1,
            quantization_config={
                "quant_method": "fp8",
                "fmt": "e4m3",
                "activation_scheme": "dynamic",
                "weight_block_size": [128, 128],
            },
        ),
        seed=0,
        mtp_copies_embedding=True,
    ),
}
