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

64 rows are what 16 × 16 threads can hold in sums at v = 256 without spilling. A row's bits do not depend on the tile
that it is in: tiles of keys lie at fixed positions, and one that the row does not see multiplies by 1 and adds 0.
"""

from __future__ import annotations

from tvm.script import tirx as T

from relax_model.kernels.attention.gpu_cache import GpuTokens
from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.gpu_products import MANY_THREADS, SIDE
from relax_model.kernels.gpu_tiles import GROUP

ROWS = SIDE  # of a tile
KEYS = SIDE
_GRID = 16  # threads beside each other
_EACH = SIDE // _GRID  # rows of a thread, and keys
_STAGE = 2048  # floats that values may take in shared memory
_LOWEST = -3.0e38


class FlashByHand:
    """A block of `threads` threads, which takes `keys` positions at a time.

    Statement `attend(t, reach, h, last, sequence, query, place, store, PageTable, Wide, Cache)`: `reach` is how many
    tiles of positions there are, from position 0 on, `last` the last position that is read, and place(r) the position
    of the tile's row r. query(r, c) is column c of row r as float32, with the softmax's factor for powers of two; rows
    past the tile's last one are asked for too, and have to give something finite. Keys and values are head h's of
    `Wide`, and the keys' rotated part the cache's. store(r, c, mean) takes the results, all at once.
    """

    threads, keys = MANY_THREADS, KEYS

    def __init__(self, shape: AttentionShape) -> None:
        width, v, nope, rank, page = shape.query_width, shape.v, shape.nope, shape.kv_lora_rank, shape.page_size
        tokens = GpuTokens(shape)
        columns = -(-v // _GRID)  # of a thread
        span, pad = columns * _GRID, GROUP + 1
        staged = next(keys for keys in (64, 32, 16, 8, 4, 2, 1) if keys * span <= _STAGE)
        by_thread = -(-staged * span // MANY_THREADS)
        each, rows_at_once = SIDE * GROUP // MANY_THREADS, MANY_THREADS // GROUP
        chunks, whole = -(-width // GROUP), width % GROUP == 0

        def key(Wide, Cache, PageTable, sequence, place, k):
            """Channel k of the key of a (head of `Wide`, position)."""
            h, at = place
            shared = tokens.value(Cache, (PageTable[sequence, at // page], at % page), rank + k - nope)
            return T.if_then_else(k < nope, T.Cast("float32", Wide[h, at, k]), shared)

        @T.inline
        def scores(t, first, query, key, tile, score):
            for i in T.unroll(_EACH * _EACH):
                score[i] = T.float32(0)
            for c in T.serial(chunks):
                column = T.meta_var(c * GROUP + t % GROUP)
                T.evaluate(T.tvm_storage_sync("shared"))  # others may still read weights, or the columns before
                for w in T.serial(each):
                    row = T.meta_var(w * rows_at_once + t // GROUP)
                    tile[row * pad + t % GROUP] = (
                        query(row, column)
                        if whole
                        else T.if_then_else(column < width, query(row, column), T.float32(0))
                    )
                    tile[(SIDE + row) * pad + t % GROUP] = (
                        key(first + row, column)
                        if whole
                        else T.if_then_else(column < width, key(first + row, column), T.float32(0))
                    )
                T.evaluate(T.tvm_storage_sync("shared"))
                for k in T.serial(GROUP):
                    for a in T.unroll(_EACH):
                        for b in T.unroll(_EACH):
                            score[a * _EACH + b] = (
                                score[a * _EACH + b]
                                + tile[(t // _GRID * _EACH + a) * pad + k]
                                * tile[(SIDE + b * _GRID + t % _GRID) * pad + k]
                            )

        @T.inline
        def weigh(t, first, position, tile, stage, score, largest, total, out):
            """Scores → weights in `tile`; the rows' largest score, sums of weights and `out` follow."""
            rescale = T.alloc_buffer((2,), "float32", scope="local")  # the new largest score, and the factor
            for a in T.unroll(_EACH):
                rescale[0] = T.float32(_LOWEST)
                for b in T.unroll(_EACH):
                    score[a * _EACH + b] = T.if_then_else(
                        first + b * _GRID + t % _GRID <= position[a], score[a * _EACH + b], T.float32(_LOWEST)
                    )
                    rescale[0] = T.max(rescale[0], score[a * _EACH + b])
                stage[(t // _GRID * _EACH + a) * (_GRID + 1) + t % _GRID] = rescale[0]
            T.evaluate(T.tvm_storage_sync("shared"))
            for a in T.unroll(_EACH):
                rescale[0] = largest[a]
                for i in T.serial(_GRID):
                    rescale[0] = T.max(rescale[0], stage[(t // _GRID * _EACH + a) * (_GRID + 1) + i])
                rescale[1] = T.exp2(largest[a] - rescale[0])
                largest[a] = rescale[0]
                total[a] = total[a] * rescale[1]
                for u in T.unroll(columns):
                    out[a * columns + u] = out[a * columns + u] * rescale[1]
                for b in T.unroll(_EACH):
                    score[a * _EACH + b] = T.exp2(score[a * _EACH + b] - largest[a])
                    # A thread sums its own keys' weights; the others' are added at the end.
                    total[a] = total[a] + score[a * _EACH + b]
                    tile[(t // _GRID * _EACH + a) * (SIDE + 1) + b * _GRID + t % _GRID] = score[a * _EACH + b]

        @T.inline
        def add(t, first, value, tile, stage, out):
            for s in T.serial(KEYS // staged):
                T.evaluate(T.tvm_storage_sync("shared"))
                for w in T.unroll(by_thread):
                    place = T.meta_var(w * MANY_THREADS + t)
                    if staged * span % MANY_THREADS == 0:
                        stage[place] = value(first + s * staged + place // span, T.min(place % span, v - 1))
                    else:
                        if place < staged * span:
                            stage[place] = value(first + s * staged + place // span, T.min(place % span, v - 1))
                T.evaluate(T.tvm_storage_sync("shared"))
                for j in T.serial(staged):
                    for a in T.unroll(_EACH):
                        for u in T.unroll(columns):
                            out[a * columns + u] = (
                                out[a * columns + u]
                                + tile[(t // _GRID * _EACH + a) * (SIDE + 1) + s * staged + j]
                                * stage[j * span + u * _GRID + t % _GRID]
                            )

        @T.inline
        def attend(t, reach, h, last, sequence, query, place, store, PageTable, Wide, Cache):
            tile = T.alloc_buffer((2 * SIDE * pad,), "float32", scope="shared")
            stage = T.alloc_buffer((max(staged * span, SIDE * (_GRID + 1)),), "float32", scope="shared")
            score = T.alloc_buffer((_EACH * _EACH,), "float32", scope="local")
            out = T.alloc_buffer((_EACH * columns,), "float32", scope="local")
            largest = T.alloc_buffer((_EACH,), "float32", scope="local")
            total = T.alloc_buffer((_EACH,), "float32", scope="local")
            position = T.alloc_buffer((_EACH,), "int32", scope="local")
            for a in T.unroll(_EACH):
                largest[a] = T.float32(_LOWEST)
                total[a] = T.float32(0)
                position[a] = place(t // _GRID * _EACH + a)
                for u in T.unroll(columns):
                    out[a * columns + u] = T.float32(0)
            for b in T.serial(reach):
                scores(
                    t,
                    b * KEYS,
                    query,
                    lambda j, k: key(Wide, Cache, PageTable, sequence, (h, T.min(j, last)), k),
                    tile,
                    score,
                )
                weigh(t, b * KEYS, position, tile, stage, score, largest, total, out)
                add(t, b * KEYS, lambda j, k: T.Cast("float32", Wide[h, T.min(j, last), nope + k]), tile, stage, out)
            T.evaluate(T.tvm_storage_sync("shared"))
            for a in T.unroll(_EACH):
                stage[(t // _GRID * _EACH + a) * (_GRID + 1) + t % _GRID] = total[a]
            T.evaluate(T.tvm_storage_sync("shared"))
            for a in T.unroll(_EACH):
                total[a] = T.float32(0)
                for i in T.serial(_GRID):
                    total[a] = total[a] + stage[(t // _GRID * _EACH + a) * (_GRID + 1) + i]
                for u in T.unroll(columns):
                    store(t // _GRID * _EACH + a, u * _GRID + t % _GRID, out[a * columns + u] / total[a])

        self.attend = attend
