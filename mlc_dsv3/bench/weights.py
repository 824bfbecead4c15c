"""Which bytes of the weights a token reads, and random weights of any configuration to read them from."""

from __future__ import annotations

import numpy as np

from mlc_dsv3.runtime.aligned import aligned_zeros
from relax_model.config import ModelConfig
from relax_model.layout import GroupLayout, layout_of
from relax_model.parameters import Parameter, parameters


def bytes_per_token(config: ModelConfig, quantization: str, cache_itemsize: int, depth: int) -> int:
    """Bytes that decoding one token at `depth` reads: dense weights, the chosen experts, the head, and the cache."""
    layout = layout_of(quantization)
    weights = sum(_read(config, parameter, layout) for parameter in parameters(config) if _on_path(config, parameter))
    return weights + depth * config.num_hidden_layers * config.latent_width * cache_itemsize


def _on_path(config: ModelConfig, parameter: Parameter) -> bool:
    """Whether a plain decode step touches the parameter: the MTP layers' are for drafts."""
    return not any(
        parameter.name.startswith(f"model.layers.{layer}.")
        for layer in range(config.num_hidden_layers, config.num_cached_layers)
    )


def _read(config: ModelConfig, parameter: Parameter, layout: object) -> int:
    whole = sum(spec.nbytes for spec in parameter.buffers(layout).values())
    if parameter.name == "model.embed_tokens":
        return whole if config.tie_word_embeddings else whole // config.vocab_size
    if ".mlp.experts." in parameter.name:
        assert config.router is not None
        return whole * config.router.num_experts_per_tok // config.router.n_routed_experts
    return whole


def random_weights(config: ModelConfig, quantization: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Every stored array of the model, random and of a trained model's magnitude, by name.

    Large arrays repeat a random block: what counts is that every byte is really there and really read.
    """
    layout = layout_of(quantization)
    random = np.random.default_rng(seed)
    arrays = {}
    for parameter in parameters(config):
        for name, spec in parameter.buffers(layout).items():
            dtype = "uint16" if spec.dtype == "bfloat16" else spec.dtype
            arrays[name] = _fill(random, name, spec.shape, dtype, parameter, isinstance(layout, GroupLayout))
    return arrays


def _fill(
    random: np.random.Generator, name: str, shape: tuple[int, ...], dtype: str, parameter: Parameter, grouped: bool
) -> np.ndarray:
    count = int(np.prod(shape))
    scale = parameter.shape[-1] ** -0.5
    block = min(count, 1 << 20)
    if name.endswith("norm.weight"):
        values = np.ones(block, dtype)
    elif dtype == "uint32":
        values = random.integers(0, 2**32, block, np.uint32) & np.uint32(0x77777777)  # 4-bit codes 0…7, both signs
    elif dtype == "uint16":
        values = (random.standard_normal(block, np.float32) * scale).view(np.uint32)
        values = (values >> 16).astype(np.uint16)
    elif name.endswith("q_scale"):
        values = np.full(block, scale / 4, dtype)
    else:
        values = (random.standard_normal(block, np.float32) * scale).astype(dtype)
    array = aligned_zeros(shape, dtype)
    for start in range(0, count, block):
        array.reshape(-1)[start : start + block] = values[: count - start]
    return array
