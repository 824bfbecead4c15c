"""Embedding look-up for CPUs."""

from __future__ import annotations

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.cpu_tiles import CpuTile, padded, scale_names, stored, unpacker, without
from relax_model.kernels.registry import kernel
from relax_model.layout import Layout


@kernel("embedding", "cpu")
def embedding(layout: Layout, vocabulary: int, width: int, *, tile: CpuTile) -> PrimFunc:
    """tokens int32 (rows,), table (vocabulary, width) in `layout` → float32 (rows, width)."""
    (data_shape, data_dtype), (scale_shape, scale_dtype) = stored(layout, (vocabulary, width))
    panel_width = padded(layout, width)
    unpack = unpacker(layout, width)

    @T.prim_func(private=True, s_tir=True)
    def embedding_cpu(
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
            for i in T.parallel(m):
                row = T.alloc_buffer((1, panel_width), "float32", scope="global")
                unpack(row, 0, data, scale, Tokens[i], 0)
                for k in T.serial(width):
                    Y[i, k] = row[0, k]

    return without(embedding_cpu, *scale_names(layout))
