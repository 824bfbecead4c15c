"""Products of 8-bit activations with packed weights, for CPUs: what the kernels of `PackedLayout` share.

    activations of a row    int8 codes in groups of 32, and for each group a float32 scale and an int32 offset:
                            −(what the weight codes' zero is worth) · Σ codes, so that zero needs no thought inside
    tile                    rows × (16 weight rows as `vectors` vectors at a time), over all groups:

        weights uint32 (16 rows)  ──nibbles──▶  dot unit  ◀── a word of 4 codes of each row, in every lane
                       sum of a group: int32, exact  →  · activation scale · weight scale  →  float32 sums

A row's sums run over the groups in order whatever rows run beside it, so that its bits are always the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from relax_model.kernels.cpu_dot import DotUnit, dot_unit, unsigned
from relax_model.kernels.cpu_tiles import CpuTile, lane_sum, span
from relax_model.layout import PackedLayout

GROUP = 32  # activations that share a scale: as many as weights do
_LARGEST_CODE = 127
# Below this a group counts as zeros: its reciprocal would not be finite.
_LEAST = 1e-30


def unit_of(layout: PackedLayout, tile: CpuTile) -> DotUnit:
    """The dot unit that multiplies this layout's codes on the tile's processor."""
    return dot_unit(tile.dot, tile.dot_lanes, layout.base.bits, layout.base.zero)


def flat(shape: tuple[int, ...], keep: int) -> tuple[int, ...]:
    """The shape with all axes but the last `keep` folded into one."""
    blocks = 1
    for size in shape[:-keep]:
        blocks *= size
    return (blocks, *shape[-keep:])


def quantizer(lanes: int, zero_left: int) -> Callable[..., Any]:
    """Statement `quantize(x, codes, code_at, scales, offsets, group_at)`: one group of 32 values; x(k, n) is n of them.

    scale = max |x| / 127 and code = round(x / scale) to the nearest even (Jacob et al. 2018, arXiv:1712.05877, with
    zero at zero); codes[code_at(k, n)], scales[group_at], offsets[group_at].
    """
    vectors = GROUP // lanes

    @T.inline
    def quantize(x, codes, code_at, scales, offsets, group_at):
        largest = T.alloc_buffer((lanes,), "float32", scope="global")
        factor = T.alloc_buffer((2,), "float32", scope="global")
        total = T.alloc_buffer((lanes,), "int32", scope="global")
        whole = T.alloc_buffer((lanes,), "int32", scope="global")
        largest[T.Ramp(0, 1, lanes)] = T.Broadcast(T.float32(0), lanes)
        total[T.Ramp(0, 1, lanes)] = T.Broadcast(T.int32(0), lanes)
        for w in T.unroll(vectors):
            largest[T.Ramp(0, 1, lanes)] = T.max(largest[T.Ramp(0, 1, lanes)], T.abs(x(w * lanes, lanes)))
        factor[0] = lane_max(largest, lanes)
        factor[1] = T.if_then_else(factor[0] > T.float32(_LEAST), T.float32(_LARGEST_CODE) / factor[0], T.float32(0))
        for w in T.unroll(vectors):
            whole[T.Ramp(0, 1, lanes)] = T.Cast(
                f"int32x{lanes}", T.nearbyint(x(w * lanes, lanes) * T.Broadcast(factor[1], lanes))
            )
            codes[code_at(w * lanes, lanes)] = T.Cast(f"int8x{lanes}", whole[T.Ramp(0, 1, lanes)])
            total[T.Ramp(0, 1, lanes)] = total[T.Ramp(0, 1, lanes)] + whole[T.Ramp(0, 1, lanes)]
        scales[group_at] = T.if_then_else(
            factor[0] > T.float32(_LEAST), factor[0] / T.float32(_LARGEST_CODE), T.float32(0)
        )
        offsets[group_at] = lane_sum(total, 0, lanes) * T.int32(-zero_left)

    return quantize


def lane_max(buffer: Any, lanes: int, base: Any = 0) -> Any:
    """The largest of `lanes` neighbours of a one-dimensional buffer, by halves."""
    values = [buffer[base + lane] for lane in range(lanes)]
    while len(values) > 1:
        half = len(values) // 2
        values = [T.max(values[i], values[i + half]) for i in range(half)]
    return values[0]


@T.inline
def prefetch(data, block, g, w, cache):
    """Ask for the cache line of word `w`, into the first or second cache; it may lie past the end, as prefetching does
    not fault."""
    T.evaluate(
        T.call_llvm_intrin(
            "void", "llvm.prefetch", T.address_of(data[block, g, w, 0]), T.int32(0), T.int32(4 - cache), T.int32(1)
        )
    )


def codes_of(layout: PackedLayout, words: Any, half: Any, lanes: int) -> Any:
    """A code a byte: the low or the high nibbles of 4-bit words, `half` of a group each; all of 8-bit words."""
    if layout.halves == 1:
        return words
    shift = T.Broadcast(T.Cast("uint32", half * 4), lanes)
    return T.bitwise_and(T.shift_right(words, shift), unsigned(0x0F0F0F0F, lanes))


def block_tile(layout: PackedLayout, tile: CpuTile, rows: int) -> Callable[..., Any]:
    """Statement `run(data, scale, block, groups, x, y, y_at, add, valid)`: `rows` rows times a block of 16 weight rows.

    `groups` is how many groups a row has. `x` is a triple of expressions: codes(i, column, how many), scale(i, group)
    and offset(i, group). y(i, n) = sum + add(i, n) for the block's rows n < `valid`.
    """
    unit = unit_of(layout, tile).for_rows(rows)
    if rows % unit.rows:
        return _one_more(block_tile(layout, tile, rows - 1), block_tile(layout, tile, 1), rows - 1)
    lanes, together = unit.lanes, unit.rows
    block_vectors = layout.rows // lanes
    vectors = block_vectors if rows <= tile.wide_rows else max(1, block_vectors // 2)
    passes = block_vectors // vectors
    sums, (sum_dtype, sum_lanes) = rows * vectors, unit.sum_type
    halves, words, ahead = layout.halves, layout.words, tile.prefetch
    lines = words // passes  # cache lines (16 words) that a group's pass asks for in advance
    subtract = unit.zero_left != 0

    def sum_at(pair: Any, v: Any, part: int) -> Any:
        return T.Ramp(((pair * vectors + v) * together + part) * sum_lanes, 1, sum_lanes)

    def total_at(i: Any, v: Any) -> Any:
        return T.Ramp((i * vectors + v) * lanes, 1, lanes)

    def step(total: Any, data: Any, x: Any, at: tuple[Any, ...], part: int) -> Any:
        block, g, w, half, vector, i = at
        zero = T.Broadcast(T.Cast(sum_dtype, 0), sum_lanes)
        return unit.add(
            T.Select(w + half == 0, zero, total),
            [data[block, g, w * together + word, T.Ramp(vector * lanes, 1, lanes)] for word in range(together)],
            lambda words: codes_of(layout, words, half, lanes),
            unit.operand(x[0], i * together, g * GROUP + half * (GROUP // 2) + w * together * 4),
            part,
        )

    def scaled(acc: Any, x: Any, g: Any, pair: Any, v: Any, row: int) -> Any:
        total = unit.finish([acc[sum_at(pair, v, part)] for part in range(together)], row)
        i = pair * together + row
        whole = T.Cast(f"float32x{lanes}", total + T.Broadcast(x[2](i, g), lanes) if subtract else total)
        return whole * T.Broadcast(x[1](i, g), lanes)

    @T.inline
    def run(data, scale, block, groups, x, y, y_at, add, valid):
        for p in T.serial(passes):
            total = T.alloc_buffer((sums * lanes,), "float32", scope="global")
            for s in T.unroll(sums):
                total[T.Ramp(s * lanes, 1, lanes)] = T.Broadcast(T.float32(0), lanes)
            for g in T.serial(groups):
                acc = T.alloc_buffer((sums * sum_lanes,), sum_dtype, scope="global")
                for w in T.unroll(words // together):
                    # LLVM moves no load across a prefetch: between the words, they keep few loads alive at a time.
                    for q in T.unroll(together):
                        if ahead > 0 and (w * together + q) % passes == 0:
                            prefetch(
                                data,
                                block,
                                p * (groups // passes) + (g + ahead) // passes,
                                (g + ahead) % passes * lines + (w * together + q) // passes,
                                tile.prefetch_cache,
                            )
                    # The order of what is next to each other decides how many registers LLVM needs.
                    if together == 1:
                        for half in T.unroll(halves):
                            for v in T.unroll(vectors):
                                for i in T.unroll(rows):
                                    acc[sum_at(i, v, 0)] = step(
                                        acc[sum_at(i, v, 0)], data, x, (block, g, w, half, p * vectors + v, i), 0
                                    )
                    else:
                        for v in T.unroll(vectors):
                            for half in T.unroll(halves):
                                for i in T.unroll(rows // 2):
                                    acc[sum_at(i, v, 0)] = step(
                                        acc[sum_at(i, v, 0)], data, x, (block, g, w, half, p * vectors + v, i), 0
                                    )
                            for half in T.unroll(halves):
                                for i in T.unroll(rows // 2):
                                    acc[sum_at(i, v, 1)] = step(
                                        acc[sum_at(i, v, 1)], data, x, (block, g, w, half, p * vectors + v, i), 1
                                    )
                for i in T.unroll(rows // together):
                    for v in T.unroll(vectors):
                        total[total_at(i * together, v)] = T.fma(
                            scaled(acc, x, g, i, v, 0),
                            T.Cast(f"float32x{lanes}", scale[block, g, T.Ramp((p * vectors + v) * lanes, 1, lanes)]),
                            total[total_at(i * together, v)],
                        )
                        if together == 2:
                            total[total_at(i * together + 1, v)] = T.fma(
                                scaled(acc, x, g, i, v, 1),
                                T.Cast(
                                    f"float32x{lanes}", scale[block, g, T.Ramp((p * vectors + v) * lanes, 1, lanes)]
                                ),
                                total[total_at(i * together + 1, v)],
                            )
            if valid >= layout.rows:
                for i in T.unroll(rows):
                    for n in T.vectorized(vectors * lanes):
                        y[y_at(i, p * vectors * lanes + n)] = total[i * vectors * lanes + n] + add(
                            i, p * vectors * lanes + n
                        )
            else:
                for i in T.unroll(rows):
                    for n in T.serial(vectors * lanes):
                        if T.Cast("int64", p * vectors * lanes + n) < T.Cast("int64", valid):
                            y[y_at(i, p * vectors * lanes + n)] = total[i * vectors * lanes + n] + add(
                                i, p * vectors * lanes + n
                            )

    return run


def _one_more(most: Callable[..., Any], last: Callable[..., Any], row: int) -> Callable[..., Any]:
    """`block_tile` for a row, `row`, that is left over after pairs."""

    @T.inline
    def run(data, scale, block, groups, x, y, y_at, add, valid):
        most(data, scale, block, groups, x, y, y_at, add, valid)
        last(
            data,
            scale,
            block,
            groups,
            shifted(x, row),
            y,
            lambda i, n: y_at(row + i, n),
            lambda i, n: add(row + i, n),
            valid,
        )

    return run


@dataclass(frozen=True)
class Factors:
    """What a product of activations and one block of weights takes; see `block_tile`."""

    data: Any
    scale: Any
    block: Any
    groups: Any
    x: tuple[Callable[..., Any], ...]
    y: Any
    y_at: Callable[..., Any]
    add: Callable[..., Any]
    valid: Any


def over_rows(most: int, tile_of: Callable[[int], Callable[..., Any]]) -> Callable[..., Any]:
    """Statement `run(count, *arguments)`: tiles of `most` rows, and one tile for the rows that are left.

    `tile_of(rows)` is a statement `tile(first row, *arguments)`.
    """
    whole, rest = tile_of(most), _left(most - 1, tile_of)

    @T.inline
    def run(count, arguments):
        for t in T.serial(count // most):
            whole(t * most, arguments)
        rest(count % most, count // most * most, arguments)

    return run


def _left(rows: int, tile_of: Callable[[int], Callable[..., Any]]) -> Callable[..., Any]:
    if not rows:

        @T.inline
        def nothing_left(left, start, arguments):
            pass

        return nothing_left
    tile, fewer = tile_of(rows), _left(rows - 1, tile_of)

    @T.inline
    def run(left, start, arguments):
        if left == rows:
            tile(start, arguments)
        else:
            fewer(left, start, arguments)

    return run


def block_product(layout: PackedLayout, tile: CpuTile) -> Callable[..., Any]:
    """Statement `product(count, Factors(…))`: `count` rows times one block."""

    def tile_of(rows: int) -> Callable[..., Any]:
        multiply = block_tile(layout, tile, rows)

        @T.inline
        def one_tile(start, factors):
            multiply(
                factors.data,
                factors.scale,
                factors.block,
                factors.groups,
                shifted(factors.x, start),
                factors.y,
                lambda i, n: factors.y_at(start + i, n),
                lambda i, n: factors.add(start + i, n),
                factors.valid,
            )

        return one_tile

    return over_rows(tile.dot_rows, tile_of)


def shifted(x: tuple[Callable[..., Any], ...], start: Any) -> tuple[Callable[..., Any], ...]:
    """Activations with rows counted from `start`."""
    return tuple(lambda i, *at, part=part: part(start + i, *at) for part in x)


def activations(codes: Any, scales: Any, offsets: Any, row: Callable[[Any], Any] = lambda i: i) -> tuple[Any, ...]:
    """The triple of expressions that a product takes, from the buffers of quantized rows; row(i) is where row i is."""
    return (
        lambda i, column, n: codes[row(i), T.Ramp(column, 1, n)],
        lambda i, group: scales[row(i), group],
        lambda i, group: offsets[row(i), group],
    )


def unpacker(layout: PackedLayout) -> Callable[..., Any]:
    """Statement `unpack(panel, data, scale, block, g)`: a group of a block as float32, panel[column, row]."""
    bits, zero, rows = layout.base.bits, layout.base.zero, layout.rows

    @T.inline
    def unpack(panel, data, scale, block, g):
        for w in T.serial(layout.words):
            for c in T.unroll(32 // bits):
                for r in T.vectorized(rows):
                    # 4 bits: byte c // 2, and odd c are the high nibbles, half a group on.
                    panel[
                        w * 4 + (c // 2 + c % 2 * (GROUP // 2) if bits == 4 else c),
                        r,
                    ] = (
                        T.Cast(
                            "float32",
                            T.Cast(
                                "int32",
                                T.bitwise_and(
                                    T.shift_right(data[block, g, w, r], T.Cast("uint32", c * bits)),
                                    T.uint32(2**bits - 1),
                                ),
                            ),
                        )
                        - T.float32(zero)
                    ) * T.Cast("float32", scale[block, g, r])

    return unpack


def row_quantizer(layout: PackedLayout, tile: CpuTile, width: int) -> Callable[..., Any]:
    """Statement `quantize(x, row, codes, scales, offsets)`: a whole row of `width` values, zeros behind them.

    x(k, n) is n of them from k on.
    """
    groups = layout.base.groups(width)
    quantize = quantizer(tile.lanes, unit_of(layout, tile).zero_left)

    @T.inline
    def quantize_row(x, row, codes, scales, offsets):
        for g in T.serial(width // GROUP):
            quantize(
                lambda k, n: x(g * GROUP + k, n),
                codes,
                lambda k, n: (row, span(g * GROUP + k, n)),
                scales,
                offsets,
                (row, g),
            )
        if width % GROUP > 0:
            rest = T.alloc_buffer((GROUP,), "float32", scope="global")
            for k in T.serial(GROUP):
                rest[k] = T.if_then_else(k < width % GROUP, x(T.min(width // GROUP * GROUP + k, width - 1), 1), 0.0)
            quantize(
                lambda k, n: rest[span(k, n)],
                codes,
                lambda k, n: (row, span((groups - 1) * GROUP + k, n)),
                scales,
                offsets,
                (row, groups - 1),
            )

    return quantize_row
