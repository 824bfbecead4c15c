"""A part of a row's absorbed attention over an 8-bit cache, in 16-bit integers: see `cpu_absorbed`, `cpu_pair_steps`.

    score (key)      = Σ over groups  scale of the key's group · worth of the query's · Σ code · query      (exact)
    o (channel)     += largest scale of its group · worth · Σ over keys  code · (weight · share of that scale)

Integers never hold what is in two groups: an outlier in one takes nothing from the others' codes. Where tokens of a
block differ, a share has 15 bits; a latent has been normalised, so that a group's largest is not far above the others'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from relax_model.kernels.attention.cache import CachedTokens
from relax_model.kernels.attention.cpu_heads import AbsorbedTile, begin_part, softmax_block, vector
from relax_model.kernels.attention.cpu_pair_steps import (
    SHARE_WORTH,
    interleaver,
    pair_at,
    query_taker,
    share_taker,
    weight_taker,
)
from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.cpu_packed import GROUP
from relax_model.kernels.cpu_pairs import multiply_high, outer_pairs, outer_pairs_by_group
from relax_model.kernels.cpu_tiles import CpuTile


def attend_in_pairs(shape: AttentionShape, tile: CpuTile) -> Callable[..., Any]:
    """Statement `attend(part, slot, i, g, s, Q, Positions, Sequences, PageTable, Cache)`: part s of row i's group g."""
    rank, page, lanes = shape.kv_lora_rank, shape.page_size, tile.lanes
    tiles, tokens = AbsorbedTile.of(shape, tile), CachedTokens(shape)
    heads, rows, keys, split, slot_rows = tiles.heads, tiles.rows, tiles.keys, tiles.split, tiles.slot_rows
    vectors, groups, width = heads.vectors, tokens.groups, tokens.groups * GROUP
    latent_groups, wide, together = tokens.latent_groups, 2 * lanes, tiles.together
    scale_columns = -(-groups // lanes) * lanes
    score_tile = outer_pairs_by_group(tile, rows, vectors, GROUP // 2)
    weigh, begin = softmax_block(lanes, vectors), begin_part(tile, vectors)
    take_query, take_weights = query_taker(tile, vectors, groups), weight_taker(tile, vectors, keys)
    take_shares, interleave = share_taker(tile, scale_columns), interleaver(tile, latent_groups * GROUP)

    def query_at(Q: Any, i: Any, g: Any, column: Any, v: Any) -> Any:
        """A query's value for a column of codes; zero in what fills up groups."""
        at, last = T.Ramp(v * lanes, 1, lanes), latent_groups * GROUP
        if rank == last and shape.rope % GROUP == 0:
            return Q[i, g, column, at]
        place = T.if_then_else(
            column < last, T.min(column, rank - 1), T.min(rank + column - last, shape.latent_width - 1)
        )
        exists = T.Or(column < rank, T.And(column >= last, column < last + shape.rope))
        return T.if_then_else(exists, Q[i, g, place, at], T.Broadcast(T.float32(0), lanes))

    @T.inline
    def load_token(block, row, scales, j, Cache, page_index, slot):
        """Token j's codes, block[row, :], and scales[j, :] of their groups."""
        for w in T.serial(width // wide):
            block[row, T.Ramp(w * wide, 1, wide)] = T.Cast(
                f"int16x{wide}", Cache[page_index, slot, T.Ramp(w * wide, 1, wide)]
            )
        for w in T.serial(groups // lanes):
            scales[vector(j, w, lanes)] = tokens.scale(Cache, (page_index, slot), w * lanes, lanes)
        for g in T.serial(groups % lanes):
            scales[j, groups // lanes * lanes + g] = tokens.scale(
                Cache, (page_index, slot), groups // lanes * lanes + g
            )
        for g in T.serial(scale_columns - groups):
            scales[j, groups + g] = T.float32(0)

    def value_tile(count: int) -> Callable[..., Any]:
        """Statement `add(c, g, …)`: `count` channels from c on, of group g, of a block's values."""
        multiply = outer_pairs(tile, count, vectors)

        @T.inline
        def add(c, g, pairs, weights, worth, most, tokens_in, part, first):
            multiply(
                (tokens_in + 1) // 2,
                lambda r, j: pair_at(pairs, j, c + r),
                lambda j, v: weights[vector(j, v, lanes)],
                lambda r, v, total: T.fma(
                    total,
                    worth[vector(0, v, lanes)] * T.Broadcast(most[g] * T.float32(SHARE_WORTH), lanes),
                    # What was there, corrected.
                    part[vector(first + 3 + c + r, v, lanes)] * part[vector(first + 2, v, lanes)],
                ),
                part,
                lambda r, v: vector(first + 3 + c + r, v, lanes),
            )

        return add

    def value_group(channels: int) -> Callable[..., Any]:
        """Statement `add(g, …)`: all channels of group g, which has that many."""
        tile_of, rest = value_tile(rows), value_tile(max(channels % rows, 1))

        @T.inline
        def add(g, arguments):
            for t in T.serial(channels // rows):
                tile_of(g * GROUP + t * rows, g, *arguments)
            if channels % rows > 0:
                rest(g * GROUP + channels // rows * rows, g, *arguments)

        return add

    whole_group, last_group = value_group(GROUP), value_group(rank % GROUP)

    @T.inline
    def add_values(pairs, weights, shares, worth, most, tokens_in, part, first):
        own = T.alloc_buffer((keys // 2, heads.lanes), "int32", scope="global")
        for g in T.serial(latent_groups):
            for j in T.serial((tokens_in + 1) // 2):
                for v in T.unroll(vectors):
                    own[vector(j, v, lanes)] = T.reinterpret(
                        f"int32x{lanes}",
                        multiply_high(
                            tile,
                            T.reinterpret(f"int16x{wide}", weights[vector(j, v, lanes)]),
                            T.reinterpret(f"int16x{wide}", T.Broadcast(shares[j, g], lanes)),
                        ),
                    )
            if g < rank // GROUP:
                whole_group(g, (pairs, own, worth, most, tokens_in, part, first))
            else:
                last_group(g, (pairs, own, worth, most, tokens_in, part, first))

    @T.inline
    def attend(part, slot, i, g, s, Q, Positions, Sequences, PageTable, Cache):
        query = T.alloc_buffer((width // 2, heads.lanes), "int32", scope="global")
        query_worth = T.alloc_buffer((groups, heads.lanes), "float32", scope="global")
        block = T.alloc_buffer((together, width), "int16", scope="global")
        pairs = T.alloc_buffer((keys // 2, 2 * latent_groups * GROUP), "int16", scope="global")
        scales = T.alloc_buffer((keys, scale_columns), "float32", scope="global")
        shares = T.alloc_buffer((keys // 2, scale_columns), "int32", scope="global")
        most = T.alloc_buffer((scale_columns,), "float32", scope="global")
        score = T.alloc_buffer((keys, heads.lanes), "float32", scope="global")
        weights = T.alloc_buffer((keys // 2, heads.lanes), "int32", scope="global")
        weight_worth = T.alloc_buffer((1, heads.lanes), "float32", scope="global")
        begin(part, slot * slot_rows, rank)
        take_query(query, query_worth, lambda k, v: query_at(Q, i, g, k, v))
        for b in T.serial(T.ceildiv(T.min(split, Positions[i] + 1 - s * split), keys)):
            count = T.alloc_buffer((1,), "int32", scope="global")
            count[0] = T.Cast("int32", T.min(keys, Positions[i] + 1 - s * split - b * keys))
            for t in T.serial(T.ceildiv(count[0], together)):
                for r in T.serial(T.min(together, count[0] - t * together)):
                    load_token(
                        block,
                        r,
                        scales,
                        t * together + r,
                        Cache,
                        PageTable[Sequences[i], (s * split + b * keys + t * together + r) // page],
                        (s * split + b * keys + t * together + r) % page,
                    )
                # Past the last token lie stale ones, which get no weight.
                for r in T.serial(together // 2):
                    interleave(block, r, pairs, t * (together // 2) + r)
                for u in T.serial(together // rows):
                    score_tile(
                        groups,
                        lambda r, k: pair_at(block, u * rows + r, k),
                        lambda k, v: query[vector(k, v, lanes)],
                        lambda r, g: scales[t * together + u * rows + r, g],
                        lambda g, v: query_worth[vector(g, v, lanes)],
                        score,
                        lambda r, v: vector(t * together + u * rows + r, v, lanes),
                    )
            weigh(score, count[0], part, slot * slot_rows)
            take_weights(weights, weight_worth, score, count[0])
            take_shares(shares, most, scales, count[0])
            add_values(pairs, weights, shares, weight_worth, most, count[0], part, slot * slot_rows)

    return attend
