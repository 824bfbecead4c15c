"""Products of 8-bit activations with packed weights for CPUs, and the quantization of what has no codes yet.

A task is a run of 16-row blocks: weights stream by once, for a few rows from memory and for many out of the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.cpu_math import sigmoid
from relax_model.kernels.cpu_packed import (
    GROUP,
    Factors,
    activations,
    block_product,
    block_tile,
    over_rows,
    quantizer,
    row_quantizer,
    shifted,
    unit_of,
)
from relax_model.kernels.cpu_tiles import CpuTile, nothing, span, without
from relax_model.kernels.registry import kernel
from relax_model.layout import PackedLayout


@kernel("quantized_linear", "cpu")
def quantized_linear(layout: PackedLayout, residual: bool, *, tile: CpuTile) -> PrimFunc:
    """Codes, scales and offsets of x (rows, width), W (out, width) in `layout`, [residual] → float32 (rows, out).

    One kernel serves every out and width.
    """
    product = block_product(layout, tile)

    @T.prim_func(private=True, s_tir=True)
    def linear_packed_cpu(
        codes: T.handle,
        scales: T.handle,
        offsets: T.handle,
        data: T.handle,
        scale: T.handle,
        residual_in: T.handle,
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m, out, columns, blocks, groups = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        Codes = T.match_buffer(codes, (m, columns), "int8")
        Scales = T.match_buffer(scales, (m, groups), "float32")
        Offsets = T.match_buffer(offsets, (m, groups), "int32")
        Data = T.match_buffer(data, (blocks, groups, layout.words, layout.rows), "uint32")
        Scale = T.match_buffer(scale, (blocks, groups, layout.rows), "float16")
        R = T.match_buffer(residual_in, (m, out), "float32")
        Y = T.match_buffer(y, (m, out), "float32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            for b in T.parallel(blocks):
                product(
                    m,
                    Factors(
                        Data,
                        Scale,
                        b,
                        groups,
                        activations(Codes, Scales, Offsets),
                        Y,
                        lambda i, n: (i, b * layout.rows + n),
                        lambda i, n: R[i, b * layout.rows + n] if residual else T.float32(0),
                        out - b * layout.rows,
                    ),
                )

    return linear_packed_cpu if residual else without(linear_packed_cpu, "R")


@kernel("quantize", "cpu")
def quantize(layout: PackedLayout, width: int, *, tile: CpuTile) -> PrimFunc:
    """x float32 (rows, width) → codes int8 (rows, groups · 32), scales float32 and offsets int32 (rows, groups)."""
    groups = layout.base.groups(width)
    quantize_row = row_quantizer(layout, tile, width)

    @T.prim_func(private=True, s_tir=True)
    def quantize_cpu(x: T.handle, codes: T.handle, scales: T.handle, offsets: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int64()
        X = T.match_buffer(x, (m, width), "float32")
        Codes = T.match_buffer(codes, (m, groups * GROUP), "int8")
        Scales = T.match_buffer(scales, (m, groups), "float32")
        Offsets = T.match_buffer(offsets, (m, groups), "int32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            for i in T.parallel(m):
                quantize_row(lambda k, n: X[i, span(k, n)], i, Codes, Scales, Offsets)

    return quantize_cpu


@kernel("gate_up", "cpu")
def gate_up(layout: PackedLayout, *, tile: CpuTile) -> PrimFunc:
    """silu(gate(x)) · up(x), quantized: codes, scales and offsets of x (rows, hidden) → those of h (rows, width).

    W (2·width, hidden) in `layout` is gate's blocks and then up's. A task makes whole groups of h: 32 rows of each.
    One kernel serves every width and hidden size.
    """
    product = gated_product(layout, tile)

    @T.prim_func(private=True, s_tir=True)
    def gate_up_cpu(
        codes: T.handle,
        scales: T.handle,
        offsets: T.handle,
        data: T.handle,
        scale: T.handle,
        h_codes: T.handle,
        h_scales: T.handle,
        h_offsets: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m, columns, blocks, groups = T.int64(), T.int64(), T.int64(), T.int64()
        h_columns, h_groups = T.int64(), T.int64()
        Codes = T.match_buffer(codes, (m, columns), "int8")
        Scales = T.match_buffer(scales, (m, groups), "float32")
        Offsets = T.match_buffer(offsets, (m, groups), "int32")
        Data = T.match_buffer(data, (blocks, groups, layout.words, layout.rows), "uint32")
        Scale = T.match_buffer(scale, (blocks, groups, layout.rows), "float16")
        HCodes = T.match_buffer(h_codes, (m, h_columns), "int8")
        HScales = T.match_buffer(h_scales, (m, h_groups), "float32")
        HOffsets = T.match_buffer(h_offsets, (m, h_groups), "int32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            for g in T.parallel(h_groups):
                product(
                    m,
                    GatedFactors(
                        Data,
                        Scale,
                        0,
                        blocks // 2,
                        groups,
                        g,
                        activations(Codes, Scales, Offsets),
                        HCodes,
                        HScales,
                        HOffsets,
                        lambda i: i,
                    ),
                )

    return gate_up_cpu


@dataclass(frozen=True)
class GatedFactors:
    """What one group of silu(gate) · up takes; see `gated_product`."""

    data: Any
    scale: Any
    base: Any
    blocks: Any
    groups: Any
    g: Any
    x: tuple[Callable[..., Any], ...]
    codes: Any
    scales: Any
    offsets: Any
    row: Callable[[Any], Any]


def gated_product(layout: PackedLayout, tile: CpuTile) -> Callable[..., Any]:
    """Statement `product(count, GatedFactors(…))`: group `g` of silu(gate) · up, quantized, for all rows.

    Gate's weights are the `blocks` from block `base` on, and up's as many after them; row(i) is where the codes of row
    i go. What fills gate and up up to whole blocks is zero, and so is what comes of it.
    """
    a_group, lanes = GROUP // layout.rows, tile.lanes
    quantize_group = quantizer(tile.lanes, unit_of(layout, tile).zero_left)

    def tile_of(rows: int) -> Callable[..., Any]:
        multiply = block_tile(layout, tile, rows)

        @T.inline
        def one_tile(start, f):
            wide = T.alloc_buffer((rows, 2 * GROUP), "float32", scope="global")
            for q in T.serial(2 * a_group):
                if f.g * a_group + q % a_group < f.blocks:
                    multiply(
                        f.data,
                        f.scale,
                        f.base + q // a_group * f.blocks + f.g * a_group + q % a_group,
                        f.groups,
                        shifted(f.x, start),
                        wide,
                        lambda i, n: (i, q * layout.rows + n),
                        nothing,
                        layout.rows,
                    )
                else:
                    for i in T.serial(rows):
                        for n in T.serial(layout.rows):
                            wide[i, q * layout.rows + n] = T.float32(0)
            for i in T.serial(rows):
                h = T.alloc_buffer((GROUP,), "float32", scope="global")
                for w in T.unroll(GROUP // lanes):
                    h[T.Ramp(w * lanes, 1, lanes)] = (
                        wide[i, T.Ramp(w * lanes, 1, lanes)]
                        * sigmoid(wide[i, T.Ramp(w * lanes, 1, lanes)], lanes)
                        * wide[i, T.Ramp(GROUP + w * lanes, 1, lanes)]
                    )
                quantize_group(
                    lambda k, n: h[span(k, n)],
                    f.codes,
                    lambda k, n: (f.row(start + i), span(f.g * GROUP + k, n)),
                    f.scales,
                    f.offsets,
                    (f.row(start + i), f.g),
                )

        return one_tile

    return over_rows(tile.dot_rows, tile_of)
