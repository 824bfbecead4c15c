"""A head's keys and values from a block of latents: `kv_b_proj` in expanded attention. See `cpu_expanded`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.cpu_packed import Factors, block_product
from relax_model.kernels.cpu_tiles import CpuTile, multiplier, nothing, unpacker
from relax_model.layout import Layout, PackedLayout

Statements = tuple[Callable[..., Any], Callable[..., Any]]


def panel_rows(shape: AttentionShape, tile: CpuTile) -> int:
    """Weight rows of a head, filled up to whole register tiles."""
    return -(-shape.expanded_width // tile.columns) * tile.columns


def expansion_in_floats(layout: Layout, shape: AttentionShape, tile: CpuTile, keys: int) -> Statements:
    """The statements that unpack a head's weights once and expand a block of latents with them, in floats."""
    rank, expanded, padded_rows = shape.kv_lora_rank, shape.expanded_width, panel_rows(shape, tile)
    unpack = unpacker(layout, rank)
    rows = next(count for count in range(tile.rows, 0, -1) if keys % count == 0)
    multiply = multiplier(tile, rows, tile.columns, padded_rows, rank)

    @T.inline
    def make_weights(weights, data, scale, h):
        for n in T.serial(padded_rows):
            unpack(weights, n, data, scale, h * expanded + T.min(n, expanded - 1), 0)

    @T.inline
    def expand(weights, latent, data, scale, h, x, key, value):
        wide = T.alloc_buffer((rows, padded_rows), "float32", scope="global")
        for t in T.serial(keys // rows):
            multiply(
                weights,
                padded_rows,
                lambda i, k: latent[t * rows + i, k],
                wide,
                lambda i, n: (i, n),
                lambda i, n: T.float32(0),
            )
            for i in T.serial(rows):
                for n in T.serial(shape.nope):
                    key[t * rows + i, n] = wide[i, n]
                for n in T.serial(shape.v):
                    value[t * rows + i, n] = wide[i, shape.nope + n]

    return make_weights, expand


def expansion_packed(layout: PackedLayout, shape: AttentionShape, tile: CpuTile, keys: int) -> Statements:
    """The same with packed weights, which are used where they lie, and latents in 8 bits."""
    per_head, before = layout.blocks((shape.nope, shape.v)), layout.blocks((shape.nope,))
    groups = layout.base.groups(shape.kv_lora_rank)
    product = block_product(layout, tile)

    @T.inline
    def make_weights(weights, data, scale, h):
        pass

    @T.inline
    def expand(weights, latent, data, scale, h, x, key, value):
        for n in T.serial(before):
            product(
                keys,
                Factors(
                    data,
                    scale,
                    h * per_head + n,
                    groups,
                    x,
                    key,
                    lambda i, c: (i, n * layout.rows + c),
                    nothing,
                    shape.nope - n * layout.rows,
                ),
            )
        for n in T.serial(per_head - before):
            product(
                keys,
                Factors(
                    data,
                    scale,
                    h * per_head + before + n,
                    groups,
                    x,
                    value,
                    lambda i, c: (i, n * layout.rows + c),
                    nothing,
                    shape.v - n * layout.rows,
                ),
            )

    return make_weights, expand
