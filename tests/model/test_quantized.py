"""Quantized libraries against the float64 reference on the same weights, quantized and dequantized again in NumPy.

The reference rounds what it caches to the library's cache dtype (float16 beside weights below float32): a float16 cache
alone moves logits by up to 1e-2 of their standard deviation, and further where it flips a choice of experts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from golden import checkpoints
from golden.driver import Driver
from golden.families import CHECKPOINTS
from golden.reference import ReferenceModel
from marks import full, quick_first

from mlc_dsv3 import quantization
from relax_model.layout import layout_of

# Weights and cache are the same numbers on both sides: what is left is float32 arithmetic, as without quantization.
TOLERANCE = 1e-3
ROUNDED = 0.2

SCHEMES = ("q4f16_1", "q8f16_1", "e4m3f32_1", "q0f16", "q0bf16")
QUANTIZED = [
    *quick_first(("deepseek_v3", scheme) for scheme in SCHEMES),
    *map(full, [("deepseek_v2_lite", "q0f16"), ("youtu", "q8f16_1"), ("glm4_moe_lite", "q4f16_1")]),
    full(("deepseek_v3_fp8", "q4f16_1")),
]
PACKED_CASES = [
    ("deepseek_v3", "q4f16_1+vnni16", "int8"),
    ("deepseek_v3", "q8f16_1+vnni16", "float16"),
    ("deepseek_v2_lite", "q4f16_1+vnni16", "float16"),
    ("glm4_moe_lite", "q4f16_1+vnni16", "int8"),
    ("youtu", "q8f16_1+vnni16", "int8"),
]


def reference(name: str, scheme: str, cache_dtype: str, *, eight_bits: bool = False) -> ReferenceModel:
    """The reference on the weights that a quantization of the checkpoint stands for."""
    layout = layout_of(scheme)
    weights = checkpoints.tensors(name)
    for tensor, value in weights.items():
        if value.ndim == 2 and not tensor.endswith("mlp.gate.weight"):
            rounded = quantization.dequantize(layout, quantization.quantize(layout, value), value.shape[1])
            weights[tensor] = rounded[: len(value)]
    return ReferenceModel(CHECKPOINTS[name].config, weights, cache_dtype=cache_dtype, eight_bits=eight_bits)


@pytest.mark.parametrize(("name", "scheme"), QUANTIZED)
def test_logits(name: str, scheme: str, driver: Callable[..., Driver]) -> None:
    chosen, prompt = driver(name, scheme), checkpoints.prompt(name)
    expected = reference(name, scheme, chosen.model.metadata.cache_dtype).forward(prompt).logits
    for chunk in (None, 1):
        difference = np.abs(chosen.prefill(prompt, chunk).logits - expected).max(axis=-1) / expected.std()
        assert np.quantile(difference, 0.9) <= TOLERANCE
        # A latent that lies between two float16 values may be cached as the other one, and later tokens see it.
        assert difference.max() <= 5 * TOLERANCE


@pytest.mark.parametrize(("name", "scheme", "cache_dtype"), quick_first(PACKED_CASES))
def test_packed_logits(name: str, scheme: str, cache_dtype: str, driver: Callable[..., Driver]) -> None:
    chosen, prompt = driver(name, scheme, cache_dtype), checkpoints.prompt(name)
    expected = reference(name, scheme, cache_dtype, eight_bits=True).forward(prompt).logits
    found = chosen.prefill(prompt).logits
    difference = np.abs(found - expected).max(axis=-1) / expected.std()
    # Until float32 first rounds a value that lies between two codes to the other one, everything is the same; from
    # there on all tokens see another cache, and what differs is as large as the rounding to 8 bits itself. Attention in
    # 16-bit integers, over a cache in 8 bits, differs from the start.
    assert cache_dtype == "int8" or difference[0] <= TOLERANCE
    assert np.sqrt(np.mean((found - expected) ** 2)) <= ROUNDED * expected.std()
    assert np.array_equal(chosen.prefill(prompt, 1).logits, found)


@pytest.mark.parametrize("scheme", quick_first(["q4f16_1", "q0f16"]))
@pytest.mark.parametrize("name", quick_first(["deepseek_v3", "glm4_moe_lite"]))
def test_draft_logits(name: str, scheme: str, driver: Callable[..., Driver]) -> None:
    chosen, prompt = driver(name, scheme), checkpoints.prompt(name)
    next_tokens, hidden = np.append(prompt[1:], 5), chosen.prefill(prompt).hidden
    model = reference(name, scheme, chosen.model.metadata.cache_dtype)
    expected = model.draft(next_tokens, hidden.astype(np.float64)).logits
    assert np.abs(chosen.draft(next_tokens, hidden).logits - expected).max() <= TOLERANCE * expected.std()


@pytest.mark.parametrize(
    ("scheme", "most"),
    [
        *map(
            full,
            [("q4f16_1+vnni16", 2.0), ("q8f16_1+vnni16", 0.1), ("q0f16", 0.02), ("q8f16_1", 0.1), ("q4f16_1", 2.0)],
        ),
    ],
)
@pytest.mark.full
def test_quantization_costs_what_its_bits_cost(scheme: str, most: float, driver: Callable[..., Driver]) -> None:
    # A dense model: with random experts, one flipped choice would drown what rounding the weights costs.
    golden = checkpoints.golden("youtu")["logits"]
    difference = driver("youtu", scheme).prefill(checkpoints.prompt("youtu")).logits - golden
    assert np.sqrt(np.mean(difference**2)) <= most * golden.std()
