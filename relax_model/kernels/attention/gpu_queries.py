"""Before attention in its absorbed form, on GPUs: wide queries, and the rows' latents in the cache."""

from __future__ import annotations

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.attention.gpu_append import appender
from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.cpu_tiles import scale_names, stored, without
from relax_model.kernels.gpu_tiles import GpuTile, Matrix
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
    pages of each), cache (pages, page_size, cache_width) in a float dtype → float32 (rows, heads, latent_width).
    """
    rank, heads, threads, rows, page = shape.kv_lora_rank, shape.heads, tile.threads, tile.rows, shape.page_size
    (data_shape, data_dtype), (scale_shape, scale_dtype) = stored(layout, (heads * shape.expanded_width, rank))
    blocks, pairs = -(-rank // threads), shape.rope // 2
    rotate_query = rotator(shape.rope, shape.interleaved, shape.score_factor)
    square, put = appender(shape, eps, threads)

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
            for b in T.thread_binding(heads * blocks + rows, "blockIdx.x"):
                for c in T.thread_binding((n + rows - 1) // rows, "blockIdx.y"):
                    for t in T.thread_binding(threads, "threadIdx.x"):
                        query = T.alloc_buffer((rows * shape.nope,), "float32", scope="shared")
                        squares = T.alloc_buffer((threads,), "float32", scope="shared")
                        total = T.alloc_buffer((rows,), "float32", scope="local")
                        factor = T.alloc_buffer((1,), "float32", scope="local")
                        own = T.meta_var(c * rows + b - heads * blocks)  # the row that a block appends
                        if b < heads * blocks:
                            for w in T.serial(-(-rows * shape.nope // threads)):
                                if w * threads + t < rows * shape.nope:
                                    query[w * threads + t] = Q[
                                        T.min(c * rows + (w * threads + t) // shape.nope, n - 1),
                                        b // blocks * shape.query_width + (w * threads + t) % shape.nope,
                                    ]
                        else:
                            square(t, own, n, KvA, squares)
                        T.evaluate(T.tvm_storage_sync("shared"))
                        if b < heads * blocks:
                            if b % blocks * threads + t < rank:
                                for r in T.unroll(rows):
                                    total[r] = T.float32(0)
                                for d in T.serial(shape.nope):
                                    factor[0] = Matrix(layout, rank, data, scale).value(
                                        b // blocks * shape.expanded_width + d, b % blocks * threads + t
                                    )
                                    for r in T.unroll(rows):
                                        total[r] = total[r] + query[r * shape.nope + d] * factor[0]
                                for r in T.unroll(rows):
                                    if c * rows + r < n:
                                        Y[c * rows + r, b // blocks, b % blocks * threads + t] = total[r] * T.float32(
                                            shape.score_factor
                                        )
                            if b % blocks == 0:
                                for w in T.serial(-(-rows * pairs // threads)):
                                    if T.And(w * threads + t < rows * pairs, c * rows + (w * threads + t) // pairs < n):
                                        rotate_query(
                                            lambda e: Q[
                                                c * rows + (w * threads + t) // pairs,
                                                b // blocks * shape.query_width + shape.nope + e,
                                            ],
                                            Table,
                                            c * rows + (w * threads + t) // pairs,
                                            (w * threads + t) % pairs,
                                            Y,
                                            lambda e: (c * rows + (w * threads + t) // pairs, b // blocks, rank + e),
                                        )
                        else:
                            put(
                                t,
                                own,
                                n,
                                KvA,
                                weight,
                                squares,
                                Table,
                                lambda k: (PageTable[Sequences[own], Positions[own] // page], Positions[own] % page, k),
                                Cache,
                            )

    return without(absorb_append_gpu, *scale_names(layout))
