"""The rotary table for GPUs."""

from __future__ import annotations

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.gpu_tiles import GpuTile
from relax_model.kernels.registry import kernel


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
