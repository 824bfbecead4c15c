"""The rotary table for GPUs, and the rotation that the attention kernels apply from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.gpu_tiles import GpuTile
from relax_model.kernels.registry import kernel
from relax_model.kernels.rope.cpu import rotated


def rotator(
    dim: int, interleaved: bool, factor: float = 1.0, store: Callable[[Any], Any] = lambda value: value
) -> Callable[..., Any]:
    """Statement `rotate(x, table, row, pair, y, y_at)`: y[y_at(c)] = channel c, rotated and times `factor`, as `store`
    makes it, for both channels c of a rotary pair."""

    @T.inline
    def rotate(x, table, row, pair, y, y_at):
        y[y_at(pair)] = store(rotated(x, table, row, pair, dim, interleaved)[0] * T.float32(factor))
        y[y_at(dim // 2 + pair)] = store(rotated(x, table, row, pair, dim, interleaved)[1] * T.float32(factor))

    return rotate


@kernel("rope_table", "gpu")
def rope_table(dim: int, magnitude: float, *, tile: GpuTile) -> PrimFunc:
    """positions int32 (rows,), inverse frequencies float32 (dim/2,) → float32 (rows, dim): cosines, then sines."""
    pairs, threads = dim // 2, tile.threads

    @T.prim_func(private=True, s_tir=True)
    def rope_table_gpu(positions: T.handle, frequencies: T.Buffer((pairs,), "float32"), table: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int64()
        Positions = T.match_buffer(positions, (m,), "int32")
        Table = T.match_buffer(table, (m, dim), "float32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            for i in T.thread_binding(m, "blockIdx.x"):
                for t in T.thread_binding(threads, "threadIdx.x"):
                    for k in T.serial(-(-pairs // threads)):
                        if k * threads + t < pairs:
                            Table[i, k * threads + t] = T.cos(
                                T.Cast("float32", Positions[i]) * frequencies[k * threads + t]
                            ) * T.float32(magnitude)
                            Table[i, pairs + k * threads + t] = T.sin(
                                T.Cast("float32", Positions[i]) * frequencies[k * threads + t]
                            ) * T.float32(magnitude)

    return rope_table_gpu
