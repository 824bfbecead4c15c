"""A part of a row's absorbed attention in float32: see `cpu_absorbed`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from relax_model.kernels.attention.cache import CachedTokens
from relax_model.kernels.attention.cpu_heads import AbsorbedTile, begin_part, outer, softmax_block, vector
from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.cpu_tiles import CpuTile


def attend_in_floats(shape: AttentionShape, tile: CpuTile) -> Callable[..., Any]:
    """Statement `attend(part, slot, i, g, s, Q, Positions, Sequences, PageTable, Cache)`: part s of row i's group g."""
    rank, width, page, lanes = shape.kv_lora_rank, shape.latent_width, shape.page_size, tile.lanes
    tiles = AbsorbedTile.of(shape, tile)
    vectors, rows, keys, split, slot_rows = tiles.heads.vectors, tiles.rows, tiles.keys, tiles.split, tiles.slot_rows
    score_tile, value_tile = outer(lanes, rows, vectors), outer(lanes, rows, vectors)
    value_rest = outer(lanes, max(rank % rows, 1), vectors)
    weigh, tokens, begin = softmax_block(lanes, vectors), CachedTokens(shape), begin_part(tile, vectors)
    load_latent, load_key = tokens.latent_loader(lanes), tokens.key_loader(lanes)

    @T.inline
    def attend(part, slot, i, g, s, Q, Positions, Sequences, PageTable, Cache):
        block = T.alloc_buffer((keys, width), "float32", scope="global")
        score = T.alloc_buffer((keys, tiles.heads.lanes), "float32", scope="global")
        begin(part, slot * slot_rows, rank)
        for b in T.serial(T.ceildiv(T.min(split, Positions[i] + 1 - s * split), keys)):
            count = T.alloc_buffer((1,), "int32", scope="global")
            count[0] = T.Cast("int32", T.min(keys, Positions[i] + 1 - s * split - b * keys))
            for j in T.serial(count[0]):
                load_latent(
                    block,
                    j,
                    0,
                    Cache,
                    PageTable[Sequences[i], (s * split + b * keys + j) // page],
                    (s * split + b * keys + j) % page,
                )
                load_key(
                    block,
                    j,
                    rank,
                    Cache,
                    PageTable[Sequences[i], (s * split + b * keys + j) // page],
                    (s * split + b * keys + j) % page,
                )
            # A tile's last rows may be stale keys, whose scores nobody reads.
            for t in T.serial(T.ceildiv(count[0], rows)):
                score_tile(
                    width,
                    lambda r, k: block[t * rows + r, k],
                    lambda k, v: Q[i, g, k, T.Ramp(v * lanes, 1, lanes)],
                    lambda r, v: T.Broadcast(T.float32(0), lanes),
                    score,
                    lambda r, v: vector(t * rows + r, v, lanes),
                )
            weigh(score, count[0], part, slot * slot_rows)
            for t in T.serial(rank // rows):
                value_tile(
                    count[0],
                    lambda r, j: block[j, t * rows + r],
                    lambda j, v: score[vector(j, v, lanes)],
                    lambda r, v: (
                        part[vector(slot * slot_rows + 3 + t * rows + r, v, lanes)]
                        * part[vector(slot * slot_rows + 2, v, lanes)]
                    ),
                    part,
                    lambda r, v: vector(slot * slot_rows + 3 + t * rows + r, v, lanes),
                )
            if rank % rows > 0:
                value_rest(
                    count[0],
                    lambda r, j: block[j, rank // rows * rows + r],
                    lambda j, v: score[vector(j, v, lanes)],
                    lambda r, v: (
                        part[vector(slot * slot_rows + 3 + rank // rows * rows + r, v, lanes)]
                        * part[vector(slot * slot_rows + 2, v, lanes)]
                    ),
                    part,
                    lambda r, v: vector(slot * slot_rows + 3 + rank // rows * rows + r, v, lanes),
                )

    return attend
