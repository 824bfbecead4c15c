"""Sums of products for GPUs: a block's share of x · Wᵀ for a few rows of x, and for many.

    few rows: a block of `threads` makes threads / lanes · each outputs of up to `count` rows
    ┌ lanes ┐
    │ words of 8 columns, side by side      `each` rows of W    → sums in registers, added up in shared memory or,
    ├───────┤                                                     where lanes are of one warp, passed on among them
    │                                       the next rows

    many rows: a block of 256 makes height × 64 results, 32 columns of both sides at a time in shared memory

With `eps` the rows are RMS-normalised (arXiv:1910.07467) on the way: the columns are multiplied with the norm's weight,
squares are summed beside the products, and 1 / sqrt(mean + eps) multiplies the sums. With `gated`, neighbouring outputs
are one of a gate and one of an up projection. A result's sum runs in an order fixed by the width and the tile.

Both are statements of

    w                       `Rows`: the rows of W that the block's outputs are made with
    x(r, k)                 a value of row r of the block's rows, within bounds
    norm(k)                 the norm's weight; not asked for without `eps`
    store(r, o, sums)       take result o of row r from sums[0], or with `gated` from sums[0] and sums[1]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from relax_model.kernels import gpu_matrix_products
from relax_model.kernels.cuda_products import TensorCores
from relax_model.kernels.gpu_tiles import GROUP, WORD, GpuTile, fill, inverse_root
from relax_model.kernels.metal_products import SimdGroupMatrices

SIDE = 64  # outputs that a block makes of many rows
MANY_THREADS = 256
_EACH = 4  # outputs of a thread
_RUN = 4  # values that are read at once: what every device can


def accumulator(tile: GpuTile, width: int, count: int, normed: bool = False) -> Callable[..., Any]:
    """Statement `accumulate(t, w, x, norm, total, squares)`: a thread's share of the products of `count` rows with its
    `tile.each` outputs, onto total[r · each + j], and with `normed` of the rows' squares, onto squares[r]."""
    lanes, each = tile.lanes, tile.each
    span, columns = lanes * WORD, -(-width // WORD) * WORD
    steps = -(-columns // span)

    @T.inline
    def fetch(place, column, elements, scales, t, w):
        for i in T.unroll(w.matrix.elements):
            elements[place * w.matrix.elements + i] = w.element(t // lanes * each + place % each, column, i)
        if w.matrix.scaled:
            scales[place] = w.scale(t // lanes * each + place % each, column)

    @T.inline
    def multiply(first, column, elements, scales, values, row, weight, dot, total, squares, w, x, norm):
        for r in T.unroll(count):
            load(row, r * WORD, column, width, lambda k: x(r, k))
        if normed:
            load(weight, 0, column, width, norm)
            for r in T.unroll(count):
                for i in T.unroll(WORD):
                    squares[r] = squares[r] + row[r * WORD + i] * row[r * WORD + i]
                    row[r * WORD + i] = row[r * WORD + i] * weight[i]
        for j in T.unroll(each):
            fill(values, w.held(elements, scales, first + j))
            for r in T.unroll(count):
                dot[0] = T.float32(0)
                for i in T.unroll(WORD):
                    dot[0] = dot[0] + values[i] * row[r * WORD + i]
                total[r * each + j] = total[r * each + j] + dot[0] * values[WORD]

    @T.inline
    def take(s, at_once, t, w, x, norm, values, row, weight, dot, total, squares):
        """`at_once` steps from s on: all of their elements are on their way before the first is used."""
        elements = T.alloc_buffer((at_once * each * w.matrix.elements,), w.matrix.dtypes[0], scope="local")
        scales = T.alloc_buffer((at_once * each,), w.matrix.dtypes[1], scope="local")
        for u in T.unroll(at_once):
            column = T.meta_var((s + u) * span + t % lanes * WORD)
            for j in T.unroll(each):
                if columns % span == 0:
                    fetch(u * each + j, column, elements, scales, t, w)
                else:
                    if column < columns:
                        fetch(u * each + j, column, elements, scales, t, w)
        for u in T.unroll(at_once):
            column = T.meta_var((s + u) * span + t % lanes * WORD)
            if columns % span == 0:
                multiply(u * each, column, elements, scales, values, row, weight, dot, total, squares, w, x, norm)
            else:
                if column < columns:
                    multiply(u * each, column, elements, scales, values, row, weight, dot, total, squares, w, x, norm)

    @T.inline
    def accumulate(t, w, x, norm, total, squares):
        values = T.alloc_buffer((WORD + 1,), "float32", scope="local")
        dot = T.alloc_buffer((1,), "float32", scope="local")
        row = T.alloc_buffer((count * WORD,), "float32", scope="local")
        weight = T.alloc_buffer((WORD,), "float32", scope="local")
        for s in T.serial(steps // tile.steps):
            take(s * tile.steps, tile.steps, t, w, x, norm, values, row, weight, dot, total, squares)
        if steps % tile.steps > 0:
            take(
                steps - steps % tile.steps,
                steps % tile.steps,
                t,
                w,
                x,
                norm,
                values,
                row,
                weight,
                dot,
                total,
                squares,
            )

    return accumulate


def lane_sum(
    tile: GpuTile, count: int, width: int = 0, eps: float | None = None, gated: bool = False
) -> Callable[..., Any]:
    """Statement `add(t, total, squares, store)`: what the lanes have of each of `count` rows' outputs, added up."""
    if tile.warp:
        return _lane_sum_in_a_warp(tile, count, width, eps, gated)
    lanes, threads, each = tile.lanes, tile.threads, tile.each
    of_each, normed = 2 if gated else 1, eps is not None
    outputs = tile.outputs // of_each
    made = count * outputs

    @T.inline
    def add(t, total, squares, store):
        part = T.alloc_buffer((count * each * threads,), "float32", scope="shared")
        square_part = T.alloc_buffer((count * threads,), "float32", scope="shared")
        sums = T.alloc_buffer((3,), "float32", scope="local")
        T.evaluate(T.tvm_storage_sync("shared"))  # the memory may be what others still read
        for r in T.unroll(count):
            for j in T.unroll(each):
                part[(r * each + j) * threads + t] = total[r * each + j]
            if normed:
                square_part[r * threads + t] = squares[r]
        T.evaluate(T.tvm_storage_sync("shared"))
        for e in T.unroll(-(-made // threads)):
            if e * threads + t < made:
                r = T.meta_var((e * threads + t) // outputs)
                output = T.meta_var((e * threads + t) % outputs * of_each)
                for i in T.unroll(3):
                    sums[i] = T.float32(0)
                for lane in T.serial(lanes):
                    sums[0] = sums[0] + part[(r * each + output % each) * threads + output // each * lanes + lane]
                    if gated:
                        second = T.meta_var(output + 1)
                        sums[1] = sums[1] + part[(r * each + second % each) * threads + second // each * lanes + lane]
                    if normed:
                        # Every output's threads have them; the first one's do.
                        sums[2] = sums[2] + square_part[r * threads + lane]
                if normed:
                    sums[2] = inverse_root(sums[2], width, eps)
                    sums[0] = sums[0] * sums[2]
                    sums[1] = sums[1] * sums[2]
                store(r, (e * threads + t) % outputs, sums)

    return add


def _lane_sum_in_a_warp(tile: GpuTile, count: int, width: int, eps: float | None, gated: bool) -> Callable[..., Any]:
    """The same where the lanes are of one warp: they pass sums to each other, and nobody waits for other warps."""
    lanes, each, normed, of_each = tile.lanes, tile.each, eps is not None, 2 if gated else 1
    assert tile.warp % lanes == 0 and each % of_each == 0

    def other(value, distance):
        return T.tvm_warp_shuffle_xor(T.uint32(0xFFFFFFFF), value, distance, tile.warp, tile.warp)

    @T.inline
    def everywhere(values, number):
        for i in T.unroll(number):
            for step in T.unroll(lanes.bit_length() - 1):
                values[i] = values[i] + other(values[i], T.shift_right(T.int32(lanes // 2), step))

    @T.inline
    def add(t, total, squares, store):
        sums = T.alloc_buffer((3,), "float32", scope="local")
        everywhere(total, count * each)
        if normed:
            everywhere(squares, count)
        for r in T.unroll(count):
            sums[2] = inverse_root(squares[r], width, eps) if normed else T.float32(1)
            for j in T.unroll(each // of_each):
                if t % lanes == (r * (each // of_each) + j) % lanes:
                    for i in T.unroll(of_each):
                        sums[i] = total[r * each + j * of_each + i] * sums[2]
                    store(r, t // lanes * (each // of_each) + j, sums)

    return add


def few_rows(
    tile: GpuTile, width: int, count: int, eps: float | None = None, gated: bool = False
) -> Callable[..., Any]:
    """Statement `multiply(t, w, x, norm, store)` for `count` rows and the block's `tile.outputs` rows of W."""
    accumulate = accumulator(tile, width, count, eps is not None)
    add = lane_sum(tile, count, width, eps, gated)

    @T.inline
    def multiply(t, w, x, norm, store):
        total = T.alloc_buffer((count * tile.each,), "float32", scope="local")
        squares = T.alloc_buffer((count,), "float32", scope="local")
        for r in T.unroll(count):
            squares[r] = T.float32(0)
            for j in T.unroll(tile.each):
                total[r * tile.each + j] = T.float32(0)
        accumulate(t, w, x, norm, total, squares)
        add(t, total, squares, store)

    return multiply


@T.inline
def load(row, base, column, width, x):
    """Statement: WORD values x(column), … of a row of `width`, from row[base] on; zero past the last column."""
    if width % WORD == 0:
        for i in T.unroll(WORD // _RUN):
            for v in T.vectorized(_RUN):
                row[base + i * _RUN + v] = x(column + i * _RUN + v)
    else:
        for i in T.unroll(WORD):
            row[base + i] = T.if_then_else(column + i < width, x(column + i), T.float32(0))


def many_rows(
    tile: GpuTile,
    width: int,
    height: int = SIDE,
    eps: float | None = None,
    gated: bool = False,
    *,
    in_runs: bool = True,
    in_halves: bool = False,
) -> Callable[..., Any]:
    """Statement `multiply(t, chunks, w, x, norm, store)` for `height` rows and SIDE rows of W, by MANY_THREADS
    threads; `chunks` is `column_chunks(width)`, or 0 for a block without work. By a device's matrices, where it has
    some.

    `in_runs`: x(row, column) may be asked for neighbouring columns at once; `in_halves`: its values are float16's, or
    lose nothing that counts when they become such."""
    if tile.simdgroup_matrices:
        return gpu_matrix_products.many_rows(SimdGroupMatrices(height), width, height, eps, gated, in_runs)
    by_hand = _by_hand(width, height, eps, gated)
    if not tile.tensor_cores:
        return by_hand
    rounding = gpu_matrix_products.many_rows(TensorCores(height, in_halves), width, height, eps, gated, in_runs)

    @T.inline
    def multiply(t, chunks, w, x, norm, store):
        if w.matrix.exact:
            by_hand(t, chunks, w, x, norm, store)
        else:
            rounding(t, chunks, w, x, norm, store)

    return multiply


def _by_hand(width: int, height: int, eps: float | None, gated: bool) -> Callable[..., Any]:
    rows_each = height * _EACH // SIDE  # of a thread
    width_each = height * GROUP // MANY_THREADS  # columns of x that a thread fetches
    by_row = GROUP // width_each  # threads that fetch of one row
    pad, left_pad, normed = SIDE + 1, height + 1, eps is not None
    whole = width % GROUP == 0

    @T.inline
    def multiply(t, chunks, w, x, norm, store):
        left = T.alloc_buffer((GROUP * left_pad,), "float32", scope="shared")
        right = T.alloc_buffer((GROUP * pad,), "float32", scope="shared")
        square_part = T.alloc_buffer((MANY_THREADS,), "float32", scope="shared")
        total = T.alloc_buffer((rows_each * _EACH,), "float32", scope="local")
        values = T.alloc_buffer((WORD + 1,), "float32", scope="local")
        value = T.alloc_buffer((2,), "float32", scope="local")  # of x, and the sum of squares
        sums = T.alloc_buffer((3,), "float32", scope="local")
        value[1] = T.float32(0)
        for i in T.unroll(rows_each * _EACH):
            total[i] = T.float32(0)
        for c in T.serial(chunks):
            fill(values, w.run(t // 4, c * GROUP + t % 4 * WORD))
            T.evaluate(T.tvm_storage_sync("shared"))
            for i in T.unroll(WORD):
                right[(t % 4 * WORD + i) * pad + t // 4] = values[i] * values[WORD]
            for i in T.unroll(width_each):
                value[0] = (
                    x(t // by_row, c * GROUP + t % by_row * width_each + i)
                    if whole
                    else T.if_then_else(
                        c * GROUP + t % by_row * width_each + i < width,
                        x(t // by_row, c * GROUP + t % by_row * width_each + i),
                        T.float32(0),
                    )
                )
                if normed:
                    value[1] = value[1] + value[0] * value[0]
                    value[0] = value[0] * (
                        norm(c * GROUP + t % by_row * width_each + i)
                        if whole
                        else T.if_then_else(
                            c * GROUP + t % by_row * width_each + i < width,
                            norm(c * GROUP + t % by_row * width_each + i),
                            T.float32(0),
                        )
                    )
                left[(t % by_row * width_each + i) * left_pad + t // by_row] = value[0]
            T.evaluate(T.tvm_storage_sync("shared"))
            for k in T.serial(GROUP):
                for a in T.unroll(rows_each):
                    for b in T.unroll(_EACH):
                        total[a * _EACH + b] = (
                            total[a * _EACH + b]
                            + left[k * left_pad + t // 16 * rows_each + a] * right[k * pad + t % 16 * _EACH + b]
                        )
        if normed:
            T.evaluate(T.tvm_storage_sync("shared"))  # the memory may be what others still read
            square_part[t] = value[1]
            T.evaluate(T.tvm_storage_sync("shared"))
        for a in T.unroll(rows_each):
            sums[2] = T.float32(1)
            if normed:
                sums[2] = T.float32(0)
                for i in T.serial(by_row):
                    sums[2] = sums[2] + square_part[(t // 16 * rows_each + a) * by_row + i]
                sums[2] = inverse_root(sums[2], width, eps)
            if gated:
                for b in T.unroll(_EACH // 2):
                    sums[0] = total[a * _EACH + 2 * b] * sums[2]
                    sums[1] = total[a * _EACH + 2 * b + 1] * sums[2]
                    store(t // 16 * rows_each + a, t % 16 * (_EACH // 2) + b, sums)
            else:
                for b in T.unroll(_EACH):
                    sums[0] = total[a * _EACH + b] * sums[2]
                    store(t // 16 * rows_each + a, t % 16 * _EACH + b, sums)

    return multiply


def column_chunks(width: int) -> int:
    """Steps that `many_rows` takes over `width` columns."""
    return -(-width // GROUP)
