"""The rows' latents into the cache, on GPUs: a launch of its own before the expanded form, beside others absorbed.

a block a row:  Σ latent² → latent / rms · weight │ rotated shared key → the row's slot, in the cache's dtype
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.gpu_tiles import GpuTile, inverse_root
from relax_model.kernels.registry import kernel
from relax_model.kernels.rope.gpu import rotator

Statements = tuple[Callable[..., Any], Callable[..., Any]]


def appender(shape: AttentionShape, eps: float, threads: int) -> Statements:
    """Statements of a block that appends row `own`, where that is below n, with a barrier between the two.

    square(t, own, n, KvA, squares)     each thread's sum of squares of the latent into squares[t], shared memory
    put(t, own, n, KvA, weight, squares, Table, slot, Cache)    what is written into the cache at slot(k), for channel k
    """
    assert shape.cache_dtype != "int8", "there is no cache in codes on GPUs"
    rank, pairs = shape.kv_lora_rank, shape.rope // 2
    rotate = rotator(shape.rope, shape.interleaved, dtype=shape.cache_dtype)

    @T.inline
    def square(t, own, n, KvA, squares):
        total = T.alloc_buffer((1,), "float32", scope="local")
        total[0] = T.float32(0)
        for w in T.serial(-(-rank // threads)):
            if T.And(w * threads + t < rank, own < n):
                total[0] = total[0] + KvA[own, w * threads + t] * KvA[own, w * threads + t]
        squares[t] = total[0]

    @T.inline
    def put(t, own, n, KvA, weight, squares, Table, slot, Cache):
        factor = T.alloc_buffer((1,), "float32", scope="local")
        factor[0] = T.float32(0)
        for s in T.serial(threads):
            factor[0] = factor[0] + squares[s]
        factor[0] = inverse_root(factor[0], rank, eps)
        for w in T.serial(-(-rank // threads)):
            if T.And(w * threads + t < rank, own < n):
                Cache[slot(w * threads + t)] = T.Cast(
                    shape.cache_dtype, KvA[own, w * threads + t] * factor[0] * weight[w * threads + t]
                )
        for w in T.serial(-(-pairs // threads)):
            if T.And(w * threads + t < pairs, own < n):
                rotate(lambda e: KvA[own, rank + e], Table, own, w * threads + t, Cache, lambda e: slot(rank + e))

    return square, put


@kernel("latent_append", "gpu")
def latent_append(shape: AttentionShape, eps: float, *, tile: GpuTile) -> PrimFunc:
    """Normalise the latent, rotate the shared key and write both into each row's slot of the cache, in place.

    kv_a float32 (rows, latent_width), weight (kv_lora_rank,), rotary table (rows, rope), positions and sequences int32
    (rows,), page_table int32 (sequences, pages of each), cache (pages, page_size, cache_width) in a float dtype.
    """
    threads, page = tile.threads, shape.page_size
    square, put = appender(shape, eps, threads)

    @T.prim_func(private=True, s_tir=True)
    def latent_append_gpu(
        kv_a: T.handle,
        weight: T.Buffer((shape.kv_lora_rank,), "float32"),
        table: T.handle,
        positions: T.handle,
        sequences: T.handle,
        page_table: T.handle,
        cache: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m, pages, batch, longest = T.int64(), T.int64(), T.int64(), T.int64()
        KvA = T.match_buffer(kv_a, (m, shape.latent_width), "float32")
        Table = T.match_buffer(table, (m, shape.rope), "float32")
        Positions = T.match_buffer(positions, (m,), "int32")
        Sequences = T.match_buffer(sequences, (m,), "int32")
        PageTable = T.match_buffer(page_table, (batch, longest), "int32")
        Cache = T.match_buffer(cache, (pages, page, shape.cache_width), shape.cache_dtype)
        n = T.meta_var(T.Cast("int32", m))
        with T.sblock("root"):
            T.reads()
            T.writes()
            for i in T.thread_binding(n, "blockIdx.x"):
                for t in T.thread_binding(threads, "threadIdx.x"):
                    squares = T.alloc_buffer((threads,), "float32", scope="shared")
                    square(t, i, n, KvA, squares)
                    T.evaluate(T.tvm_storage_sync("shared"))
                    put(
                        t,
                        i,
                        n,
                        KvA,
                        weight,
                        squares,
                        Table,
                        lambda k: (PageTable[Sequences[i], Positions[i] // page], Positions[i] % page, k),
                        Cache,
                    )

    return latent_append_gpu
