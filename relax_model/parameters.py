"""The model's parameters in the order in which compiled functions take them, with their logical shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from relax_model.config import ModelConfig
from relax_model.layout import BufferSpec, Layout


@dataclass(frozen=True)
class Parameter:
    """One parameter. A `matrix` (…, out, in) lies as the layout says; anything else is float32, exact.

    `parts` are the row counts of the matrices that are stacked in its rows, over and over; () is one matrix.
    """

    name: str
    shape: tuple[int, ...]
    matrix: bool
    parts: tuple[int, ...] = ()

    def buffers(self, layout: Layout) -> dict[str, BufferSpec]:
        """Full name → stored array: `<name>.q_weight` and `<name>.q_scale`, or `<name>.weight`, or `<name>`."""
        if not self.matrix:
            return {self.name: BufferSpec(self.shape, "float32")}
        return {f"{self.name}.{suffix}": spec for suffix, spec in layout.buffers(self.shape, self.parts).items()}


def parameters(config: ModelConfig) -> list[Parameter]:
    """Every parameter of the model and its MTP layers, in the order of the packed argument.

    Names follow the checkpoint's (`model.layers.0.self_attn.o_proj`). What is multiplied together is stored together:
    `gate_up_proj` is gate's rows and then up's, and a layer's experts are one array (experts, out, in).
    """
    return list(_parameters(config))


def _parameters(config: ModelConfig) -> Iterator[Parameter]:
    hidden = config.hidden_size
    yield Parameter("model.embed_tokens", (config.vocab_size, hidden), matrix=True)
    for layer in range(config.num_hidden_layers):
        yield from _layer(config, layer)
    yield Parameter("model.norm.weight", (hidden,), matrix=False)
    if not config.tie_word_embeddings:
        yield Parameter("lm_head", (config.vocab_size, hidden), matrix=True)
    for layer in range(config.num_hidden_layers, config.num_cached_layers):
        prefix = f"model.layers.{layer}"
        yield Parameter(f"{prefix}.enorm.weight", (hidden,), matrix=False)
        yield Parameter(f"{prefix}.hnorm.weight", (hidden,), matrix=False)
        yield Parameter(f"{prefix}.eh_proj", (hidden, 2 * hidden), matrix=True)
        yield from _layer(config, layer)
        yield Parameter(f"{prefix}.shared_head.norm.weight", (hidden,), matrix=False)


def _layer(config: ModelConfig, layer: int) -> Iterator[Parameter]:
    prefix = f"model.layers.{layer}"
    yield Parameter(f"{prefix}.input_layernorm.weight", (config.hidden_size,), matrix=False)
    yield from _attention(config, f"{prefix}.self_attn")
    yield Parameter(f"{prefix}.post_attention_layernorm.weight", (config.hidden_size,), matrix=False)
    if config.moe_layers[layer]:
        yield from _moe(config, f"{prefix}.mlp")
    else:
        yield from _mlp(config, f"{prefix}.mlp", config.intermediate_size)


def _attention(config: ModelConfig, prefix: str) -> Iterator[Parameter]:
    hidden, heads = config.hidden_size, config.num_attention_heads
    query_width = heads * config.qk_head_dim
    if config.q_lora_rank is None:
        yield Parameter(f"{prefix}.q_proj", (query_width, hidden), matrix=True)
    else:
        yield Parameter(f"{prefix}.q_a_proj", (config.q_lora_rank, hidden), matrix=True)
        yield Parameter(f"{prefix}.q_a_layernorm.weight", (config.q_lora_rank,), matrix=False)
        yield Parameter(f"{prefix}.q_b_proj", (query_width, config.q_lora_rank), matrix=True)
    yield Parameter(f"{prefix}.kv_a_proj_with_mqa", (config.latent_width, hidden), matrix=True)
    yield Parameter(f"{prefix}.kv_a_layernorm.weight", (config.kv_lora_rank,), matrix=False)
    head = (config.qk_nope_head_dim, config.v_head_dim)  # rows of W_UK and of W_UV
    yield Parameter(f"{prefix}.kv_b_proj", (heads * sum(head), config.kv_lora_rank), matrix=True, parts=head)
    yield Parameter(f"{prefix}.o_proj", (hidden, heads * config.v_head_dim), matrix=True)


def _mlp(config: ModelConfig, prefix: str, width: int) -> Iterator[Parameter]:
    yield Parameter(f"{prefix}.gate_up_proj", (2 * width, config.hidden_size), matrix=True, parts=(width, width))
    yield Parameter(f"{prefix}.down_proj", (config.hidden_size, width), matrix=True)


def _moe(config: ModelConfig, prefix: str) -> Iterator[Parameter]:
    assert config.router is not None
    experts, hidden, width = config.router.n_routed_experts, config.hidden_size, config.moe_intermediate_size
    # The router stays in float32: a choice of experts is not to depend on the quantization's rounding.
    yield Parameter(f"{prefix}.gate.weight", (experts, hidden), matrix=False)
    if config.router.has_correction_bias:
        yield Parameter(f"{prefix}.gate.e_score_correction_bias", (experts,), matrix=False)
    gate_up = (experts, 2 * width, hidden)
    yield Parameter(f"{prefix}.experts.gate_up_proj", gate_up, matrix=True, parts=(width, width))
    yield Parameter(f"{prefix}.experts.down_proj", (experts, hidden, width), matrix=True)
    if config.n_shared_experts:
        yield from _mlp(config, f"{prefix}.shared_experts", width * config.n_shared_experts)
