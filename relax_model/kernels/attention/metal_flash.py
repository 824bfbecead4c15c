"""A tile's products of `gpu_flash` with the 8 × 8 matrices of Apple's SIMD groups, in float32.

    8 SIMD groups, each 16 rows of the tile:  score × 32 of 64 keys        8 matrices
                                              out   × half of v columns    2 · v / 16 matrices; at v = 256 64 registers

A row's factor stands in a diagonal matrix that `out` is multiplied with: what a thread has of a matrix nobody says.
"""

from __future__ import annotations

from tvm.script import tirx as T

from relax_model.kernels.attention.gpu_flash import EACH, GRID, staged_keys
from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.gpu_products import SIDE
from relax_model.kernels.gpu_tiles import GROUP
from relax_model.kernels.metal_matrices import EDGE, MATRIX, load, multiply_add, scale, store, zero

_DOWN, _OF_ROWS = 2, 4  # matrices under each other of a SIMD group, and SIMD groups
_KEYS = SIDE // 2 // EDGE  # matrices beside each other of a group's scores, and of results that are stored at once


def serves(shape: AttentionShape) -> bool:
    """Whether values are of whole matrices, and few enough for a group's registers and shared memory."""
    return shape.v % (2 * EDGE) == 0 and shape.v <= 256


class SimdGroups:
    """`gpu_flash.Core`."""

    stride, weight_stride, scope = GROUP + 4, SIDE + 4, "metal.simdgroup"
    scores = _DOWN * _KEYS * MATRIX
    factors = SIDE * EDGE  # a diagonal matrix for each 8 rows

    def __init__(self, shape: AttentionShape) -> None:
        half, staged = shape.v // 2, staged_keys(shape.v)
        across = half // EDGE  # matrices of values beside each other
        stride, weight_stride = self.stride, self.weight_stride
        self.value_stride = value_stride = shape.v + 4
        self.sums = _DOWN * across * MATRIX
        assert staged % EDGE == 0

        def top(t):
            return t // 32 % _OF_ROWS * (_DOWN * EDGE)

        @T.inline
        def clear(t, factor, out):
            for i in T.unroll(SIDE * EDGE // 256):
                factor[i * 256 + t] = T.float32(0)
            for i in T.unroll(_DOWN * across):
                zero(out, i)

        @T.inline
        def clear_scores(product):
            for i in T.unroll(_DOWN * _KEYS):
                zero(product, i)

        @T.inline
        def multiply_keys(t, tile, product):
            a = T.alloc_buffer((_DOWN * MATRIX,), "float32", scope="metal.simdgroup")
            b = T.alloc_buffer((MATRIX,), "float32", scope="metal.simdgroup")
            keys = T.meta_var(SIDE + t // 32 // _OF_ROWS * (SIDE // 2))
            for k in T.unroll(GROUP // EDGE):
                for d in T.unroll(_DOWN):
                    load(a, d, tile, (top(t) + d * EDGE) * stride + k * EDGE, stride)
                for n in T.unroll(_KEYS):
                    load(b, 0, tile, (keys + n * EDGE) * stride + k * EDGE, stride, turned=True)
                    for d in T.unroll(_DOWN):
                        multiply_add(product, d * _KEYS + n, a, d, b, 0)

        @T.inline
        def put(t, matrices, d, n, place, tile):
            """Matrix n of those beside each other, to columns from 8 · place on of the group's half of `tile`."""
            column = T.meta_var(t // 32 // _OF_ROWS * (SIDE // 2) + place * EDGE)
            store(matrices, n, tile, (top(t) + d * EDGE) * weight_stride + column, weight_stride)

        @T.inline
        def take_scores(t, product, tile, score):
            T.evaluate(T.tvm_storage_sync("shared"))  # others may still read queries and keys
            for d in T.unroll(_DOWN):
                for n in T.unroll(_KEYS):
                    put(t, product, d, d * _KEYS + n, n, tile)
            T.evaluate(T.tvm_storage_sync("shared"))
            for a in T.unroll(EACH):
                for b in T.unroll(EACH):
                    score[a * EACH + b] = tile[(t // GRID * EACH + a) * weight_stride + b * GRID + t % GRID]

        @T.inline
        def note(t, a, value, factor, out):
            row = T.meta_var(t // GRID * EACH + a)
            if t % GRID == 0:
                factor[row * EDGE + row % EDGE] = value

        @T.inline
        def rescale(t, factor, out):
            diagonal = T.alloc_buffer((_DOWN * MATRIX,), "float32", scope="metal.simdgroup")
            none = T.alloc_buffer((MATRIX,), "float32", scope="metal.simdgroup")
            zero(none, 0)
            for d in T.unroll(_DOWN):
                load(diagonal, d, factor, (top(t) + d * EDGE) * EDGE, EDGE)
                for n in T.unroll(across):
                    scale(out, d * across + n, diagonal, d, none)

        @T.inline
        def multiply_values(t, first, tile, stage, out):
            a = T.alloc_buffer((_DOWN * MATRIX,), "float32", scope="metal.simdgroup")
            b = T.alloc_buffer((MATRIX,), "float32", scope="metal.simdgroup")
            for k in T.unroll(staged // EDGE):
                for d in T.unroll(_DOWN):
                    load(a, d, tile, (top(t) + d * EDGE) * weight_stride + first + k * EDGE, weight_stride)
                for n in T.unroll(across):
                    column = T.meta_var(t // 32 // _OF_ROWS * half + n * EDGE)
                    load(b, 0, stage, k * EDGE * value_stride + column, value_stride)
                    for d in T.unroll(_DOWN):
                        multiply_add(out, d * across + n, a, d, b, 0)

        @T.inline
        def results(t, tile, total, out, put_mean):
            """By way of `tile`, as many columns of both halves at a time as scores have."""
            for piece in T.unroll(-(-across // _KEYS)):
                for d in T.unroll(_DOWN):
                    for n in T.unroll(_KEYS):
                        if piece * _KEYS + n < across:
                            put(t, out, d, d * across + piece * _KEYS + n, n, tile)
                T.evaluate(T.tvm_storage_sync("shared"))
                for a in T.unroll(EACH):
                    for b in T.unroll(EACH):
                        row, column = T.meta_var(t // GRID * EACH + a), T.meta_var(b * GRID + t % GRID)
                        within = T.meta_var(piece * (SIDE // 2) + column % (SIDE // 2))
                        if within < half:
                            put_mean(
                                row,
                                column // (SIDE // 2) * half + within,
                                tile[row * weight_stride + column] / total[a],
                            )
                T.evaluate(T.tvm_storage_sync("shared"))

        self.clear, self.clear_scores, self.multiply_keys = clear, clear_scores, multiply_keys
        self.take_scores, self.note, self.rescale = take_scores, note, rescale
        self.multiply_values, self.results = multiply_values, results
