"""Products with stored matrices for GPUs, and what stands between two of them."""

from __future__ import annotations

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.cpu_tiles import scale_names, stored, without
from relax_model.kernels.gpu_tiles import MANY_THREADS, SIDE, GpuTile, Matrix, few_rows, many_rows
from relax_model.kernels.registry import kernel
from relax_model.layout import Layout


@kernel("linear", "gpu")
def linear(layout: Layout, out: int, width: int, residual: bool = False, *, tile: GpuTile) -> PrimFunc:
    """x float32 (rows, width), W (out, width) in `layout`, [residual (rows, out)] → y float32 (rows, out).

    One row, a few, or many: one launch in each case.
    """
    (data_shape, data_dtype), (scale_shape, scale_dtype) = stored(layout, (out, width))
    outputs, rows = tile.threads // tile.lanes, tile.rows
    one, several, many = few_rows(tile, width, 1), few_rows(tile, width, rows), many_rows(width)

    @T.prim_func(private=True, s_tir=True)
    def linear_gpu(
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
            T.reads()
            T.writes()
            if m == 1:
                for b in T.thread_binding(-(-out // outputs), "blockIdx.x"):
                    for t in T.thread_binding(tile.threads, "threadIdx.x"):
                        part = T.alloc_buffer((tile.threads,), "float32", scope="shared")
                        one(
                            t,
                            part,
                            Matrix(layout, width, data, scale),
                            lambda o: T.min(b * outputs + o, out - 1),
                            lambda r, k: X[0, k],
                            Y,
                            lambda r, o: (0, b * outputs + o),
                            lambda r, o: b * outputs + o < out,
                            lambda r, o: R[0, b * outputs + o] if residual else T.float32(0),
                        )
            elif m <= tile.few:
                for b in T.thread_binding(-(-out // outputs), "blockIdx.x"):
                    for c in T.thread_binding((m + rows - 1) // rows, "blockIdx.y"):
                        for t in T.thread_binding(tile.threads, "threadIdx.x"):
                            part = T.alloc_buffer((rows * tile.threads,), "float32", scope="shared")
                            several(
                                t,
                                part,
                                Matrix(layout, width, data, scale),
                                lambda o: T.min(b * outputs + o, out - 1),
                                lambda r, k: X[T.min(c * rows + r, m - 1), k],
                                Y,
                                lambda r, o: (c * rows + r, b * outputs + o),
                                lambda r, o: T.And(b * outputs + o < out, c * rows + r < m),
                                lambda r, o: R[c * rows + r, b * outputs + o] if residual else T.float32(0),
                            )
            else:
                for b in T.thread_binding(-(-out // SIDE), "blockIdx.x"):
                    for c in T.thread_binding((m + SIDE - 1) // SIDE, "blockIdx.y"):
                        for t in T.thread_binding(MANY_THREADS, "threadIdx.x"):
                            many(
                                t,
                                Matrix(layout, width, data, scale),
                                lambda o: T.min(b * SIDE + o, out - 1),
                                lambda r, k: X[T.min(c * SIDE + r, m - 1), k],
                                Y,
                                lambda r, o: (c * SIDE + r, b * SIDE + o),
                                lambda r, o: T.And(b * SIDE + o < out, c * SIDE + r < m),
                                lambda r, o: R[c * SIDE + r, b * SIDE + o] if residual else T.float32(0),
                            )

    unused = scale_names(layout) + (() if residual else ("R",))
    return without(linear_gpu, *unused)


@kernel("silu_mul", "gpu")
def silu_mul(width: int, *, tile: GpuTile) -> PrimFunc:
    """gate and up side by side, float32 (rows, 2·width) → silu(gate) · up, float32 (rows, width)."""
    threads = tile.threads

    @T.prim_func(private=True, s_tir=True)
    def silu_mul_gpu(gate_up: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int64()
        GateUp = T.match_buffer(gate_up, (m, 2 * width), "float32")
        Y = T.match_buffer(y, (m, width), "float32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            for b in T.thread_binding(-(-width // threads), "blockIdx.x"):
                for i in T.thread_binding(m, "blockIdx.y"):
                    for t in T.thread_binding(threads, "threadIdx.x"):
                        if b * threads + t < width:
                            Y[i, b * threads + t] = (
                                GateUp[i, b * threads + t]
                                / (T.float32(1) + T.exp(-GateUp[i, b * threads + t]))
                                * GateUp[i, width + b * threads + t]
                            )

    return silu_mul_gpu


@kernel("select_rows", "gpu")
def select_rows(layout: Layout, width: int, *, tile: GpuTile) -> PrimFunc:
    """x float32 (rows, width), wanted int32 (wanted,) → those rows of x, float32 (wanted, width)."""
    threads = tile.threads

    @T.prim_func(private=True, s_tir=True)
    def select_rows_gpu(x: T.handle, wanted: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        m, r = T.int64(), T.int64()
        X = T.match_buffer(x, (m, width), "float32")
        Wanted = T.match_buffer(wanted, (r,), "int32")
        Y = T.match_buffer(y, (r, width), "float32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            for i in T.thread_binding(r, "blockIdx.x"):
                for t in T.thread_binding(threads, "threadIdx.x"):
                    for k in T.serial(-(-width // threads)):
                        if k * threads + t < width:
                            Y[i, k * threads + t] = X[Wanted[i], k * threads + t]

    return select_rows_gpu
