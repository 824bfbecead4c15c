"""Embedding look-up for GPUs."""

from __future__ import annotations

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.cpu_tiles import scale_names, stored, without
from relax_model.kernels.gpu_tiles import GpuTile, Matrix
from relax_model.kernels.registry import kernel
from relax_model.layout import Layout


@kernel("embedding", "gpu")
def embedding(layout: Layout, vocabulary: int, width: int, *, tile: GpuTile) -> PrimFunc:
    """tokens int32 (rows,), table (vocabulary, width) in `layout` → float32 (rows, width)."""
    (data_shape, data_dtype), (scale_shape, scale_dtype) = stored(layout, (vocabulary, width))
    threads = tile.threads

    @T.prim_func(private=True, s_tir=True)
    def embedding_gpu(
        tokens: T.handle,
        data: T.Buffer(data_shape, data_dtype),
        scale: T.Buffer(scale_shape, scale_dtype),
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m = T.int64()
        Tokens = T.match_buffer(tokens, (m,), "int32")
        Y = T.match_buffer(y, (m, width), "float32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            for i in T.thread_binding(m, "blockIdx.x"):
                for t in T.thread_binding(threads, "threadIdx.x"):
                    for k in T.serial(-(-width // threads)):
                        if k * threads + t < width:
                            Y[i, k * threads + t] = Matrix(layout, width, data, scale).value(Tokens[i], k * threads + t)

    return without(embedding_gpu, *scale_names(layout))
