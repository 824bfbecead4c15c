"""Mixture-of-experts products on packed weights for CPUs: 8-bit activations, expert by expert.

A task is a run of an expert's output rows, whose weights stream by once for all activations that chose the expert; a
thread gets as many consecutive tasks as every other. Their order depends on what bounds them:

    few activations an expert    memory      expert by expert: a thread reads long runs, which are prefetched
    many                         arithmetic  run by run through all experts: threads do the same work, however uneven
                                             the routing is
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.cpu_packed import GROUP, Factors, activations, block_product, flat
from relax_model.kernels.cpu_tiles import CpuTile, nothing
from relax_model.kernels.linear.cpu_packed import GatedFactors, gated_product
from relax_model.kernels.registry import kernel
from relax_model.layout import PackedLayout

_BLOCKS_A_TASK = 4  # 64 output rows: long enough runs for the memory, enough tasks for many threads
_FEW = 8  # activations an expert, on average


def over_tasks(experts: int) -> Callable[..., Any]:
    """Statement `run(starts, runs, body)`: body(expert, run) for each run of each expert that was chosen, in parallel.

    `starts` are the experts' first pairs, (experts + 1,).
    """

    @T.inline
    def run(starts, runs, body):
        chosen = T.alloc_buffer((experts + 1,), "int32", scope="global")  # and how many they are
        chosen[experts] = 0
        for e in T.serial(experts):
            if starts[e + 1] > starts[e]:
                chosen[chosen[experts]] = e
                chosen[experts] = chosen[experts] + 1
        for t in T.parallel(chosen[experts] * runs):
            at = T.alloc_buffer((2,), "int32", scope="global")  # expert and run
            if starts[experts] <= _FEW * chosen[experts]:
                at[0] = chosen[t // runs]
                at[1] = t % runs
            else:
                at[0] = chosen[t % chosen[experts]]
                at[1] = t // chosen[experts]
            body(at[0], at[1])

    return run


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
    product, over = gated_product(layout, tile), over_tasks(experts)

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

            @T.inline
            def group_of_expert(e, g):
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

            over(starts, out_groups, group_of_expert)

    return expert_gate_up_cpu


@kernel("expert_down", "cpu")
def expert_down(layout: PackedLayout, experts: int, hidden: int, width: int, top_k: int, *, tile: CpuTile) -> PrimFunc:
    """Codes, scales and offsets of h (pairs, width), W (experts, hidden, width) → float32 (pairs, hidden)."""
    specs = layout.buffers((experts, hidden, width))
    data_shape, scale_shape = specs["q_weight"].shape, specs["q_scale"].shape
    groups, blocks = layout.base.groups(width), scale_shape[1]
    product, over = block_product(layout, tile), over_tasks(experts)

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

            @T.inline
            def blocks_of_expert(e, t):
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

            over(starts, T.ceildiv(blocks, _BLOCKS_A_TASK), blocks_of_expert)

    return expert_down_cpu
