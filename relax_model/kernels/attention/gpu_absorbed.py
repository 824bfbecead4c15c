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

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.attention import cuda_absorbed
from relax_model.kernels.attention.gpu_cache import RUN, GpuTokens
from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.cpu_tiles import scale_names, stored, without
from relax_model.kernels.gpu_products import few_rows
from relax_model.kernels.gpu_tiles import GROUP, UNROLL, GpuTile, Matrix, Rows
from relax_model.kernels.registry import kernel
from relax_model.layout import Layout

_LOWEST = -3.0e38
_MOST_THREADS = 256
_PASSES = 8  # outputs of W_UV that a block makes, in blocks of a product: each merges the parts again


class ByHand:
    """Statements of a block of `threads` threads, for `heads` heads of a row.

    attend(i, g, t, first, limit, …, state, factor, out)    `limit` keys from position `first` on, for the heads of
                                                            group g: the thread's `sums` sums, and its own head's
                                                            largest score and sum of weights in `state`
    each_head(t, put)                                       put(head), by a thread with that head's state
    each_sum(t, out, put)                                   put(head, column, sum) of all that the thread has
    """

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


@kernel("absorbed_values", "gpu")
def absorbed_values(layout: Layout, shape: AttentionShape, *, tile: GpuTile) -> PrimFunc:
    """Queries over all cached positions up to each row's own, and W_UV of each head.

    Queries float32 (rows, heads, latent_width), kv_b_proj in `layout`, positions and sequences int32 (rows,),
    page_table int32 (sequences, pages of each), cache (pages, page_size, cache_width) → float32 (rows, heads · v).
    """
    on_tensor_cores = tile.tensor_cores and cuda_absorbed.serves(shape)
    inner = cuda_absorbed.TensorCoreAttention(shape) if on_tensor_cores else ByHand(shape, tile)
    attend, each_head, each_sum, threads, heads = (
        inner.attend,
        inner.each_head,
        inner.each_sum,
        inner.threads,
        inner.heads,
    )
    rank, width, page, split = shape.kv_lora_rank, shape.latent_width, shape.page_size, tile.split
    groups, merged = -(-shape.heads // heads), -(-rank // tile.threads)
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
                                out = T.alloc_buffer((inner.sums,), "float32", scope="local")
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
                            whole = T.alloc_buffer((3,), "float32", scope="local")  # largest, sum of weights, sum
                            head, parts = T.meta_var(b // blocks_few), T.meta_var(Positions[i] // split + 1)
                            whole[0] = T.float32(_LOWEST)
                            for s in T.serial(parts):
                                whole[0] = T.max(whole[0], Part[i * splits + s, head, aligned])
                            whole[1] = T.float32(0)
                            for s in T.serial(parts):
                                whole[1] = whole[1] + Part[i * splits + s, head, aligned + 1] * T.exp2(
                                    Part[i * splits + s, head, aligned] - whole[0]
                                )
                            for u in T.serial(merged):
                                if u * tile.threads + t < rank:
                                    whole[2] = T.float32(0)
                                    for s in T.serial(parts):
                                        whole[2] = whole[2] + Part[i * splits + s, head, u * tile.threads + t] * T.exp2(
                                            Part[i * splits + s, head, aligned] - whole[0]
                                        )
                                    latent[u * tile.threads + t] = whole[2] / whole[1]
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
                            out = T.alloc_buffer((inner.sums,), "float32", scope="local")
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
