"""Kernels of the aarch64 levels, under QEMU: the same codes and sums, bit for bit, as on this processor.

Attention sums in an order of its own at every level, and is held to float64.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from emulator import MISSING, run_emulated
from golden.latents import cached_values, stored_cache
from kernel_harness import TILE, error, meaning, quantized, run, stored
from levels import LEVELS, level_tile, offsets_for
from marks import quick_first

from relax_model.kernels.attention.cpu_absorbed import query_columns, query_place
from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.cpu_tiles import CpuTile
from relax_model.layout import PackedLayout, layout_of

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
AARCH64 = [level for level in LEVELS if level.startswith("aarch64")]
PACKED = ["q4f16_1+vnni16", "q8f16_1+vnni16"]
ATTENTION = AttentionShape(5, 72, 24, 8, 20, True, 0.2, 16, "float16")


def on_both(level: str, tile: CpuTile, layout: PackedLayout, operator: str, arguments, codes: list, rest: list, *out):
    """A kernel's outputs under QEMU and on this processor, from the same codes with the offsets that each takes."""
    theirs = [*codes, offsets_for(layout, tile, codes[0]), *rest]
    ours = [*codes, offsets_for(layout, TILE, codes[0]), *rest]
    return run_emulated(level, tile, operator, arguments, theirs, *out), run(operator, arguments, ours, *out)


@pytest.mark.parametrize("quantization", quick_first(PACKED))
@pytest.mark.parametrize("level", AARCH64)
def test_quantizing_gives_the_same_codes(level: str, quantization: str) -> None:
    layout, tile = layout_of(quantization), level_tile(level)
    x = np.random.default_rng(1).standard_normal((3, 70), np.float32) * np.array([[1], [1e-20], [1e20]], np.float32)
    x[:, :32] = 0
    out = quantized(layout, *x.shape)
    codes, scales, offsets = run_emulated(level, tile, "quantize", (layout, 70), [x], *out)
    expected = run("quantize", (layout, 70), [x], *out)
    assert np.array_equal(codes, expected[0]) and np.array_equal(scales, expected[1])
    assert np.array_equal(offsets, offsets_for(layout, tile, codes))
    assert np.all(np.abs(meaning([codes, scales], 70) - x) <= np.repeat(scales, 32, axis=1)[:, :70] * 0.500001)


@pytest.mark.parametrize("quantization", quick_first(PACKED))
@pytest.mark.parametrize(("level", "changed"), [*((level, {}) for level in AARCH64), ("aarch64-i8mm", {"dot_rows": 5})])
def test_products_have_the_same_bits(level: str, changed: dict[str, int], quantization: str) -> None:
    """Five rows are two pairs and one that is left, where a level multiplies pairs."""
    layout, tile = layout_of(quantization), level_tile(level, **changed)
    for out, width in [(7, 33), (1, 1), (130, 70), (96, 512)]:
        random = np.random.default_rng(out)
        arrays, exact = stored(layout, random.standard_normal((out, width), np.float32))
        for rows in (1, 2, 3, 4, 5, 9):
            x = random.standard_normal((rows, width), np.float32)
            codes = run("quantize", (layout, width), [x], *quantized(layout, rows, width))
            residual = random.standard_normal((rows, out), np.float32)
            arguments, rest, y = (layout, True), [*arrays, residual], ((rows, out), "float32")
            (found,), (expected,) = on_both(level, tile, layout, "quantized_linear", arguments, codes[:2], rest, y)
            assert np.array_equal(found, expected)
            assert np.abs(found - (meaning(codes, width) @ exact.T + residual)).max() < 2e-6 * np.sqrt(width)


@pytest.mark.parametrize("quantization", quick_first(PACKED))
@pytest.mark.parametrize("level", AARCH64)
def test_gate_and_up_give_the_same_codes(level: str, quantization: str) -> None:
    layout, hidden = layout_of(quantization), 70
    for width in (40, 96):
        random = np.random.default_rng(width)
        arrays, exact = stored(layout, random.standard_normal((2 * width, hidden), np.float32) / 8, (width, width))
        for rows in (1, 7):
            x = random.standard_normal((rows, hidden), np.float32) * 4
            codes = run("quantize", (layout, hidden), [x], *quantized(layout, rows, hidden))
            out = quantized(layout, rows, width)
            found, expected = on_both(level, level_tile(level), layout, "gate_up", (layout,), codes[:2], arrays, *out)
            assert np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])
            assert np.array_equal(found[2], offsets_for(layout, level_tile(level), found[0]))
            gate, up = (meaning(codes, hidden) @ half.T for half in (exact[:width], exact[width:]))
            scales = np.repeat(found[1], 32, axis=1)[:, :width]
            assert np.all(np.abs(meaning(found, width) - gate / (1 + np.exp(-gate)) * up) <= scales * 0.51)


@pytest.mark.parametrize("cache_dtype", ["float16", "int8"])
@pytest.mark.parametrize("quantization", quick_first(["q4f16_1+vnni16", "q4f16_1"]))
@pytest.mark.parametrize("level", AARCH64)
@pytest.mark.parametrize("rows", quick_first([3, 20]))
def test_absorbed_attention_over_a_cache(level: str, quantization: str, rows: int, cache_dtype: str) -> None:
    shape = dataclasses.replace(ATTENTION, cache_dtype=cache_dtype)
    layout, tile, random = layout_of(quantization), level_tile(level), np.random.default_rng(rows)
    lengths = random.integers(1, 200, rows)
    positions, sequences = (lengths - 1).astype(np.int32), random.integers(0, 2, rows).astype(np.int32)
    pages = random.permutation(26).astype(np.int32).reshape(2, 13)
    cache = stored_cache(shape, random.standard_normal((26, 16, shape.latent_width), np.float32))
    latents = cached_values(shape, cache)
    q = random.standard_normal((rows, shape.heads, shape.latent_width), np.float32) / 4
    placed = np.zeros((rows, *query_columns(shape, tile)), np.float32)
    expected = np.zeros((rows, shape.heads, shape.kv_lora_rank))
    for row, head in np.ndindex(rows, shape.heads):
        _, group, _, lane = query_place(shape, tile, row, head, 0)
        placed[row, group, :, lane] = q[row, head]
        keys = latents[pages[sequences[row]]].reshape(-1, shape.latent_width)[: lengths[row]]
        weights = np.exp2(keys @ q[row, head])
        expected[row, head] = weights / weights.sum() @ keys[:, : shape.kv_lora_rank]

    inputs = [placed, positions, sequences, pages, cache]
    if not isinstance(layout, PackedLayout):
        out = (expected.shape, "float32")
        found = run_emulated(level, tile, "absorbed_attention", (layout, shape), inputs, out)[0]
        assert error(found, expected) < 1e-5
        return
    out = quantized(layout, rows, shape.heads * 96)
    o = run_emulated(level, tile, "absorbed_attention", (layout, shape), inputs, *out)
    assert np.array_equal(o[2], offsets_for(layout, tile, o[0]))
    found = meaning(o, shape.heads * 96).reshape(rows, shape.heads, 96)
    scales = np.repeat(o[1], 32, axis=1).reshape(found.shape)
    assert not np.any(found[:, :, 72:])
    assert np.all(np.abs(found[:, :, :72] - expected) <= scales[:, :, :72] * 0.51)
