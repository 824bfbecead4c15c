"""The rows' latents into the cache, on GPUs: a launch of its own before the expanded form, beside others absorbed.

a block a row:  Σ latent² → latent / rms · weight │ rotated shared key → the row's slot, as the cache's floats
                                                                       → shared memory → the groups' largest → codes
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.attention.cache import rounded_to, scale_bits, scale_of
from relax_model.kernels.attention.gpu_cache import GpuTokens
from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.gpu_tiles import GROUP, GpuTile, inverse_root
from relax_model.kernels.registry import kernel
from relax_model.kernels.rope.gpu import rotator


class Appender:
    """Statements of a block that appends row `own`, where that is below n, with a barrier between any two.

    square(t, own, n, KvA, squares, values)                 each thread's sum of squares of the latent
    put(t, own, n, KvA, weight, squares, Table, at, Cache, values)
                                                            the values: into the cache at the row's (page, slot), or
                                                            where it is `in_codes` into `values`
    compare(t, values, largest)                             and then the largest of each group of them
    encode(t, own, n, at, Cache, values, largest)           and the codes and scales, into the cache

    squares float32 (threads,), and in codes values (Appender.codes,) and largest (Appender.groups,) are shared memory.
    """

    def __init__(self, shape: AttentionShape, eps: float, threads: int, warp: int) -> None:
        """Threads of a warp pass sums among themselves, where it is known that they are `warp`."""
        rank, pairs = shape.kv_lora_rank, shape.rope // 2
        tokens = GpuTokens(shape)
        groups, codes = tokens.groups, tokens.groups * GROUP
        self.in_codes, self.groups, self.codes = tokens.in_codes, groups, codes
        each = -(-codes // threads)

        @T.inline
        def square(t, own, n, KvA, squares, values):
            total = T.alloc_buffer((1,), "float32", scope="local")
            total[0] = T.float32(0)
            for w in T.serial(-(-rank // threads)):
                if T.And(w * threads + t < rank, own < n):
                    total[0] = total[0] + KvA[own, w * threads + t] * KvA[own, w * threads + t]
            for step in T.unroll(max(warp, 1).bit_length() - 1):
                total[0] = total[0] + T.tvm_warp_shuffle_xor(
                    T.uint32(0xFFFFFFFF), total[0], T.shift_right(T.int32(warp // 2), step), warp, warp
                )
            squares[t] = total[0]
            if tokens.in_codes:
                for w in T.serial(each):
                    if w * threads + t < codes:
                        values[w * threads + t] = T.float32(0)

        def writer(dtype: str) -> Callable[..., Any]:
            rotate = rotator(shape.rope, shape.interleaved, store=lambda value: rounded_to(dtype, value))

            @T.inline
            def write(t, own, n, KvA, weight, squares, Table, out, place):
                """The row, normalised and rotated, into `out` at place(k) for channel k."""
                factor = T.alloc_buffer((1,), "float32", scope="local")
                factor[0] = T.float32(0)
                for s in T.serial(threads // max(warp, 1)):
                    factor[0] = factor[0] + squares[s * max(warp, 1)]
                factor[0] = inverse_root(factor[0], rank, eps)
                for w in T.serial(-(-rank // threads)):
                    if T.And(w * threads + t < rank, own < n):
                        out[place(w * threads + t)] = rounded_to(
                            dtype, KvA[own, w * threads + t] * factor[0] * weight[w * threads + t]
                        )
                for w in T.serial(-(-pairs // threads)):
                    if T.And(w * threads + t < pairs, own < n):
                        rotate(
                            lambda e: KvA[own, rank + e], Table, own, w * threads + t, out, lambda e: place(rank + e)
                        )

            return write

        write_floats, write_values = writer(shape.cache_dtype), writer("float32")

        @T.inline
        def put(t, own, n, KvA, weight, squares, Table, at, Cache, values):
            write_floats(t, own, n, KvA, weight, squares, Table, Cache, lambda k: (*at, k))

        @T.inline
        def gather(t, own, n, KvA, weight, squares, Table, at, Cache, values):
            write_values(t, own, n, KvA, weight, squares, Table, values, tokens.place)

        @T.inline
        def compare(t, values, largest):
            most = T.alloc_buffer((1,), "float32", scope="local")
            for w in T.serial(-(-groups // threads)):
                if w * threads + t < groups:
                    most[0] = T.float32(0)
                    for k in T.serial(GROUP):
                        most[0] = T.max(most[0], T.abs(values[(w * threads + t) * GROUP + k]))
                    largest[w * threads + t] = most[0]

        @T.inline
        def encode(t, own, n, at, Cache, values, largest):
            bits = T.alloc_buffer((1,), "int32", scope="local")
            steps = T.alloc_buffer((1,), "float32", scope="local")  # codes for a value of one
            for w in T.serial(each):
                if T.And(w * threads + t < codes, own < n):
                    group = T.meta_var((w * threads + t) // GROUP)
                    bits[0] = scale_bits(largest[group])
                    if (w * threads + t) % GROUP == 0:
                        for b in T.unroll(2):
                            Cache[(*at, codes + 2 * group + b)] = T.Cast("int8", T.shift_right(bits[0], T.int32(8) * b))
                    steps[0] = T.if_then_else(bits[0] > 0, T.float32(1) / scale_of(bits[0]), T.float32(0))
                    Cache[(*at, w * threads + t)] = T.Cast(
                        "int8", T.Cast("int32", T.floor(values[w * threads + t] * steps[0] + T.float32(0.5)))
                    )

        self.square, self.put = square, gather if tokens.in_codes else put
        self.compare, self.encode = compare, encode


@kernel("latent_append", "gpu")
def latent_append(shape: AttentionShape, eps: float, *, tile: GpuTile) -> PrimFunc:
    """Normalise the latent, rotate the shared key and write both into each row's slot of the cache, in place.

    kv_a float32 (rows, latent_width), weight (kv_lora_rank,), rotary table (rows, rope), positions and sequences int32
    (rows,), page_table int32 (sequences, pages of each), cache (pages, page_size, cache_width).
    """
    threads, page = tile.threads, shape.page_size
    append = Appender(shape, eps, threads, tile.warp)
    square, put, compare, encode = append.square, append.put, append.compare, append.encode

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
                    values = (
                        T.alloc_buffer((append.codes,), "float32", scope="shared")
                        if append.in_codes
                        else T.meta_var(squares)
                    )
                    largest = (
                        T.alloc_buffer((append.groups,), "float32", scope="shared")
                        if append.in_codes
                        else T.meta_var(squares)
                    )
                    at = T.meta_var((PageTable[Sequences[i], Positions[i] // page], Positions[i] % page))
                    square(t, i, n, KvA, squares, values)
                    T.evaluate(T.tvm_storage_sync("shared"))
                    put(t, i, n, KvA, weight, squares, Table, at, Cache, values)
                    if append.in_codes:
                        T.evaluate(T.tvm_storage_sync("shared"))
                        compare(t, values, largest)
                        T.evaluate(T.tvm_storage_sync("shared"))
                        encode(t, i, n, at, Cache, values, largest)

    return latent_append_gpu
