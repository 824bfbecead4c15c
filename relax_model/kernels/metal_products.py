"""Products of many rows with the 8 × 8 matrices of a SIMD group, which is 32 threads on every GPU that knows them.

    a SIMD group: 16 rows of x × 64 / (8 / tiles of rows) rows of W, in float32, 2 × `across` matrices of sums

What a thread has of a matrix nobody says, so that results go through the memory that x was in, half of the outputs at a
time.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from relax_model.kernels.gpu_matrix_products import SIDE, THREADS
from relax_model.kernels.gpu_tiles import GROUP
from relax_model.kernels.metal_matrices import EDGE, MATRIX, load, multiply_add, store, zero

_GROUPS = THREADS // 32
_DOWN = 2  # matrices under each other that a SIMD group has


class SimdGroupMatrices:
    """`gpu_matrix_products.Core` for 16, 32 or 64 rows."""

    dtype, scope = "float32", "metal.simdgroup"
    stride = GROUP + 4  # rows of a matrix begin in different banks

    def __init__(self, height: int) -> None:
        stride = self.stride
        down = height // (_DOWN * EDGE)  # SIMD groups under each other
        beside = _GROUPS // down
        across = SIDE // EDGE // beside  # matrices beside each other that a SIMD group has
        self.sums = _DOWN * across * MATRIX
        half = SIDE // 2
        of_row = THREADS // height  # threads that store of a row

        @T.inline
        def clear(total):
            for i in T.unroll(_DOWN * across):
                zero(total, i)

        @T.inline
        def multiply(t, left, right, total):
            a = T.alloc_buffer((_DOWN * MATRIX,), "float32", scope="metal.simdgroup")
            b = T.alloc_buffer((MATRIX,), "float32", scope="metal.simdgroup")
            top = T.meta_var(t // 32 % down * (_DOWN * EDGE))
            first = T.meta_var(t // 32 // down * (across * EDGE))
            for k in T.unroll(GROUP // EDGE):
                for d in T.unroll(_DOWN):
                    load(a, d, left, (top + d * EDGE) * stride + k * EDGE, stride)
                for n in T.unroll(across):
                    load(b, 0, right, (first + n * EDGE) * stride + k * EDGE, stride, turned=True)
                    for d in T.unroll(_DOWN):
                        multiply_add(total, d * across + n, a, d, b, 0)

        @T.inline
        def results(t, left, total, factor, gated, put):
            sums = T.alloc_buffer((3,), "float32", scope="local")
            top = T.meta_var(t // 32 % down * (_DOWN * EDGE))
            first = T.meta_var(t // 32 // down % (beside // 2) * (across * EDGE))
            row, place = T.meta_var(t // of_row), T.meta_var(t % of_row)
            factor(row, sums)
            for h in T.unroll(2):
                if t // 32 // down // (beside // 2) == h:
                    for d in T.unroll(_DOWN):
                        for n in T.unroll(across):
                            store(total, d * across + n, left, (top + d * EDGE) * stride + first + n * EDGE, stride)
                T.evaluate(T.tvm_storage_sync("shared"))
                if gated:
                    for n in T.unroll(half // 2 // of_row):
                        for i in T.unroll(2):
                            sums[i] = left[row * stride + (n * of_row + place) * 2 + i] * sums[2]
                        put(row, h * (half // 2) + n * of_row + place, sums)
                else:
                    for n in T.unroll(half // of_row):
                        sums[0] = left[row * stride + n * of_row + place] * sums[2]
                        put(row, h * half + n * of_row + place, sums)
                T.evaluate(T.tvm_storage_sync("shared"))

        self.clear, self.multiply, self.results = clear, multiply, results

    def rounded(self, value: Any) -> Any:
        """See `Core`: as it is."""
        return value
