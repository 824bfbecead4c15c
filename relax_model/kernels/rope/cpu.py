"""The rotary table for CPUs, and the rotation that the attention kernels apply from it."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.cpu_tiles import CpuTile
from relax_model.kernels.registry import kernel


@kernel("rope_table", "cpu")
def rope_table(dim: int, magnitude: float, *, tile: CpuTile) -> PrimFunc:
    """positions int32 (rows,), inverse frequencies float32 (dim/2,) → float32 (rows, dim): cosines, then sines."""
    pairs = dim // 2

    @T.prim_func(private=True, s_tir=True)
    def rope_table_cpu(positions: T.handle, frequencies: T.Buffer((pairs,), "float32"), table: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int64()
        Positions = T.match_buffer(positions, (m,), "int32")
        Table = T.match_buffer(table, (m, dim), "float32")
        with T.sblock("root"):
            for i in T.parallel(m):
                for p in T.serial(pairs):
                    Table[i, p] = T.cos(T.Cast("float32", Positions[i]) * frequencies[p]) * T.float32(magnitude)
                    Table[i, pairs + p] = T.sin(T.Cast("float32", Positions[i]) * frequencies[p]) * T.float32(magnitude)

    return rope_table_cpu


def rotated(x: Any, table: Any, row: Any, pair: Any, dim: int, interleaved: bool) -> tuple[Any, Any]:
    """Both channels of rotary pair `pair`; x(c) reads channel c. Results lie at `pair` and dim/2 + `pair`.

    Queries and keys are stored alike in that order whichever way the checkpoint pairs them: dot products don't see it.
    """
    first, second = (2 * pair, 2 * pair + 1) if interleaved else (pair, dim // 2 + pair)
    cos, sin = table[row, pair], table[row, dim // 2 + pair]
    return x(first) * cos - x(second) * sin, x(second) * cos + x(first) * sin
