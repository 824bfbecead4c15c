"""Mixture-of-experts products on packed weights for CPUs: 8-bit activations, expert by expert.

A task is a run of output rows through all chosen experts, so that threads carry equal bytes whatever the routing. An
expert's weights stream by once for all rows that chose it.
"""

from __future__ import annotations

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.cpu_packed import GROUP, Factors, activations, block_product, flat
from relax_model.kernels.cpu_tiles import CpuTile, nothing
from relax_model.kernels.linear.cpu_packed import GatedFactors, gated_product
from relax_model.kernels.registry import kernel
from relax_model.layout import PackedLayout

_BLOCKS_A_TASK = 4  # 64 output rows: long enough runs for the memory, enough tasks for many threads


@kernel("expert_gate_up", "cpu")
def expert_gate_up(
    layout: PackedLayout, experts: int, width: int, hidden: int, top_k: int, *, tile: CpuTile
) -> PrimFunc:
    """silu(gate(x)) · up(x) of each pair's expert, quantized: codes of x (rows, hidden) → codes of h (pairs, width).

    W (experts, 2·width, hidden) in `layout`. Codes come with scales and offsets, as `quantize` makes them.
    """
    specs = layout.buffers((experts, 2 * width, hidden), (width, width))
    data_shape, scale_shape = specs["q_weight"].shape, specs["q_scale"].shape
    groups, out_groups, blocks = layout.base.groups(hidden), layout.base.groups(width), scale_shape[1]
    product = gated_product(layout, tile)

    @T.prim_func(private=True, s_tir=True)
    def expert_gate_up_cpu(
        codes: T.handle,
        scales: T.handle,
        offsets: T.handle,
        pairs: T.handle,
        starts: T.Buffer((experts + 1,), "int32"),
        data: T.Buffer(data_shape, "uint32"),
        scale: T.Buffer(scale_shape, "float16"),
        h_codes: T.handle,
        h_scales: T.handle,
        h_offsets: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m, p = T.int64(), T.int64()
        Codes = T.match_buffer(codes, (m, groups * GROUP), "int8")
        Scales = T.match_buffer(scales, (m, groups), "float32")
        Offsets = T.match_buffer(offsets, (m, groups), "int32")
        Pairs = T.match_buffer(pairs, (m, top_k), "int32")
        HCodes = T.match_buffer(h_codes, (p, out_groups * GROUP), "int8")
        HScales = T.match_buffer(h_scales, (p, out_groups), "float32")
        HOffsets = T.match_buffer(h_offsets, (p, out_groups), "int32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            Data = T.decl_buffer(flat(data_shape, 3), "uint32", data=data.data)
            Scale = T.decl_buffer(flat(scale_shape, 2), "float16", data=scale.data)
            for g in T.parallel(out_groups):
                for e in T.serial(experts):
                    if starts[e + 1] > starts[e]:
                        product(
                            starts[e + 1] - starts[e],
                            GatedFactors(
                                Data,
                                Scale,
                                e * blocks,
                                blocks // 2,
                                groups,
                                g,
                                activations(
                                    Codes,
                                    Scales,
                                    Offsets,
                                    lambda i: Pairs[(starts[e] + i) // top_k, (starts[e] + i) % top_k] // top_k,
                                ),
                                HCodes,
                                HScales,
                                HOffsets,
                                lambda i: Pairs[(starts[e] + i) // top_k, (starts[e] + i) % top_k],
                            ),
                        )

    return expert_gate_up_cpu


@kernel("expert_down", "cpu")
def expert_down(layout: PackedLayout, experts: int, hidden: int, width: int, top_k: int, *, tile: CpuTile) -> PrimFunc:
    """Codes, scales and offsets of h (pairs, width), W (experts, hidden, width) → float32 (pairs, hidden)."""
    specs = layout.buffers((experts, hidden, width))
    data_shape, scale_shape = specs["q_weight"].shape, specs["q_scale"].shape
    groups, blocks = layout.base.groups(width), scale_shape[1]
    product = block_product(layout, tile)

    @T.prim_func(private=True, s_tir=True)
    def expert_down_cpu(
        codes: T.handle,
        scales: T.handle,
        offsets: T.handle,
        pairs: T.handle,
        starts: T.Buffer((experts + 1,), "int32"),
        data: T.Buffer(data_shape, "uint32"),
        scale: T.Buffer(scale_shape, "float16"),
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m, p = T.int64(), T.int64()
        Codes = T.match_buffer(codes, (p, groups * GROUP), "int8")
        Scales = T.match_buffer(scales, (p, groups), "float32")
        Offsets = T.match_buffer(offsets, (p, groups), "int32")
        Pairs = T.match_buffer(pairs, (m, top_k), "int32")
        Y = T.match_buffer(y, (p, hidden), "float32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            Data = T.decl_buffer(flat(data_shape, 3), "uint32", data=data.data)
            Scale = T.decl_buffer(flat(scale_shape, 2), "float16", data=scale.data)
            for t in T.parallel(T.ceildiv(blocks, _BLOCKS_A_TASK)):
                for e in T.serial(experts):
                    if starts[e + 1] > starts[e]:
                        for b in T.serial(T.min(_BLOCKS_A_TASK, blocks - t * _BLOCKS_A_TASK)):
                            product(
                                starts[e + 1] - starts[e],
                                Factors(
                                    Data,
                                    Scale,
                                    e * blocks + t * _BLOCKS_A_TASK + b,
                                    groups,
                                    activations(
                                        Codes,
                                        Scales,
                                        Offsets,
                                        lambda i: Pairs[(starts[e] + i) // top_k, (starts[e] + i) % top_k],
                                    ),
                                    Y,
                                    lambda i, n: (
                                        Pairs[(starts[e] + i) // top_k, (starts[e] + i) % top_k],
                                        (t * _BLOCKS_A_TASK + b) * layout.rows + n,
                                    ),
                                    nothing,
                                    hidden - (t * _BLOCKS_A_TASK + b) * layout.rows,
                                ),
                            )

    return expert_down_cpu
