"""`kv_b_proj` on either side of absorbed attention, packed: W_UK by its columns in floats, W_UV by its rows in 8 bits.

A head's blocks of `kv_b_proj` are W_UK's (nope rows) and then W_UV's (v rows).
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.attention.cpu_absorbed import query_columns, query_place
from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.cpu_packed import GROUP, Factors, block_product, over_rows, prefetch
from relax_model.kernels.cpu_tiles import CpuTile, lane_sum, nothing
from relax_model.kernels.rope.cpu import rotated
from relax_model.layout import PackedLayout

_GROUPS_AHEAD = 2
_ABSORB_ROWS = 3  # rows that share an unpacked weight: 3 × 4 sums and a few more fit in 16 registers


def query_absorb(layout: PackedLayout, shape: AttentionShape, tile: CpuTile) -> PrimFunc:
    """See `attention.cpu.query_absorb`. A task is a group of 32 latent channels of a head.

    Sums run over a head's nope rows, which lie in the lanes of a block: Σ_n (q_n · scale_n) · (code_n − zero), with the
    zeros taken off at the end.
    """
    rank, heads, lanes = shape.kv_lora_rank, shape.heads, tile.lanes
    specs = layout.buffers((heads * shape.expanded_width, rank), (shape.nope, shape.v))
    data_shape, scale_shape = specs["q_weight"].shape, specs["q_scale"].shape
    groups = scale_shape[1]
    per_head, blocks = layout.blocks((shape.nope, shape.v)), layout.blocks((shape.nope,))
    vectors, padded = layout.rows // lanes, blocks * layout.rows
    bits, halves = layout.base.bits, 8 // layout.base.bits
    columns = query_columns(shape, tile)
    empty = columns[0] * columns[2] - heads

    def code(data: Any, block: Any, g: Any, w: Any, v: Any, bit: Any) -> Any:
        word = T.shift_right(data[block, g, w, T.Ramp(v * lanes, 1, lanes)], T.Broadcast(T.Cast("uint32", bit), lanes))
        masked = T.bitwise_and(word, T.Broadcast(T.uint32(2**bits - 1), lanes))
        return T.Cast(f"float32x{lanes}", T.reinterpret(f"int32x{lanes}", masked))

    def tile_of(rows: int):
        @T.inline
        def absorb_rows(start, arguments):
            Q, data, scale, Y, h, g = arguments
            scaled = T.alloc_buffer((rows, padded), "float32", scope="global")
            zeros = T.alloc_buffer((rows,), "float32", scope="global")
            for i in T.unroll(rows):
                total = T.alloc_buffer((lanes,), "float32", scope="global")
                for v in T.vectorized(lanes):
                    total[v] = T.float32(0)
                for b in T.serial(blocks):
                    for v in T.unroll(vectors):
                        scaled[i, T.Ramp((b * vectors + v) * lanes, 1, lanes)] = T.Cast(
                            f"float32x{lanes}", scale[h * per_head + b, g, T.Ramp(v * lanes, 1, lanes)]
                        )
                for n in T.serial(shape.nope // lanes):
                    for v in T.vectorized(lanes):
                        scaled[i, n * lanes + v] = (
                            scaled[i, n * lanes + v] * Q[start + i, h * shape.query_width + n * lanes + v]
                        )
                for n in T.serial(padded - shape.nope // lanes * lanes):
                    scaled[i, shape.nope // lanes * lanes + n] = T.if_then_else(
                        n < shape.nope % lanes,
                        scaled[i, shape.nope // lanes * lanes + n]
                        * Q[start + i, h * shape.query_width + T.min(shape.nope // lanes * lanes + n, shape.nope - 1)],
                        T.float32(0),
                    )
                for n in T.serial(padded // lanes):
                    for v in T.vectorized(lanes):
                        total[v] = total[v] + scaled[i, n * lanes + v]
                zeros[i] = lane_sum(total, 0, lanes) * T.float32(layout.base.zero)
            for w in T.serial(layout.words):
                for half in T.serial(halves):
                    acc = T.alloc_buffer((rows * 4 * lanes,), "float32", scope="global")
                    for s in T.unroll(rows * 4):
                        acc[T.Ramp(s * lanes, 1, lanes)] = T.Broadcast(T.float32(0), lanes)
                    for b in T.serial(blocks):
                        # Blocks lie kilobytes apart, which no processor foresees by itself.
                        prefetch(data, h * per_head + b, g + _GROUPS_AHEAD, w)
                        for v in T.unroll(vectors):
                            for c in T.unroll(4):
                                for i in T.unroll(rows):
                                    acc[T.Ramp((i * 4 + c) * lanes, 1, lanes)] = T.fma(
                                        code(data, h * per_head + b, g, w, v, c * 8 + half * bits),
                                        scaled[i, T.Ramp((b * vectors + v) * lanes, 1, lanes)],
                                        acc[T.Ramp((i * 4 + c) * lanes, 1, lanes)],
                                    )
                    for i in T.unroll(rows):
                        for c in T.unroll(4):
                            if g * GROUP + half * (GROUP // 2) + w * 4 + c < rank:
                                Y[
                                    query_place(shape, tile, start + i, h, g * GROUP + half * (GROUP // 2) + w * 4 + c)
                                ] = (lane_sum(acc, (i * 4 + c) * lanes, lanes) - zeros[i]) * T.float32(
                                    shape.score_factor
                                )

        return absorb_rows

    absorb = over_rows(_ABSORB_ROWS, tile_of)

    @T.prim_func(private=True, s_tir=True)
    def query_absorb_packed_cpu(
        q: T.handle,
        table: T.handle,
        data: T.Buffer(data_shape, "uint32"),
        scale: T.Buffer(scale_shape, "float16"),
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m = T.int64()
        Q = T.match_buffer(q, (m, heads * shape.query_width), "float32")
        Table = T.match_buffer(table, (m, shape.rope), "float32")
        Y = T.match_buffer(y, (m, *columns), "float32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            for task in T.parallel(heads * groups):
                absorb(m, (Q, data, scale, Y, task // groups, task % groups))
            for i in T.parallel(m):
                rotate_queries(shape, tile, Q, Table, Y, i)
                for e in T.serial(empty):
                    for c in T.serial(columns[1]):
                        Y[query_place(shape, tile, i, heads + e, c)] = T.float32(0)

    return query_absorb_packed_cpu


@T.inline
def rotate_queries(shape, tile, Q, Table, Y, i):
    """Row `i`'s rotated q_pe of all heads, behind the latent channels of its absorbed queries."""
    for h in T.serial(shape.heads):
        for p in T.serial(shape.rope // 2):
            Y[query_place(shape, tile, i, h, shape.kv_lora_rank + p)] = rotated(
                lambda c: Q[i, h * shape.query_width + shape.nope + c], Table, i, p, shape.rope, shape.interleaved
            )[0] * T.float32(shape.score_factor)
            Y[query_place(shape, tile, i, h, shape.kv_lora_rank + shape.rope // 2 + p)] = rotated(
                lambda c: Q[i, h * shape.query_width + shape.nope + c], Table, i, p, shape.rope, shape.interleaved
            )[1] * T.float32(shape.score_factor)


def value_project(layout: PackedLayout, shape: AttentionShape, tile: CpuTile) -> PrimFunc:
    """Codes, scales and offsets of o (rows, heads, kv_lora_rank), kv_b_proj in `layout` → float32 (rows, heads · v)."""
    rank, heads = shape.kv_lora_rank, shape.heads
    specs = layout.buffers((heads * shape.expanded_width, rank), (shape.nope, shape.v))
    data_shape, scale_shape = specs["q_weight"].shape, specs["q_scale"].shape
    groups = scale_shape[1]
    per_head, before = layout.blocks((shape.nope, shape.v)), layout.blocks((shape.nope,))
    blocks = per_head - before
    product = block_product(layout, tile)

    @T.prim_func(private=True, s_tir=True)
    def value_project_packed_cpu(
        codes: T.handle,
        scales: T.handle,
        offsets: T.handle,
        data: T.Buffer(data_shape, "uint32"),
        scale: T.Buffer(scale_shape, "float16"),
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m = T.int64()
        Codes = T.match_buffer(codes, (m, heads * groups * GROUP), "int8")
        Scales = T.match_buffer(scales, (m, heads * groups), "float32")
        Offsets = T.match_buffer(offsets, (m, heads * groups), "int32")
        Y = T.match_buffer(y, (m, heads * shape.v), "float32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            for task in T.parallel(heads * blocks):
                product(
                    m,
                    Factors(
                        data,
                        scale,
                        task // blocks * per_head + before + task % blocks,
                        groups,
                        (
                            lambda i, column, n: Codes[i, T.Ramp(task // blocks * groups * GROUP + column, 1, n)],
                            lambda i, group: Scales[i, task // blocks * groups + group],
                            lambda i, group: Offsets[i, task // blocks * groups + group],
                        ),
                        Y,
                        lambda i, n: (i, task // blocks * shape.v + task % blocks * layout.rows + n),
                        nothing,
                        shape.v - task % blocks * layout.rows,
                    ),
                )

    return value_project_packed_cpu
