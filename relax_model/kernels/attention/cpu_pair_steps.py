"""Steps of attention over 8-bit codes in 16-bit integers; see `cpu_pairs`, and `cpu_absorbed_pairs` for how they fit.

codes     as they are cached, at most LARGEST_CODE: nothing of them is rounded away
queries   each group of 32 by its own largest, so that a key's range and a latent's do not meet in one integer
weights   by the largest of a block of tokens, and then for each group by the tokens' shares of the largest scale
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from relax_model.kernels.attention.cache import LARGEST_CODE
from relax_model.kernels.attention.cpu_heads import vector
from relax_model.kernels.cpu_packed import GROUP
from relax_model.kernels.cpu_pairs import bound, paired
from relax_model.kernels.cpu_tiles import CpuTile

# What is smaller counts as zero.
LEAST = 1e-30
_LARGEST_SHARE = 32000
# What a product's high half counts that was multiplied by the largest share.
SHARE_WORTH = 32768 / _LARGEST_SHARE


def whole(values: Any, lanes: int) -> Any:
    """Float32 values rounded to int32."""
    return T.Cast(f"int32x{lanes}", T.nearbyint(values))


def query_taker(tile: CpuTile, vectors: int, groups: int) -> Callable[..., Any]:
    """Statement `take(query, worth, read)`: query[k] is values 2k and 2k + 1 of `groups` groups, read(column, v).

    What an integer of group g of a lane's query is worth goes to worth[g].
    """
    lanes, most = tile.lanes, bound(LARGEST_CODE * GROUP)

    @T.inline
    def take(query, worth, read):
        for g in T.serial(groups):
            for v in T.unroll(vectors):
                largest = T.alloc_buffer((lanes,), "float32", scope="global")
                largest[T.Ramp(0, 1, lanes)] = T.Broadcast(T.float32(LEAST), lanes)
                for k in T.serial(GROUP):
                    largest[T.Ramp(0, 1, lanes)] = T.max(largest[T.Ramp(0, 1, lanes)], T.abs(read(g * GROUP + k, v)))
                worth[vector(g, v, lanes)] = largest[T.Ramp(0, 1, lanes)] * T.Broadcast(T.float32(1 / most), lanes)
                largest[T.Ramp(0, 1, lanes)] = T.Broadcast(T.float32(most), lanes) / largest[T.Ramp(0, 1, lanes)]
                for k in T.serial(GROUP // 2):
                    query[vector(g * (GROUP // 2) + k, v, lanes)] = paired(
                        whole(read(g * GROUP + k * 2, v) * largest[T.Ramp(0, 1, lanes)], lanes),
                        whole(read(g * GROUP + k * 2 + 1, v) * largest[T.Ramp(0, 1, lanes)], lanes),
                        lanes,
                    )

    return take


def weight_taker(tile: CpuTile, vectors: int, keys: int) -> Callable[..., Any]:
    """Statement `take(weights, worth, score, count)`: weights of `count` ≤ `keys` tokens in pairs.

    score (keys, lanes) has them as float32, worth (1, lanes) is what one of weights (keys / 2, lanes) counts.
    """
    lanes, most = tile.lanes, bound(LARGEST_CODE * keys)

    @T.inline
    def take(weights, worth, score, count):
        for v in T.unroll(vectors):
            largest = T.alloc_buffer((lanes,), "float32", scope="global")
            largest[T.Ramp(0, 1, lanes)] = T.Broadcast(T.float32(LEAST), lanes)
            for j in T.serial(count):
                largest[T.Ramp(0, 1, lanes)] = T.max(largest[T.Ramp(0, 1, lanes)], score[vector(j, v, lanes)])
            worth[vector(0, v, lanes)] = largest[T.Ramp(0, 1, lanes)] * T.Broadcast(T.float32(1 / most), lanes)
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


def share_taker(tile: CpuTile, groups: int) -> Callable[..., Any]:
    """Statement `take(shares, most, scales, count)`: the shares of `count` tokens in a block's largest scale, in pairs.

    scales (keys, groups) float32, of which rows up to an even number are written; most (groups,) the largest of each
    group, shares (keys / 2, groups). `groups` fills whole vectors.
    """
    lanes = tile.lanes

    @T.inline
    def take(shares, most, scales, count):
        for w in T.serial(groups // lanes):
            most[T.Ramp(w * lanes, 1, lanes)] = T.Broadcast(T.float32(LEAST), lanes)
            for j in T.serial(count):
                most[T.Ramp(w * lanes, 1, lanes)] = T.max(
                    most[T.Ramp(w * lanes, 1, lanes)], scales[vector(j, w, lanes)]
                )
            if count % 2 == 1:
                scales[vector(count, w, lanes)] = T.Broadcast(T.float32(0), lanes)
            inverse = T.alloc_buffer((lanes,), "float32", scope="global")
            inverse[T.Ramp(0, 1, lanes)] = (
                T.Broadcast(T.float32(_LARGEST_SHARE), lanes) / most[T.Ramp(w * lanes, 1, lanes)]
            )
            for t in T.serial((count + 1) // 2):
                shares[vector(t, w, lanes)] = paired(
                    whole(scales[vector(t * 2, w, lanes)] * inverse[T.Ramp(0, 1, lanes)], lanes),
                    whole(scales[vector(t * 2 + 1, w, lanes)] * inverse[T.Ramp(0, 1, lanes)], lanes),
                    lanes,
                )

    return take


def interleaver(tile: CpuTile, width: int) -> Callable[..., Any]:
    """Statement `interleave(rows, r, pairs, t)`: pairs[t] is the values of rows 2r and 2r + 1 in turns.

    Both are 16-bit, `width` values of a row, which fill whole vectors.
    """
    wide = 2 * tile.lanes
    assert width % wide == 0

    @T.inline
    def interleave(rows, r, pairs, t):
        for w in T.serial(width // wide):
            pairs[t, T.Ramp(w * 2 * wide, 1, 2 * wide)] = T.Shuffle(
                [rows[r * 2, T.Ramp(w * wide, 1, wide)], rows[r * 2 + 1, T.Ramp(w * wide, 1, wide)]],
                [place // 2 + place % 2 * wide for place in range(2 * wide)],
            )

    return interleave


def pair_at(buffer: Any, row: Any, k: Any) -> Any:
    """Pair k of a row of 16-bit values."""
    return T.reinterpret("int32", buffer[row, T.Ramp(k * 2, 1, 2)])
