"""Products of many rows on NVIDIA's tensor cores: what `gpu_products.many_rows` does, in TF32 or float16.

    of 32 columns: W is unpacked, x normalised, both rounded to TF32 into shared memory   ← the next ones on their way
    8 warps, each 16-row tiles × 8-output tiles:  mma.sync m16n8k8, sums in float32

TF32 has float32's exponents, so that no activation overflows, and float16's mantissa. What is float16 already is
multiplied as such, twice as many columns at once (m16n8k16). A result's sum runs in an order fixed by the width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from relax_model.kernels.gpu_tiles import GROUP, WORD, fill, inverse_root

_THREADS, _SIDE = 256, 64
_WARPS = _THREADS // 32
_M, _N = 16, 8
_VECTOR = 4


def many_rows(
    width: int, height: int, eps: float | None, gated: bool, in_runs: bool, in_halves: bool
) -> Callable[..., Any]:
    """See `gpu_products.many_rows`; `height` is 16, 32 or 64."""
    dtype, product = ("float16", "mlc_mma_half") if in_halves else ("float32", "mlc_mma_tf32")
    half = 8 if in_halves else 4  # columns of 16 bytes: a step's are two of them
    stride = GROUP + half  # of a row in shared memory: eight rows of a fragment lie in 32 banks
    steps = GROUP // (2 * half)
    down = height // _M  # tiles of rows, each a warp's
    across = _SIDE // _N // (_WARPS // down)  # tiles of outputs of a warp
    each = height * GROUP // _THREADS  # columns of x that a thread fetches
    by_row, normed, whole = GROUP // each, eps is not None, width % GROUP == 0
    run = min(each, _VECTOR)  # columns of a load

    def rounded(value: Any) -> Any:
        return T.Cast("float16", value) if in_halves else T.call_extern("float32", "mlc_tf32", value)

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
    def fragments(to, source, row):
        """Four matrices of eight rows and `half` columns, of which the lane names a row of one."""
        T.evaluate(T.call_extern("void", "mlc_matrices_4", T.address_of(to[0]), T.address_of(source[row])))

    @T.inline
    def add(total, n, a, b, i):
        """To the warp's tile n of outputs, with half i of `b`."""
        T.evaluate(
            T.call_extern(
                "void",
                product,
                T.address_of(total[n * 4]),
                a[0],
                a[1],
                a[2],
                a[3],
                b[i * 2],
                b[i * 2 + 1],
            )
        )

    @T.inline
    def products(lane, top, first, left, right, a, b, total):
        """A load of W's fragments is for two tiles of outputs, or where a warp has one, for two steps."""
        for k in T.unroll(steps // 2):
            if across == 1:
                fragments(b, right, (first + lane % 8) * stride + (lane // 8 + k * 4) * half)
            for step in T.unroll(2):
                fragments(a, left, (top + lane % 16) * stride + (lane // 16 + (k * 2 + step) * 2) * half)
                if across == 1:
                    add(total, 0, a, b, step)
                else:
                    for n in T.unroll(across // 2):
                        output = T.meta_var(first + n * 2 * _N + lane // 16 * _N + lane % 8)
                        fragments(b, right, output * stride + (lane // 8 % 2 + (k * 2 + step) * 2) * half)
                        for i in T.unroll(2):
                            add(total, n * 2 + i, a, b, i)

    @T.inline
    def multiply(t, chunks, w, x, norm, store):
        left = T.alloc_buffer((height * stride,), dtype, scope="shared")
        right = T.alloc_buffer((_SIDE * stride,), dtype, scope="shared")
        square_part = T.alloc_buffer((_THREADS,), "float32", scope="shared")
        elements = T.alloc_buffer((w.matrix.elements,), w.matrix.dtypes[0], scope="local")
        scales = T.alloc_buffer((1,), w.matrix.dtypes[1], scope="local")
        values = T.alloc_buffer((each,), "float32", scope="local")
        weights = T.alloc_buffer((each,), "float32", scope="local")
        word = T.alloc_buffer((WORD + 1,), "float32", scope="local")
        total = T.alloc_buffer((across * 4,), "float32", scope="local")
        a = T.alloc_buffer((4,), "uint32", scope="local")
        b = T.alloc_buffer((4,), "uint32", scope="local")
        square = T.alloc_buffer((1,), "float32", scope="local")
        sums = T.alloc_buffer((3,), "float32", scope="local")
        # Of the warp: its first row and output; of the lane: the row and the pair of outputs of its sums.
        top, first = T.meta_var(t // 32 % down * _M), T.meta_var(t // 32 // down * (across * _N))
        lane = T.meta_var(t % 32)
        lane_row, lane_column = T.meta_var(t % 32 // 4), T.meta_var(t % 4)
        square[0] = T.float32(0)
        for i in T.unroll(across * 4):
            total[i] = T.float32(0)
        if chunks > 0:
            fetch(0, t, w, x, elements, scales, values)
        for c in T.serial(chunks):
            if normed:
                fetch_norm(c, t, norm, weights)
            fill(word, w.held(elements, scales, 0))
            for i in T.unroll(WORD // _VECTOR):
                for v in T.vectorized(_VECTOR):
                    right[t // 4 * stride + t % 4 * WORD + i * _VECTOR + v] = rounded(
                        word[i * _VECTOR + v] * word[WORD]
                    )
            for i in T.unroll(each):
                if normed:
                    square[0] = square[0] + values[i] * values[i]
                    values[i] = values[i] * weights[i]
                left[t // by_row * stride + t % by_row * each + i] = rounded(values[i])
            T.evaluate(T.tvm_storage_sync("shared"))
            fetch(T.min(c + 1, chunks - 1), t, w, x, elements, scales, values)
            products(lane, top, first, left, right, a, b, total)
            T.evaluate(T.tvm_storage_sync("shared"))
        if normed:
            square_part[t] = square[0]
            T.evaluate(T.tvm_storage_sync("shared"))
        for half in T.unroll(2):
            row = T.meta_var(top + half * 8 + lane_row)
            sums[2] = T.float32(1)
            if normed:
                sums[2] = T.float32(0)
                for i in T.unroll(by_row):
                    sums[2] = sums[2] + square_part[row * by_row + i]
                sums[2] = inverse_root(sums[2], width, eps)
            for n in T.unroll(across):
                if gated:
                    for i in T.unroll(2):
                        sums[i] = total[n * 4 + half * 2 + i] * sums[2]
                    store(row, (first + n * _N) // 2 + lane_column, sums)
                else:
                    for i in T.unroll(2):
                        sums[0] = total[n * 4 + half * 2 + i] * sums[2]
                        store(row, first + n * _N + lane_column * 2 + i, sums)

    return multiply
