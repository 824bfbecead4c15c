"""Products of many rows by small matrices that a device multiplies: what `gpu_products.many_rows` does.

    of 32 columns: W is unpacked, x normalised, both into shared memory        ← the next ones on their way in registers
    8 warps, each 16-row tiles × 8-output tiles of the products (`Core`), sums in float32

A result's sum runs in an order fixed by the width and the tile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from tvm.script import tirx as T

from relax_model.kernels.gpu_tiles import GROUP, WORD, fill, inverse_root

THREADS, SIDE = 256, 64
_VECTOR = 4


class Core(Protocol):
    """How a device multiplies `height` rows of x with SIDE rows of W.

    Both lie in shared memory of `dtype`, `left` and `right`, row by row, `stride` values from one to the next. A thread
    has `sums` values of memory `scope`.
    """

    dtype: str
    stride: int
    sums: int
    scope: str

    def rounded(self, value: Any) -> Any:
        """A float32 value as shared memory has it."""

    clear: Callable[..., Any]  # clear(total): statement
    multiply: Callable[..., Any]  # multiply(t, left, right, total): adds the products of 32 columns
    # results(t, left, total, factor, gated, store): store(row, output, sums) of all that the block has; factor(row,
    # sums) puts what they are to be multiplied with into sums[2]
    results: Callable[..., Any]


def many_rows(core: Core, width: int, height: int, eps: float | None, gated: bool, in_runs: bool) -> Callable[..., Any]:
    """See `gpu_products.many_rows`; `height` is 16, 32 or 64."""
    stride = core.stride
    each = height * GROUP // THREADS  # columns of x that a thread fetches
    by_row, normed, whole = GROUP // each, eps is not None, width % GROUP == 0
    run = min(each, _VECTOR)  # columns of a load

    @T.inline
    def fetch(c, t, w, x, elements, scales, values):
        """The thread's part of the columns from c · GROUP on, as it is stored."""
        for i in T.unroll(w.matrix.elements):
            elements[i] = w.element(t // 4, c * GROUP + t % 4 * WORD, i)
        if w.matrix.scaled:
            scales[0] = w.scale(t // 4, c * GROUP + t % 4 * WORD)
        if whole and in_runs:
            for i in T.unroll(each // run):
                column = T.meta_var(c * GROUP + t % by_row * each + i * run)
                for v in T.vectorized(run):
                    values[i * run + v] = x(t // by_row, column + v)
        else:
            for i in T.unroll(each):
                column = T.meta_var(c * GROUP + t % by_row * each + i)
                values[i] = T.if_then_else(column < width, x(t // by_row, column), T.float32(0))

    @T.inline
    def fetch_norm(c, t, norm, weights):
        """All rows have the same: they are in a cache, and fetched when they are used, which spares registers."""
        if whole:
            for i in T.unroll(each // run):
                for v in T.vectorized(run):
                    weights[i * run + v] = norm(c * GROUP + t % by_row * each + i * run + v)
        else:
            for i in T.unroll(each):
                column = T.meta_var(c * GROUP + t % by_row * each + i)
                weights[i] = T.if_then_else(column < width, norm(column), T.float32(0))

    @T.inline
    def multiply(t, chunks, w, x, norm, store):
        left = T.alloc_buffer((height * stride,), core.dtype, scope="shared")
        right = T.alloc_buffer((SIDE * stride,), core.dtype, scope="shared")
        square_part = T.alloc_buffer((THREADS,), "float32", scope="shared")
        elements = T.alloc_buffer((w.matrix.elements,), w.matrix.dtypes[0], scope="local")
        scales = T.alloc_buffer((1,), w.matrix.dtypes[1], scope="local")
        values = T.alloc_buffer((each,), "float32", scope="local")
        weights = T.alloc_buffer((each,), "float32", scope="local")
        word = T.alloc_buffer((WORD + 1,), "float32", scope="local")
        total = T.alloc_buffer((core.sums,), "float32", scope=core.scope)
        square = T.alloc_buffer((1,), "float32", scope="local")
        square[0] = T.float32(0)
        core.clear(total)
        if chunks > 0:
            fetch(0, t, w, x, elements, scales, values)
        for c in T.serial(chunks):
            if normed:
                fetch_norm(c, t, norm, weights)
            fill(word, w.held(elements, scales, 0))
            for i in T.unroll(WORD // _VECTOR):
                for v in T.vectorized(_VECTOR):
                    right[t // 4 * stride + t % 4 * WORD + i * _VECTOR + v] = core.rounded(
                        word[i * _VECTOR + v] * word[WORD]
                    )
            for i in T.unroll(each):
                if normed:
                    square[0] = square[0] + values[i] * values[i]
                    values[i] = values[i] * weights[i]
                left[t // by_row * stride + t % by_row * each + i] = core.rounded(values[i])
            T.evaluate(T.tvm_storage_sync("shared"))
            fetch(T.min(c + 1, chunks - 1), t, w, x, elements, scales, values)
            core.multiply(t, left, right, total)
            T.evaluate(T.tvm_storage_sync("shared"))
        if normed:
            square_part[t] = square[0]
            T.evaluate(T.tvm_storage_sync("shared"))

        @T.inline
        def factor(row, sums):
            sums[2] = T.float32(1)
            if normed:
                sums[2] = T.float32(0)
                for i in T.unroll(by_row):
                    sums[2] = sums[2] + square_part[row * by_row + i]
                sums[2] = inverse_root(sums[2], width, eps)

        core.results(t, left, total, factor, gated, store)

    return multiply
