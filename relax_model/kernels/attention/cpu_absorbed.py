"""Absorbed attention for CPUs: scores against the latents themselves, causal inside, for any mixture of rows.

    a part: a row's heads, in the lanes of vectors, over `tile.split` keys at fixed absolute positions

    block (keys, latent_width)  read from the pages once for all heads of a group, as float32; beside packed weights
                                an 8-bit cache as 16-bit integers, where a processor multiplies pairs of these
    score (keys, heads)         = block · qᵀ                  → running softmax
    o (kv_lora_rank, heads)    += block[:, :kv_lora_rank]ᵀ · weights

Parts are merged in the order of their keys, whether one task walked through them or several made them side by side (as
in flash decoding, arXiv:2311.01282): a row's bits depend on neither.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.attention.cpu_absorbed_floats import attend_in_floats
from relax_model.kernels.attention.cpu_absorbed_pairs import attend_in_pairs
from relax_model.kernels.attention.cpu_heads import AbsorbedTile, begin_part, head_groups, vector
from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.cpu_math import exp2
from relax_model.kernels.cpu_packed import GROUP, quantizer, unit_of
from relax_model.kernels.cpu_pairs import has_pairs
from relax_model.kernels.cpu_tiles import CpuTile, span, without
from relax_model.kernels.registry import kernel
from relax_model.layout import Layout, PackedLayout

# From this many rows on, rows keep the threads busy and a task walks through all parts of a row.
_MANY_ROWS = 16


@kernel("absorbed_attention", "cpu")
def absorbed_attention(layout: Layout, shape: AttentionShape, *, tile: CpuTile) -> PrimFunc:
    """Queries over all cached positions up to each row's own.

    Queries float32 (rows, groups, latent_width, lanes) as `query_absorb` makes them, positions and sequences int32
    (rows,), page_table int32 (sequences, pages of each), cache (pages, page_size, cache_width) → float32
    (rows, heads, kv_lora_rank), or beside a packed `layout` codes, scales and offsets of each head's row of it.
    """
    rank, width, page, lanes = shape.kv_lora_rank, shape.latent_width, shape.page_size, tile.lanes
    packed = isinstance(layout, PackedLayout)
    tiles = AbsorbedTile.of(shape, tile)
    heads, split, slot_rows = tiles.heads, tiles.split, tiles.slot_rows
    groups, vectors = heads.count, heads.vectors
    in_pairs = packed and shape.cache_dtype == "int8" and has_pairs(tile)
    attend = (attend_in_pairs if in_pairs else attend_in_floats)(shape, tile)
    begin = begin_part(tile, vectors)
    head_columns = -(-rank // GROUP) * GROUP
    quantize = quantizer(lanes, unit_of(layout, tile).zero_left) if packed else None

    @T.inline
    def merge(whole, part, slot):
        for v in T.unroll(vectors):
            factor = T.alloc_buffer((3, lanes), "float32", scope="global")
            factor[0, T.Ramp(0, 1, lanes)] = T.max(whole[vector(0, v, lanes)], part[vector(slot * slot_rows, v, lanes)])
            factor[1, T.Ramp(0, 1, lanes)] = exp2(whole[vector(0, v, lanes)] - factor[0, T.Ramp(0, 1, lanes)], lanes)
            factor[2, T.Ramp(0, 1, lanes)] = exp2(
                part[vector(slot * slot_rows, v, lanes)] - factor[0, T.Ramp(0, 1, lanes)], lanes
            )
            whole[vector(0, v, lanes)] = factor[0, T.Ramp(0, 1, lanes)]
            for c in T.serial(rank + 1):
                # Row 1 is the sum of weights; row 2, the correction, is of no further use.
                whole[vector(T.if_then_else(c == 0, 1, 2 + c), v, lanes)] = T.fma(
                    part[vector(slot * slot_rows + T.if_then_else(c == 0, 1, 2 + c), v, lanes)],
                    factor[2, T.Ramp(0, 1, lanes)],
                    whole[vector(T.if_then_else(c == 0, 1, 2 + c), v, lanes)] * factor[1, T.Ramp(0, 1, lanes)],
                )

    @T.inline
    def finish(whole, i, g, O, Codes, Scales, Offsets):
        for head in T.serial(T.min(heads.lanes, shape.heads - g * heads.lanes)):
            if packed:
                row = T.alloc_buffer((head_columns,), "float32", scope="global")
                for c in T.serial(rank):
                    row[c] = whole[3 + c, head] / whole[1, head]
                for c in T.serial(head_columns - rank):
                    row[rank + c] = T.float32(0)
                for q in T.serial(head_columns // GROUP):
                    quantize(
                        lambda k, n: row[span(q * GROUP + k, n)],
                        Codes,
                        lambda k, n: (i, span((g * heads.lanes + head) * head_columns + q * GROUP + k, n)),
                        Scales,
                        Offsets,
                        (i, (g * heads.lanes + head) * (head_columns // GROUP) + q),
                    )
            else:
                for c in T.serial(rank):
                    O[i, g * heads.lanes + head, c] = whole[3 + c, head] / whole[1, head]

    @T.prim_func(private=True, s_tir=True)
    def absorbed_attention_cpu(
        q: T.handle,
        positions: T.handle,
        sequences: T.handle,
        page_table: T.handle,
        cache: T.handle,
        o: T.handle,
        codes: T.handle,
        scales: T.handle,
        offsets: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m, pages, batch, longest = T.int64(), T.int64(), T.int64(), T.int64()
        Q = T.match_buffer(q, (m, groups, width, heads.lanes), "float32")
        Positions = T.match_buffer(positions, (m,), "int32")
        Sequences = T.match_buffer(sequences, (m,), "int32")
        PageTable = T.match_buffer(page_table, (batch, longest), "int32")
        Cache = T.match_buffer(cache, (pages, page, shape.cache_width), shape.cache_dtype)
        O = T.match_buffer(o, (m, shape.heads, rank), "float32")
        Codes = T.match_buffer(codes, (m, shape.heads * head_columns), "int8")
        Scales = T.match_buffer(scales, (m, shape.heads * head_columns // GROUP), "float32")
        Offsets = T.match_buffer(offsets, (m, shape.heads * head_columns // GROUP), "int32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            if m >= _MANY_ROWS:
                for task in T.parallel(m * groups):
                    part = T.alloc_buffer((slot_rows, heads.lanes), "float32", scope="global")
                    whole = T.alloc_buffer((slot_rows, heads.lanes), "float32", scope="global")
                    begin(whole, 0, rank)
                    for s in T.serial(Positions[task // groups] // split + 1):
                        attend(part, 0, task // groups, task % groups, s, Q, Positions, Sequences, PageTable, Cache)
                        merge(whole, part, 0)
                    finish(whole, task // groups, task % groups, O, Codes, Scales, Offsets)
            else:
                parts = T.alloc_buffer(
                    (m * groups * T.ceildiv(longest * page, split) * slot_rows, heads.lanes), "float32", scope="global"
                )
                for task in T.parallel(m * groups * T.ceildiv(longest * page, split)):
                    if task % T.ceildiv(longest * page, split) * split <= T.Cast(
                        "int64", Positions[task // T.ceildiv(longest * page, split) // groups]
                    ):
                        attend(
                            parts,
                            task,
                            task // T.ceildiv(longest * page, split) // groups,
                            task // T.ceildiv(longest * page, split) % groups,
                            task % T.ceildiv(longest * page, split),
                            Q,
                            Positions,
                            Sequences,
                            PageTable,
                            Cache,
                        )
                for task in T.parallel(m * groups):
                    whole = T.alloc_buffer((slot_rows, heads.lanes), "float32", scope="global")
                    begin(whole, 0, rank)
                    for s in T.serial(Positions[task // groups] // split + 1):
                        merge(whole, parts, task * T.ceildiv(longest * page, split) + s)
                    finish(whole, task // groups, task % groups, O, Codes, Scales, Offsets)

    return without(absorbed_attention_cpu, *(("O",) if packed else ("Codes", "Scales", "Offsets")))


def query_columns(shape: AttentionShape, tile: CpuTile) -> tuple[int, int, int]:
    """(groups, latent_width, lanes): the shape of a row of absorbed queries."""
    heads = head_groups(shape.heads, tile)
    return heads.count, shape.latent_width, heads.lanes


def query_place(shape: AttentionShape, tile: CpuTile, i: Any, head: Any, column: Any) -> tuple[Any, ...]:
    """Where a value of an absorbed query lies."""
    heads = head_groups(shape.heads, tile)
    return (i, head // heads.lanes, column, head % heads.lanes)
