"""Before attention in its absorbed form, on GPUs: wide queries, and the rows' latents in the cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.attention.gpu_append import Appender
from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.cpu_tiles import scale_names, stored, without
from relax_model.kernels.gpu_tiles import UNROLL, WORD, GpuTile, Matrix, fill
from relax_model.kernels.registry import kernel
from relax_model.kernels.rope.gpu import rotator
from relax_model.layout import Layout


@kernel("absorb_append", "gpu")
def absorb_append(layout: Layout, shape: AttentionShape, eps: float, *, tile: GpuTile) -> PrimFunc:
    """Two tasks that do not wait for one another, in one launch.

    Blocks of a head and some of its columns make queries as wide as latents, times `score_factor`: q_nope · W_UK, and
    the rotated q_pe behind it. The blocks behind them normalise a row's latent, rotate its shared key and write both
    into its slot of the cache, in place.

    q float32 (rows, heads · (nope + rope)), kv_b_proj in `layout`, kv_a float32 (rows, latent_width), norm weight
    (kv_lora_rank,), rotary table (rows, rope), positions and sequences int32 (rows,), page_table int32 (sequences,
    pages of each), cache (pages, page_size, cache_width) → float32 (rows, heads, latent_width).
    """
    rank, heads, threads, page = shape.kv_lora_rank, shape.heads, tile.threads, shape.page_size
    (data_shape, data_dtype), (scale_shape, scale_dtype) = stored(layout, (heads * shape.expanded_width, rank))
    blocks, pairs = -(-rank // threads), shape.rope // 2
    # A thread takes eight columns of every eighth row of W_UK.
    words = threads // WORD
    rotate_query = rotator(shape.rope, shape.interleaved, shape.score_factor)
    append = Appender(shape, eps, threads, tile.warp)
    square, put, compare, encode = append.square, append.put, append.compare, append.encode

    def absorber(rows: int) -> Callable[..., Any]:
        """Statement of block b of those of `rows` rows from c · rows on."""

        @T.inline
        def absorb(b, c, t, n, Q, data, scale, KvA, weight, Table, Positions, Sequences, PageTable, Cache, Y):
            query = T.alloc_buffer((rows * shape.nope,), "float32", scope="shared")
            squares = T.alloc_buffer((threads,), "float32", scope="shared")
            gathered = (
                T.alloc_buffer((append.codes,), "float32", scope="shared") if append.in_codes else T.meta_var(squares)
            )
            largest = (
                T.alloc_buffer((append.groups,), "float32", scope="shared") if append.in_codes else T.meta_var(squares)
            )
            part = T.alloc_buffer((WORD * threads,), "float32", scope="shared")
            values = T.alloc_buffer((WORD + 1,), "float32", scope="local")
            total = T.alloc_buffer((rows * WORD,), "float32", scope="local")
            factor = T.alloc_buffer((1,), "float32", scope="local")
            head, column = T.meta_var(b // blocks), T.meta_var(b % blocks * threads)
            own = T.meta_var(c * rows + b - heads * blocks)  # the row that a block appends
            at = T.meta_var((PageTable[Sequences[own], Positions[own] // page], Positions[own] % page))
            for v in T.unroll(rows * WORD):
                total[v] = T.float32(0)
            if b < heads * blocks:
                for w in T.serial(-(-rows * shape.nope // threads)):
                    if w * threads + t < rows * shape.nope:
                        query[w * threads + t] = Q[
                            T.min(c * rows + (w * threads + t) // shape.nope, n - 1),
                            head * shape.query_width + (w * threads + t) % shape.nope,
                        ]
            else:
                square(t, own, n, KvA, squares, gathered)
            T.evaluate(T.tvm_storage_sync("shared"))
            if b < heads * blocks:
                if column + t % words * WORD < rank:
                    for i in T.unroll(-(-shape.nope // WORD), annotations=UNROLL):
                        d = T.meta_var(i * WORD + t // words)
                        if d < shape.nope:
                            fill(
                                values,
                                Matrix(layout, rank, data, scale).run(
                                    head * shape.expanded_width + d, column + t % words * WORD
                                ),
                            )
                            for r in T.unroll(rows):
                                factor[0] = query[r * shape.nope + d] * values[WORD]
                                for v in T.unroll(WORD):
                                    total[r * WORD + v] = total[r * WORD + v] + factor[0] * values[v]
                if b % blocks == 0:
                    for w in T.serial(-(-rows * pairs // threads)):
                        if T.And(w * threads + t < rows * pairs, c * rows + (w * threads + t) // pairs < n):
                            rotate_query(
                                lambda e: Q[
                                    c * rows + (w * threads + t) // pairs, head * shape.query_width + shape.nope + e
                                ],
                                Table,
                                c * rows + (w * threads + t) // pairs,
                                (w * threads + t) % pairs,
                                Y,
                                lambda e: (c * rows + (w * threads + t) // pairs, head, rank + e),
                            )
            else:
                put(t, own, n, KvA, weight, squares, Table, at, Cache, gathered)
            for r in T.unroll(rows):
                T.evaluate(T.tvm_storage_sync("shared"))
                for v in T.unroll(WORD):
                    part[t // words * threads + t % words * WORD + v] = total[r * WORD + v]
                T.evaluate(T.tvm_storage_sync("shared"))
                if T.And(b < heads * blocks, T.And(column + t < rank, c * rows + r < n)):
                    factor[0] = T.float32(0)
                    for v in T.unroll(WORD):
                        factor[0] = factor[0] + part[v * threads + t]
                    Y[c * rows + r, head, column + t] = factor[0] * T.float32(shape.score_factor)
            if append.in_codes:
                T.evaluate(T.tvm_storage_sync("shared"))
                if b >= heads * blocks:
                    compare(t, gathered, largest)
                T.evaluate(T.tvm_storage_sync("shared"))
                if b >= heads * blocks:
                    encode(t, own, n, at, Cache, gathered, largest)

        return absorb

    one, several = absorber(1), absorber(tile.rows)

    @T.prim_func(private=True, s_tir=True)
    def absorb_append_gpu(
        q: T.handle,
        data: T.Buffer(data_shape, data_dtype),
        scale: T.Buffer(scale_shape, scale_dtype),
        kv_a: T.handle,
        weight: T.Buffer((rank,), "float32"),
        table: T.handle,
        positions: T.handle,
        sequences: T.handle,
        page_table: T.handle,
        cache: T.handle,
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m, pages, batch, longest = T.int64(), T.int64(), T.int64(), T.int64()
        Q = T.match_buffer(q, (m, heads * shape.query_width), "float32")
        KvA = T.match_buffer(kv_a, (m, shape.latent_width), "float32")
        Table = T.match_buffer(table, (m, shape.rope), "float32")
        Positions = T.match_buffer(positions, (m,), "int32")
        Sequences = T.match_buffer(sequences, (m,), "int32")
        PageTable = T.match_buffer(page_table, (batch, longest), "int32")
        Cache = T.match_buffer(cache, (pages, page, shape.cache_width), shape.cache_dtype)
        Y = T.match_buffer(y, (m, heads, shape.latent_width), "float32")
        n = T.meta_var(T.Cast("int32", m))

        with T.sblock("root"):
            T.reads()
            T.writes()
            if n == 1:
                for b in T.thread_binding(heads * blocks + 1, "blockIdx.x"):
                    for t in T.thread_binding(threads, "threadIdx.x"):
                        one(b, 0, t, n, Q, data, scale, KvA, weight, Table, Positions, Sequences, PageTable, Cache, Y)
            else:
                for b in T.thread_binding(heads * blocks + tile.rows, "blockIdx.x"):
                    for c in T.thread_binding((n + tile.rows - 1) // tile.rows, "blockIdx.y"):
                        for t in T.thread_binding(threads, "threadIdx.x"):
                            several(
                                b,
                                c,
                                t,
                                n,
                                Q,
                                data,
                                scale,
                                KvA,
                                weight,
                                Table,
                                Positions,
                                Sequences,
                                PageTable,
                                Cache,
                                Y,
                            )

    return without(absorb_append_gpu, *scale_names(layout))
