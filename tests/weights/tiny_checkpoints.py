"""Tiny random checkpoints of the family, written with the safetensors library under Hugging Face's names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "max_position_embeddings": 512,
    "num_nextn_predict_layers": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
DEEPSEEK_V2_LITE = {
    **{name: value for name, value in DEEPSEEK_V3.items() if name not in ("n_group", "topk_group")},
    "model_type": "deepseek_v2",
    "q_lora_rank": None,
    "n_shared_experts": 2,
    "num_nextn_predict_layers": 0,
}
YOUTU = {
    **{name: DEEPSEEK_V3[name] for name in list(DEEPSEEK_V3)[:12]},
    "model_type": "youtu",
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
FAMILIES = {"deepseek_v3": DEEPSEEK_V3, "deepseek_v2_lite": DEEPSEEK_V2_LITE, "youtu": YOUTU}


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Hugging Face's tensor names and shapes for a config of the family."""
    hidden = config["hidden_size"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    layers = config["num_hidden_layers"]
    for layer in range(layers + config.get("num_nextn_predict_layers", 0)):
        tensors = {**_attention(config), **_feed_forward(config, layer)}
        tensors |= {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
        if layer >= layers:
            tensors |= {"enorm.weight": (hidden,), "hnorm.weight": (hidden,), "eh_proj.weight": (hidden, 2 * hidden)}
            tensors |= {"shared_head.norm.weight": (hidden,), "shared_head.head.weight": (config["vocab_size"], hidden)}
            tensors |= {"embed_tokens.weight": (config["vocab_size"], hidden)}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in tensors.items()}
    return shapes


def _attention(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, heads, rank = config["hidden_size"], config["num_attention_heads"], config["q_lora_rank"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    latent = config["kv_lora_rank"]
    tensors = {
        "kv_a_proj_with_mqa.weight": (latent + rope, hidden),
        "kv_a_layernorm.weight": (latent,),
        "kv_b_proj.weight": (heads * (nope + value), latent),
        "o_proj.weight": (hidden, heads * value),
    }
    if rank is None:
        tensors["q_proj.weight"] = (heads * (nope + rope), hidden)
    else:
        tensors |= {"q_a_proj.weight": (rank, hidden), "q_a_layernorm.weight": (rank,)}
        tensors["q_b_proj.weight"] = (heads * (nope + rope), rank)
    return {f"self_attn.{name}": shape for name, shape in tensors.items()}


def _feed_forward(config: dict[str, Any], layer: int) -> dict[str, tuple[int, ...]]:
    hidden = config["hidden_size"]

    def mlp(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
        shapes = {"gate_proj": (width, hidden), "up_proj": (width, hidden), "down_proj": (hidden, width)}
        return {f"{prefix}.{name}.weight": shape for name, shape in shapes.items()}

    experts = config.get("n_routed_experts")
    if not experts or layer < config["first_k_dense_replace"]:
        return mlp("mlp", config["intermediate_size"])
    width = config["moe_intermediate_size"]
    tensors = {"mlp.gate.weight": (experts, hidden)}
    if config["model_type"] != "deepseek_v2":
        tensors["mlp.gate.e_score_correction_bias"] = (experts,)
    for expert in range(experts):
        tensors |= mlp(f"mlp.experts.{expert}", width)
    return tensors | mlp("mlp.shared_experts", width * config["n_shared_experts"])


def random_tensors(config: dict[str, Any], seed: int = 0, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Random values for every tensor of the config."""
    rng = np.random.default_rng(seed)
    return {name: (rng.standard_normal(shape) * 0.1).astype(dtype) for name, shape in tensor_shapes(config).items()}


def write_checkpoint(
    folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray] | None = None, shards: int = 1
) -> Path:
    """Write config.json and the tensors (random ones if none are given), in one file or in `shards` with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = random_tensors(config) if tensors is None else tensors
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {key: tensors[key] for key in list(tensors)[shard::shards]}
        save_file(part, folder / name)
        weight_map |= {key: name for key in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def to_fp8(
    tensors: dict[str, np.ndarray], block: tuple[int, int]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The layers' projections as e4m3 with block scales, as DeepSeek ships them, and the values they stand for."""
    stored, meant = {}, {}
    for name, values in tensors.items():
        if values.ndim != 2 or "_proj" not in name or "eh_proj" in name:
            stored[name] = meant[name] = values
            continue
        codes = np.empty(values.shape, ml_dtypes.float8_e4m3fn)
        scales = np.empty([-(-extent // size) for extent, size in zip(values.shape, block, strict=True)], np.float32)
        meant[name] = np.empty(values.shape, np.float32)
        for i, j in np.ndindex(*scales.shape):
            piece = tuple(slice(k * size, (k + 1) * size) for k, size in zip((i, j), block, strict=True))
            scales[i, j] = np.abs(values[piece]).max() / 448
            codes[piece] = (values[piece] / scales[i, j]).astype(codes.dtype)
            meant[name][piece] = codes[piece].astype(np.float32) * scales[i, j]
        stored[name], stored[f"{name}_scale_inv"] = codes, scales
    return stored, meant
