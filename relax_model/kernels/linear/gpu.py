"""Products with stored matrices for GPUs: one or two matrices in a launch, the norm before them and SiLU after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.cpu_tiles import scale_names, stored, without
from relax_model.kernels.gpu_products import MANY_THREADS, SIDE, column_chunks, few_rows, many_rows
from relax_model.kernels.gpu_tiles import GpuTile, Matrix, Rows, silu
from relax_model.kernels.registry import kernel
from relax_model.layout import Layout, layout_of

_EXACT = layout_of("q0f32")


@kernel("linear", "gpu")
def linear(
    layout: Layout, out: int, width: int, residual: bool = False, eps: float | None = None, *, tile: GpuTile
) -> PrimFunc:
    """x float32 (rows, width), [norm weight (width,)], W (out, width) in `layout`, [residual (rows, out)] → float32
    (rows, out). With `eps`, x is normalised first.

    One row, a few, or many: one launch in each case.
    """
    return _products(_Part(layout, out), None, width, residual, eps, tile)


@kernel("linear_pair", "gpu")
def linear_pair(
    layout: Layout, out: int, other: int, width: int, eps: float | None = None, *, tile: GpuTile
) -> PrimFunc:
    """The same x times W (out, width) and W' (other, width) → float32 (rows, out) and (rows, other); see `linear`."""
    return _products(_Part(layout, out), _Part(layout, other), width, False, eps, tile)


@kernel("gate_up_silu", "gpu")
def gate_up_silu(layout: Layout, out: int, width: int, eps: float, experts: int = 0, *, tile: GpuTile) -> PrimFunc:
    """x float32 (rows, width), norm weight, gate_up (2 · out, width) in `layout`, [router float32 (experts, width)] →
    silu(gate) · up, float32 (rows, out), [and the router's logits (rows, experts)], all of the normalised x."""
    router = _Part(_EXACT, experts) if experts else None
    return _products(_Part(layout, 2 * out, gated=True), router, width, False, eps, tile)


@dataclass(frozen=True)
class _Part:
    """W (out, width) in `layout`; `gated`: its rows are a gate's and an up projection's, and half as many come out."""

    layout: Layout
    out: int
    gated: bool = False

    @property
    def made(self) -> int:
        """Columns of the result."""
        return self.out // 2 if self.gated else self.out

    def row(self, output: Any) -> Any:
        """The row of W for an output, within bounds; with `gated`, a gate and its up are neighbours."""
        within = T.min(output, self.out - 1)
        return within % 2 * (self.out // 2) + within // 2 if self.gated else within


def _products(
    first: _Part, second: _Part | None, width: int, residual: bool, eps: float | None, tile: GpuTile
) -> PrimFunc:
    """Blocks of the first matrix, and behind them those of the second."""
    normed, two, other, rows = eps is not None, second is not None, second or first, tile.rows
    one, several = (few_rows(tile, width, count, eps, first.gated) for count in (1, rows))
    many = many_rows(tile, width, SIDE, eps, first.gated)
    (data_shape, data_dtype), (scale_shape, scale_dtype) = stored(first.layout, (first.out, width))
    (other_shape, other_dtype), (other_scale_shape, _) = stored(other.layout, (other.out, width))

    def blocks(of_each: int) -> tuple[int, int]:
        """Blocks of the first matrix and of both, `of_each` of W's rows to each."""
        before = -(-first.out // of_each)
        return before, before + (-(-second.out // of_each) if second else 0)

    few_first, few_all = blocks(tile.outputs)
    many_first, many_all = blocks(SIDE)

    @T.inline
    def both(b, before, of_each, data, scale, other_data, other_scale, product):
        """`product(w)` of the block's rows of one matrix or the other."""
        if two:
            if b < before:
                product(
                    Rows(Matrix(first.layout, width, data, scale), lambda o: first.row(b * of_each + o)),
                )
            else:
                product(
                    Rows(
                        Matrix(other.layout, width, other_data, other_scale),
                        lambda o: other.row((b - before) * of_each + o),
                    ),
                )
        else:
            product(Rows(Matrix(first.layout, width, data, scale), lambda o: first.row(b * of_each + o)))

    @T.inline
    def put(part, Y, R, r, o, sums):
        if part.gated:
            if o < part.made:
                Y[r, o] = silu(sums[0]) * sums[1]
        elif first.gated:
            # Sums come in pairs where the first part's are a gate's and an up projection's.
            for i in T.unroll(2):
                if o * 2 + i < part.made:
                    Y[r, o * 2 + i] = sums[i]
        else:
            if o < part.made:
                Y[r, o] = sums[0] + (R[r, o] if residual else T.float32(0))

    @T.inline
    def store(b, before, made_each, n, r, o, sums, Y, OtherY, R):
        if r < n:
            if two:
                if b < before:
                    put(first, Y, R, r, b * made_each + o, sums)
                else:
                    put(other, OtherY, R, r, (b - before) * made_each + o, sums)
            else:
                put(first, Y, R, r, b * made_each + o, sums)

    made_few, made_many = (side // 2 if first.gated else side for side in (tile.outputs, SIDE))

    @T.prim_func(private=True, s_tir=True)
    def linear_gpu(
        x: T.handle,
        norm: T.Buffer((width,), "float32"),
        data: T.Buffer(data_shape, data_dtype),
        scale: T.Buffer(scale_shape, scale_dtype),
        other_data: T.Buffer(other_shape, other_dtype),
        other_scale: T.Buffer(other_scale_shape, scale_dtype),
        residual_in: T.handle,
        y: T.handle,
        other_y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m = T.int64()
        X = T.match_buffer(x, (m, width), "float32")
        R = T.match_buffer(residual_in, (m, first.made), "float32")
        Y = T.match_buffer(y, (m, first.made), "float32")
        OtherY = T.match_buffer(other_y, (m, other.made), "float32")
        n = T.meta_var(T.Cast("int32", m))
        with T.sblock("root"):
            T.reads()
            T.writes()
            if n == 1:
                for b in T.thread_binding(few_all, "blockIdx.x"):
                    for t in T.thread_binding(tile.threads, "threadIdx.x"):

                        @T.inline
                        def store_one(r, o, sums):
                            store(b, few_first, made_few, n, r, o, sums, Y, OtherY, R)

                        @T.inline
                        def product_one(w):
                            one(t, w, lambda r, k: X[0, k], lambda k: norm[k], store_one)

                        both(b, few_first, tile.outputs, data, scale, other_data, other_scale, product_one)
            elif n <= tile.few:
                for b in T.thread_binding(few_all, "blockIdx.x"):
                    for c in T.thread_binding((n + rows - 1) // rows, "blockIdx.y"):
                        for t in T.thread_binding(tile.threads, "threadIdx.x"):

                            @T.inline
                            def store_few(r, o, sums):
                                store(b, few_first, made_few, n, c * rows + r, o, sums, Y, OtherY, R)

                            @T.inline
                            def product_few(w):
                                several(
                                    t, w, lambda r, k: X[T.min(c * rows + r, n - 1), k], lambda k: norm[k], store_few
                                )

                            both(b, few_first, tile.outputs, data, scale, other_data, other_scale, product_few)
            else:
                for b in T.thread_binding(many_all, "blockIdx.x"):
                    for c in T.thread_binding((n + SIDE - 1) // SIDE, "blockIdx.y"):
                        for t in T.thread_binding(MANY_THREADS, "threadIdx.x"):

                            @T.inline
                            def store_many(r, o, sums):
                                store(b, many_first, made_many, n, c * SIDE + r, o, sums, Y, OtherY, R)

                            @T.inline
                            def product_many(w):
                                many(
                                    t,
                                    column_chunks(width),
                                    w,
                                    lambda r, k: X[T.min(c * SIDE + r, n - 1), k],
                                    lambda k: norm[k],
                                    store_many,
                                )

                            both(b, many_first, SIDE, data, scale, other_data, other_scale, product_many)

    unused = [] if normed else ["norm"]
    unused += scale_names(first.layout) + (() if residual else ("R",))
    unused += scale_names(other.layout, "other_scale") if two else ("other_data", "other_scale", "OtherY")
    return without(linear_gpu, *unused)


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
