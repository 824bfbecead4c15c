"""Steps of attention in 16-bit integers, each beside what one of its integers is worth; see `cpu_pairs`.

tokens or keys x   at most LARGEST_X each
queries q          as long as keeps |Σ q·x| ≤ |q|·|x| in 32 bits (Cauchy-Schwarz)
weights            p · (what the token's integers are worth), by the largest of a block of tokens
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from relax_model.kernels.attention.cpu_heads import vector
from relax_model.kernels.cpu_pairs import bound, paired
from relax_model.kernels.cpu_tiles import CpuTile

LARGEST_X = 3970
# What is smaller counts as zero.
LEAST = 1e-30


def whole(values: Any, lanes: int) -> Any:
    """Float32 values rounded to int32."""
    return T.Cast(f"int32x{lanes}", T.nearbyint(values))


def query_taker(tile: CpuTile, vectors: int, width: int) -> Callable[..., Any]:
    """Statement `take(query, first, worth, row, read)`: query[first + k] is values 2k and 2k + 1, read(column, v).

    What an integer of a lane's query is worth goes to worth[row]. `width` is even.
    """
    lanes, largest = tile.lanes, bound(LARGEST_X * math.sqrt(width))

    @T.inline
    def take(query, first, worth, row, read):
        for v in T.unroll(vectors):
            square = T.alloc_buffer((lanes,), "float32", scope="global")
            square[T.Ramp(0, 1, lanes)] = T.Broadcast(T.float32(0), lanes)
            for k in T.serial(width):
                square[T.Ramp(0, 1, lanes)] = T.fma(read(k, v), read(k, v), square[T.Ramp(0, 1, lanes)])
            worth[vector(row, v, lanes)] = T.max(
                T.sqrt(square[T.Ramp(0, 1, lanes)]) * T.Broadcast(T.float32(1 / largest), lanes),
                T.Broadcast(T.float32(LEAST), lanes),
            )
        for k in T.serial(width // 2):
            for v in T.unroll(vectors):
                query[vector(first + k, v, lanes)] = paired(
                    whole(read(k * 2, v) / worth[vector(row, v, lanes)], lanes),
                    whole(read(k * 2 + 1, v) / worth[vector(row, v, lanes)], lanes),
                    lanes,
                )

    return take


def weight_taker(tile: CpuTile, vectors: int, keys: int) -> Callable[..., Any]:
    """Statement `take(weights, weight_worth, score, worth, count)`: weights of `count` ≤ `keys` tokens in pairs.

    score (keys, lanes) is overwritten; worth(j) is a token's, weight_worth (1, lanes) that of weights (keys / 2,
    lanes).
    """
    lanes, most = tile.lanes, bound(LARGEST_X * keys)

    @T.inline
    def take(weights, weight_worth, score, worth, count):
        for v in T.unroll(vectors):
            largest = T.alloc_buffer((lanes,), "float32", scope="global")
            largest[T.Ramp(0, 1, lanes)] = T.Broadcast(T.float32(LEAST), lanes)
            for j in T.serial(count):
                score[vector(j, v, lanes)] = score[vector(j, v, lanes)] * T.Broadcast(worth(j), lanes)
                largest[T.Ramp(0, 1, lanes)] = T.max(largest[T.Ramp(0, 1, lanes)], score[vector(j, v, lanes)])
            weight_worth[vector(0, v, lanes)] = largest[T.Ramp(0, 1, lanes)] * T.Broadcast(T.float32(1 / most), lanes)
            largest[T.Ramp(0, 1, lanes)] = T.Broadcast(T.float32(most), lanes) / largest[T.Ramp(0, 1, lanes)]
            if count % 2 == 1:
                score[vector(count, v, lanes)] = T.Broadcast(T.float32(0), lanes)
            for t in T.serial((count + 1) // 2):
                weights[vector(t, v, lanes)] = paired(
                    whole(score[vector(t * 2, v, lanes)] * largest[T.Ramp(0, 1, lanes)], lanes),
                    whole(score[vector(t * 2 + 1, v, lanes)] * largest[T.Ramp(0, 1, lanes)], lanes),
                    lanes,
                )

    return take


def interleaver(tile: CpuTile, width: int) -> Callable[..., Any]:
    """Statement `interleave(rows, r, pairs, t)`: pairs[t] is the values of rows 2r and 2r + 1 in turns.

    Both are 16-bit, `width` values of a row in whole vectors: see `interleaved`.
    """
    wide = 2 * tile.lanes

    @T.inline
    def interleave(rows, r, pairs, t):
        for w in T.serial(interleaved(tile, width) // (2 * wide)):
            pairs[t, T.Ramp(w * 2 * wide, 1, 2 * wide)] = T.Shuffle(
                [rows[r * 2, T.Ramp(w * wide, 1, wide)], rows[r * 2 + 1, T.Ramp(w * wide, 1, wide)]],
                [place // 2 + place % 2 * wide for place in range(2 * wide)],
            )

    return interleave


def interleaved(tile: CpuTile, width: int) -> int:
    """16-bit values of a pair of rows of `width`, each filled up to whole vectors."""
    wide = 2 * tile.lanes
    return 2 * -(-width // wide) * wide


def pair_at(buffer: Any, row: Any, k: Any) -> Any:
    """Pair k of a row of 16-bit values."""
    return T.reinterpret("int32", buffer[row, T.Ramp(k * 2, 1, 2)])
