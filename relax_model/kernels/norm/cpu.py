"""RMS normalisation for CPUs: one task a row, partial sums in vector lanes; beside packed weights, codes come out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.cpu_packed import GROUP, row_quantizer
from relax_model.kernels.cpu_tiles import CpuTile, lane_sum, span, without
from relax_model.kernels.registry import kernel
from relax_model.layout import Layout, PackedLayout


def normalizer(width: int, eps: float, lanes: int) -> Callable[..., Any]:
    """Statement `normalize(x, y, y_at, weight)`: y[y_at(k)] = x(k) / sqrt(mean(x²) + eps) · weight[k] for k < width."""
    vectors, tail = width // lanes, width % lanes

    @T.inline
    def normalize(x, y, y_at, weight):
        squares = T.alloc_buffer((lanes,), "float32", scope="global")
        for v in T.vectorized(lanes):
            squares[v] = T.float32(0)
        for k in T.serial(vectors):
            for v in T.vectorized(lanes):
                squares[v] = T.fma(x(k * lanes + v), x(k * lanes + v), squares[v])
        for k in T.serial(tail):
            squares[0] = T.fma(x(vectors * lanes + k), x(vectors * lanes + k), squares[0])
        squares[0] = T.float32(1) / T.sqrt(lane_sum(squares, 0, lanes) / T.float32(width) + T.float32(eps))
        for k in T.serial(width):
            y[y_at(k)] = x(k) * squares[0] * weight[k]

    return normalize


@kernel("rms_norm", "cpu")
def rms_norm(width: int, eps: float, layout: Layout, keep: bool = True, *, tile: CpuTile) -> PrimFunc:
    """x float32 (rows, width), weight float32 (width,) → float32 (rows, width).

    Beside a packed `layout` also, or without `keep` only, the 8-bit codes, scales and offsets that its products take.
    """
    normalize = normalizer(width, eps, tile.lanes)
    if not isinstance(layout, PackedLayout):

        @T.prim_func(private=True, s_tir=True)
        def rms_norm_cpu(x: T.handle, weight: T.Buffer((width,), "float32"), y: T.handle):
            T.func_attr({"tirx.noalias": True})
            m = T.int64()
            X = T.match_buffer(x, (m, width), "float32")
            Y = T.match_buffer(y, (m, width), "float32")
            with T.sblock("root"):
                for i in T.parallel(m):
                    normalize(lambda k: X[i, k], Y, lambda k: (i, k), weight)

        return rms_norm_cpu

    groups = layout.base.groups(width)
    quantize = row_quantizer(layout, tile, width)

    @T.prim_func(private=True, s_tir=True)
    def rms_norm_quantize_cpu(
        x: T.handle,
        weight: T.Buffer((width,), "float32"),
        y: T.handle,
        codes: T.handle,
        scales: T.handle,
        offsets: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m = T.int64()
        X = T.match_buffer(x, (m, width), "float32")
        Y = T.match_buffer(y, (m, width), "float32")
        Codes = T.match_buffer(codes, (m, groups * GROUP), "int8")
        Scales = T.match_buffer(scales, (m, groups), "float32")
        Offsets = T.match_buffer(offsets, (m, groups), "int32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            for i in T.parallel(m):
                row = T.alloc_buffer((width,), "float32", scope="global")
                normalize(lambda k: X[i, k], row, lambda k: k, weight)
                if keep:
                    for k in T.serial(width):
                        Y[i, k] = row[k]
                quantize(lambda k, n: row[span(k, n)], i, Codes, Scales, Offsets)

    return rms_norm_quantize_cpu if keep else without(rms_norm_quantize_cpu, "Y")


@kernel("mtp_input", "cpu")
def mtp_input(width: int, eps: float, *, tile: CpuTile) -> PrimFunc:
    """[enorm(embedding), hnorm(hidden[sources])]: what eh_proj takes (DeepSeek-V3 report, equation 21).

    embedding float32 (rows, width), hidden float32 (states, width), sources int32 (rows,), two weights float32 (width,)
    → float32 (rows, 2·width).
    """
    normalize = normalizer(width, eps, tile.lanes)

    @T.prim_func(private=True, s_tir=True)
    def mtp_input_cpu(
        embedding: T.handle,
        hidden: T.handle,
        sources: T.handle,
        enorm: T.Buffer((width,), "float32"),
        hnorm: T.Buffer((width,), "float32"),
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m, states = T.int64(), T.int64()
        E = T.match_buffer(embedding, (m, width), "float32")
        H = T.match_buffer(hidden, (states, width), "float32")
        Sources = T.match_buffer(sources, (m,), "int32")
        Y = T.match_buffer(y, (m, 2 * width), "float32")
        with T.sblock("root"):
            for i in T.parallel(m):
                normalize(lambda k: E[i, k], Y, lambda k: (i, k), enorm)
                normalize(lambda k: H[Sources[i], k], Y, lambda k: (i, width + k), hnorm)

    return mtp_input_cpu
