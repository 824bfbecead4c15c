"""Sums of products of 16-bit integers, two at a time: what attention over codes is made of on x86-64.

A 32-bit lane holds a pair of neighbours of the sum. Twice as many products as in float32 fit in a vector, and sums are
exact as long as they fit in 32 bits, which whoever makes the integers sees to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from relax_model.kernels.cpu_dot import fenced
from relax_model.kernels.cpu_tiles import CpuTile

_LARGEST_SUM = 2**31 - 1
_LARGEST = 32000  # of a 16-bit integer, with room for rounding


def has_pairs(tile: CpuTile) -> bool:
    """Whether the tile's processor multiplies pairs."""
    return tile.dot in ("maddubs", "vnni")


def bound(other: float) -> int:
    """The largest 16-bit integer whose product with `other` fits in a sum, with room for rounding."""
    return min(_LARGEST, int(0.98 * _LARGEST_SUM / other))


def pair_dot(tile: CpuTile) -> Callable[[Any, Any, Any], Any]:
    """Expression `dot(total, a, b)`: total + a₀·b₀ + a₁·b₁ in each lane; all int32 vectors of `tile.lanes`."""
    lanes = tile.lanes
    sums, pairs = f"int32x{lanes}", f"int16x{2 * lanes}"
    product = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}[lanes]
    fused = {8: "llvm.x86.avx512.vpdpwssd.256", 16: "llvm.x86.avx512.vpdpwssd.512"}[lanes]

    def dot(total: Any, a: Any, b: Any) -> Any:
        a, b = (T.reinterpret(pairs, value) for value in (a, b))
        if tile.dot == "vnni":
            return T.call_llvm_pure_intrin(sums, fused, total, a, b)
        return fenced(total + T.call_llvm_pure_intrin(sums, product, a, b), sums, lanes)

    return dot


def multiply_high(tile: CpuTile, a: Any, b: Any) -> Any:
    """a · b / 32768 of 16-bit vectors of twice `tile.lanes`, rounded (`vpmulhrsw`)."""
    name = {8: "llvm.x86.avx2.pmul.hr.sw", 16: "llvm.x86.avx512.pmul.hr.sw.512"}[tile.lanes]
    return T.call_llvm_pure_intrin(f"int16x{2 * tile.lanes}", name, a, b)


def paired(low: Any, high: Any, lanes: int) -> Any:
    """Two int32 vectors of 16-bit values as one of pairs."""
    mask = T.Broadcast(T.int32(0xFFFF), lanes)
    return T.bitwise_or(T.bitwise_and(low, mask), T.shift_left(high, T.Broadcast(T.int32(16), lanes)))


def outer_pairs(tile: CpuTile, rows: int, vectors: int) -> Callable[..., Any]:
    """Statement `multiply(count, a, b, finish, y, y_at)`: y[y_at(i, v)] = finish(i, v, Σ_k a(i, k) · b(k, v)).

    i < `rows`; a(i, k) is an int32 that holds a pair, b(k, v) and what finish gets and returns are vectors, the sum as
    float32. `count` is of pairs.
    """
    lanes, dot = tile.lanes, pair_dot(tile)

    def at(i: Any, v: Any) -> Any:
        return T.Ramp((i * vectors + v) * lanes, 1, lanes)

    @T.inline
    def multiply(count, a, b, finish, y, y_at):
        acc = T.alloc_buffer((rows * vectors * lanes,), "int32", scope="global")
        for i in T.unroll(rows):
            for v in T.unroll(vectors):
                acc[at(i, v)] = T.Broadcast(T.int32(0), lanes)
        for k in T.serial(count):
            for i in T.unroll(rows):
                for v in T.unroll(vectors):
                    acc[at(i, v)] = dot(acc[at(i, v)], b(k, v), T.Broadcast(a(i, k), lanes))
        for i in T.unroll(rows):
            for v in T.unroll(vectors):
                y[y_at(i, v)] = finish(i, v, T.Cast(f"float32x{lanes}", acc[at(i, v)]))

    return multiply


def outer_pairs_by_group(tile: CpuTile, rows: int, vectors: int, size: int) -> Callable[..., Any]:
    """Statement `multiply(groups, a, b, factor, worth, y, y_at)`: sums over groups of `size` pairs, each scaled.

    y[y_at(i, v)] = Σ_g factor(i, g) · worth(g, v) · Σ_k a(i, k) · b(k, v), where k runs through group g's pairs; a and
    b are as `outer_pairs`', factor(i, g) a float32 and worth(g, v) a vector.
    """
    lanes, dot = tile.lanes, pair_dot(tile)

    def at(i: Any, v: Any) -> Any:
        return T.Ramp((i * vectors + v) * lanes, 1, lanes)

    @T.inline
    def multiply(groups, a, b, factor, worth, y, y_at):
        total = T.alloc_buffer((rows * vectors * lanes,), "float32", scope="global")
        for i in T.unroll(rows):
            for v in T.unroll(vectors):
                total[at(i, v)] = T.Broadcast(T.float32(0), lanes)
        for g in T.serial(groups):
            acc = T.alloc_buffer((rows * vectors * lanes,), "int32", scope="global")
            for i in T.unroll(rows):
                for v in T.unroll(vectors):
                    acc[at(i, v)] = T.Broadcast(T.int32(0), lanes)
            for k in T.serial(size):
                for i in T.unroll(rows):
                    for v in T.unroll(vectors):
                        acc[at(i, v)] = dot(acc[at(i, v)], b(g * size + k, v), T.Broadcast(a(i, g * size + k), lanes))
            for i in T.unroll(rows):
                for v in T.unroll(vectors):
                    total[at(i, v)] = T.fma(
                        T.Cast(f"float32x{lanes}", acc[at(i, v)]),
                        worth(g, v) * T.Broadcast(factor(i, g), lanes),
                        total[at(i, v)],
                    )
        for i in T.unroll(rows):
            for v in T.unroll(vectors):
                y[y_at(i, v)] = total[at(i, v)]

    return multiply
