"""A tile of queries over all the keys that they see, for GPUs: flash attention (arXiv:2205.14135, arXiv:2307.08691).

    a block of 256 threads: 64 rows of one head; for each 64 keys, thread (y, x) of 16 × 16 has
        score (64, 64)      4 rows from 4y on × keys x, x + 16, …       32 columns of both sides at a time
        weights (64, 64)    2^(score - the row's largest so far), for all to read
        out (64, v)         4 rows from 4y on × columns x, x + 16, …    some values at a time: as many as 2048 hold

    shared memory, in floats
    ├ tile                       4224 ┼ stage             at most 2048 ┤   25 KiB
    │ queries 64 × 33 │ keys 64 × 33 │ largest of each thread 64 × 17 │
    │ weights 64 × 65                │ values                         │

    registers: v / 4 sums, 16 scores, 12 of the rows; at v = 256 some 110 with what addresses take

That is what threads do by themselves (`ByThreads`); Apple's GPUs multiply matrices (`metal_flash`), and the rest is the
same.

64 rows are what 16 × 16 threads can hold in sums at v = 256 without spilling. A row's bits do not depend on the tile
that it is in: tiles of keys lie at fixed positions, and one that the row does not see multiplies by 1 and adds 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from tvm.script import tirx as T

from relax_model.kernels.attention.gpu_cache import GpuTokens
from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.gpu_products import MANY_THREADS, SIDE
from relax_model.kernels.gpu_tiles import GROUP

ROWS = SIDE  # of a tile
KEYS = SIDE
GRID = 16  # threads beside each other
EACH = SIDE // GRID  # rows of a thread, and keys
_STAGE = 2048  # floats that values may take in shared memory
_LOWEST = -3.0e38


class Core(Protocol):
    """How a device multiplies. In shared memory `tile` has 32 columns of queries and, behind them, of keys, each in
    rows of `stride`, or weights in rows of `weight_stride`; `stage` has values in rows of `value_stride`. A thread has
    `scores` and `sums` values of memory `scope`."""

    stride: int
    weight_stride: int
    value_stride: int
    scope: str
    scores: int  # 0 where they are the thread's own
    sums: int
    factors: int  # values of shared memory for `rescale`; 0 where nothing is to be done but what `note` does

    clear: Callable[..., Any]  # clear(t, factor, out)
    clear_scores: Callable[..., Any]  # clear_scores(product)
    multiply_keys: Callable[..., Any]  # multiply_keys(t, tile, product): adds the products of 32 columns
    take_scores: Callable[..., Any]  # take_scores(t, product, tile, score): the thread's EACH × EACH, by way of `tile`
    note: Callable[..., Any]  # note(t, a, value, factor, out): sums of row a of the thread's are to be multiplied so
    rescale: Callable[..., Any]  # rescale(t, factor, out): it is done at last, where all have noted
    multiply_values: Callable[..., Any]  # multiply_values(t, first, tile, stage, out): of the weights from `first` on
    results: Callable[..., Any]  # results(t, tile, total, out, store): by way of `tile`


def staged_keys(v: int) -> int:
    """Keys whose values are in shared memory at once."""
    span = -(-v // GRID) * GRID
    return next(keys for keys in (64, 32, 16, 8, 4, 2, 1) if keys * span <= _STAGE)


class Flash:
    """A block of `threads` threads, which takes `keys` positions at a time.

    Statement `attend(t, reach, h, last, sequence, query, place, store, PageTable, Wide, Cache)`: `reach` is how many
    tiles of positions there are, from position 0 on, `last` the last position that is read, and place(r) the position
    of the tile's row r. query(r, c) is column c of row r as float32, with the softmax's factor for powers of two; rows
    past the tile's last one are asked for too, and have to give something finite. Keys and values are head h's of
    `Wide`, and the keys' rotated part the cache's. store(r, c, mean) takes the results, all at once.
    """

    threads, keys = MANY_THREADS, KEYS

    def __init__(self, shape: AttentionShape, core: Core) -> None:
        width, v, nope, rank, page = shape.query_width, shape.v, shape.nope, shape.kv_lora_rank, shape.page_size
        tokens = GpuTokens(shape)
        span, staged, stride = -(-v // GRID) * GRID, staged_keys(v), core.stride
        by_thread = -(-staged * span // MANY_THREADS)
        each, rows_at_once = SIDE * GROUP // MANY_THREADS, MANY_THREADS // GROUP
        chunks, whole = -(-width // GROUP), width % GROUP == 0

        def key(Wide, Cache, PageTable, sequence, place, k):
            """Channel k of the key of a (head of `Wide`, position)."""
            h, at = place
            shared = tokens.value(Cache, (PageTable[sequence, at // page], at % page), rank + k - nope)
            return T.if_then_else(k < nope, T.Cast("float32", Wide[h, at, k]), shared)

        @T.inline
        def scores(t, first, query, key, tile, product):
            core.clear_scores(product)
            for c in T.serial(chunks):
                column = T.meta_var(c * GROUP + t % GROUP)
                T.evaluate(T.tvm_storage_sync("shared"))  # others may still read weights, or the columns before
                for w in T.serial(each):
                    row = T.meta_var(w * rows_at_once + t // GROUP)
                    tile[row * stride + t % GROUP] = (
                        query(row, column)
                        if whole
                        else T.if_then_else(column < width, query(row, column), T.float32(0))
                    )
                    tile[(SIDE + row) * stride + t % GROUP] = (
                        key(first + row, column)
                        if whole
                        else T.if_then_else(column < width, key(first + row, column), T.float32(0))
                    )
                T.evaluate(T.tvm_storage_sync("shared"))
                core.multiply_keys(t, tile, product)

        @T.inline
        def weigh(t, first, position, tile, stage, score, largest, total, factor, out):
            """Scores → weights in `tile`; the rows' largest score, sums of weights and `out` follow."""
            rescale = T.alloc_buffer((2,), "float32", scope="local")  # the new largest score, and the factor
            for a in T.unroll(EACH):
                rescale[0] = T.float32(_LOWEST)
                for b in T.unroll(EACH):
                    score[a * EACH + b] = T.if_then_else(
                        first + b * GRID + t % GRID <= position[a], score[a * EACH + b], T.float32(_LOWEST)
                    )
                    rescale[0] = T.max(rescale[0], score[a * EACH + b])
                stage[(t // GRID * EACH + a) * (GRID + 1) + t % GRID] = rescale[0]
            T.evaluate(T.tvm_storage_sync("shared"))
            for a in T.unroll(EACH):
                rescale[0] = largest[a]
                for i in T.serial(GRID):
                    rescale[0] = T.max(rescale[0], stage[(t // GRID * EACH + a) * (GRID + 1) + i])
                rescale[1] = T.exp2(largest[a] - rescale[0])
                largest[a] = rescale[0]
                total[a] = total[a] * rescale[1]
                core.note(t, a, rescale[1], factor, out)
                for b in T.unroll(EACH):
                    score[a * EACH + b] = T.exp2(score[a * EACH + b] - largest[a])
                    # A thread sums its own keys' weights; the others' are added at the end.
                    total[a] = total[a] + score[a * EACH + b]
                    tile[(t // GRID * EACH + a) * core.weight_stride + b * GRID + t % GRID] = score[a * EACH + b]

        @T.inline
        def rescale_once(t, s, factor, out):
            if s == 0:
                core.rescale(t, factor, out)

        @T.inline
        def add(t, first, value, tile, stage, factor, out):
            for s in T.serial(KEYS // staged):
                T.evaluate(T.tvm_storage_sync("shared"))
                for w in T.unroll(by_thread):
                    place = T.meta_var(w * MANY_THREADS + t)
                    at = T.meta_var(place // span * core.value_stride + place % span)
                    if staged * span % MANY_THREADS == 0:
                        stage[at] = value(first + s * staged + place // span, T.min(place % span, v - 1))
                    else:
                        if place < staged * span:
                            stage[at] = value(first + s * staged + place // span, T.min(place % span, v - 1))
                T.evaluate(T.tvm_storage_sync("shared"))
                if core.factors > 0:
                    rescale_once(t, s, factor, out)
                core.multiply_values(t, s * staged, tile, stage, out)

        @T.inline
        def attend(t, reach, h, last, sequence, query, place, store, PageTable, Wide, Cache):
            tile = T.alloc_buffer((2 * SIDE * stride,), "float32", scope="shared")
            stage = T.alloc_buffer((max(staged * core.value_stride, SIDE * (GRID + 1)),), "float32", scope="shared")
            factor = (
                T.alloc_buffer((core.factors,), "float32", scope="shared") if core.factors > 0 else T.meta_var(stage)
            )
            score = T.alloc_buffer((EACH * EACH,), "float32", scope="local")
            product = (
                T.alloc_buffer((core.scores,), "float32", scope=core.scope) if core.scores > 0 else T.meta_var(score)
            )
            out = T.alloc_buffer((core.sums,), "float32", scope=core.scope)
            largest = T.alloc_buffer((EACH,), "float32", scope="local")
            total = T.alloc_buffer((EACH,), "float32", scope="local")
            position = T.alloc_buffer((EACH,), "int32", scope="local")
            for a in T.unroll(EACH):
                largest[a] = T.float32(_LOWEST)
                total[a] = T.float32(0)
                position[a] = place(t // GRID * EACH + a)
            core.clear(t, factor, out)
            for b in T.serial(reach):
                scores(
                    t,
                    b * KEYS,
                    query,
                    lambda j, k: key(Wide, Cache, PageTable, sequence, (h, T.min(j, last)), k),
                    tile,
                    product,
                )
                if core.scores > 0:
                    core.take_scores(t, product, tile, score)
                weigh(t, b * KEYS, position, tile, stage, score, largest, total, factor, out)
                add(
                    t,
                    b * KEYS,
                    lambda j, k: T.Cast("float32", Wide[h, T.min(j, last), nope + k]),
                    tile,
                    stage,
                    factor,
                    out,
                )
            T.evaluate(T.tvm_storage_sync("shared"))
            for a in T.unroll(EACH):
                stage[(t // GRID * EACH + a) * (GRID + 1) + t % GRID] = total[a]
            T.evaluate(T.tvm_storage_sync("shared"))
            for a in T.unroll(EACH):
                total[a] = T.float32(0)
                for i in T.serial(GRID):
                    total[a] = total[a] + stage[(t // GRID * EACH + a) * (GRID + 1) + i]
            core.results(t, tile, total, out, store)

        self.attend = attend


class ByThreads:
    """`Core` of threads that multiply by themselves, for any shape."""

    stride, weight_stride, scope, scores, factors = GROUP + 1, SIDE + 1, "local", 0, 0

    def __init__(self, shape: AttentionShape) -> None:
        columns = -(-shape.v // GRID)  # of a thread
        stride, weight_stride, staged = self.stride, self.weight_stride, staged_keys(shape.v)
        self.value_stride = span = columns * GRID
        self.sums = EACH * columns

        @T.inline
        def clear(t, factor, out):
            for i in T.unroll(EACH * columns):
                out[i] = T.float32(0)

        @T.inline
        def clear_scores(score):
            for i in T.unroll(EACH * EACH):
                score[i] = T.float32(0)

        @T.inline
        def multiply_keys(t, tile, score):
            for k in T.serial(GROUP):
                for a in T.unroll(EACH):
                    for b in T.unroll(EACH):
                        score[a * EACH + b] = (
                            score[a * EACH + b]
                            + tile[(t // GRID * EACH + a) * stride + k]
                            * tile[(SIDE + b * GRID + t % GRID) * stride + k]
                        )

        @T.inline
        def note(t, a, value, factor, out):
            for u in T.unroll(columns):
                out[a * columns + u] = out[a * columns + u] * value

        @T.inline
        def multiply_values(t, first, tile, stage, out):
            for j in T.serial(staged):
                for a in T.unroll(EACH):
                    for u in T.unroll(columns):
                        out[a * columns + u] = (
                            out[a * columns + u]
                            + tile[(t // GRID * EACH + a) * weight_stride + first + j]
                            * stage[j * span + u * GRID + t % GRID]
                        )

        @T.inline
        def results(t, tile, total, out, store):
            for a in T.unroll(EACH):
                for u in T.unroll(columns):
                    store(t // GRID * EACH + a, u * GRID + t % GRID, out[a * columns + u] / total[a])

        self.clear, self.clear_scores, self.multiply_keys, self.note = clear, clear_scores, multiply_keys, note
        self.multiply_values, self.results = multiply_values, results
