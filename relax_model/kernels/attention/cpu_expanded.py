"""Expanded attention for CPUs: per-head keys and values made from the latents, block by block, for a long prefill.

    one task a head; for a block of `tile.expanded_keys` cached tokens:
        latents · W_UKᵀ | rotated key → key (keys, nope + rope)        latents · W_UVᵀ → value (keys, v)
        for each tile of queries, in the lanes of vectors:
            score (keys, queries) = key · qᵀ → running softmax → o (v, queries) += valueᵀ · weights

A block costs (nope + v) · kv_lora_rank multiply-adds a key once, and then (nope + rope + v) a query instead of the
absorbed form's 2 · kv_lora_rank + rope. Beside packed weights latents are quantized once for all heads.
"""

from __future__ import annotations

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.attention.cache import CachedTokens
from relax_model.kernels.attention.cpu_expansion import expansion_in_floats, expansion_packed, panel_rows
from relax_model.kernels.attention.cpu_heads import LOWEST, outer, outer_rows, softmax_block, vector
from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.cpu_packed import GROUP, activations, row_quantizer
from relax_model.kernels.cpu_tiles import CpuTile, nothing, padded, scale_names, stored, without
from relax_model.kernels.registry import kernel
from relax_model.kernels.rope.cpu import rotated
from relax_model.layout import Layout, PackedLayout

_VECTORS = 2  # of queries in a tile


@kernel("expanded_attention", "cpu")
def expanded_attention(layout: Layout, shape: AttentionShape, block: int, *, tile: CpuTile) -> PrimFunc:
    """Rows at consecutive positions of one sequence, at most `block` of them, over all cached positions up to each.

    q float32 (rows, heads · (nope + rope)), rotary table (rows, rope), kv_b_proj in `layout`, positions and sequences
    int32 (rows,), page_table int32 (sequences, pages of each), cache → float32 (rows, heads · v).
    """
    rank, heads, lanes, page = shape.kv_lora_rank, shape.heads, tile.lanes, shape.page_size
    query_width, queries = shape.query_width, _VECTORS * lanes
    rows = outer_rows(tile, _VECTORS)
    keys = -(-tile.expanded_keys // rows) * rows
    tiles = -(-block // queries)
    (data_shape, data_dtype), (scale_shape, scale_dtype) = _stored(layout, shape)
    packed = isinstance(layout, PackedLayout)
    groups = scale_shape[1] if packed else 1
    quantize_latent = row_quantizer(layout, tile, rank) if packed else nothing
    make_weights, expand = (expansion_packed if packed else expansion_in_floats)(layout, shape, tile, keys)
    weights_shape = (1, 1) if packed else (panel_rows(shape, tile), padded(layout, rank))
    score_tile, value_tile = outer(lanes, rows, _VECTORS), outer(lanes, rows, _VECTORS)
    value_rest = outer(lanes, max(shape.v % rows, 1), _VECTORS)
    weigh, tokens = softmax_block(lanes, _VECTORS), CachedTokens(shape)
    load_latent, load_key = tokens.latent_loader(lanes), tokens.key_loader(lanes)

    @T.inline
    def load_queries(query, Q, Table, h, i, slot):
        # Lanes past the last row repeat it, so that every tile is whole.
        for n in T.serial(shape.nope):
            query[slot // queries * query_width + n, slot % queries] = Q[i, h * query_width + n] * T.float32(
                shape.score_factor
            )
        for p in T.serial(shape.rope // 2):
            query[slot // queries * query_width + shape.nope + p, slot % queries] = rotated(
                lambda c: Q[i, h * query_width + shape.nope + c], Table, i, p, shape.rope, shape.interleaved
            )[0] * T.float32(shape.score_factor)
            query[slot // queries * query_width + shape.nope + shape.rope // 2 + p, slot % queries] = rotated(
                lambda c: Q[i, h * query_width + shape.nope + c], Table, i, p, shape.rope, shape.interleaved
            )[1] * T.float32(shape.score_factor)

    @T.inline
    def attend(t, b, query, key, value, place, state, out):
        score = T.alloc_buffer((keys, queries), "float32", scope="global")
        for r in T.serial(keys // rows):
            score_tile(
                query_width,
                lambda i, k: key[r * rows + i, k],
                lambda k, v: query[vector(t * query_width + k, v, lanes)],
                lambda i, v: T.Broadcast(T.float32(0), lanes),
                score,
                lambda i, v: vector(r * rows + i, v, lanes),
            )
        if b * keys + keys - 1 > place[t, 0]:
            # A masked score lies so low that its weight is exactly zero.
            for j in T.serial(keys):
                for v in T.unroll(_VECTORS):
                    score[vector(j, v, lanes)] = T.Select(
                        T.Broadcast(T.Cast("int32", b * keys + j), lanes) <= place[vector(t, v, lanes)],
                        score[vector(j, v, lanes)],
                        T.Broadcast(T.float32(LOWEST), lanes),
                    )
        weigh(score, keys, state, t * 3)
        for r in T.serial(shape.v // rows):
            value_tile(
                keys,
                lambda i, j: value[j, r * rows + i],
                lambda j, v: score[vector(j, v, lanes)],
                lambda i, v: out[vector(t * shape.v + r * rows + i, v, lanes)] * state[vector(t * 3 + 2, v, lanes)],
                out,
                lambda i, v: vector(t * shape.v + r * rows + i, v, lanes),
            )
        if shape.v % rows > 0:
            value_rest(
                keys,
                lambda i, j: value[j, shape.v // rows * rows + i],
                lambda j, v: score[vector(j, v, lanes)],
                lambda i, v: (
                    out[vector(t * shape.v + shape.v // rows * rows + i, v, lanes)] * state[vector(t * 3 + 2, v, lanes)]
                ),
                out,
                lambda i, v: vector(t * shape.v + shape.v // rows * rows + i, v, lanes),
            )

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
        Cache = T.match_buffer(cache, (pages, page, shape.cache_width), shape.cache_dtype)
        O = T.match_buffer(o, (m, heads * shape.v), "float32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            codes = T.alloc_buffer((longest * page if packed else 1, groups * GROUP), "int8", scope="global")
            scales = T.alloc_buffer((longest * page if packed else 1, groups), "float32", scope="global")
            offsets = T.alloc_buffer((longest * page if packed else 1, groups), "int32", scope="global")
            if packed:
                for j in T.parallel(Positions[m - 1] + 1):
                    quantize_latent(
                        lambda k, n: tokens.latent(Cache, (PageTable[Sequences[0], j // page], j % page), k, n),
                        j,
                        codes,
                        scales,
                        offsets,
                    )
            for h in T.parallel(heads):
                weights = T.alloc_buffer(weights_shape, "float32", scope="global")
                latent = T.alloc_buffer((1 if packed else keys, rank), "float32", scope="global")
                key = T.alloc_buffer((keys, query_width), "float32", scope="global")
                value = T.alloc_buffer((keys, shape.v), "float32", scope="global")
                query = T.alloc_buffer((tiles * query_width, queries), "float32", scope="global")
                out = T.alloc_buffer((tiles * shape.v, queries), "float32", scope="global")
                state = T.alloc_buffer((tiles * 3, queries), "float32", scope="global")  # see `softmax_block`
                place = T.alloc_buffer((tiles, queries), "int32", scope="global")  # each query's position
                make_weights(weights, data, scale, h)
                for slot in T.serial(T.ceildiv(m, queries) * queries):
                    load_queries(query, Q, Table, h, T.min(slot, m - 1), slot)
                    place[slot // queries, slot % queries] = Positions[T.min(slot, m - 1)]
                    state[slot // queries * 3, slot % queries] = T.float32(LOWEST)
                    state[slot // queries * 3 + 1, slot % queries] = T.float32(0)
                for t in T.serial(T.ceildiv(m, queries) * shape.v):
                    for v in T.vectorized(queries):
                        out[t, v] = T.float32(0)
                for b in T.serial(T.ceildiv(Positions[m - 1] + 1, keys)):
                    # Positions that do not exist yet are filled with the last one's, and masked.
                    for j in T.serial(keys):
                        if not packed:
                            load_latent(
                                latent,
                                j,
                                0,
                                Cache,
                                PageTable[Sequences[0], T.min(b * keys + j, Positions[m - 1]) // page],
                                T.min(b * keys + j, Positions[m - 1]) % page,
                            )
                        load_key(
                            key,
                            j,
                            shape.nope,
                            Cache,
                            PageTable[Sequences[0], T.min(b * keys + j, Positions[m - 1]) // page],
                            T.min(b * keys + j, Positions[m - 1]) % page,
                        )
                    expand(
                        weights,
                        latent,
                        data,
                        scale,
                        h,
                        activations(
                            codes, scales, offsets, lambda j: T.min(b * keys + j, T.Cast("int64", Positions[m - 1]))
                        ),
                        key,
                        value,
                    )
                    for t in T.serial(T.ceildiv(m, queries)):
                        if place[t, queries - 1] >= b * keys:
                            attend(t, b, query, key, value, place, state, out)
                for i in T.serial(m):
                    for c in T.serial(shape.v):
                        O[i, h * shape.v + c] = (
                            out[i // queries * shape.v + c, i % queries] / state[i // queries * 3 + 1, i % queries]
                        )

    return without(expanded_attention_cpu, *scale_names(layout))


def _stored(layout: Layout, shape: AttentionShape) -> tuple[tuple[tuple[int, ...], str], tuple[tuple[int, ...], str]]:
    whole = (shape.heads * shape.expanded_width, shape.kv_lora_rank)
    if isinstance(layout, PackedLayout):
        specs = layout.buffers(whole, (shape.nope, shape.v))
        return (specs["q_weight"].shape, "uint32"), (specs["q_scale"].shape, "float16")
    return stored(layout, whole)
