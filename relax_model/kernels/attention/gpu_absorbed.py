"""Attention in its absorbed form for GPUs, and `kv_b_proj` behind it.

    a part: a row's heads, `tile.heads` of them, over `tile.split` keys at fixed absolute positions

    key (keys, latent_width)    read from the pages once for all heads of a part, in shared memory
    score (heads, keys)         a thread a (head, key) or a slice of its columns    → running softmax
    o (heads, kv_lora_rank)    += weights · key[:, :kv_lora_rank], in registers: a thread some columns of all heads

Up to `tile.few` rows, parts of a row run side by side and are merged in the order of their keys (as in flash decoding,
arXiv:2311.01282) by the blocks that multiply with W_UV; of more rows, each is one part. Within each of the two a row's
bits depend on neither the other rows nor on how many parts there are beside its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.attention import cuda_absorbed, metal_absorbed
from relax_model.kernels.attention.gpu_cache import RUN, GpuTokens
from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.cpu_tiles import scale_names, stored, without
from relax_model.kernels.gpu_products import few_rows
from relax_model.kernels.gpu_tiles import GROUP, UNROLL, GpuTile, Matrix, Rows
from relax_model.kernels.registry import kernel
from relax_model.layout import Layout

_LOWEST = -3.0e38
_MOST_THREADS = 256
_AT_ONCE = 8  # parts of which a thread asks for a sum
_PASSES = 8  # outputs of W_UV that a block makes, in blocks of a product: each merges the parts again


class ByHand:
    """Statements of a block of `threads` threads, for `heads` heads of a row; sums are in memory `scope`.

    attend(i, g, t, first, limit, …, state, factor, out)    `limit` keys from position `first` on, for the heads of
                                                            group g: the thread's `sums` sums, and its own head's
                                                            largest score and sum of weights in `state`
    each_head(t, put)                                       put(head), by a thread with that head's state
    each_sum(t, out, put)                                   put(head, column, sum) of all that the thread has
    """

    scope = "local"

    def __init__(self, shape: AttentionShape, tile: GpuTile) -> None:
        rank, width, page = shape.kv_lora_rank, shape.latent_width, shape.page_size
        heads, keys = min(tile.heads, shape.heads), tile.keys
        # A thread sums two columns of its heads' latents, in registers, where it can.
        threads = min(_MOST_THREADS, max(tile.threads, 1 << (rank // 2 - 1).bit_length()))
        columns = -(-rank // threads)
        self.threads, self.heads, self.sums = threads, heads, heads * columns
        assert heads <= threads, "a head's softmax is a thread's"
        # An odd stride, so that the threads of several keys read different banks.
        runs, stride = width // RUN, width | 1
        # Of a score, where there are more threads than scores.
        slices = next(n for n in range(max(1, threads // (heads * keys)), 0, -1) if runs % n == 0)
        tokens = GpuTokens(shape)
        load_steps = tokens.step_loader(keys, threads)
        groups, run_of = tokens.groups, T.vectorized if tokens.aligned else T.unroll

        @T.inline
        def attend(i, g, t, first, limit, Q, Positions, Sequences, PageTable, Cache, state, factor, out):
            key = T.alloc_buffer((keys * stride,), "float32", scope="shared")
            score = T.alloc_buffer((slices * heads * keys,), "float32", scope="shared")
            weight = T.alloc_buffer((heads * keys,), "float32", scope="shared")
            total = T.alloc_buffer((keys,), "float32", scope="local")
            run = T.alloc_buffer((RUN,), "float32", scope="local")
            step = T.alloc_buffer((keys * groups,), "float32", scope="shared") if tokens.in_codes else T.meta_var(key)
            dot = T.alloc_buffer((1,), "float32", scope="local")
            for h in T.unroll(heads * columns):
                out[h] = T.float32(0)
            state[0] = T.float32(_LOWEST)
            state[1] = T.float32(0)
            for b in T.serial((limit + keys - 1) // keys):
                if tokens.in_codes:
                    load_steps(t, i, first + b * keys, Positions, Sequences, PageTable, Cache, step)
                    T.evaluate(T.tvm_storage_sync("shared"))
                for w in T.serial(-(-keys * runs // threads)):
                    if w * threads + t < keys * runs:
                        at = T.meta_var(T.min(first + b * keys + (w * threads + t) // runs, Positions[i]))
                        place = T.meta_var(tokens.place((w * threads + t) % runs * RUN))
                        for v in run_of(RUN):
                            run[v] = T.Cast("float32", Cache[PageTable[Sequences[i], at // page], at % page, place + v])
                        if tokens.in_codes:
                            for v in T.unroll(RUN):
                                run[v] = run[v] * step[(w * threads + t) // runs * groups + place // GROUP]
                        for v in T.unroll(RUN):
                            key[(w * threads + t) // runs * stride + (w * threads + t) % runs * RUN + v] = run[v]
                T.evaluate(T.tvm_storage_sync("shared"))
                for w in T.unroll(-(-slices * heads * keys // threads)):
                    if w * threads + t < slices * heads * keys:
                        part = T.meta_var((w * threads + t) // (heads * keys) * (runs // slices))
                        dot[0] = T.float32(0)
                        for c in T.serial(runs // slices):
                            for v in T.vectorized(RUN):
                                run[v] = Q[
                                    i,
                                    T.min(g * heads + (w * threads + t) // keys % heads, shape.heads - 1),
                                    (part + c) * RUN + v,
                                ]
                            for v in T.unroll(RUN):
                                dot[0] = dot[0] + run[v] * key[(w * threads + t) % keys * stride + (part + c) * RUN + v]
                        score[w * threads + t] = dot[0]
                T.evaluate(T.tvm_storage_sync("shared"))
                if t < heads:
                    dot[0] = state[0]
                    for j in T.unroll(keys):
                        total[j] = score[t * keys + j]
                        for p in T.unroll(slices - 1):
                            total[j] = total[j] + score[((p + 1) * heads + t) * keys + j]
                        total[j] = T.if_then_else(first + b * keys + j <= Positions[i], total[j], T.float32(_LOWEST))
                        dot[0] = T.max(dot[0], total[j])
                    factor[t] = T.exp2(state[0] - dot[0])
                    state[1] = state[1] * T.exp2(state[0] - dot[0])
                    state[0] = dot[0]
                    for j in T.unroll(keys):
                        total[j] = T.exp2(total[j] - state[0])
                        weight[t * keys + j] = total[j]
                        state[1] = state[1] + total[j]
                T.evaluate(T.tvm_storage_sync("shared"))
                for u in T.unroll(columns):
                    if u * threads + t < rank:
                        for j in T.unroll(keys):
                            total[j] = key[j * stride + u * threads + t]
                        for h in T.unroll(heads, annotations=UNROLL):
                            dot[0] = out[h * columns + u] * factor[h]
                            for j in T.unroll(keys):
                                dot[0] = dot[0] + weight[h * keys + j] * total[j]
                            out[h * columns + u] = dot[0]
                T.evaluate(T.tvm_storage_sync("shared"))

        @T.inline
        def each_head(t, put):
            if t < heads:
                put(t)

        @T.inline
        def each_sum(t, out, put):
            for h in T.unroll(heads, annotations=UNROLL):
                for u in T.unroll(columns):
                    if u * threads + t < rank:
                        put(h, u * threads + t, out[h * columns + u])

        self.attend, self.each_head, self.each_sum = attend, each_head, each_sum


def _merger(threads: int, rank: int, behind: int) -> Callable[..., Any]:
    """Statement `merge(t, parts, part, latent)`: the weighted mean of a row's parts in the shared buffer `latent`, for
    all of the block's threads to see once they have met. part(s, k) is sum k of part s, and from k = `behind` on its
    largest score and its sum of weights.

    Memory takes long to answer: the threads ask for the parts' scores together, and each for some sums at once.
    """
    columns = -(-rank // threads)

    @T.inline
    def merge(t, parts, part, latent):
        score = T.alloc_buffer((threads,), "float32", scope="shared")
        factor = T.alloc_buffer((threads + _AT_ONCE,), "float32", scope="shared")  # of a part's sums
        weight = T.alloc_buffer((threads,), "float32", scope="shared")
        state = T.alloc_buffer((4,), "float32", scope="local")  # largest score, sum of weights; the new one, a factor
        held = T.alloc_buffer((_AT_ONCE,), "float32", scope="local")
        total = T.alloc_buffer((columns,), "float32", scope="local")
        state[0] = T.float32(_LOWEST)
        state[1] = T.float32(0)
        for u in T.unroll(columns, annotations=UNROLL):
            total[u] = T.float32(0)
        for c in T.serial((parts + threads - 1) // threads):
            count = T.meta_var(T.min(parts - c * threads, threads))
            T.evaluate(T.tvm_storage_sync("shared"))  # others may still read those before
            if t < count:
                score[t] = part(c * threads + t, behind)
                weight[t] = part(c * threads + t, behind + 1)
            T.evaluate(T.tvm_storage_sync("shared"))
            state[2] = state[0]
            for s in T.serial(count):
                state[2] = T.max(state[2], score[s])
            state[3] = T.exp2(state[0] - state[2])
            state[0] = state[2]
            if t < count:
                factor[t] = T.exp2(score[t] - state[0])
            T.evaluate(T.tvm_storage_sync("shared"))
            state[1] = state[1] * state[3]
            for s in T.serial(count):
                state[1] = state[1] + weight[s] * factor[s]
            for u in T.unroll(columns, annotations=UNROLL):
                total[u] = total[u] * state[3]
                column = T.meta_var(T.min(u * threads + t, rank - 1))
                for b in T.serial((count + _AT_ONCE - 1) // _AT_ONCE):
                    for j in T.unroll(_AT_ONCE):
                        held[j] = part(c * threads + T.min(b * _AT_ONCE + j, count - 1), column)
                    for j in T.unroll(_AT_ONCE):
                        total[u] = total[u] + T.if_then_else(
                            b * _AT_ONCE + j < count, held[j] * factor[b * _AT_ONCE + j], T.float32(0)
                        )
        T.evaluate(T.tvm_storage_sync("shared"))  # `latent` may lie where others still read factors
        for u in T.unroll(columns, annotations=UNROLL):
            if u * threads + t < rank:
                latent[u * threads + t] = total[u] / state[1]

    return merge


def _inner(
    shape: AttentionShape, tile: GpuTile
) -> ByHand | cuda_absorbed.TensorCoreAttention | metal_absorbed.SimdGroupAttention:
    if tile.tensor_cores and cuda_absorbed.serves(shape):
        return cuda_absorbed.TensorCoreAttention(shape)
    if tile.simdgroup_matrices and metal_absorbed.serves(shape):
        return metal_absorbed.SimdGroupAttention(shape)
    return ByHand(shape, tile)


@kernel("absorbed_values", "gpu")
def absorbed_values(layout: Layout, shape: AttentionShape, *, tile: GpuTile) -> PrimFunc:
    """Queries over all cached positions up to each row's own, and W_UV of each head.

    Queries float32 (rows, heads, latent_width), kv_b_proj in `layout`, positions and sequences int32 (rows,),
    page_table int32 (sequences, pages of each), cache (pages, page_size, cache_width) → float32 (rows, heads · v).
    """
    inner = _inner(shape, tile)
    attend, each_head, each_sum, threads, heads = (
        inner.attend,
        inner.each_head,
        inner.each_sum,
        inner.threads,
        inner.heads,
    )
    rank, width, page, split = shape.kv_lora_rank, shape.latent_width, shape.page_size, tile.split
    groups = -(-shape.heads // heads)
    few, rows, outputs = tile.few, tile.rows, tile.outputs
    (data_shape, data_dtype), (scale_shape, scale_dtype) = stored(layout, (shape.heads * shape.expanded_width, rank))
    passes = min(_PASSES, -(-shape.v // outputs))
    blocks_few, blocks_many = -(-shape.v // (outputs * passes)), -(-shape.v // outputs)
    one, several = few_rows(tile, rank, 1), few_rows(tile, rank, rows)
    aligned = -(-rank // RUN) * RUN  # where the two numbers of a part stand, behind its sums

    def expansion(head, first, data, scale):
        """Rows of a head's W_UV."""
        return Rows(
            Matrix(layout, rank, data, scale),
            lambda o: head * shape.expanded_width + shape.nope + T.min(first + o, shape.v - 1),
        )

    merge = _merger(tile.threads, rank, aligned)

    @T.prim_func(private=True, s_tir=True)
    def absorbed_values_gpu(
        q: T.handle,
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
        Q = T.match_buffer(q, (m, shape.heads, width), "float32")
        Positions = T.match_buffer(positions, (m,), "int32")
        Sequences = T.match_buffer(sequences, (m,), "int32")
        PageTable = T.match_buffer(page_table, (batch, longest), "int32")
        Cache = T.match_buffer(cache, (pages, page, shape.cache_width), shape.cache_dtype)
        Y = T.match_buffer(y, (m, shape.heads * shape.v), "float32")
        n = T.meta_var(T.Cast("int32", m))
        splits = T.meta_var(T.Cast("int32", (longest * page + split - 1) // split))
        with T.sblock("root"):
            T.reads()
            T.writes()
            # Few rows: of each part and head the weighted sum, the largest score, and the sum of weights; many rows:
            # the weighted means.
            Part = T.alloc_buffer(
                (
                    T.if_then_else(n <= few, n * splits, n),
                    shape.heads,
                    aligned + RUN,
                ),
                "float32",
                scope="global",
            )
            if n <= few:
                for g in T.thread_binding(groups, "blockIdx.x"):
                    for s in T.thread_binding(splits, "blockIdx.y"):
                        for i in T.thread_binding(n, "blockIdx.z"):
                            for t in T.thread_binding(threads, "threadIdx.x"):
                                state = T.alloc_buffer((2,), "float32", scope="local")
                                factor = T.alloc_buffer((heads,), "float32", scope="shared")
                                out = T.alloc_buffer((inner.sums,), "float32", scope=inner.scope)
                                # As many keys as there are up to the row itself; past it, none.
                                limit = T.meta_var(T.max(T.min(Positions[i] + 1 - s * split, split), 0))
                                attend(
                                    i,
                                    g,
                                    t,
                                    s * split,
                                    limit,
                                    Q,
                                    Positions,
                                    Sequences,
                                    PageTable,
                                    Cache,
                                    state,
                                    factor,
                                    out,
                                )

                                @T.inline
                                def put_state(h):
                                    if g * heads + h < shape.heads:
                                        Part[i * splits + s, g * heads + h, aligned] = state[0]
                                        Part[i * splits + s, g * heads + h, aligned + 1] = state[1]

                                @T.inline
                                def put_sum(h, k, value):
                                    if g * heads + h < shape.heads:
                                        Part[i * splits + s, g * heads + h, k] = value

                                if s * split <= Positions[i]:
                                    each_head(t, put_state)
                                    each_sum(t, out, put_sum)
                for b in T.thread_binding(shape.heads * blocks_few, "blockIdx.x"):
                    for i in T.thread_binding(n, "blockIdx.y"):
                        for t in T.thread_binding(tile.threads, "threadIdx.x"):
                            latent = T.alloc_buffer((rank,), "float32", scope="shared")
                            head, parts = T.meta_var(b // blocks_few), T.meta_var(Positions[i] // split + 1)
                            merge(t, parts, lambda s, k: Part[i * splits + s, head, k], latent)
                            T.evaluate(T.tvm_storage_sync("shared"))
                            for p in T.serial(passes):
                                first = T.meta_var((b % blocks_few * passes + p) * outputs)

                                @T.inline
                                def store_one(r, o, sums):
                                    if first + o < shape.v:
                                        Y[i, head * shape.v + first + o] = sums[0]

                                one(t, expansion(head, first, data, scale), lambda r, k: latent[k], None, store_one)
            else:
                # Rows enough to keep the device busy: each walks through its past alone.
                for g in T.thread_binding(groups, "blockIdx.x"):
                    for i in T.thread_binding(n, "blockIdx.y"):
                        for t in T.thread_binding(threads, "threadIdx.x"):
                            state = T.alloc_buffer((2,), "float32", scope="local")
                            factor = T.alloc_buffer((heads,), "float32", scope="shared")
                            out = T.alloc_buffer((inner.sums,), "float32", scope=inner.scope)
                            attend(
                                i,
                                g,
                                t,
                                0,
                                Positions[i] + 1,
                                Q,
                                Positions,
                                Sequences,
                                PageTable,
                                Cache,
                                state,
                                factor,
                                out,
                            )

                            @T.inline
                            def put_factor(h):
                                factor[h] = T.float32(1) / state[1]

                            @T.inline
                            def put_mean(h, k, value):
                                if g * heads + h < shape.heads:
                                    Part[i, g * heads + h, k] = value * factor[h]

                            each_head(t, put_factor)
                            T.evaluate(T.tvm_storage_sync("shared"))
                            each_sum(t, out, put_mean)
                for b in T.thread_binding(shape.heads * blocks_many, "blockIdx.x"):
                    for c in T.thread_binding((n + rows - 1) // rows, "blockIdx.y"):
                        for t in T.thread_binding(tile.threads, "threadIdx.x"):
                            head, first = T.meta_var(b // blocks_many), T.meta_var(b % blocks_many * outputs)

                            @T.inline
                            def store_several(r, o, sums):
                                if T.And(first + o < shape.v, c * rows + r < n):
                                    Y[c * rows + r, head * shape.v + first + o] = sums[0]

                            several(
                                t,
                                expansion(head, first, data, scale),
                                lambda r, k: Part[T.min(c * rows + r, n - 1), head, k],
                                None,
                                store_several,
                            )

    return without(absorbed_values_gpu, *scale_names(layout))
