"""`kv_b_proj` on either side of absorbed attention, packed: W_UK by its columns, W_UV by its rows, both in 8 bits.

A head's blocks of `kv_b_proj` are W_UK's (nope rows) and then W_UV's (v rows).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.attention.cpu_absorbed import query_columns, query_place
from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.cpu_packed import (
    GROUP,
    Factors,
    block_product,
    codes_of,
    over_rows,
    prefetch,
    quantizer,
    unit_of,
)
from relax_model.kernels.cpu_tiles import CpuTile, nothing, span
from relax_model.kernels.rope.cpu import rotated
from relax_model.layout import PackedLayout


@dataclass(frozen=True)
class _HeadGroup:
    """What makes a group of a head's absorbed queries: buffers, and which group of which head."""

    q: Any
    data: Any
    scale: Any
    y: Any
    head: Any
    group: Any


_GROUPS_AHEAD = 3
_ABSORB_ROWS = 2  # rows that share a transposed word: their sums and a few more fit in 16 registers


def query_absorb(layout: PackedLayout, shape: AttentionShape, tile: CpuTile) -> PrimFunc:
    """See `attention.cpu.query_absorb`. A task is a group of 32 latent channels of a head.

    A channel is Σ_n q_n · scale_n · (code_n − zero) over a head's nope rows, which have a scale each, so that it is
    q_n · scale_n that is rounded to 8 bits. A word of weights has four columns of a row and a dot product wants four
    rows of a column, so that words change their bytes among four rows:

        row n      c0 c1 c2 c3             n0 n1 n2 n3   column c0   · x (n0 … n3)
        row n + 1  c0 c1 c2 c3      →      n0 n1 n2 n3   column c1   · x (n0 … n3)
        …                                  …
    """
    rank, heads = shape.kv_lora_rank, shape.heads
    specs = layout.buffers((heads * shape.expanded_width, rank), (shape.nope, shape.v))
    data_shape, scale_shape = specs["q_weight"].shape, specs["q_scale"].shape
    groups = scale_shape[1]
    per_head, rows_of = layout.blocks((shape.nope, shape.v)), layout.rows
    unit = unit_of(layout, tile).for_rows(1)
    lanes, (sum_dtype, sum_lanes) = unit.lanes, unit.sum_type
    nope_groups, halves = -(-shape.nope // GROUP), layout.halves
    padded = nope_groups * GROUP
    quantize = quantizer(tile.lanes, unit.zero_left)
    columns = query_columns(shape, tile)
    empty = columns[0] * columns[2] - heads

    def transposed(words: Any) -> Any:
        order = [quad * 16 + n * 4 + c for quad in range(lanes // 4) for c in range(4) for n in range(4)]
        return T.reinterpret(f"uint32x{lanes}", T.Shuffle([T.reinterpret(f"int8x{4 * lanes}", words)], order))

    def for_columns(codes: Any, i: Any, n: Any) -> Any:
        """Four codes from row n on, for each of four columns, and so on with the next four."""
        words = codes[i, T.Ramp(n, 1, lanes)]
        if lanes == 4:
            return T.Broadcast(T.reinterpret("int32", words), 4)
        # TVM wants as many lanes in as out.
        return T.Shuffle([T.reinterpret(f"int32x{lanes // 4}", words)] * 4, [lane // 4 for lane in range(lanes)])

    def word(f: _HeadGroup, block: Any, w: Any, v: Any) -> Any:
        return f.data[f.head * per_head + block, f.group, w, T.Ramp(v * lanes, 1, lanes)]

    def place(f: _HeadGroup, row: Any, column: Any) -> Any:
        return query_place(shape, tile, row, f.head, f.group * GROUP + column)

    def sum_at(i: int, half: int) -> Any:
        return T.Ramp((i * halves + half) * sum_lanes, 1, sum_lanes)

    def total_at(i: int, half: int) -> Any:
        return T.Ramp((i * halves + half) * lanes, 1, lanes)

    def finished(total: Any, acc: Any, scales: Any, at: tuple[Any, ...]) -> Any:
        i, half, q = at
        whole = T.Cast(f"float32x{lanes}", unit.finish([acc[sum_at(i, half)]], 0))
        return T.fma(whole, T.Broadcast(scales[i, q], lanes), total[total_at(i, half)])

    def query(f: _HeadGroup, row: Any, n: Any) -> Any:
        """A query's value times the scale of W_UK's row n; n may be past the last row, which a padded group has."""
        q, block = f.q[row, f.head * shape.query_width + n], f.head * per_head + n // rows_of
        return q * T.Cast("float32", f.scale[block, f.group, n % rows_of])

    @T.inline
    def ask_for(f, block, w):
        # After a head's last groups come the next head's first.
        prefetch(
            f.data,
            (f.head + (f.group + _GROUPS_AHEAD) // groups) * per_head + block,
            (f.group + _GROUPS_AHEAD) % groups,
            w,
            1,
        )

    def tile_of(rows: int):
        @T.inline
        def absorb_rows(start, f):
            scaled = T.alloc_buffer((padded,), "float32", scope="global")
            codes = T.alloc_buffer((rows, padded), "int8", scope="global")
            scales = T.alloc_buffer((rows, nope_groups), "float32", scope="global")
            offsets = T.alloc_buffer((rows, nope_groups), "int32", scope="global")
            zeros = T.alloc_buffer((rows,), "float32", scope="global")
            for i in T.unroll(rows):
                for n in T.serial(padded // rows_of):
                    if n < shape.nope // rows_of:
                        for r in T.vectorized(rows_of):
                            scaled[n * rows_of + r] = query(f, start + i, n * rows_of + r)
                    else:
                        for r in T.serial(rows_of):
                            scaled[n * rows_of + r] = T.if_then_else(
                                n * rows_of + r < shape.nope,
                                query(f, start + i, T.min(n * rows_of + r, shape.nope - 1)),
                                T.float32(0),
                            )
                zeros[i] = T.float32(0)
                for q in T.serial(nope_groups):
                    quantize(
                        lambda k, n: scaled[span(q * GROUP + k, n)],
                        codes,
                        lambda k, n: (i, span(q * GROUP + k, n)),
                        scales,
                        offsets,
                        (i, q),
                    )
                    zeros[i] = zeros[i] + scales[i, q] * T.Cast("float32", offsets[i, q])
            for w in T.serial(layout.words):
                total = T.alloc_buffer((rows * halves * lanes,), "float32", scope="global")
                for s in T.unroll(rows * halves):
                    total[T.Ramp(s * lanes, 1, lanes)] = T.Broadcast(T.float32(0), lanes)
                for q in T.serial(nope_groups):
                    acc = T.alloc_buffer((rows * halves * sum_lanes,), sum_dtype, scope="global")
                    for s in T.unroll(rows * halves):
                        acc[T.Ramp(s * sum_lanes, 1, sum_lanes)] = T.Broadcast(T.Cast(sum_dtype, 0), sum_lanes)
                    for b in T.unroll(GROUP // rows_of):
                        # Blocks lie kilobytes apart, which no processor foresees by itself.
                        ask_for(f, q * (GROUP // rows_of) + b, w)
                        for v in T.unroll(rows_of // lanes):
                            for half in T.unroll(halves):
                                for i in T.unroll(rows):
                                    # A last group may have a block too many: x is zero there, whatever lies in it.
                                    acc[sum_at(i, half)] = unit.add(
                                        acc[sum_at(i, half)],
                                        [transposed(word(f, q * (GROUP // rows_of) + b, w, v))],
                                        lambda words: codes_of(layout, words, half, lanes),
                                        for_columns(codes, i, q * GROUP + b * rows_of + v * lanes),
                                        0,
                                    )
                    for i in T.unroll(rows):
                        for half in T.unroll(halves):
                            total[total_at(i, half)] = finished(total, acc, scales, (i, half, q))
                for i in T.unroll(rows):
                    for half in T.unroll(halves):
                        for c in T.unroll(4):
                            if f.group * GROUP + half * (GROUP // 2) + w * 4 + c < rank:
                                f.y[place(f, start + i, half * (GROUP // 2) + w * 4 + c)] = (
                                    every_fourth(total, (i * halves + half) * lanes + c, lanes) + zeros[i]
                                ) * T.float32(shape.score_factor)

        return absorb_rows

    absorb = over_rows(_ABSORB_ROWS, tile_of)

    @T.prim_func(private=True, s_tir=True)
    def query_absorb_packed_cpu(
        q: T.handle,
        table: T.handle,
        data: T.Buffer(data_shape, "uint32"),
        scale: T.Buffer(scale_shape, "float16"),
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
            for task in T.parallel(heads * groups):
                absorb(m, _HeadGroup(Q, data, scale, Y, task // groups, task % groups))
            for i in T.parallel(m):
                rotate_queries(shape, tile, Q, Table, Y, i)
                for e in T.serial(empty):
                    for c in T.serial(columns[1]):
                        Y[query_place(shape, tile, i, heads + e, c)] = T.float32(0)

    return query_absorb_packed_cpu


def every_fourth(buffer: Any, base: Any, lanes: int) -> Any:
    """The sum of every fourth of `lanes` neighbours of a one-dimensional buffer."""
    total = buffer[base]
    for quad in range(1, lanes // 4):
        total = total + buffer[base + quad * 4]
    return total


@T.inline
def rotate_queries(shape, tile, Q, Table, Y, i):
    """Row `i`'s rotated q_pe of all heads, behind the latent channels of its absorbed queries."""
    for h in T.serial(shape.heads):
        for p in T.serial(shape.rope // 2):
            Y[query_place(shape, tile, i, h, shape.kv_lora_rank + p)] = rotated(
                lambda c: Q[i, h * shape.query_width + shape.nope + c], Table, i, p, shape.rope, shape.interleaved
            )[0] * T.float32(shape.score_factor)
            Y[query_place(shape, tile, i, h, shape.kv_lora_rank + shape.rope // 2 + p)] = rotated(
                lambda c: Q[i, h * shape.query_width + shape.nope + c], Table, i, p, shape.rope, shape.interleaved
            )[1] * T.float32(shape.score_factor)


def value_project(layout: PackedLayout, shape: AttentionShape, tile: CpuTile) -> PrimFunc:
    """Codes, scales and offsets of o (rows, heads, kv_lora_rank), kv_b_proj in `layout` → float32 (rows, heads · v)."""
    rank, heads = shape.kv_lora_rank, shape.heads
    specs = layout.buffers((heads * shape.expanded_width, rank), (shape.nope, shape.v))
    data_shape, scale_shape = specs["q_weight"].shape, specs["q_scale"].shape
    groups = scale_shape[1]
    per_head, before = layout.blocks((shape.nope, shape.v)), layout.blocks((shape.nope,))
    blocks = per_head - before
    product = block_product(layout, tile)

    @T.prim_func(private=True, s_tir=True)
    def value_project_packed_cpu(
        codes: T.handle,
        scales: T.handle,
        offsets: T.handle,
        data: T.Buffer(data_shape, "uint32"),
        scale: T.Buffer(scale_shape, "float16"),
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m = T.int64()
        Codes = T.match_buffer(codes, (m, heads * groups * GROUP), "int8")
        Scales = T.match_buffer(scales, (m, heads * groups), "float32")
        Offsets = T.match_buffer(offsets, (m, heads * groups), "int32")
        Y = T.match_buffer(y, (m, heads * shape.v), "float32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            for task in T.parallel(heads * blocks):
                product(
                    m,
                    Factors(
                        data,
                        scale,
                        task // blocks * per_head + before + task % blocks,
                        groups,
                        (
                            lambda i, column, n: Codes[i, T.Ramp(task // blocks * groups * GROUP + column, 1, n)],
                            lambda i, group: Scales[i, task // blocks * groups + group],
                            lambda i, group: Offsets[i, task // blocks * groups + group],
                        ),
                        Y,
                        lambda i, n: (i, task // blocks * shape.v + task % blocks * layout.rows + n),
                        nothing,
                        shape.v - task % blocks * layout.rows,
                    ),
                )

    return value_project_packed_cpu
