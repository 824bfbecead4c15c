"""What a step of the model has to read and to compute, counted from the configuration: the figures speed is held to."""

from __future__ import annotations

import math

from relax_model.config import ModelConfig
from relax_model.layout import Layout, layout_of
from relax_model.parameters import Parameter, parameters


def step_bytes(
    config: ModelConfig, quantization: str, token_bytes: int, *, depth: int, rows: int = 1, sequences: int = 1
) -> int:
    """Bytes that one step of `rows` tokens in each of `sequences`, `depth` cached tokens behind each, reads at least.

    Dense weights and the head once, a row of the embedding a token, the experts that the tokens choose, and the latents
    of every sequence once, `token_bytes` for a token in a layer. Several tokens are taken to choose their experts
    uniformly and independently, so that the experts touched are the expected number of distinct ones. What kernels
    write and read back is left out.
    """
    layout, tokens = layout_of(quantization), rows * sequences
    on_path = (parameter for parameter in parameters(config) if _on_path(config, parameter))
    weights = sum(_read(config, parameter, layout, tokens) for parameter in on_path)
    cached = depth * config.num_hidden_layers * token_bytes
    return round(weights) + sequences * cached


def draft_bytes(config: ModelConfig, quantization: str, *, rows: int = 1) -> int:
    """Bytes that a prediction of the MTP layer for so many rows reads at least: its weights, the experts that they
    choose, the rows' embeddings, and the head."""
    layout = layout_of(quantization)
    shared = ("model.embed_tokens", "lm_head")
    used = (p for p in parameters(config) if not _on_path(config, p) or p.name in shared)
    return round(sum(_read(config, parameter, layout, rows) for parameter in used))


def follow_bytes(config: ModelConfig, quantization: str, *, rows: int = 1) -> int:
    """The same where the MTP layer only appends rows' latents."""
    layout, names = layout_of(quantization), ("enorm", "hnorm", "eh_proj", "input_layernorm")
    prefix = f"model.layers.{config.num_hidden_layers}."
    needed = [f"{prefix}{name}" for name in (*names, "self_attn.kv_a_")]
    used = (p for p in parameters(config) if p.name == "model.embed_tokens" or p.name.startswith(tuple(needed)))
    return round(sum(_read(config, parameter, layout, rows) for parameter in used))


def prefill_bytes(
    config: ModelConfig, quantization: str, token_bytes: int, *, depth: int, tokens: int, block: int
) -> int:
    """The same for a prompt of `tokens` after `depth` cached ones, in steps of at most `block` rows."""
    return sum(
        step_bytes(config, quantization, token_bytes, depth=start, rows=rows)
        for start, rows in chunks(depth, tokens, block)
    )


def chunks(depth: int, tokens: int, block: int) -> list[tuple[int, int]]:
    """(position, rows) of the steps that a prompt of `tokens` from position `depth` is cut into: aligned blocks."""
    found, position = [], depth
    while position < depth + tokens:
        rows = min(block - position % block, depth + tokens - position)
        found.append((position, rows))
        position += rows
    return found


def step_flops(config: ModelConfig, *, depth: int, rows: int = 1, sequences: int = 1) -> float:
    """Floating-point operations (a multiplication and an addition are two) of one step, as in `step_bytes`.

    Attention in the cheaper of its two forms; norms, rotations and the router's choice are left out.
    """
    tokens = rows * sequences
    products = sum(_products(config, p, tokens, sequences) for p in parameters(config) if _on_path(config, p))
    heads, seen = config.num_attention_heads, depth + (rows + 1) / 2
    kv_b = heads * (config.qk_nope_head_dim + config.v_head_dim) * config.kv_lora_rank
    absorbed = tokens * (kv_b + heads * seen * (config.latent_width + config.kv_lora_rank))
    expanded = sequences * (depth + rows) * kv_b + tokens * heads * seen * (config.qk_head_dim + config.v_head_dim)
    return 2 * (products + config.num_hidden_layers * min(absorbed, expanded))


def prefill_flops(config: ModelConfig, *, depth: int, tokens: int, block: int) -> float:
    """The same for a prompt of `tokens` after `depth` cached ones."""
    return sum(step_flops(config, depth=start, rows=rows) for start, rows in chunks(depth, tokens, block))


def _on_path(config: ModelConfig, parameter: Parameter) -> bool:
    """Whether a plain step touches the parameter: the MTP layers' are for drafts."""
    return not any(
        parameter.name.startswith(f"model.layers.{layer}.")
        for layer in range(config.num_hidden_layers, config.num_cached_layers)
    )


def _read(config: ModelConfig, parameter: Parameter, layout: Layout, tokens: int) -> float:
    whole = sum(spec.nbytes for spec in parameter.buffers(layout).values())
    if parameter.name == "model.embed_tokens":
        return whole if config.tie_word_embeddings else min(tokens, config.vocab_size) * whole // config.vocab_size
    if ".mlp.experts." in parameter.name:
        assert config.router is not None
        untouched = (1 - config.router.num_experts_per_tok / config.router.n_routed_experts) ** tokens
        return whole * (1 - untouched)
    return whole


def _products(config: ModelConfig, parameter: Parameter, tokens: int, wanted: int) -> float:
    """Multiplications that the parameter takes part in; attention counts kv_b_proj's."""
    values = math.prod(parameter.shape)
    head = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
    if parameter.name == head:
        return values * wanted
    if parameter.name == "model.embed_tokens" or parameter.name.endswith("kv_b_proj"):
        return 0
    if ".mlp.experts." in parameter.name:
        assert config.router is not None
        return values * tokens * config.router.num_experts_per_tok / config.router.n_routed_experts
    return values * tokens if parameter.matrix or parameter.name.endswith(".gate.weight") else 0
