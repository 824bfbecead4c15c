"""Attention in its absorbed form for GPUs: appending latents, `kv_b_proj` on either side, and the attention itself.

    a part: a row's heads, `tile.heads` of them, over `tile.split` keys at fixed absolute positions

    key (keys, latent_width)    read from the pages once for all heads of a part, in shared memory
    score (heads, keys)         a thread a (head, key)                              → running softmax
    o (heads, kv_lora_rank)    += weights · key[:, :kv_lora_rank], in registers: a thread some columns of all heads

Up to `tile.few` rows, parts of a row run side by side and are merged in the order of their keys (as in flash decoding,
arXiv:2311.01282); of more rows, each is one part. Within each of the two a row's bits depend on neither the other
rows nor on how many parts there are beside its own.
"""

from __future__ import annotations

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.cpu_tiles import scale_names, stored, without
from relax_model.kernels.gpu_tiles import GpuTile, Matrix, few_rows
from relax_model.kernels.norm.gpu import normalizer
from relax_model.kernels.registry import kernel
from relax_model.kernels.rope.gpu import rotator
from relax_model.layout import Layout

_LOWEST = -3.0e38


def query_columns(shape: AttentionShape, tile: GpuTile) -> tuple[int, int]:
    """Shape of a row of absorbed queries."""
    return shape.heads, shape.latent_width


@kernel("latent_append", "gpu")
def latent_append(shape: AttentionShape, eps: float, *, tile: GpuTile) -> PrimFunc:
    """Normalise the latent, rotate the shared key and write both into each row's slot of the cache, in place.

    kv_a float32 (rows, latent_width), weight (kv_lora_rank,), rotary table (rows, rope), positions and sequences int32
    (rows,), page_table int32 (sequences, pages of each), cache (pages, page_size, cache_width) in a float dtype.
    """
    assert shape.cache_dtype != "int8", "there is no cache in codes on GPUs"
    rank, page, pairs, threads = shape.kv_lora_rank, shape.page_size, shape.rope // 2, tile.threads
    normalize, rotate = normalizer(rank, eps, threads), rotator(shape.rope, shape.interleaved)

    @T.prim_func(private=True, s_tir=True)
    def latent_append_gpu(
        kv_a: T.handle,
        weight: T.Buffer((rank,), "float32"),
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
        with T.sblock("root"):
            T.reads()
            T.writes()
            for i in T.thread_binding(m, "blockIdx.x"):
                for t in T.thread_binding(threads, "threadIdx.x"):
                    row = T.alloc_buffer((shape.latent_width,), "float32", scope="shared")
                    normalize(t, lambda k: KvA[i, k], row, lambda k: k, weight)
                    for w in T.serial(-(-pairs // threads)):
                        if w * threads + t < pairs:
                            rotate(lambda c: KvA[i, rank + c], Table, i, w * threads + t, row, lambda c: rank + c)
                    T.evaluate(T.tvm_storage_sync("shared"))
                    for w in T.serial(-(-shape.latent_width // threads)):
                        if w * threads + t < shape.latent_width:
                            Cache[
                                PageTable[Sequences[i], Positions[i] // page], Positions[i] % page, w * threads + t
                            ] = T.Cast(shape.cache_dtype, row[w * threads + t])

    return latent_append_gpu


@kernel("query_absorb", "gpu")
def query_absorb(layout: Layout, shape: AttentionShape, *, tile: GpuTile) -> PrimFunc:
    """Queries as wide as latents, times `score_factor`: q_nope · W_UK, and the rotated q_pe behind it.

    q float32 (rows, heads · (nope + rope)), rotary table (rows, rope), kv_b_proj in `layout` → float32 (rows, heads,
    latent_width). A thread has a column; a block reads a head's W_UK once for some rows.
    """
    rank, heads, threads, rows = shape.kv_lora_rank, shape.heads, tile.threads, tile.rows
    (data_shape, data_dtype), (scale_shape, scale_dtype) = stored(layout, (heads * shape.expanded_width, rank))
    blocks, pairs = -(-rank // threads), shape.rope // 2
    rotate = rotator(shape.rope, shape.interleaved, shape.score_factor)

    @T.prim_func(private=True, s_tir=True)
    def query_absorb_gpu(
        q: T.handle,
        table: T.handle,
        data: T.Buffer(data_shape, data_dtype),
        scale: T.Buffer(scale_shape, scale_dtype),
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m = T.int64()
        Q = T.match_buffer(q, (m, heads * shape.query_width), "float32")
        Table = T.match_buffer(table, (m, shape.rope), "float32")
        Y = T.match_buffer(y, (m, heads, shape.latent_width), "float32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            for b in T.thread_binding(heads * blocks, "blockIdx.x"):
                for c in T.thread_binding((m + rows - 1) // rows, "blockIdx.y"):
                    for t in T.thread_binding(threads, "threadIdx.x"):
                        query = T.alloc_buffer((rows * shape.nope,), "float32", scope="shared")
                        total = T.alloc_buffer((rows,), "float32", scope="local")
                        weight = T.alloc_buffer((1,), "float32", scope="local")
                        for w in T.serial(-(-rows * shape.nope // threads)):
                            if w * threads + t < rows * shape.nope:
                                query[w * threads + t] = Q[
                                    T.min(c * rows + (w * threads + t) // shape.nope, m - 1),
                                    b // blocks * shape.query_width + (w * threads + t) % shape.nope,
                                ]
                        T.evaluate(T.tvm_storage_sync("shared"))
                        if b % blocks * threads + t < rank:
                            for r in T.unroll(rows):
                                total[r] = T.float32(0)
                            for n in T.serial(shape.nope):
                                weight[0] = Matrix(layout, rank, data, scale).value(
                                    b // blocks * shape.expanded_width + n, b % blocks * threads + t
                                )
                                for r in T.unroll(rows):
                                    total[r] = total[r] + query[r * shape.nope + n] * weight[0]
                            for r in T.unroll(rows):
                                if c * rows + r < m:
                                    Y[c * rows + r, b // blocks, b % blocks * threads + t] = total[r] * T.float32(
                                        shape.score_factor
                                    )
                        if b % blocks == 0:
                            for w in T.serial(-(-rows * pairs // threads)):
                                if T.And(w * threads + t < rows * pairs, c * rows + (w * threads + t) // pairs < m):
                                    rotate(
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

    return without(query_absorb_gpu, *scale_names(layout))


@kernel("absorbed_attention", "gpu")
def absorbed_attention(layout: Layout, shape: AttentionShape, *, tile: GpuTile) -> PrimFunc:
    """Queries over all cached positions up to each row's own.

    Queries float32 (rows, heads, latent_width), positions and sequences int32 (rows,), page_table int32 (sequences,
    pages of each), cache (pages, page_size, cache_width) in a float dtype → float32 (rows, heads, kv_lora_rank).
    """
    assert shape.cache_dtype != "int8", "there is no cache in codes on GPUs"
    rank, width, page, threads = shape.kv_lora_rank, shape.latent_width, shape.page_size, tile.threads
    heads, keys, split = min(tile.heads, shape.heads), tile.keys, tile.split
    groups, columns = -(-shape.heads // heads), -(-rank // threads)
    steps, few = split // keys, tile.few
    assert heads <= threads, "a head's softmax is a thread's"

    @T.inline
    def attend(i, g, t, first, count, Q, Positions, Sequences, PageTable, Cache, state, factor, out):
        """`count` blocks of keys from position `first` on, for the heads of group g.

        `out` (heads, columns) are a thread's columns of all heads' sums, `state` its own head's largest score and sum
        of weights."""
        key = T.alloc_buffer((keys * width,), "float32", scope="shared")
        score = T.alloc_buffer((heads * keys,), "float32", scope="shared")
        weight = T.alloc_buffer((heads * keys,), "float32", scope="shared")
        dot = T.alloc_buffer((1,), "float32", scope="local")
        for h in T.unroll(heads * columns):
            out[h] = T.float32(0)
        state[0] = T.float32(_LOWEST)
        state[1] = T.float32(0)
        for b in T.serial(count):
            for w in T.serial(-(-keys * width // threads)):
                if w * threads + t < keys * width:
                    key[w * threads + t] = T.Cast(
                        "float32",
                        Cache[
                            PageTable[
                                Sequences[i],
                                T.min(
                                    first + b * keys + (w * threads + t) // width,
                                    Positions[i],
                                )
                                // page,
                            ],
                            T.min(
                                first + b * keys + (w * threads + t) // width,
                                Positions[i],
                            )
                            % page,
                            (w * threads + t) % width,
                        ],
                    )
            T.evaluate(T.tvm_storage_sync("shared"))
            for w in T.serial(-(-heads * keys // threads)):
                if w * threads + t < heads * keys:
                    dot[0] = T.float32(0)
                    for c in T.serial(width):
                        dot[0] = (
                            dot[0]
                            + Q[
                                i,
                                T.min(g * heads + (w * threads + t) // keys, shape.heads - 1),
                                c,
                            ]
                            * key[(w * threads + t) % keys * width + c]
                        )
                    score[w * threads + t] = T.if_then_else(
                        first + b * keys + (w * threads + t) % keys <= Positions[i],
                        dot[0],
                        T.float32(_LOWEST),
                    )
            T.evaluate(T.tvm_storage_sync("shared"))
            if t < heads:
                dot[0] = state[0]
                for j in T.serial(keys):
                    dot[0] = T.max(dot[0], score[t * keys + j])
                factor[t] = T.exp2(state[0] - dot[0])
                state[1] = state[1] * T.exp2(state[0] - dot[0])
                state[0] = dot[0]
                for j in T.serial(keys):
                    dot[0] = T.exp2(score[t * keys + j] - state[0])
                    weight[t * keys + j] = dot[0]
                    state[1] = state[1] + dot[0]
            T.evaluate(T.tvm_storage_sync("shared"))
            for u in T.unroll(columns):
                if u * threads + t < rank:
                    for h in T.unroll(heads, annotations={"pragma_unroll_explicit": False}):
                        dot[0] = out[h * columns + u] * factor[h]
                        for j in T.serial(keys):
                            dot[0] = dot[0] + weight[h * keys + j] * key[j * width + u * threads + t]
                        out[h * columns + u] = dot[0]
            T.evaluate(T.tvm_storage_sync("shared"))

    @T.prim_func(private=True, s_tir=True)
    def absorbed_attention_gpu(
        q: T.handle, positions: T.handle, sequences: T.handle, page_table: T.handle, cache: T.handle, o: T.handle
    ):
        T.func_attr({"tirx.noalias": True})
        m, pages, batch, longest = T.int64(), T.int64(), T.int64(), T.int64()
        Q = T.match_buffer(q, (m, shape.heads, width), "float32")
        Positions = T.match_buffer(positions, (m,), "int32")
        Sequences = T.match_buffer(sequences, (m,), "int32")
        PageTable = T.match_buffer(page_table, (batch, longest), "int32")
        Cache = T.match_buffer(cache, (pages, page, shape.cache_width), shape.cache_dtype)
        O = T.match_buffer(o, (m, shape.heads, rank), "float32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            # Of each part and head the largest score, the sum of weights, and the weighted sum.
            Part = T.alloc_buffer(
                (T.min(m, few), (longest * page + split - 1) // split, shape.heads, rank + 2), "float32", scope="global"
            )
            if m <= few:
                for g in T.thread_binding(groups, "blockIdx.x"):
                    for s in T.thread_binding(T.Cast("int32", (longest * page + split - 1) // split), "blockIdx.y"):
                        for i in T.thread_binding(m, "blockIdx.z"):
                            for t in T.thread_binding(threads, "threadIdx.x"):
                                state = T.alloc_buffer((2,), "float32", scope="local")
                                factor = T.alloc_buffer((heads,), "float32", scope="shared")
                                out = T.alloc_buffer((heads * columns,), "float32", scope="local")
                                attend(
                                    i,
                                    g,
                                    t,
                                    s * split,
                                    # As many blocks as reach up to the row itself; past it, none.
                                    T.max(T.min((Positions[i] - s * split) // keys + 1, steps), 0),
                                    Q,
                                    Positions,
                                    Sequences,
                                    PageTable,
                                    Cache,
                                    state,
                                    factor,
                                    out,
                                )
                                if s * split <= Positions[i]:
                                    if T.And(t < heads, g * heads + t < shape.heads):
                                        Part[i, s, g * heads + t, 0] = state[0]
                                        Part[i, s, g * heads + t, 1] = state[1]
                                    for h in T.unroll(heads, annotations={"pragma_unroll_explicit": False}):
                                        if g * heads + h < shape.heads:
                                            for u in T.unroll(columns):
                                                if u * threads + t < rank:
                                                    Part[i, s, g * heads + h, 2 + u * threads + t] = out[
                                                        h * columns + u
                                                    ]
                for h in T.thread_binding(shape.heads, "blockIdx.x"):
                    for i in T.thread_binding(m, "blockIdx.y"):
                        for t in T.thread_binding(threads, "threadIdx.x"):
                            whole = T.alloc_buffer((3,), "float32", scope="local")  # largest, sum of weights, sum
                            whole[0] = T.float32(_LOWEST)
                            for s in T.serial(Positions[i] // split + 1):
                                whole[0] = T.max(whole[0], Part[i, s, h, 0])
                            whole[1] = T.float32(0)
                            for s in T.serial(Positions[i] // split + 1):
                                whole[1] = whole[1] + Part[i, s, h, 1] * T.exp2(Part[i, s, h, 0] - whole[0])
                            for u in T.unroll(columns):
                                if u * threads + t < rank:
                                    whole[2] = T.float32(0)
                                    for s in T.serial(Positions[i] // split + 1):
                                        whole[2] = whole[2] + Part[i, s, h, 2 + u * threads + t] * T.exp2(
                                            Part[i, s, h, 0] - whole[0]
                                        )
                                    O[i, h, u * threads + t] = whole[2] / whole[1]
            else:
                # Rows enough to keep the device busy: each walks through its past alone.
                for g in T.thread_binding(groups, "blockIdx.x"):
                    for i in T.thread_binding(m, "blockIdx.y"):
                        for t in T.thread_binding(threads, "threadIdx.x"):
                            state = T.alloc_buffer((2,), "float32", scope="local")
                            factor = T.alloc_buffer((heads,), "float32", scope="shared")
                            out = T.alloc_buffer((heads * columns,), "float32", scope="local")
                            attend(
                                i,
                                g,
                                t,
                                0,
                                Positions[i] // keys + 1,
                                Q,
                                Positions,
                                Sequences,
                                PageTable,
                                Cache,
                                state,
                                factor,
                                out,
                            )
                            if t < heads:
                                factor[t] = T.float32(1) / state[1]
                            T.evaluate(T.tvm_storage_sync("shared"))
                            for h in T.unroll(heads, annotations={"pragma_unroll_explicit": False}):
                                if g * heads + h < shape.heads:
                                    for u in T.unroll(columns):
                                        if u * threads + t < rank:
                                            O[i, g * heads + h, u * threads + t] = out[h * columns + u] * factor[h]

    return absorbed_attention_gpu


@kernel("value_project", "gpu")
def value_project(layout: Layout, shape: AttentionShape, *, tile: GpuTile) -> PrimFunc:
    """Attention over latents → values: W_UV of each head.

    o float32 (rows, heads, kv_lora_rank), kv_b_proj in `layout` → float32 (rows, heads · v).
    """
    rank, heads, outputs, rows = shape.kv_lora_rank, shape.heads, tile.threads // tile.lanes, tile.rows
    (data_shape, data_dtype), (scale_shape, scale_dtype) = stored(layout, (heads * shape.expanded_width, rank))
    blocks = -(-shape.v // outputs)
    one, several = few_rows(tile, rank, 1), few_rows(tile, rank, rows)

    @T.prim_func(private=True, s_tir=True)
    def value_project_gpu(
        o: T.handle,
        data: T.Buffer(data_shape, data_dtype),
        scale: T.Buffer(scale_shape, scale_dtype),
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m = T.int64()
        O = T.match_buffer(o, (m, heads, rank), "float32")
        Y = T.match_buffer(y, (m, heads * shape.v), "float32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            if m == 1:
                for b in T.thread_binding(heads * blocks, "blockIdx.x"):
                    for t in T.thread_binding(tile.threads, "threadIdx.x"):
                        part = T.alloc_buffer((tile.threads,), "float32", scope="shared")
                        one(
                            t,
                            part,
                            Matrix(layout, rank, data, scale),
                            lambda e: (
                                b // blocks * shape.expanded_width
                                + shape.nope
                                + T.min(b % blocks * outputs + e, shape.v - 1)
                            ),
                            lambda r, k: O[0, b // blocks, k],
                            Y,
                            lambda r, e: (0, b // blocks * shape.v + b % blocks * outputs + e),
                            lambda r, e: b % blocks * outputs + e < shape.v,
                            lambda r, e: T.float32(0),
                        )
            else:
                for b in T.thread_binding(heads * blocks, "blockIdx.x"):
                    for c in T.thread_binding((m + rows - 1) // rows, "blockIdx.y"):
                        for t in T.thread_binding(tile.threads, "threadIdx.x"):
                            part = T.alloc_buffer((rows * tile.threads,), "float32", scope="shared")
                            several(
                                t,
                                part,
                                Matrix(layout, rank, data, scale),
                                lambda e: (
                                    b // blocks * shape.expanded_width
                                    + shape.nope
                                    + T.min(b % blocks * outputs + e, shape.v - 1)
                                ),
                                lambda r, k: O[T.min(c * rows + r, m - 1), b // blocks, k],
                                Y,
                                lambda r, e: (c * rows + r, b // blocks * shape.v + b % blocks * outputs + e),
                                lambda r, e: T.And(b % blocks * outputs + e < shape.v, c * rows + r < m),
                                lambda r, e: T.float32(0),
                            )

    return without(value_project_gpu, *scale_names(layout))
