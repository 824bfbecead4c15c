"""Products with stored matrices for CPUs, and what stands between two of them.

Floats are multiplied where they lie; groups are unpacked block by block and meet all rows while in cache.
"""

from __future__ import annotations

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.cpu_packed import GROUP, row_quantizer
from relax_model.kernels.cpu_tiles import (
    CpuTile,
    StoredRows,
    block_rows,
    nothing,
    padded,
    product,
    scale_names,
    span,
    stored,
    unpacker,
    without,
)
from relax_model.kernels.linear import cpu_packed  # noqa: F401  (it enters the registry)
from relax_model.kernels.registry import kernel
from relax_model.layout import GroupLayout, Layout, PackedLayout


@kernel("linear", "cpu")
def linear(layout: Layout, out: int, width: int, residual: bool = False, *, tile: CpuTile) -> PrimFunc:
    """x float32 (rows, width), W (out, width) in `layout`, [residual (rows, out)] → y float32 (rows, out)."""
    (data_shape, data_dtype), (scale_shape, scale_dtype) = stored(layout, (out, width))
    block, grouped = block_rows(tile, width), isinstance(layout, GroupLayout)
    panel_width = padded(layout, width)
    unpack = unpacker(layout, width)
    multiply = product(tile, block, width)

    @T.prim_func(private=True, s_tir=True)
    def linear_cpu(
        x: T.handle,
        data: T.Buffer(data_shape, data_dtype),
        scale: T.Buffer(scale_shape, scale_dtype),
        residual_in: T.handle,
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m = T.int64()
        X = T.match_buffer(x, (m, width), "float32")
        R = T.match_buffer(residual_in, (m, out), "float32")
        Y = T.match_buffer(y, (m, out), "float32")
        with T.sblock("root"):
            for b in T.parallel(T.ceildiv(out, block)):
                panel = T.alloc_buffer((block if grouped else 1, panel_width), "float32", scope="global")
                if grouped:
                    for i in T.serial(block):
                        unpack(panel, i, data, scale, T.min(b * block + i, out - 1), 0)
                multiply(
                    panel if grouped else StoredRows(layout, data, b * block, out - 1),
                    out - b * block,
                    m,
                    lambda i, k: X[i, k],
                    Y,
                    lambda i, n: (i, b * block + n),
                    lambda i, n: R[i, b * block + n] if residual else T.float32(0),
                )

    unused = scale_names(layout) + (() if residual else ("R",))
    return without(linear_cpu, *unused)


@kernel("silu_mul", "cpu")
def silu_mul(width: int, *, tile: CpuTile) -> PrimFunc:
    """gate and up side by side, float32 (rows, 2·width) → silu(gate) · up, float32 (rows, width)."""

    @T.prim_func(private=True, s_tir=True)
    def silu_mul_cpu(gate_up: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int64()
        GateUp = T.match_buffer(gate_up, (m, 2 * width), "float32")
        Y = T.match_buffer(y, (m, width), "float32")
        with T.sblock("root"):
            for i in T.parallel(m):
                for k in T.serial(width):
                    Y[i, k] = GateUp[i, k] / (T.float32(1) + T.exp(-GateUp[i, k])) * GateUp[i, width + k]

    return silu_mul_cpu


@kernel("select_rows", "cpu")
def select_rows(layout: Layout, width: int, *, tile: CpuTile) -> PrimFunc:
    """x float32 (rows, width), wanted int32 (wanted,) → those rows of x, float32 (wanted, width).

    Beside a packed `layout` they come out as codes, scales and offsets.
    """
    packed = isinstance(layout, PackedLayout)
    groups = layout.base.groups(width) if packed else 1
    quantize_row = row_quantizer(layout, tile, width) if packed else nothing

    @T.prim_func(private=True, s_tir=True)
    def select_rows_cpu(
        x: T.handle, wanted: T.handle, y: T.handle, codes: T.handle, scales: T.handle, offsets: T.handle
    ):
        T.func_attr({"tirx.noalias": True})
        m, r = T.int64(), T.int64()
        X = T.match_buffer(x, (m, width), "float32")
        Wanted = T.match_buffer(wanted, (r,), "int32")
        Y = T.match_buffer(y, (r, width), "float32")
        Codes = T.match_buffer(codes, (r, groups * GROUP), "int8")
        Scales = T.match_buffer(scales, (r, groups), "float32")
        Offsets = T.match_buffer(offsets, (r, groups), "int32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            for i in T.parallel(r):
                if packed:
                    quantize_row(lambda k, n: X[Wanted[i], span(k, n)], i, Codes, Scales, Offsets)
                else:
                    for k in T.serial(width):
                        Y[i, k] = X[Wanted[i], k]

    return without(select_rows_cpu, *(("Y",) if packed else ("Codes", "Scales", "Offsets")))
