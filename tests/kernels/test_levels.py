"""Products with packed weights have the same bits at every level.

With a level's own instruction where this processor has it; a level's tile of vectors and rows on any processor, with
shifts and multiplications in the instruction's place.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from kernel_harness import TILE, quantized, run, stored
from levels import LEVELS, lacking, level_tile, offsets_for, run_level
from marks import quick_first

from mlc_dsv3.compiler.targets import resolve_target
from relax_model.kernels.cpu_tiles import CpuTile
from relax_model.layout import layout_of

PACKED = ["q4f16_1+vnni16", "q8f16_1+vnni16"]
# Odd, tiny, whole tiles; and kv_a_proj_with_mqa of DeepSeek-V2-Lite.
SHAPES = [(7, 33), (1, 1), (17, 70), (64, 256), (576, 2048)]
ROWS = (1, 2, 3, 4, 5, 6, 13)
# The tiles of one and of several vectors to a block; those of aarch64 run emulated, with their own instructions.
TILES = ["x86-64-avx512vnni", "x86-64-avx2"]


@cache
def cases(quantization: str) -> list[tuple[str, tuple, list[np.ndarray], list, list[np.ndarray]]]:
    """(operator, its arguments, [codes, scales, *weights], outputs' shapes, what this processor's tile gives)."""
    layout, found = layout_of(quantization), []
    for out, width in SHAPES:
        random = np.random.default_rng(out)
        weights, _ = stored(layout, random.standard_normal((out, width), np.float32))
        gated, _ = stored(layout, random.standard_normal((2 * out, width), np.float32) / 8, (out, out))
        for rows in ROWS:
            x = random.standard_normal((rows, width), np.float32) * 4
            codes, scales, offsets = run("quantize", (layout, width), [x], *quantized(layout, rows, width))
            products = [("quantized_linear", (layout, False), weights, [((rows, out), "float32")])]
            if layout.base.bits == 4:  # the tiles are the same ones, and take long to compile
                products.append(("gate_up", (layout,), gated, quantized(layout, rows, out)))
            for operator, arguments, arrays, outputs in products:
                expected = run(operator, arguments, [codes, scales, offsets, *arrays], *outputs)
                found.append((operator, arguments, [codes, scales, *arrays], outputs, expected))
    return found


def differing(level: str, tile: CpuTile, quantization: str) -> list[str]:
    """The cases for which a tile of a level gives other bits than this processor's."""
    layout, different = layout_of(quantization), []
    for operator, arguments, (codes, scales, *arrays), outputs, expected in cases(quantization):
        inputs = [codes, scales, offsets_for(layout, tile, codes), *arrays]
        found = run_level(level, tile, operator, arguments, inputs, *outputs)
        # The third output of `gate_up` is offsets, which are a unit's own.
        same = [np.array_equal(*pair) for pair in zip(found[:2], expected[:2], strict=True)]
        if not all(same) or (found[2:] and not np.array_equal(found[2], offsets_for(layout, tile, found[0]))):
            different.append(f"{operator} {codes.shape} → {expected[0].shape}")
    return different


@pytest.mark.parametrize("quantization", quick_first(PACKED))
@pytest.mark.parametrize("level", TILES)
def test_a_levels_tile_gives_the_same_bits_without_its_instruction(level: str, quantization: str) -> None:
    here = resolve_target("cpu").level
    assert differing(here, level_tile(level, dot="portable"), quantization) == []


@pytest.mark.parametrize("quantization", PACKED)
@pytest.mark.parametrize("level", LEVELS)
def test_a_levels_instruction_gives_the_same_bits(level: str, quantization: str) -> None:
    if missing := lacking(level):
        pytest.skip(f"this processor has no {', '.join(missing)}")
    assert differing(level, level_tile(level), quantization) == []


def test_a_code_more_is_seen() -> None:
    layout = layout_of(PACKED[0])
    operator, arguments, (codes, scales, *arrays), outputs, expected = cases(PACKED[0])[0]
    changed = codes.copy()
    changed[0, 0] -= np.sign(changed[0, 0])
    found = run(operator, arguments, [changed, scales, offsets_for(layout, TILE, changed), *arrays], *outputs)
    assert not np.array_equal(found[0], expected[0])
