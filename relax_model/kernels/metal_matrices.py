"""Statements of a SIMD group's 8 × 8 matrices on Apple's GPUs (Metal Shading Language, simdgroup_matrix).

Buffers of scope "metal.simdgroup" hold MATRIX values for each matrix; `place` numbers them.
"""

from __future__ import annotations

from tvm.script import tirx as T

EDGE = 8
MATRIX = EDGE * EDGE


@T.inline
def zero(matrices, place):
    """A matrix of zeros."""
    T.evaluate(T.metal.make_filled_simdgroup_matrix(matrices.data, place, T.float32(0), EDGE, EDGE))


@T.inline
def load(matrices, place, memory, at, stride, turned=False):
    """From memory[at] on, row by row, or with `turned` column by column."""
    T.evaluate(T.metal.simdgroup_load(matrices.data, place, T.address_of(memory[at]), stride, EDGE, EDGE, turned))


@T.inline
def store(matrices, place, memory, at, stride):
    """To memory[at] and on, row by row."""
    T.evaluate(T.metal.simdgroup_store(matrices.data, place, T.address_of(memory[at]), stride, EDGE, EDGE, False))


@T.inline
def multiply_add(total, place, left, of_left, right, of_right):
    """total += left · right."""
    T.evaluate(
        T.metal.simdgroup_multiply_accumulate(
            total.data, place, left.data, of_left, right.data, of_right, total.data, place
        )
    )


@T.inline
def scale(total, place, left, of_left, none):
    """total = left · total; `none` is a matrix of zeros."""
    T.evaluate(
        T.metal.simdgroup_multiply_accumulate(total.data, place, left.data, of_left, total.data, place, none.data, 0)
    )
