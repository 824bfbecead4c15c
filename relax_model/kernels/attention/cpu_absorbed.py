"""Absorbed attention for CPUs: scores against the latents themselves, causal inside, for any mixture of rows.

    for a row and `tile.heads` heads:            keys, in blocks of `tile.keys` at fixed absolute positions
    q (heads, latent_width)  ·  block (keys, latent_width)ᵀ  → scores → running softmax
    o (heads, kv_lora_rank) += weights (heads, keys)  ·  block (keys, :kv_lora_rank)

The softmax is the online one (Milakov and Gimelshein 2018, arXiv:1805.02867). Blocks start at multiples of `tile.keys`
whatever the row count, so a row's bits do not depend on its neighbours.
"""

from __future__ import annotations

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.cpu_tiles import CpuTile, lane_sum
from relax_model.kernels.registry import kernel

_LOWEST = -3.0e38


@kernel("absorbed_attention", "cpu")
def absorbed_attention(shape: AttentionShape, *, tile: CpuTile) -> PrimFunc:
    """Queries float32 (rows, heads, latent_width) over all cached positions up to each row's own.

    positions and sequences int32 (rows,), page_table int32 (sequences, pages of each), cache (pages, page_size,
    latent_width) → float32 (rows, heads, kv_lora_rank).
    """
    rank, width, page = shape.kv_lora_rank, shape.latent_width, shape.page_size
    lanes, group, keys = tile.lanes, tile.heads, tile.keys
    groups = -(-shape.heads // group)
    width_vectors, width_tail = width // lanes, width % lanes
    # Two vectors at a time keep enough independent sums in flight, where the rank divides so.
    span = 2 if rank % (2 * lanes) == 0 else 1
    rank_steps, rank_tail = rank // (span * lanes), rank % (span * lanes)

    @T.prim_func(private=True, s_tir=True)
    def absorbed_attention_cpu(
        q: T.handle,
        positions: T.handle,
        sequences: T.handle,
        page_table: T.handle,
        cache: T.handle,
        o: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m, pages, batch, longest = T.int64(), T.int64(), T.int64(), T.int64()
        Q = T.match_buffer(q, (m, shape.heads, width), "float32")
        Positions = T.match_buffer(positions, (m,), "int32")
        Sequences = T.match_buffer(sequences, (m,), "int32")
        PageTable = T.match_buffer(page_table, (batch, longest), "int32")
        Cache = T.match_buffer(cache, (pages, page, width), shape.cache_dtype)
        O = T.match_buffer(o, (m, shape.heads, rank), "float32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            for task in T.parallel(m * groups):
                block = T.alloc_buffer((keys, width), "float32", scope="global")
                out = T.alloc_buffer((group, rank), "float32", scope="global")
                score = T.alloc_buffer((group, keys), "float32", scope="global")
                state = T.alloc_buffer((group, 3), "float32", scope="global")  # maximum, sum, correction
                count = T.alloc_buffer((2,), "int32", scope="global")  # keys in all, keys in this block
                for g in T.serial(group):
                    state[g, 0] = T.float32(_LOWEST)
                    state[g, 1] = T.float32(0)
                    for c in T.serial(rank):
                        out[g, c] = T.float32(0)
                count[0] = Positions[task // groups] + 1
                for b in T.serial(T.ceildiv(count[0], keys)):
                    count[1] = T.min(keys, count[0] - b * keys)
                    for j in T.serial(count[1]):
                        for c in T.serial(width):
                            block[j, c] = T.Cast(
                                "float32",
                                Cache[
                                    PageTable[Sequences[task // groups], (b * keys + j) // page],
                                    (b * keys + j) % page,
                                    c,
                                ],
                            )
                    # An odd last key is scored beside a stale one, whose score nobody reads.
                    for jj in T.serial(T.ceildiv(count[1], 2)):
                        acc = T.alloc_buffer((group * 2 * lanes,), "float32", scope="global")
                        for i in T.unroll(group * 2):
                            for v in T.vectorized(lanes):
                                acc[i * lanes + v] = T.float32(0)
                        for k in T.serial(width_vectors):
                            for g in T.unroll(group):
                                for j in T.unroll(2):
                                    for v in T.vectorized(lanes):
                                        acc[(g * 2 + j) * lanes + v] = T.fma(
                                            Q[
                                                task // groups,
                                                T.min(task % groups * group + g, shape.heads - 1),
                                                k * lanes + v,
                                            ],
                                            block[jj * 2 + j, k * lanes + v],
                                            acc[(g * 2 + j) * lanes + v],
                                        )
                        for k in T.serial(width_tail):
                            for g in T.unroll(group):
                                for j in T.unroll(2):
                                    acc[(g * 2 + j) * lanes] = T.fma(
                                        Q[
                                            task // groups,
                                            T.min(task % groups * group + g, shape.heads - 1),
                                            width_vectors * lanes + k,
                                        ],
                                        block[jj * 2 + j, width_vectors * lanes + k],
                                        acc[(g * 2 + j) * lanes],
                                    )
                        for g in T.unroll(group):
                            for j in T.unroll(2):
                                score[g, jj * 2 + j] = lane_sum(acc, (g * 2 + j) * lanes, lanes) * T.float32(
                                    shape.scale
                                )
                    for g in T.serial(group):
                        state[g, 2] = state[g, 0]
                        for j in T.serial(count[1]):
                            state[g, 0] = T.max(state[g, 0], score[g, j])
                        state[g, 2] = T.exp(state[g, 2] - state[g, 0])
                        state[g, 1] = state[g, 1] * state[g, 2]
                        for j in T.serial(count[1]):
                            score[g, j] = T.exp(score[g, j] - state[g, 0])
                            state[g, 1] = state[g, 1] + score[g, j]
                    for c in T.serial(rank_steps):
                        sums = T.alloc_buffer((group * span * lanes,), "float32", scope="global")
                        for g in T.unroll(group):
                            for w in T.unroll(span):
                                for v in T.vectorized(lanes):
                                    sums[(g * span + w) * lanes + v] = out[g, (c * span + w) * lanes + v] * state[g, 2]
                        for j in T.serial(count[1]):
                            for g in T.unroll(group):
                                for w in T.unroll(span):
                                    for v in T.vectorized(lanes):
                                        sums[(g * span + w) * lanes + v] = T.fma(
                                            score[g, j],
                                            block[j, (c * span + w) * lanes + v],
                                            sums[(g * span + w) * lanes + v],
                                        )
                        for g in T.unroll(group):
                            for w in T.unroll(span):
                                for v in T.vectorized(lanes):
                                    out[g, (c * span + w) * lanes + v] = sums[(g * span + w) * lanes + v]
                    for c in T.serial(rank_tail):
                        for g in T.serial(group):
                            out[g, rank - rank_tail + c] = out[g, rank - rank_tail + c] * state[g, 2]
                            for j in T.serial(count[1]):
                                out[g, rank - rank_tail + c] = T.fma(
                                    score[g, j], block[j, rank - rank_tail + c], out[g, rank - rank_tail + c]
                                )
                for g in T.serial(group):
                    if task % groups * group + g < shape.heads:
                        for c in T.serial(rank):
                            O[task // groups, task % groups * group + g, c] = out[g, c] / state[g, 1]

    return absorbed_attention_cpu
