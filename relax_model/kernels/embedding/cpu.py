"""Embedding look-up for CPUs."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.cpu_tiles import CpuTile, padded, scale_names, stored, unpacker, without
from relax_model.kernels.registry import kernel
from relax_model.layout import Layout, PackedLayout


@kernel("embedding", "cpu")
def embedding(layout: Layout, vocabulary: int, width: int, *, tile: CpuTile) -> PrimFunc:
    """tokens int32 (rows,), table (vocabulary, width) in `layout` → float32 (rows, width)."""
    if isinstance(layout, PackedLayout):
        return _packed(layout, vocabulary, width)
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


def _packed(layout: PackedLayout, vocabulary: int, width: int) -> PrimFunc:
    specs = layout.buffers((vocabulary, width))
    data_shape, scale_shape = specs["q_weight"].shape, specs["q_scale"].shape
    base = layout.base
    words, zero, mask = layout.words, base.zero, 2**base.bits - 1

    def code(data: Any, token: Any, k: Any) -> Any:
        """The code of column k: byte k % 4 of a word, and of 4 bits the high ones in the second half of a group."""
        place = k % base.group_size
        word = data[token // layout.rows, k // base.group_size, place // 4 % words, token % layout.rows]
        shift = place % 4 * 8 + place // 4 // words * base.bits
        return T.Cast("int32", T.bitwise_and(T.shift_right(word, T.Cast("uint32", shift)), T.uint32(mask)))

    @T.prim_func(private=True, s_tir=True)
    def embedding_packed_cpu(
        tokens: T.handle,
        data: T.Buffer(data_shape, "uint32"),
        scale: T.Buffer(scale_shape, "float16"),
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m = T.int64()
        Tokens = T.match_buffer(tokens, (m,), "int32")
        Y = T.match_buffer(y, (m, width), "float32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            for i in T.parallel(m):
                for k in T.serial(width):
                    Y[i, k] = T.Cast("float32", code(data, Tokens[i], k) - zero) * T.Cast(
                        "float32", scale[Tokens[i] // layout.rows, k // base.group_size, Tokens[i] % layout.rows]
                    )

    return embedding_packed_cpu
