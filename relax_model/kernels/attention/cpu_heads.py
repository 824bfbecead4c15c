"""How attention kernels on CPUs fill vectors: with heads where one token asks (absorbed), with tokens where many do.

    acc (rows × vectors)  +=  a (rows, k), one value in all lanes   ×   b (k, vectors · lanes)

Nothing is summed across lanes, so a head's or a token's bits do not depend on the lane that it sits in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.cpu_math import exp2
from relax_model.kernels.cpu_tiles import CpuTile

LOWEST = -3.0e38


@dataclass(frozen=True)
class HeadGroups:
    """`count` groups of `lanes` heads, `vectors` vectors each; the last lanes of the last group may be empty."""

    count: int
    vectors: int
    lanes: int


def head_groups(heads: int, tile: CpuTile) -> HeadGroups:
    """The widest groups that leave the fewest lanes empty, with at least four rows of accumulators."""
    needed = -(-heads // tile.lanes)
    widest = max(1, tile.accumulators // 4)
    vectors = min(range(1, widest + 1), key=lambda width: (-(-needed // width) * width, -width))
    return HeadGroups(-(-needed // vectors), vectors, vectors * tile.lanes)


@dataclass(frozen=True)
class AbsorbedTile:
    """How absorbed attention walks: `rows` × vectors of sums, blocks of `keys` tokens, parts of `split` tokens.

    A part's state is `slot_rows` rows of head lanes: see `softmax_block`, and a row of output for each latent channel.
    """

    heads: HeadGroups
    rows: int
    together: int  # tokens that are whole tiles and whole pairs
    keys: int
    split: int
    slot_rows: int

    @staticmethod
    def of(shape: AttentionShape, tile: CpuTile) -> AbsorbedTile:
        """The numbers for a model and a processor."""
        heads = head_groups(shape.heads, tile)
        rows = outer_rows(tile, heads.vectors)
        together = math.lcm(rows, 2)
        keys = -(-tile.keys // together) * together
        return AbsorbedTile(heads, rows, together, keys, -(-tile.split // keys) * keys, 3 + shape.kv_lora_rank)


def begin_part(tile: CpuTile, vectors: int) -> Callable[..., Any]:
    """Statement `begin(state, first, rank)`: no keys so far."""
    lanes = tile.lanes

    @T.inline
    def begin(state, first, rank):
        for v in T.unroll(vectors):
            state[vector(first, v, lanes)] = T.Broadcast(T.float32(LOWEST), lanes)
            state[vector(first + 1, v, lanes)] = T.Broadcast(T.float32(0), lanes)
            for c in T.serial(rank):
                state[vector(first + 3 + c, v, lanes)] = T.Broadcast(T.float32(0), lanes)

    return begin


def outer_rows(tile: CpuTile, vectors: int) -> int:
    """Rows of the register tile beside that many vectors."""
    return max(1, tile.accumulators // vectors)


def outer(lanes: int, rows: int, vectors: int) -> Callable[..., Any]:
    """Statement `multiply(count, a, b, start, y, y_at)`: y[y_at(i) + lane] = start(i, v) + Σ_k a(i, k) · b(k, v).

    i < `rows`; a(i, k) is a scalar, b(k, v) and start(i, v) vectors; `y` is two-dimensional, y_at(i, v) an index.
    """

    @T.inline
    def multiply(count, a, b, start, y, y_at):
        acc = T.alloc_buffer((rows * vectors * lanes,), "float32", scope="global")
        for i in T.unroll(rows):
            for v in T.unroll(vectors):
                acc[T.Ramp((i * vectors + v) * lanes, 1, lanes)] = start(i, v)
        for k in T.serial(count):
            for i in T.unroll(rows):
                for v in T.unroll(vectors):
                    acc[T.Ramp((i * vectors + v) * lanes, 1, lanes)] = T.fma(
                        T.Broadcast(a(i, k), lanes), b(k, v), acc[T.Ramp((i * vectors + v) * lanes, 1, lanes)]
                    )
        for i in T.unroll(rows):
            for v in T.unroll(vectors):
                y[y_at(i, v)] = acc[T.Ramp((i * vectors + v) * lanes, 1, lanes)]

    return multiply


def vector(row: Any, v: Any, lanes: int, start: Any = 0) -> tuple[Any, Any]:
    """The index of vector `v` of a row of a two-dimensional buffer, counted from column `start`."""
    return (row, T.Ramp(start + v * lanes, 1, lanes))


def softmax_block(lanes: int, vectors: int) -> Callable[..., Any]:
    """Statement `weigh(score, count, state, first)`: a block of keys enters a running softmax (arXiv:1805.02867).

    score (keys, lanes) holds scores in powers of two and gets their weights. State's rows from `first` on are the
    maximum so far, the sum of weights, and the factor by which all that came before is to be multiplied.
    """

    @T.inline
    def weigh(score, count, state, first):
        for v in T.unroll(vectors):
            best = T.alloc_buffer((lanes,), "float32", scope="global")
            total = T.alloc_buffer((lanes,), "float32", scope="global")
            best[T.Ramp(0, 1, lanes)] = state[vector(first, v, lanes)]
            for j in T.serial(count):
                best[T.Ramp(0, 1, lanes)] = T.max(best[T.Ramp(0, 1, lanes)], score[vector(j, v, lanes)])
            state[vector(first + 2, v, lanes)] = exp2(state[vector(first, v, lanes)] - best[T.Ramp(0, 1, lanes)], lanes)
            total[T.Ramp(0, 1, lanes)] = state[vector(first + 1, v, lanes)] * state[vector(first + 2, v, lanes)]
            for j in T.serial(count):
                score[vector(j, v, lanes)] = exp2(score[vector(j, v, lanes)] - best[T.Ramp(0, 1, lanes)], lanes)
                total[T.Ramp(0, 1, lanes)] = total[T.Ramp(0, 1, lanes)] + score[vector(j, v, lanes)]
            state[vector(first, v, lanes)] = best[T.Ramp(0, 1, lanes)]
            state[vector(first + 1, v, lanes)] = total[T.Ramp(0, 1, lanes)]

    return weigh
