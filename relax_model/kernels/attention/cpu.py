"""What surrounds attention on CPUs: appending latents, and `kv_b_proj` on either side of the absorbed form.

A head's rows of `kv_b_proj` are W_UK (nope rows) and W_UV (v rows), all `kv_lora_rank` wide. Absorbed, a query becomes
q_nope · W_UK, as wide as a latent, and what attention returns becomes a value by W_UV (DeepSeek-V2, section 2.1.2).
"""

from __future__ import annotations

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.attention import cpu_expanded, cpu_packed  # noqa: F401  (it enters the registry)
from relax_model.kernels.attention.cache import CachedTokens
from relax_model.kernels.attention.cpu_absorbed import query_columns, query_place
from relax_model.kernels.attention.cpu_packed import rotate_queries
from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.cpu_tiles import (
    CpuTile,
    block_rows,
    nothing,
    over_tiles,
    padded,
    product,
    scale_names,
    stored,
    unpacker,
    without,
)
from relax_model.kernels.norm.cpu import normalizer
from relax_model.kernels.registry import kernel
from relax_model.kernels.rope.cpu import rotated
from relax_model.layout import GroupLayout, Layout, PackedLayout


@kernel("latent_append", "cpu")
def latent_append(shape: AttentionShape, eps: float, *, tile: CpuTile) -> PrimFunc:
    """Normalise the latent, rotate the shared key and write both into each row's slot of the cache, in place.

    kv_a float32 (rows, latent_width), weight (kv_lora_rank,), rotary table (rows, rope), positions and sequences int32
    (rows,), page_table int32 (sequences, pages of each), cache (pages, page_size, cache_width).
    """
    rank, page = shape.kv_lora_rank, shape.page_size
    normalize, store = normalizer(rank, eps, tile.lanes), CachedTokens(shape).storer(tile.lanes)

    @T.prim_func(private=True, s_tir=True)
    def latent_append_cpu(
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
            for i in T.parallel(m):
                row = T.alloc_buffer((shape.latent_width,), "float32", scope="global")
                normalize(lambda k: KvA[i, k], row, lambda k: k, weight)
                for p in T.serial(shape.rope // 2):
                    row[rank + p] = rotated(lambda c: KvA[i, rank + c], Table, i, p, shape.rope, shape.interleaved)[0]
                    row[rank + shape.rope // 2 + p] = rotated(
                        lambda c: KvA[i, rank + c], Table, i, p, shape.rope, shape.interleaved
                    )[1]
                store(row, Cache, PageTable[Sequences[i], Positions[i] // page], Positions[i] % page)

    return latent_append_cpu


@kernel("query_absorb", "cpu")
def query_absorb(layout: Layout, shape: AttentionShape, *, tile: CpuTile) -> PrimFunc:
    """Queries as wide as latents, times `score_factor`: q_nope · W_UK, and the rotated q_pe behind it.

    q float32 (rows, heads · (nope + rope)), rotary table (rows, rope), kv_b_proj in `layout` → float32 (rows, groups,
    latent_width, lanes), heads in the lanes; lanes past the last head are zero.
    """
    if isinstance(layout, PackedLayout):
        return cpu_packed.query_absorb(layout, shape, tile)
    columns = query_columns(shape, tile)
    empty = columns[0] * columns[2] - shape.heads
    rank, heads, lanes, rows = shape.kv_lora_rank, shape.heads, tile.lanes, tile.rows
    (data_shape, data_dtype), (scale_shape, scale_dtype) = stored(layout, (heads * shape.expanded_width, rank))
    # Column blocks are whole groups; where there are none, they must divide the rank, as nothing pads it.
    size = layout.group_size if isinstance(layout, GroupLayout) else next(c for c in (32, 16, 8, 1) if rank % c == 0)
    blocks = -(-rank // size)
    unpack = unpacker(layout, size)

    def absorber(count: int):
        @T.inline
        def absorb_tile(panel, valid, q, y, y_at, add):
            acc = T.alloc_buffer((count * size,), "float32", scope="global")
            for i in T.unroll(count * size):
                acc[i] = T.float32(0)
            for n in T.serial(shape.nope):
                for i in T.unroll(count):
                    for w in T.unroll(max(size // lanes, 1)):
                        for v in T.vectorized(min(size, lanes)):
                            acc[i * size + w * lanes + v] = T.fma(
                                q(i, n), panel[n, w * lanes + v], acc[i * size + w * lanes + v]
                            )
            for i in T.unroll(count):
                for c in T.serial(size):
                    if c < valid:
                        y[y_at(i, c)] = acc[i * size + c] * T.float32(shape.score_factor)

        return absorb_tile

    absorb = over_tiles(rows, absorber(rows), absorber(1))

    @T.prim_func(private=True, s_tir=True)
    def query_absorb_cpu(
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
        Y = T.match_buffer(y, (m, *columns), "float32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            for b in T.parallel(heads * blocks):
                panel = T.alloc_buffer((shape.nope, size), "float32", scope="global")
                for n in T.serial(shape.nope):
                    unpack(panel, n, data, scale, b // blocks * shape.expanded_width + n, b % blocks * size)
                absorb(
                    panel,
                    rank - b % blocks * size,
                    m,
                    lambda i, n: Q[i, b // blocks * shape.query_width + n],
                    Y,
                    lambda i, c: query_place(shape, tile, i, b // blocks, b % blocks * size + c),
                    nothing,
                )
            for i in T.parallel(m):
                rotate_queries(shape, tile, Q, Table, Y, i)
                for e in T.serial(empty):
                    for c in T.serial(columns[1]):
                        Y[query_place(shape, tile, i, heads + e, c)] = T.float32(0)

    return without(query_absorb_cpu, *scale_names(layout))


@kernel("value_project", "cpu")
def value_project(layout: Layout, shape: AttentionShape, *, tile: CpuTile) -> PrimFunc:
    """Attention over latents → values: W_UV of each head.

    o float32 (rows, heads, kv_lora_rank), kv_b_proj in `layout` → float32 (rows, heads · v). Beside packed weights o is
    its codes, scales and offsets.
    """
    if isinstance(layout, PackedLayout):
        return cpu_packed.value_project(layout, shape, tile)
    rank, heads = shape.kv_lora_rank, shape.heads
    (data_shape, data_dtype), (scale_shape, scale_dtype) = stored(layout, (heads * shape.expanded_width, rank))
    block = block_rows(tile, rank)
    blocks = -(-shape.v // block)
    panel_width = padded(layout, rank)
    unpack = unpacker(layout, rank)
    multiply = product(tile, block, rank)

    @T.prim_func(private=True, s_tir=True)
    def value_project_cpu(
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
            for b in T.parallel(heads * blocks):
                panel = T.alloc_buffer((block, panel_width), "float32", scope="global")
                for i in T.serial(block):
                    unpack(
                        panel,
                        i,
                        data,
                        scale,
                        b // blocks * shape.expanded_width + shape.nope + T.min(b % blocks * block + i, shape.v - 1),
                        0,
                    )
                multiply(
                    panel,
                    shape.v - b % blocks * block,
                    m,
                    lambda i, k: O[i, b // blocks, k],
                    Y,
                    lambda i, n: (i, b // blocks * shape.v + b % blocks * block + n),
                    nothing,
                )

    return without(value_project_cpu, *scale_names(layout))
