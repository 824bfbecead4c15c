"""Products of many rows on NVIDIA's tensor cores, in TF32 or float16: mma.sync m16n8k8 and m16n8k16.

TF32 has float32's exponents, so that no activation overflows, and float16's mantissa. What is float16 already is
multiplied as such, twice as many columns at once.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from relax_model.kernels.gpu_matrix_products import SIDE, THREADS
from relax_model.kernels.gpu_tiles import GROUP

_WARPS = THREADS // 32
_M, _N = 16, 8


class TensorCores:
    """`gpu_matrix_products.Core` for 16, 32 or 64 rows; `in_halves` where all values are float16's."""

    scope = "local"

    def __init__(self, height: int, in_halves: bool) -> None:
        self._in_halves = in_halves
        self.dtype, product = ("float16", "mlc_mma_half") if in_halves else ("float32", "mlc_mma_tf32")
        half = 8 if in_halves else 4  # columns of 16 bytes: a step's are two of them
        self.stride = stride = GROUP + half  # eight rows of a fragment lie in 32 banks
        steps = GROUP // (2 * half)
        down = height // _M  # tiles of rows, each a warp's
        across = SIDE // _N // (_WARPS // down)  # tiles of outputs of a warp
        self.sums = across * 4

        @T.inline
        def clear(total):
            for i in T.unroll(across * 4):
                total[i] = T.float32(0)

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
        def multiply(t, left, right, total):
            """A load of W's fragments is for two tiles of outputs, or where a warp has one, for two steps."""
            a = T.alloc_buffer((4,), "uint32", scope="local")
            b = T.alloc_buffer((4,), "uint32", scope="local")
            # Of the warp: its first row and output.
            top, first = T.meta_var(t // 32 % down * _M), T.meta_var(t // 32 // down * (across * _N))
            lane = T.meta_var(t % 32)
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
        def results(t, left, total, factor, gated, store):
            sums = T.alloc_buffer((3,), "float32", scope="local")
            top, first = T.meta_var(t // 32 % down * _M), T.meta_var(t // 32 // down * (across * _N))
            # Of the lane: the row and the pair of outputs of its sums.
            lane_row, lane_column = T.meta_var(t % 32 // 4), T.meta_var(t % 4)
            for half in T.unroll(2):
                row = T.meta_var(top + half * 8 + lane_row)
                factor(row, sums)
                for n in T.unroll(across):
                    if gated:
                        for i in T.unroll(2):
                            sums[i] = total[n * 4 + half * 2 + i] * sums[2]
                        store(row, (first + n * _N) // 2 + lane_column, sums)
                    else:
                        for i in T.unroll(2):
                            sums[0] = total[n * 4 + half * 2 + i] * sums[2]
                            store(row, first + n * _N + lane_column * 2 + i, sums)

        self.clear, self.multiply, self.results = clear, multiply, results

    def rounded(self, value: Any) -> Any:
        """See `Core`."""
        return T.Cast("float16", value) if self._in_halves else T.call_extern("float32", "mlc_tf32", value)
