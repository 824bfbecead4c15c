"""RMS normalisation for GPUs: a block a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.gpu_tiles import GpuTile, block_sum
from relax_model.kernels.registry import kernel
from relax_model.layout import Layout


def normalizer(width: int, eps: float, threads: int) -> Callable[..., Any]:
    """Statement `normalize(t, x, y, y_at, weight)`: y[y_at(k)] = x(k) / sqrt(mean(x²) + eps) · weight[k] for k < width,
    by all threads of a block."""
    steps = -(-width // threads)
    add = block_sum(threads)

    @T.inline
    def normalize(t, x, y, y_at, weight):
        squares = T.alloc_buffer((threads,), "float32", scope="shared")
        factor = T.alloc_buffer((1,), "float32", scope="local")
        squares[t] = T.float32(0)
        for k in T.serial(steps):
            if k * threads + t < width:
                squares[t] = squares[t] + x(k * threads + t) * x(k * threads + t)
        add(squares, t)
        factor[0] = T.float32(1) / T.sqrt(squares[0] / T.float32(width) + T.float32(eps))
        for k in T.serial(steps):
            if k * threads + t < width:
                y[y_at(k * threads + t)] = x(k * threads + t) * factor[0] * weight[k * threads + t]
        T.evaluate(T.tvm_storage_sync("shared"))

    return normalize


@kernel("rms_norm", "gpu")
def rms_norm(width: int, eps: float, layout: Layout, keep: bool = True, *, tile: GpuTile) -> PrimFunc:
    """x float32 (rows, width), weight float32 (width,) → float32 (rows, width)."""
    normalize = normalizer(width, eps, tile.threads)

    @T.prim_func(private=True, s_tir=True)
    def rms_norm_gpu(x: T.handle, weight: T.Buffer((width,), "float32"), y: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int64()
        X = T.match_buffer(x, (m, width), "float32")
        Y = T.match_buffer(y, (m, width), "float32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            for i in T.thread_binding(m, "blockIdx.x"):
                for t in T.thread_binding(tile.threads, "threadIdx.x"):
                    normalize(t, lambda k: X[i, k], Y, lambda k: (i, k), weight)

    return rms_norm_gpu


@kernel("mtp_input", "gpu")
def mtp_input(width: int, eps: float, *, tile: GpuTile) -> PrimFunc:
    """[enorm(embedding), hnorm(hidden[sources])]: what eh_proj takes (DeepSeek-V3 report, equation 21).

    embedding float32 (rows, width), hidden float32 (states, width), sources int32 (rows,), two weights float32 (width,)
    → float32 (rows, 2·width).
    """
    normalize = normalizer(width, eps, tile.threads)

    @T.prim_func(private=True, s_tir=True)
    def mtp_input_gpu(
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
            T.reads()
            T.writes()
            for i in T.thread_binding(m, "blockIdx.x"):
                for t in T.thread_binding(tile.threads, "threadIdx.x"):
                    normalize(t, lambda k: E[i, k], Y, lambda k: (i, k), enorm)
                    normalize(t, lambda k: H[Sources[i], k], Y, lambda k: (i, width + k), hnorm)

    return mtp_input_gpu
