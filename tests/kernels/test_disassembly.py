"""The fast instructions are inside the hot loops, and all sums stay in registers there, at every processor level."""

from __future__ import annotations

import dataclasses

import pytest
from assembly import Loop, assembly, innermost_loops
from levels import LEVELS, level_tile
from marks import quick_first

from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.cpu_tiles import CpuTile
from relax_model.layout import layout_of

# The integer products of each level, on the widest registers that it has, and how many of them a sum of one group of
# 32 takes: for one row and for more, where they differ.
DOTS = {
    "x86-64-avx512vnni": [(r"vpdpbusd .*%zmm", 8)],
    "x86-64-avx512": [(r"vpmaddubsw .*%zmm", 8)],
    "x86-64-avxvnni": [(r"(\{vex\} )?vpdpbusd .*%ymm", 8)],
    "x86-64-avx2": [(r"vpmaddubsw .*%ymm", 8)],
    "aarch64-i8mm": [(r"usdot v\d+\.4s", 8), (r"usmmla v\d+\.4s", 4)],
    "aarch64-dotprod": [(r"sdot v\d+\.4s", 8)],
    "aarch64-neon": [(r"m(ul|la) v\d+\.4s", 32)],
}
FMA = {"x86-64-avx5": r"vfmadd\w+ .*%zmm", "x86-64-avx": r"vfmadd\w+ .*%ymm", "aarch64": r"fmla v\d+\.4s"}
PACKED = ("q4f16_1+vnni16", "q8f16_1+vnni16")
# 128 heads fill the most registers beside the sums.
ATTENTION = AttentionShape(128, 512, 128, 64, 128, True, 0.1, 16, "float16")
# Whatever multiplies packed weights, with what its builder takes behind the layout, at DeepSeek-V2-Lite's sizes.
KERNELS = {
    "quantized_linear": (False,),
    "gate_up": (),
    "expert_gate_up": (64, 1408, 2048, 6),
    "expert_down": (64, 2048, 1408, 6),
    "value_project": (ATTENTION,),
}


def sums_of(tile: CpuTile, rows: int) -> int:
    """Vectors of sums of a tile of packed weights with that many rows."""
    block = 16 // tile.dot_lanes
    return rows * (block if rows <= tile.wide_rows else max(1, block // 2))


def dot_loops(level: str, tile: CpuTile, operator: str, quantization: str) -> list[Loop]:
    """The innermost loops of a kernel that multiply codes."""
    text = assembly(level, tile, operator, layout_of(quantization), *KERNELS[operator])
    return [loop for loop in innermost_loops(text) if any(loop.count(pattern) for pattern, _ in DOTS[level])]


def fma_of(level: str) -> str:
    """The level's fused multiply-add on its widest registers."""
    return next(pattern for start, pattern in FMA.items() if level.startswith(start))


@pytest.mark.parametrize(
    ("operator", "quantization"),
    [*((operator, PACKED[0]) for operator in KERNELS), ("quantized_linear", PACKED[1])],
)
@pytest.mark.parametrize("level", quick_first(LEVELS, 3))
def test_every_tile_of_codes_runs_on_the_levels_instruction_in_registers(
    level: str, operator: str, quantization: str
) -> None:
    tile = level_tile(level)
    loops = dot_loops(level, tile, operator, quantization)
    # Each tile is one loop over the groups, with all the products of a group.
    expected: dict[str, set[int]] = {}
    for rows in range(1, tile.dot_rows + 1):
        pattern, products = DOTS[level][0 if rows == 1 else -1]
        expected.setdefault(pattern, set()).add(products * sums_of(tile, rows))
    assert {pattern: {loop.count(pattern) for loop in loops} - {0} for pattern in expected} == expected
    assert [loop.spills for loop in loops if loop.spills] == []


@pytest.mark.parametrize("level", quick_first(LEVELS, 3))
def test_attentions_scores_and_values_are_fused_multiply_adds_in_registers(level: str) -> None:
    tile, layout = level_tile(level), layout_of(PACKED[0])
    loops = innermost_loops(assembly(level, tile, "absorbed_attention", layout, ATTENTION))
    counts = [loop.count(fma_of(level)) for loop in loops]
    # Scores and values, for few rows and for many: four loops with a whole tile of sums.
    assert counts.count(tile.accumulators) == 4
    assert [loop.spills for loop, count in zip(loops, counts, strict=True) if count and loop.spills] == []


@pytest.mark.parametrize("level", [level for level in LEVELS if level.startswith("x86")])
def test_over_an_8_bit_cache_attention_multiplies_pairs_of_integers_in_registers(level: str) -> None:
    tile, layout = level_tile(level), layout_of(PACKED[0])
    shape = dataclasses.replace(ATTENTION, cache_dtype="int8")
    loops = innermost_loops(assembly(level, tile, "absorbed_attention", layout, shape))
    instruction = "vpdpwssd" if "vnni" in level else "vpmaddwd"
    register = "zmm" if tile.lanes == 16 else "ymm"
    counts = [loop.count(rf"(\{{vex\}} )?{instruction} .*%{register}") for loop in loops]
    # As for float32, but two products a lane.
    assert counts.count(tile.accumulators) == 4
    assert [loop.spills for loop, count in zip(loops, counts, strict=True) if count and loop.spills] == []


def test_a_tile_wider_than_the_registers_is_seen_to_spill() -> None:
    level = "x86-64-avx2"
    assert not any(loop.spills for loop in dot_loops(level, level_tile(level), "quantized_linear", PACKED[0]))
    too_wide = level_tile(level, dot_rows=4, wide_rows=4)
    assert any(loop.spills for loop in dot_loops(level, too_wide, "quantized_linear", PACKED[0]))
