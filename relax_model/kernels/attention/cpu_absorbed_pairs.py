"""A part of a row's absorbed attention over an 8-bit cache, in 16-bit integers: see `cpu_absorbed`, `cpu_pair_steps`.

A token is code · factor of its group, at most LARGEST_X. What is rounded here is far finer than the codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from relax_model.kernels.attention.cache import LARGEST_CODE, LARGEST_FACTOR, CachedTokens
from relax_model.kernels.attention.cpu_heads import AbsorbedTile, begin_part, softmax_block, vector
from relax_model.kernels.attention.cpu_pair_steps import (
    LARGEST_X,
    interleaved,
    interleaver,
    pair_at,
    query_taker,
    weight_taker,
)
from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.cpu_packed import GROUP
from relax_model.kernels.cpu_pairs import multiply_high, outer_pairs
from relax_model.kernels.cpu_tiles import CpuTile

# A code, shifted by 5 bits, times its factor in 32768ths.
_SHIFT = 5
assert LARGEST_CODE * 2**_SHIFT * LARGEST_FACTOR // 32768 <= LARGEST_X
_WORTH = 32768 / 2**_SHIFT


def attend_in_pairs(shape: AttentionShape, tile: CpuTile) -> Callable[..., Any]:
    """Statement `attend(part, slot, i, g, s, Q, Positions, Sequences, PageTable, Cache)`: part s of row i's group g."""
    rank, page, lanes = shape.kv_lora_rank, shape.page_size, tile.lanes
    tiles, tokens = AbsorbedTile.of(shape, tile), CachedTokens(shape)
    heads, rows, keys, split, slot_rows = tiles.heads, tiles.rows, tiles.keys, tiles.split, tiles.slot_rows
    vectors, groups, width = heads.vectors, tokens.groups, tokens.groups * GROUP
    score_tile, value_tile = outer_pairs(tile, rows, vectors), outer_pairs(tile, rows, vectors)
    value_rest = outer_pairs(tile, max(rank % rows, 1), vectors)
    weigh, begin = softmax_block(lanes, vectors), begin_part(tile, vectors)
    take_query, take_weights = query_taker(tile, vectors, width), weight_taker(tile, vectors, keys)
    interleave, wide, together = interleaver(tile, rank), 2 * lanes, tiles.together

    def query_at(Q: Any, i: Any, g: Any, column: Any, v: Any) -> Any:
        """A query's value for a column of codes; zero in what fills up groups."""
        at, last = T.Ramp(v * lanes, 1, lanes), tokens.latent_groups * GROUP
        if rank == last and shape.rope % GROUP == 0:
            return Q[i, g, column, at]
        place = T.if_then_else(
            column < last, T.min(column, rank - 1), T.min(rank + column - last, shape.latent_width - 1)
        )
        exists = T.Or(column < rank, T.And(column >= last, column < last + shape.rope))
        return T.if_then_else(exists, Q[i, g, place, at], T.Broadcast(T.float32(0), lanes))

    def value(part: Any, slot: Any, weight_worth: Any, column: Any, v: Any, total: Any) -> Any:
        """A channel of the output: what was there, corrected, and a block's share."""
        before = part[vector(slot * slot_rows + 3 + column, v, lanes)] * part[vector(slot * slot_rows + 2, v, lanes)]
        return T.fma(total, weight_worth[vector(0, v, lanes)], before)

    @T.inline
    def load_token(block, row, worth, j, Cache, page_index, slot):
        """Token j as 16-bit integers, block[row, :]; one of them is worth worth[j]."""
        worth[j] = tokens.scale(Cache, (page_index, slot)) * T.float32(_WORTH)
        for g in T.serial(groups):
            for w in T.unroll(GROUP // wide):
                block[row, T.Ramp(g * GROUP + w * wide, 1, wide)] = multiply_high(
                    tile,
                    T.shift_left(
                        T.Cast(f"int16x{wide}", Cache[page_index, slot, T.Ramp(g * GROUP + w * wide, 1, wide)]),
                        T.Broadcast(T.int16(_SHIFT), wide),
                    ),
                    T.Broadcast(tokens.factor(Cache, (page_index, slot), g), wide),
                )

    @T.inline
    def attend(part, slot, i, g, s, Q, Positions, Sequences, PageTable, Cache):
        query = T.alloc_buffer((width // 2, heads.lanes), "int32", scope="global")
        query_worth = T.alloc_buffer((1, heads.lanes), "float32", scope="global")
        block = T.alloc_buffer((together, width), "int16", scope="global")
        pairs = T.alloc_buffer((keys // 2, interleaved(tile, rank)), "int16", scope="global")
        worth = T.alloc_buffer((keys,), "float32", scope="global")
        score = T.alloc_buffer((keys, heads.lanes), "float32", scope="global")
        weights = T.alloc_buffer((keys // 2, heads.lanes), "int32", scope="global")
        weight_worth = T.alloc_buffer((1, heads.lanes), "float32", scope="global")
        begin(part, slot * slot_rows, rank)
        take_query(query, 0, query_worth, 0, lambda k, v: query_at(Q, i, g, k, v))
        for b in T.serial(T.ceildiv(T.min(split, Positions[i] + 1 - s * split), keys)):
            count = T.alloc_buffer((1,), "int32", scope="global")
            count[0] = T.Cast("int32", T.min(keys, Positions[i] + 1 - s * split - b * keys))
            for t in T.serial(T.ceildiv(count[0], together)):
                for r in T.serial(T.min(together, count[0] - t * together)):
                    load_token(
                        block,
                        r,
                        worth,
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
                        width // 2,
                        lambda r, k: pair_at(block, u * rows + r, k),
                        lambda k, v: query[vector(k, v, lanes)],
                        lambda r, v, total: (
                            total
                            * (
                                query_worth[vector(0, v, lanes)]
                                * T.Broadcast(worth[t * together + u * rows + r], lanes)
                            )
                        ),
                        score,
                        lambda r, v: vector(t * together + u * rows + r, v, lanes),
                    )
            weigh(score, count[0], part, slot * slot_rows)
            take_weights(weights, weight_worth, score, lambda j: worth[j], count[0])
            for t in T.serial(rank // rows):
                value_tile(
                    (count[0] + 1) // 2,
                    lambda r, j: pair_at(pairs, j, t * rows + r),
                    lambda j, v: weights[vector(j, v, lanes)],
                    lambda r, v, total: value(part, slot, weight_worth, t * rows + r, v, total),
                    part,
                    lambda r, v: vector(slot * slot_rows + 3 + t * rows + r, v, lanes),
                )
            if rank % rows > 0:
                value_rest(
                    (count[0] + 1) // 2,
                    lambda r, j: pair_at(pairs, j, rank // rows * rows + r),
                    lambda j, v: weights[vector(j, v, lanes)],
                    lambda r, v, total: value(part, slot, weight_worth, rank // rows * rows + r, v, total),
                    part,
                    lambda r, v: vector(slot * slot_rows + 3 + rank // rows * rows + r, v, lanes),
                )

    return attend
