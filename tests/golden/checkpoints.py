"""Tiny random checkpoints of every family, written as Hugging Face folders and the same to the bit on every machine.

A weight is a function of (seed, tensor name), so that only the oracle's outputs need to be stored beside the tests.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from golden.families import CHECKPOINTS, TinyCheckpoint

PROMPT_LENGTH = 70
GREEDY_LENGTH = 32
LONG_LENGTH = 3000
LONG_KEPT = 8  # last positions of the long prompt whose logits are stored

_NUMPY_DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
}
_E4M3_MAX = 448.0


def tensors(name: str) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint as float32, by its Hugging Face name; fp8 ones dequantized."""
    stored = stored_tensors(name)
    values = {}
    for tensor, value in stored.items():
        if not tensor.endswith("_scale_inv"):
            values[tensor] = value.astype(np.float32)
            if value.dtype == _NUMPY_DTYPES["F8_E4M3"]:
                values[tensor] *= _spread(stored[f"{tensor}_scale_inv"], value.shape)
    return values


@functools.cache
def stored_tensors(name: str) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint as its files hold it."""
    return dict(_stored_tensors(CHECKPOINTS[name]))


def digest(name: str) -> str:
    """SHA-256 (hex) over a checkpoint's tensors: goldens belong to these bits and to no others."""
    state = hashlib.sha256()
    for tensor, value in stored_tensors(name).items():
        state.update(tensor.encode() + np.ascontiguousarray(value).tobytes())
    return state.hexdigest()


def golden(name: str) -> dict[str, np.ndarray]:
    """The stored oracle outputs of a checkpoint, by array name (make_golden.py says what they are)."""
    with np.load(Path(__file__).parent / f"{name}.npz") as arrays:
        return dict(arrays)


def write(name: str, folder: Path) -> Path:
    """Write a checkpoint's config.json and safetensors to `folder`, as its publisher would; returns the folder."""
    checkpoint = CHECKPOINTS[name]
    return write_folder(folder, checkpoint.config, stored_tensors(name), shards=checkpoint.shards)


def write_folder(folder: Path, config: dict[str, Any], values: dict[str, np.ndarray], *, shards: int = 1) -> Path:
    """Write a Hugging Face folder: config.json with model.safetensors, or with `shards` files and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    if shards == 1:
        write_safetensors(folder / "model.safetensors", values)
        return folder
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        chosen = list(values)[shard::shards]
        write_safetensors(folder / file, {tensor: values[tensor] for tensor in chosen})
        weight_map.update(dict.fromkeys(chosen, file))
    total = sum(value.nbytes for value in values.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder


def write_safetensors(path: Path, values: dict[str, np.ndarray]) -> None:
    """Write one safetensors file (8 bytes of header length, JSON header, data), e4m3 and bfloat16 included."""
    names = {dtype: name for name, dtype in _NUMPY_DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor, value in values.items():
        span = [offset, offset + value.nbytes]
        header[tensor] = {"dtype": names[value.dtype], "shape": list(value.shape), "data_offsets": span}
        offset += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for value in values.values():
            file.write(np.ascontiguousarray(value).tobytes())


def prompt(name: str, length: int = PROMPT_LENGTH) -> np.ndarray:
    """int32 (length,): the prompt that a checkpoint's goldens continue; a longer one does not begin with a shorter."""
    raw = _raw(CHECKPOINTS[name].seed, f"prompt of {length}", length)
    return (raw % np.uint64(CHECKPOINTS[name].config["vocab_size"])).astype(np.int32)


def _stored_tensors(checkpoint: TinyCheckpoint) -> Iterator[tuple[str, np.ndarray]]:
    fp8 = "quantization_config" in checkpoint.config
    dtype = _NUMPY_DTYPES[checkpoint.dtype]
    made: dict[str, np.ndarray] = {}
    for tensor, shape, scale in _tensors(checkpoint):
        source = _shared_source(tensor)
        value = made[source] if source else _random(checkpoint.seed, tensor, shape, scale)
        if not source and tensor in ("model.embed_tokens.weight", "lm_head.weight"):
            made[tensor] = value
        if tensor.endswith("e_score_correction_bias"):
            yield tensor, value.astype(np.float32)
        elif fp8 and "_proj" in tensor and "eh_proj" not in tensor:
            quantized, scale_inv = _quantize_fp8(value, checkpoint.config["quantization_config"]["weight_block_size"])
            yield tensor, quantized
            yield f"{tensor}_scale_inv", scale_inv
        else:
            yield tensor, value.astype(np.float32).astype(dtype)


def _shared_source(tensor: str) -> str | None:
    if tensor.endswith("shared_head.head.weight"):
        return "lm_head.weight"
    if tensor.endswith("embed_tokens.weight") and tensor != "model.embed_tokens.weight":
        return "model.embed_tokens.weight"
    return None


# Name, shape, and the standard deviation (a row's own, where it is an array) or None for a norm's weight.
_Spec = tuple[str, tuple[int, ...], float | np.ndarray | None]


def _tensors(checkpoint: TinyCheckpoint) -> Iterator[_Spec]:
    config = checkpoint.config
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    layers = config["num_hidden_layers"]
    tied = config["tie_word_embeddings"]
    logits_spread = 4.0 / math.sqrt(hidden)
    embedding_spread = 0.01 if checkpoint.near_epsilon else 1.0
    yield "model.embed_tokens.weight", (vocab, hidden), logits_spread if tied else embedding_spread
    for layer in range(layers):
        yield from _layer(checkpoint, layer)
    yield "model.norm.weight", (hidden,), None
    if not tied:
        yield "lm_head.weight", (vocab, hidden), logits_spread
    for layer in range(layers, layers + checkpoint.mtp_layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.enorm.weight", (hidden,), None
        yield f"{prefix}.hnorm.weight", (hidden,), None
        yield f"{prefix}.eh_proj.weight", (hidden, 2 * hidden), 1 / math.sqrt(2 * hidden)
        yield from _layer(checkpoint, layer)
        yield f"{prefix}.shared_head.norm.weight", (hidden,), None
        if checkpoint.mtp_copies_embedding:
            yield f"{prefix}.embed_tokens.weight", (vocab, hidden), embedding_spread
            yield f"{prefix}.shared_head.head.weight", (vocab, hidden), logits_spread


def _layer(checkpoint: TinyCheckpoint, layer: int) -> Iterator[_Spec]:
    config, prefix = checkpoint.config, f"model.layers.{layer}"
    hidden = config["hidden_size"]
    yield f"{prefix}.input_layernorm.weight", (hidden,), None
    yield from _attention(config, f"{prefix}.self_attn", 0.003 if checkpoint.near_epsilon else 1.0)
    yield f"{prefix}.post_attention_layernorm.weight", (hidden,), None
    experts = config.get("n_routed_experts")
    if not experts or layer < config["first_k_dense_replace"]:
        yield from _mlp(hidden, config["intermediate_size"], f"{prefix}.mlp", 1.5)
        return
    width = config["moe_intermediate_size"]
    yield f"{prefix}.mlp.gate.weight", (experts, hidden), 1.5 / math.sqrt(hidden)
    if config["topk_method"] == "noaux_tc":
        yield f"{prefix}.mlp.gate.e_score_correction_bias", (experts,), 0.3
    for expert in range(experts):
        yield from _mlp(hidden, width, f"{prefix}.mlp.experts.{expert}", 1.5 * checkpoint.expert_scale)
    yield from _mlp(hidden, width * config["n_shared_experts"], f"{prefix}.mlp.shared_experts", 1.5)


def _attention(config: dict[str, Any], prefix: str, latent_spread: float) -> Iterator[_Spec]:
    hidden, heads, latent = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    q_lora = config.get("q_lora_rank")
    sharpness = 2.0  # spread of the attention scores: clearly not uniform, and no single token takes it all
    if q_lora:
        yield f"{prefix}.q_a_proj.weight", (q_lora, hidden), latent_spread / math.sqrt(hidden)
        yield f"{prefix}.q_a_layernorm.weight", (q_lora,), None
        yield f"{prefix}.q_b_proj.weight", (heads * (nope + rope), q_lora), sharpness / math.sqrt(q_lora)
    else:
        yield f"{prefix}.q_proj.weight", (heads * (nope + rope), hidden), sharpness / math.sqrt(hidden)
    # The rotary key has no norm of its own and keeps its size.
    rows = np.repeat([latent_spread, 1.0], [latent, rope])[:, None]
    yield f"{prefix}.kv_a_proj_with_mqa.weight", (latent + rope, hidden), rows / math.sqrt(hidden)
    yield f"{prefix}.kv_a_layernorm.weight", (latent,), None
    yield f"{prefix}.kv_b_proj.weight", (heads * (nope + value), latent), 1 / math.sqrt(latent)
    yield f"{prefix}.o_proj.weight", (hidden, heads * value), 1 / math.sqrt(heads * value)


def _mlp(hidden: int, width: int, prefix: str, scale: float) -> Iterator[_Spec]:
    yield f"{prefix}.gate_proj.weight", (width, hidden), 1.5 / math.sqrt(hidden)
    yield f"{prefix}.up_proj.weight", (width, hidden), 1 / math.sqrt(hidden)
    yield f"{prefix}.down_proj.weight", (hidden, width), scale / math.sqrt(width)


def _random(seed: int, tensor: str, shape: tuple[int, ...], scale: float | np.ndarray | None) -> np.ndarray:
    """float64: near-normal values of standard deviation `scale`, or a norm's weights around 1."""
    count = math.prod(shape)
    # The sum of four 16-bit numbers: integers until the last step, so that no machine's libm decides a bit.
    parts = _raw(seed, tensor, count).astype("<u8").view("<u2").reshape(count, 4)
    normal = (parts.astype(np.int64).sum(axis=1) - 2 * 65535) * (math.sqrt(3) / 65536)
    normal = normal.reshape(shape)
    return 1 + 0.2 * normal if scale is None else scale * normal


def _raw(seed: int, purpose: str, count: int) -> np.ndarray:
    key = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()[:16]
    # Raw words: NumPy promises these to stay the same, which it does not for its distributions.
    return np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)


def _quantize_fp8(value: np.ndarray, block: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """e4m3 values with float32 scales, one a block; the blocks at the right and lower edges are ragged."""
    rows, columns = value.shape
    scale_inv = np.empty((-(-rows // block[0]), -(-columns // block[1])), np.float32)
    for row, column in np.ndindex(*scale_inv.shape):
        part = value[row * block[0] : (row + 1) * block[0], column * block[1] : (column + 1) * block[1]]
        scale_inv[row, column] = np.abs(part).max() / _E4M3_MAX
    quotient = (value / _spread(scale_inv, value.shape, block)).astype(np.float32)
    return quotient.astype(_NUMPY_DTYPES["F8_E4M3"]), scale_inv


def _spread(scale_inv: np.ndarray, shape: tuple[int, ...], block: list[int] | None = None) -> np.ndarray:
    """A block's scale at each of its elements: (rows, columns)."""
    rows, columns = block or [128, 128]
    return scale_inv.repeat(rows, axis=0).repeat(columns, axis=1)[: shape[0], : shape[1]]
