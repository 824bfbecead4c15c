"""Products with stored matrices for CPUs: weights are unpacked block by block and meet all rows while in cache."""

from __future__ import annotations

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.cpu_tiles import (
    CpuTile,
    block_rows,
    padded,
    product,
    scale_names,
    stored,
    unpacker,
    without,
)
from relax_model.kernels.registry import kernel
from relax_model.layout import Layout


@kernel("linear", "cpu")
def linear(layout: Layout, out: int, width: int, residual: bool = False, *, tile: CpuTile) -> PrimFunc:
    """x float32 (rows, width), W (out, width) in `layout`, [residual (rows, out)] → y float32 (rows, out)."""
    (data_shape, data_dtype), (scale_shape, scale_dtype) = stored(layout, (out, width))
    block = block_rows(tile, width)
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
                panel = T.alloc_buffer((block, panel_width), "float32", scope="global")
                for i in T.serial(block):
                    unpack(panel, i, data, scale, T.min(b * block + i, out - 1), 0)
                multiply(
                    panel,
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
def select_rows(width: int, *, tile: CpuTile) -> PrimFunc:
    """x float32 (rows, width), wanted int32 (wanted,) → those rows of x, float32 (wanted, width)."""

    @T.prim_func(private=True, s_tir=True)
    def select_rows_cpu(x: T.handle, wanted: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        m, r = T.int64(), T.int64()
        X = T.match_buffer(x, (m, width), "float32")
        Wanted = T.match_buffer(wanted, (r,), "int32")
        Y = T.match_buffer(y, (r, width), "float32")
        with T.sblock("root"):
            for i in T.serial(r):
                for k in T.serial(width):
                    Y[i, k] = X[Wanted[i], k]

    return select_rows_cpu
