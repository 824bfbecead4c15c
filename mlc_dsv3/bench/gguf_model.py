"""A GGUF file of random weights in the shape of a configuration, for llama.cpp to run beside us.

Written straight in GGUF's block formats: no quantizer is needed for values that are random anyway.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlc_dsv3.errors import UserError
from mlc_dsv3.folders import cache_folder
from mlc_dsv3.progress import progress
from mlc_dsv3.weights.lock import exclusive
from relax_model.config import ModelConfig

if TYPE_CHECKING:
    from gguf import GGUFWriter

# Raised when other files are written for the same configuration.
_VERSION = 1
_BLOCK = 32  # values that share a scale in Q4_0 and Q8_0
_TYPES = {"q4": "Q4_0", "q8": "Q8_0", "q0f16": "F16", "q0bf16": "BF16", "q0f32": "F32"}
_VALUE_BYTES = {"F16": 2, "BF16": 2, "F32": 4}
_CODE_BYTES = {"Q4_0": 16, "Q8_0": 32}
# Layer counts that llama.cpp takes for a model without q_lora_rank, whatever the file says.
_LITE_LAYERS = (26, 27)
_REPEAT = 1 << 16


def gguf_type(quantization: str) -> str:
    """GGUF's format beside a quantization of ours, of any layout: Q4_0 for 4 bits, Q8_0 for 8, floats as they are."""
    return next(name for prefix, name in _TYPES.items() if quantization.startswith(prefix))


def refuse_unknown_to_llama(config: ModelConfig, kind: str) -> None:
    """UserError for a model that llama.cpp's `deepseek2` architecture cannot hold in the format `kind`."""
    layers = config.moe_layers[: config.num_hidden_layers]
    if sorted(layers) != list(layers):
        raise UserError("llama.cpp knows no dense layers between or after those with experts, and this model has them")
    if any(layers) and not config.n_shared_experts:
        raise UserError("llama.cpp's deepseek2 needs shared experts (n_shared_experts), and this model has none")
    if config.q_lora_rank and config.num_hidden_layers in _LITE_LAYERS:
        raise UserError(f"llama.cpp takes {config.num_hidden_layers} layers for a model without q_lora_rank")
    for tensor in _tensors(config):
        if tensor.matrix and kind in _CODE_BYTES and tensor.shape[-1] % _BLOCK:
            raise UserError(f"{kind} needs widths that are multiples of {_BLOCK}; {tensor.name} has {tensor.shape[-1]}")


def random_gguf(config: ModelConfig, kind: str) -> Path:
    """The file for a configuration in the format `kind`, written now unless the cache folder has it."""
    refuse_unknown_to_llama(config, kind)
    key = hashlib.sha256(f"{_VERSION} {config.digest()} {kind}".encode()).hexdigest()[:20]
    folder = cache_folder() / "bench" / "gguf" / key
    output = folder / f"model-{kind}.gguf"
    if not output.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / ".lock"):
            partial = folder / ".partial"
            try:
                write_gguf(config, kind, partial)
                os.replace(partial, output)
            finally:
                partial.unlink(missing_ok=True)
    return output


def write_gguf(config: ModelConfig, kind: str, path: Path) -> None:
    """Write the file. The MTP layers are left out: neither side drafts."""
    import gguf

    writer = gguf.GGUFWriter(path, "deepseek2")
    _add_fields(writer, config)
    tensors = list(_tensors(config))
    for tensor in tensors:
        stored = kind if tensor.matrix else "F32"
        writer.add_tensor_info(
            tensor.name,
            tensor.stored_shape(stored),
            np.dtype(np.uint8),
            tensor.nbytes(stored),
            raw_dtype=gguf.GGMLQuantizationType[stored],
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(0)
    with progress("Writing random GGUF", sum(tensor.nbytes(kind) for tensor in tensors)) as advance:
        for tensor in tensors:
            stored = kind if tensor.matrix else "F32"
            writer.write_tensor_data(_values(random, tensor, stored))
            advance(tensor.nbytes(stored))
    writer.close()


@dataclass(frozen=True)
class _Tensor:
    """One tensor by GGUF's name; `shape` (…, rows, columns) is NumPy's order. What is no matrix stays float32."""

    name: str
    shape: tuple[int, ...]
    matrix: bool = True

    def stored_shape(self, kind: str) -> tuple[int, ...]:
        """The shape in bytes, which the writer turns back into values."""
        columns = self.shape[-1]
        width = columns * _VALUE_BYTES[kind] if kind in _VALUE_BYTES else columns // _BLOCK * (2 + _CODE_BYTES[kind])
        return (*self.shape[:-1], width)

    def nbytes(self, kind: str) -> int:
        """Bytes in the file, without padding."""
        return math.prod(self.stored_shape(kind))


def _values(random: np.random.Generator, tensor: _Tensor, kind: str) -> np.ndarray:
    """Bytes of the tensor, 1/√width in magnitude, norms of one; a large tensor repeats a random part."""
    scale = np.float32(tensor.shape[-1] ** -0.5)
    if kind in _CODE_BYTES:
        blocks = random.integers(0, 256, (_REPEAT, 2 + _CODE_BYTES[kind]), np.uint8)
        largest = 8 if kind == "Q4_0" else 128
        blocks[:, :2] = np.array([scale / (3**-0.5 * largest)], np.float16).view(np.uint8)
        part = blocks.reshape(-1)
    else:
        count = min(math.prod(tensor.shape), 8 * _REPEAT)
        values = random.standard_normal(count, np.float32) * scale
        if tensor.name.endswith("norm.weight"):
            values = np.ones(count, np.float32)
        if kind == "BF16":
            values = (values.view(np.uint32) >> 16).astype(np.uint16)
        part = values.astype(np.float16 if kind == "F16" else values.dtype).view(np.uint8)
    return np.resize(part, tensor.stored_shape(kind))


def _add_fields(writer: GGUFWriter, config: ModelConfig) -> None:
    import gguf

    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    # The latents are cached, as if there were one head of keys and values.
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_leading_dense_block_count(config.moe_layers[: config.num_hidden_layers].count(False))
    writer.add_q_lora_rank(config.q_lora_rank or 0)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    writer.add_key_length(config.latent_width)
    writer.add_value_length(config.kv_lora_rank)
    writer.add_key_length_mla(config.qk_head_dim)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_shared_count(config.n_shared_experts)
    router = config.router
    if router is not None:
        writer.add_expert_count(router.n_routed_experts)
        writer.add_expert_used_count(router.num_experts_per_tok)
        writer.add_expert_weights_scale(router.routed_scaling_factor)
        writer.add_expert_weights_norm(router.norm_topk_prob)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType[router.scoring_func.upper()])
        if router.n_group > 1:
            writer.add_expert_group_count(router.n_group)
            writer.add_expert_group_used_count(router.topk_group)
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    writer.add_rope_freq_base(config.rope.theta)
    yarn = config.rope.yarn
    if yarn is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(yarn.factor)
        writer.add_rope_scaling_orig_ctx_len(yarn.original_max_position_embeddings)
        writer.add_rope_scaling_yarn_log_mul(0.1 * yarn.mscale_all_dim)


def _tensors(config: ModelConfig) -> Iterator[_Tensor]:
    hidden, heads = config.hidden_size, config.num_attention_heads
    yield _Tensor("token_embd.weight", (config.vocab_size, hidden))
    yield _Tensor("output_norm.weight", (hidden,), matrix=False)
    if not config.tie_word_embeddings:
        yield _Tensor("output.weight", (config.vocab_size, hidden))
    for layer in range(config.num_hidden_layers):
        prefix = f"blk.{layer}"
        yield _Tensor(f"{prefix}.attn_norm.weight", (hidden,), matrix=False)
        query = heads * config.qk_head_dim
        if config.q_lora_rank is None:
            yield _Tensor(f"{prefix}.attn_q.weight", (query, hidden))
        else:
            yield _Tensor(f"{prefix}.attn_q_a.weight", (config.q_lora_rank, hidden))
            yield _Tensor(f"{prefix}.attn_q_a_norm.weight", (config.q_lora_rank,), matrix=False)
            yield _Tensor(f"{prefix}.attn_q_b.weight", (query, config.q_lora_rank))
        yield _Tensor(f"{prefix}.attn_kv_a_mqa.weight", (config.latent_width, hidden))
        yield _Tensor(f"{prefix}.attn_kv_a_norm.weight", (config.kv_lora_rank,), matrix=False)
        yield _Tensor(f"{prefix}.attn_k_b.weight", (heads, config.kv_lora_rank, config.qk_nope_head_dim))
        yield _Tensor(f"{prefix}.attn_v_b.weight", (heads, config.v_head_dim, config.kv_lora_rank))
        yield _Tensor(f"{prefix}.attn_output.weight", (hidden, heads * config.v_head_dim))
        yield _Tensor(f"{prefix}.ffn_norm.weight", (hidden,), matrix=False)
        yield from _feed_forward(config, prefix, moe=config.moe_layers[layer])


def _feed_forward(config: ModelConfig, prefix: str, *, moe: bool) -> Iterator[_Tensor]:
    if not moe:
        yield from _mlp(f"{prefix}.ffn_", "", (), config.hidden_size, config.intermediate_size)
        return
    assert config.router is not None
    experts, hidden, width = config.router.n_routed_experts, config.hidden_size, config.moe_intermediate_size
    yield _Tensor(f"{prefix}.ffn_gate_inp.weight", (experts, hidden), matrix=False)
    if config.router.has_correction_bias:
        yield _Tensor(f"{prefix}.exp_probs_b.bias", (experts,), matrix=False)
    yield from _mlp(f"{prefix}.ffn_", "_exps", (experts,), hidden, width)
    yield from _mlp(f"{prefix}.ffn_", "_shexp", (), hidden, width * config.n_shared_experts)


def _mlp(prefix: str, suffix: str, outer: tuple[int, ...], hidden: int, width: int) -> Iterator[_Tensor]:
    yield _Tensor(f"{prefix}gate{suffix}.weight", (*outer, width, hidden))
    yield _Tensor(f"{prefix}up{suffix}.weight", (*outer, width, hidden))
    yield _Tensor(f"{prefix}down{suffix}.weight", (*outer, hidden, width))
