"""What a kernel's call has to move: of shared tensors, the part that a step touches."""

from __future__ import annotations

import numpy as np
from golden.families import CHECKPOINTS

from mlc_dsv3.bench.traffic import StepSize, Traffic
from relax_model.config import parse_config

CONFIG = parse_config(CHECKPOINTS["deepseek_v3"].config)
CACHE = (50, 16, 40)


def moved(operator: str, *shapes: tuple[int, ...], tokens: int = 2, dtype: str = "float16") -> int:
    tensors = [np.empty(shape, dtype) for shape in shapes]
    return Traffic(CONFIG, "q0f16", CACHE).call_bytes(operator, tensors, StepSize(tokens, 100))


def test_matrices_and_activations_count_whole() -> None:
    assert moved("linear", (2, 64), (128, 64), (2, 128)) == 2 * (128 + 8192 + 256)


def test_of_the_cache_what_the_sequences_have_there() -> None:
    assert moved("absorbed_values", CACHE) == 100 * 40 * 2
    assert moved("latent_append", CACHE) == 2 * 40 * 2


def test_of_the_embedding_the_rows() -> None:
    assert moved("embedding", (CONFIG.vocab_size, 64)) == 2 * 64 * 2
    assert moved("linear", (CONFIG.vocab_size, 64)) == CONFIG.vocab_size * 64 * 2


def test_of_experts_those_that_are_chosen() -> None:
    router = CONFIG.router
    experts = (router.n_routed_experts, CONFIG.hidden_size, CONFIG.moe_intermediate_size)
    one = CONFIG.hidden_size * CONFIG.moe_intermediate_size * 2
    assert moved("experts", experts, tokens=1) == router.num_experts_per_tok * one
    assert router.num_experts_per_tok * one < moved("experts", experts, tokens=4) < router.n_routed_experts * one


def test_of_kv_b_proj_the_keys_half_or_the_values() -> None:
    nope, v, rank = CONFIG.qk_nope_head_dim, CONFIG.v_head_dim, CONFIG.kv_lora_rank
    matrix = (CONFIG.num_attention_heads * (nope + v), rank)
    assert moved("query_absorb", matrix) == CONFIG.num_attention_heads * nope * rank * 2
    assert moved("absorbed_values", matrix) == CONFIG.num_attention_heads * v * rank * 2
