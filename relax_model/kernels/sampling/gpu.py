"""Choosing tokens on the device, so that of a step's logits only ids reach the host.

a block a chunk   the likeliest token of 4,096
a block a row     the likeliest of all: greedy ends here
                  min_p; top_k, top_p, and the draw: a search each (gpu_search.py)
"""

from __future__ import annotations

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.cpu_tiles import without
from relax_model.kernels.gpu_tiles import GpuTile
from relax_model.kernels.registry import kernel
from relax_model.kernels.sampling.gpu_search import (
    BINS,
    BUCKETS,
    HELD,
    INFINITE,
    MOST_ID_BITS,
    THREADS,
    Buckets,
    Row,
    cut,
    draw,
    key,
    masked,
    no_number,
    rank,
)
from relax_model.sampling import CHUNK, LEAST, MASK_BITS, NUMBER, ROW, TEMPERATURE, TOP_K, TOP_P, WORDS, mask_words

_LOWEST = -(2**63)


@T.inline
def _largest(shared, t):
    """Statement: the largest of int64 shared[0 … THREADS) in shared[0], for all threads to see."""
    T.evaluate(T.tvm_storage_sync("shared"))
    for step in T.unroll(THREADS.bit_length() - 1):
        if t < T.shift_right(T.int32(THREADS // 2), step):
            shared[t] = T.max(shared[t], shared[t + T.shift_right(T.int32(THREADS // 2), step)])
        T.evaluate(T.tvm_storage_sync("shared"))


@kernel("sample", "gpu")
def sample(vocabulary: int, has_mask: bool = False, *, tile: GpuTile) -> PrimFunc:
    """logits float32 (wanted, vocabulary), words int32 (sampled, WORDS) and with `has_mask` masks int32 (sampled,
    mask_words(vocabulary)), which `relax_model.sampling` explains, → ids int32 (sampled,), and the rank of each chunk's
    likeliest token, int64 (sampled, chunks).

    An id is −1 where the logits are not finite: one is a NaN or +inf, or all are −inf.

    The order of the filters, and the draw in the order of ids, are those of `mlc_dsv3.runtime.sampler`.
    """
    chunks, id_bits = -(-vocabulary // CHUNK), (vocabulary - 1).bit_length()
    id_mask = (1 << id_bits) - 1
    assert id_bits <= MOST_ID_BITS, vocabulary

    @T.prim_func(private=True, s_tir=True)
    def sample_gpu(logits: T.handle, words: T.handle, masks: T.handle, ids: T.handle, likeliest: T.handle):
        T.func_attr({"tirx.noalias": True})
        m, n = T.int64(), T.int64()
        Logits = T.match_buffer(logits, (m, vocabulary), "float32")
        Words = T.match_buffer(words, (n, WORDS), "int32")
        Masks = T.match_buffer(masks, (n, mask_words(vocabulary)), "int32")
        Ids = T.match_buffer(ids, (n,), "int32")
        Likeliest = T.match_buffer(likeliest, (n, chunks), "int64")
        with T.sblock("root"):
            T.reads()
            T.writes()
            for c in T.thread_binding(chunks, "blockIdx.x"):
                for i in T.thread_binding(n, "blockIdx.y"):
                    for t in T.thread_binding(THREADS, "threadIdx.x"):
                        ranks = T.alloc_buffer((THREADS,), "int64", scope="shared")
                        best = T.alloc_buffer((1,), "int64", scope="local")
                        token = T.alloc_buffer((1,), "int32", scope="local")
                        logit = T.alloc_buffer((1,), "float32", scope="local")
                        best[0] = T.int64(_LOWEST)
                        for e in T.unroll(CHUNK // THREADS, annotations={"pragma_unroll_explicit": False}):
                            # Past the end the last token comes again, which changes nothing.
                            token[0] = T.min(c * CHUNK + e * THREADS + t, vocabulary - 1)
                            logit[0] = Logits[Words[i, ROW], token[0]]
                            if has_mask:
                                logit[0] = masked(logit[0], token[0], Masks[i, token[0] // MASK_BITS])
                            best[0] = T.max(
                                best[0],
                                rank(token[0], T.Select(no_number(logit[0]), INFINITE + 1, key(logit[0])), id_bits),
                            )
                        ranks[t] = best[0]
                        _largest(ranks, t)
                        if t == 0:
                            Likeliest[i, c] = ranks[0]
            for i in T.thread_binding(n, "blockIdx.x"):
                for t in T.thread_binding(THREADS, "threadIdx.x"):
                    ranks = T.alloc_buffer((THREADS,), "int64", scope="shared")
                    bins = T.alloc_buffer((BINS,), "uint32", scope="shared")
                    numbers = T.alloc_buffer((BUCKETS,), "int64", scope="shared")
                    weights = T.alloc_buffer((BUCKETS,), "int64", scope="shared")
                    held = T.alloc_buffer((HELD,), "int32", scope="shared")
                    taken = T.alloc_buffer((1,), "uint32", scope="shared")
                    best = T.alloc_buffer((1,), "int64", scope="local")
                    token = T.alloc_buffer((1,), "int32", scope="local")
                    peak = T.alloc_buffer((1,), "float32", scope="local")
                    temperature = T.alloc_buffer((1,), "float32", scope="local")
                    top = T.alloc_buffer((1,), "int64", scope="local")
                    limit = T.alloc_buffer((1,), "int64", scope="local")
                    number = T.alloc_buffer((1,), "int32", scope="local")
                    best[0] = T.int64(_LOWEST)
                    for e in T.serial(-(-chunks // THREADS)):
                        best[0] = T.max(best[0], Likeliest[i, T.min(e * THREADS + t, chunks - 1)])
                    ranks[t] = best[0]
                    _largest(ranks, t)
                    best[0] = ranks[0]
                    token[0] = id_mask - T.Cast("int32", T.bitwise_and(best[0], T.int64(id_mask)))
                    if T.Or(
                        T.shift_right(best[0], T.int64(id_bits)) >= T.int64(INFINITE),
                        T.shift_right(best[0], T.int64(id_bits)) <= T.int64(-INFINITE),
                    ):
                        token[0] = -1
                    if T.And(Words[i, TEMPERATURE] != 0, token[0] >= 0):
                        row = T.meta_var(
                            Row(
                                vocabulary,
                                id_bits,
                                Logits,
                                Words[i, ROW],
                                (lambda token: Masks[i, token // MASK_BITS]) if has_mask else None,
                                peak,
                                temperature,
                                top,
                                limit,
                                held,
                                number,
                            )
                        )
                        buckets = T.meta_var(Buckets(bins, numbers, weights, taken))
                        peak[0] = Logits[Words[i, ROW], token[0]]
                        temperature[0] = T.reinterpret("float32", Words[i, TEMPERATURE])
                        top[0] = T.bitwise_or(best[0], T.int64(id_mask))
                        number[0] = 0
                        # The last place of a logit that min_p keeps.
                        limit[0] = row.place(
                            id_mask, peak[0] + T.reinterpret("float32", Words[i, LEAST]) * temperature[0]
                        )
                        if Words[i, TOP_K] != 0:
                            cut(t, row, True, Words[i, TOP_K], buckets)
                        if Words[i, TOP_P] != 0:
                            cut(t, row, False, Words[i, TOP_P], buckets)
                        draw(t, row, Words[i, NUMBER], token, buckets)
                    if t == 0:
                        Ids[i] = token[0]

    return sample_gpu if has_mask else without(sample_gpu, "Masks")
