"""Expanded attention for CPUs: per-head keys and values made from the latents, block by block, for a long prefill.

    one task a head:   W (nope + v, kv_lora_rank), unpacked once
    for a block of `tile.expanded_keys` cached tokens:  latents (keys, kv_lora_rank) · Wᵀ → k_nope | k_pe | v
        for each `tile.rows` queries:     scores → running softmax → o (rows, v)

A block costs (nope + v) · kv_lora_rank multiply-adds a key once, and then (nope + rope + v) a query instead of the
absorbed form's 2 · kv_lora_rank + rope; it pays from about a hundred queries on.
"""

from __future__ import annotations

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.cpu_tiles import CpuTile, multiplier, padded, scale_names, stored, unpacker, without
from relax_model.kernels.registry import kernel
from relax_model.kernels.rope.cpu import rotated
from relax_model.layout import Layout

_LOWEST = -3.0e38


@kernel("expanded_attention", "cpu")
def expanded_attention(layout: Layout, shape: AttentionShape, block: int, *, tile: CpuTile) -> PrimFunc:
    """Rows at consecutive positions of one sequence, at most `block` of them, over all cached positions up to each.

    q float32 (rows, heads · (nope + rope)), rotary table (rows, rope), kv_b_proj in `layout`, positions and sequences
    int32 (rows,), page_table int32 (sequences, pages of each), cache → float32 (rows, heads · v).
    """
    rank, heads, lanes, rows, keys = shape.kv_lora_rank, shape.heads, tile.lanes, tile.rows, tile.expanded_keys
    page, query_width, expanded = shape.page_size, shape.query_width, shape.expanded_width
    (data_shape, data_dtype), (scale_shape, scale_dtype) = stored(layout, (heads * expanded, rank))
    assert keys % rows == 0
    assert keys % tile.columns == 0
    panel_rows = -(-expanded // tile.columns) * tile.columns
    unpack = unpacker(layout, rank)
    expand = multiplier(tile, rows, tile.columns, panel_rows, rank)
    score_tile = multiplier(tile, rows, tile.columns, keys, query_width)
    slots = -(-block // rows) * rows
    value_vectors, value_tail = shape.v // lanes, shape.v % lanes

    @T.prim_func(private=True, s_tir=True)
    def expanded_attention_cpu(
        q: T.handle,
        table: T.handle,
        data: T.Buffer(data_shape, data_dtype),
        scale: T.Buffer(scale_shape, scale_dtype),
        positions: T.handle,
        sequences: T.handle,
        page_table: T.handle,
        cache: T.handle,
        o: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m, pages, batch, longest = T.int64(), T.int64(), T.int64(), T.int64()
        Q = T.match_buffer(q, (m, heads * query_width), "float32")
        Table = T.match_buffer(table, (m, shape.rope), "float32")
        Positions = T.match_buffer(positions, (m,), "int32")
        Sequences = T.match_buffer(sequences, (m,), "int32")
        PageTable = T.match_buffer(page_table, (batch, longest), "int32")
        Cache = T.match_buffer(cache, (pages, page, shape.latent_width), shape.cache_dtype)
        O = T.match_buffer(o, (m, heads * shape.v), "float32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            for h in T.parallel(heads):
                weights = T.alloc_buffer((panel_rows, padded(layout, rank)), "float32", scope="global")
                latent = T.alloc_buffer((keys, rank), "float32", scope="global")
                key = T.alloc_buffer((keys, query_width), "float32", scope="global")
                value = T.alloc_buffer((keys, shape.v), "float32", scope="global")
                wide = T.alloc_buffer((rows, panel_rows), "float32", scope="global")
                query = T.alloc_buffer((slots, query_width), "float32", scope="global")
                out = T.alloc_buffer((slots, shape.v), "float32", scope="global")
                state = T.alloc_buffer((slots, 3), "float32", scope="global")  # maximum, sum, correction
                score = T.alloc_buffer((rows, keys), "float32", scope="global")
                for n in T.serial(panel_rows):
                    unpack(weights, n, data, scale, h * expanded + T.min(n, expanded - 1), 0)
                # Slots past the last row repeat it, so that every tile is whole.
                for i in T.serial(T.ceildiv(m, rows) * rows):
                    state[i, 0] = T.float32(_LOWEST)
                    state[i, 1] = T.float32(0)
                    for c in T.serial(shape.v):
                        out[i, c] = T.float32(0)
                    for n in T.serial(shape.nope):
                        query[i, n] = Q[T.min(i, m - 1), h * query_width + n]
                    for p in T.serial(shape.rope // 2):
                        query[i, shape.nope + p] = rotated(
                            lambda c: Q[T.min(i, m - 1), h * query_width + shape.nope + c],
                            Table,
                            T.min(i, m - 1),
                            p,
                            shape.rope,
                            shape.interleaved,
                        )[0]
                        query[i, shape.nope + shape.rope // 2 + p] = rotated(
                            lambda c: Q[T.min(i, m - 1), h * query_width + shape.nope + c],
                            Table,
                            T.min(i, m - 1),
                            p,
                            shape.rope,
                            shape.interleaved,
                        )[1]
                for b in T.serial(T.ceildiv(Positions[m - 1] + 1, keys)):
                    # Positions that do not exist yet are filled with the last one's, and masked below.
                    for j in T.serial(keys):
                        for c in T.serial(rank):
                            latent[j, c] = T.Cast(
                                "float32",
                                Cache[
                                    PageTable[Sequences[0], T.min(b * keys + j, Positions[m - 1]) // page],
                                    T.min(b * keys + j, Positions[m - 1]) % page,
                                    c,
                                ],
                            )
                        for c in T.serial(shape.rope):
                            key[j, shape.nope + c] = T.Cast(
                                "float32",
                                Cache[
                                    PageTable[Sequences[0], T.min(b * keys + j, Positions[m - 1]) // page],
                                    T.min(b * keys + j, Positions[m - 1]) % page,
                                    rank + c,
                                ],
                            )
                    for t in T.serial(keys // rows):
                        expand(
                            weights,
                            panel_rows,
                            lambda i, k: latent[t * rows + i, k],
                            wide,
                            lambda i, n: (i, n),
                            lambda i, n: T.float32(0),
                        )
                        for i in T.serial(rows):
                            for n in T.serial(shape.nope):
                                key[t * rows + i, n] = wide[i, n]
                            for n in T.serial(shape.v):
                                value[t * rows + i, n] = wide[i, shape.nope + n]
                    for t in T.serial(T.ceildiv(m, rows)):
                        if Positions[T.min(t * rows + rows - 1, m - 1)] >= b * keys:
                            score_tile(
                                key,
                                keys,
                                lambda i, k: query[t * rows + i, k],
                                score,
                                lambda i, n: (i, n),
                                lambda i, n: T.float32(0),
                            )
                            for i in T.serial(rows):
                                state[t * rows + i, 2] = state[t * rows + i, 0]
                                for j in T.serial(keys):
                                    score[i, j] = T.if_then_else(
                                        b * keys + j <= Positions[T.min(t * rows + i, m - 1)],
                                        score[i, j] * T.float32(shape.scale),
                                        T.float32(_LOWEST),
                                    )
                                    state[t * rows + i, 0] = T.max(state[t * rows + i, 0], score[i, j])
                                state[t * rows + i, 2] = T.exp(state[t * rows + i, 2] - state[t * rows + i, 0])
                                state[t * rows + i, 1] = state[t * rows + i, 1] * state[t * rows + i, 2]
                                for j in T.serial(keys):
                                    # A masked score lies so low that its weight is exactly zero.
                                    score[i, j] = T.exp(score[i, j] - state[t * rows + i, 0])
                                    state[t * rows + i, 1] = state[t * rows + i, 1] + score[i, j]
                            for c in T.serial(value_vectors):
                                sums = T.alloc_buffer((rows * lanes,), "float32", scope="global")
                                for i in T.unroll(rows):
                                    for v in T.vectorized(lanes):
                                        sums[i * lanes + v] = out[t * rows + i, c * lanes + v] * state[t * rows + i, 2]
                                for j in T.serial(keys):
                                    for i in T.unroll(rows):
                                        for v in T.vectorized(lanes):
                                            sums[i * lanes + v] = T.fma(
                                                score[i, j], value[j, c * lanes + v], sums[i * lanes + v]
                                            )
                                for i in T.unroll(rows):
                                    for v in T.vectorized(lanes):
                                        out[t * rows + i, c * lanes + v] = sums[i * lanes + v]
                            for c in T.serial(value_tail):
                                for i in T.serial(rows):
                                    out[t * rows + i, value_vectors * lanes + c] = (
                                        out[t * rows + i, value_vectors * lanes + c] * state[t * rows + i, 2]
                                    )
                                    for j in T.serial(keys):
                                        out[t * rows + i, value_vectors * lanes + c] = T.fma(
                                            score[i, j],
                                            value[j, value_vectors * lanes + c],
                                            out[t * rows + i, value_vectors * lanes + c],
                                        )
                for i in T.serial(m):
                    for c in T.serial(shape.v):
                        O[i, h * shape.v + c] = out[i, c] / state[i, 1]

    return without(expanded_attention_cpu, *scale_names(layout))
