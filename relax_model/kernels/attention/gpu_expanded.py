"""Expanded attention for GPUs: per-head keys and values made from the latents, for a long prefill.

    for as many heads at a time as `tile.scratch` holds, two launches:
    wide (heads, positions, nope + v) = latents · kv_b_projᵀ     a block 64 positions × 64 columns (`gpu_products`)
    o (rows, heads, v)                                           a block a head and 64 rows (`gpu_flash`, on NVIDIA's
                                                                  tensor cores `cuda_flash`)

Keys and values of a position take heads · (nope + v) values, 64 KiB in float16 at DeepSeek-V3's widths: 8 GiB for a
context of 128 Ki tokens, where heads in groups take what they are given, or one head's at least. A group is of whole
heads, so that the running softmax stays within a block. Keys and values are rounded to the cache's dtype, as the
latents are that they come from, or beside codes to float16; the rotated key, which heads share, is read from the cache.

With p positions before a block of B rows, a row sees S = p + (B + 1) / 2 on average. Multiply-adds of a head are

    expanded    (p + B) · (nope + v) · kv_lora_rank + B · S · (nope + rope + v)
    absorbed          B · (nope + v) · kv_lora_rank + B · S · (2 · kv_lora_rank + rope)

so that the expanded form is the cheaper one for

    p < B · (B + 1) / 2 · d / ((nope + v) · kv_lora_rank - B · d),    d = 2 · kv_lora_rank - nope - v

and at every position where B ≥ (nope + v) · kv_lora_rank / d: from 171 rows on at the widths 128, 128 and 512, from 399
on at 192, 256 and 512. Bytes say the same: for a head and a position the expanded form reads B / 64 · (nope + rope + v)
values, and kv_lora_rank / 64 · (nope + v) to make them; the absorbed one B / `tile.heads` · (kv_lora_rank + rope), as
each of its rows walks through the cache alone.
"""

from __future__ import annotations

import numpy as np
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.attention import cuda_flash, metal_flash
from relax_model.kernels.attention.cache import rounded_to
from relax_model.kernels.attention.gpu_cache import GpuTokens
from relax_model.kernels.attention.gpu_flash import ROWS, ByThreads, Flash
from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.cpu_tiles import scale_names, stored, without
from relax_model.kernels.gpu_products import MANY_THREADS, SIDE, column_chunks, many_rows
from relax_model.kernels.gpu_tiles import GpuTile, Matrix, Rows
from relax_model.kernels.registry import kernel
from relax_model.kernels.rope.cpu import rotated
from relax_model.layout import Layout


def _flash(shape: AttentionShape, tile: GpuTile) -> Flash | cuda_flash.TensorCoreFlash:
    if tile.tensor_cores and cuda_flash.serves(shape):
        return cuda_flash.TensorCoreFlash(shape)
    by_matrices = tile.simdgroup_matrices and metal_flash.serves(shape)
    return Flash(shape, metal_flash.SimdGroups(shape) if by_matrices else ByThreads(shape))


@kernel("expanded_attention", "gpu")
def expanded_attention(layout: Layout, shape: AttentionShape, block: int, *, tile: GpuTile) -> PrimFunc:
    """Rows at consecutive positions of one sequence, at most `block` of them, over all cached positions up to each.

    q float32 (rows, heads · (nope + rope)), rotary table (rows, rope), kv_b_proj in `layout`, positions and sequences
    int32 (rows,), page_table int32 (sequences, pages of each), cache (pages, page_size, cache_width) → float32 (rows,
    heads · v).
    """
    tokens = GpuTokens(shape)
    wide = "float16" if tokens.in_codes else shape.cache_dtype
    rank, heads, page, nope = shape.kv_lora_rank, shape.heads, shape.page_size, shape.nope
    width, half = shape.expanded_width, shape.rope // 2
    (data_shape, data_dtype), (scale_shape, scale_dtype) = stored(layout, (heads * width, rank))
    # Positions of one head that the scratch holds.
    room = tile.scratch // (width * np.dtype(wide).itemsize)
    multiply = many_rows(tile, rank, in_runs=not tokens.in_codes, in_halves=wide == "float16")
    flash = _flash(shape, tile)
    attend = flash.attend

    def query_at(Q, Table, row, head, k):
        """Channel k of a head's query, rotated behind `nope`, with the softmax's factor."""
        start = head * shape.query_width
        pair = (k - nope) % half
        turned = rotated(lambda e: Q[row, start + nope + e], Table, row, pair, shape.rope, shape.interleaved)
        channel = T.if_then_else(k < nope, Q[row, start + k], T.if_then_else(k - nope < half, *turned))
        return channel * T.float32(shape.score_factor)

    @T.prim_func(private=True, s_tir=True)
    def expanded_attention_gpu(
        q: T.handle,
        table: T.handle,
        data: T.Buffer(data_shape, data_dtype),
        scale: T.Buffer(scale_shape, scale_dtype),
        positions: T.handle,
        sequences: T.handle,
        page_table: T.handle,
        cache: T.handle,
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m, pages, batch, longest = T.int64(), T.int64(), T.int64(), T.int64()
        Q = T.match_buffer(q, (m, heads * shape.query_width), "float32")
        Table = T.match_buffer(table, (m, shape.rope), "float32")
        Positions = T.match_buffer(positions, (m,), "int32")
        Sequences = T.match_buffer(sequences, (m,), "int32")
        PageTable = T.match_buffer(page_table, (batch, longest), "int32")
        Cache = T.match_buffer(cache, (pages, page, shape.cache_width), shape.cache_dtype)
        Y = T.match_buffer(y, (m, heads * shape.v), "float32")
        n = T.meta_var(T.Cast("int32", m))
        # The host knows how many pages there are, but not the last position: blocks past it do nothing.
        reserved = T.meta_var(T.Cast("int32", longest) * page)
        groups = T.meta_var(T.ceildiv(heads, T.max(room // reserved, 1)))
        together = T.meta_var(T.ceildiv(heads, groups))
        tiles = T.meta_var(T.ceildiv(n, ROWS))
        with T.sblock("root"):
            T.reads()
            T.writes()
            Wide = T.alloc_buffer((together, reserved, width), wide, scope="global")
            Slots = T.decl_buffer((pages * page, shape.cache_width), shape.cache_dtype, data=Cache.data)
            for g in T.serial(groups):
                for b in T.thread_binding(T.ceildiv(together * width, SIDE), "blockIdx.x"):
                    for c in T.thread_binding(T.ceildiv(reserved, SIDE), "blockIdx.y"):
                        for t in T.thread_binding(MANY_THREADS, "threadIdx.x"):
                            slot = T.alloc_buffer((SIDE,), "int32", scope="shared")
                            last, first = T.meta_var(Positions[n - 1]), T.meta_var(g * together * width + b * SIDE)
                            if t < SIDE:
                                slot[t] = (
                                    PageTable[Sequences[0], T.min(c * SIDE + t, last) // page] * page
                                    + T.min(c * SIDE + t, last) % page
                                )

                            @T.inline
                            def store(r, o, sums):
                                if T.And(c * SIDE + r <= last, b * SIDE + o < together * width):
                                    Wide[(b * SIDE + o) // width, c * SIDE + r, (b * SIDE + o) % width] = rounded_to(
                                        wide, sums[0]
                                    )

                            there = T.meta_var(T.And(c * SIDE <= last, first < heads * width))
                            multiply(
                                t,
                                T.if_then_else(there, column_chunks(rank), 0),
                                Rows(Matrix(layout, rank, data, scale), lambda o: T.min(first + o, heads * width - 1)),
                                lambda r, k: tokens.value(Slots, (slot[r],), k),
                                None,
                                store,
                            )
                for b in T.thread_binding(tiles, "blockIdx.x"):
                    for h in T.thread_binding(together, "blockIdx.y"):
                        for t in T.thread_binding(flash.threads, "threadIdx.x"):
                            # The tiles that see most begin first.
                            c, head = T.meta_var(tiles - 1 - b), T.meta_var(g * together + h)
                            last = T.meta_var(Positions[T.min(c * ROWS + ROWS - 1, n - 1)])

                            @T.inline
                            def put(r, k, mean):
                                if T.And(T.And(c * ROWS + r < n, k < shape.v), head < heads):
                                    Y[c * ROWS + r, head * shape.v + k] = mean

                            attend(
                                t,
                                T.if_then_else(head < heads, last // flash.keys + 1, 0),
                                h,
                                last,
                                Sequences[0],
                                lambda r, k: query_at(Q, Table, T.min(c * ROWS + r, n - 1), head, k),
                                lambda r: Positions[T.min(c * ROWS + r, n - 1)],
                                put,
                                PageTable,
                                Wide,
                                Cache,
                            )

    return without(expanded_attention_gpu, *scale_names(layout))
