"""Mixture-of-experts kernels for CPUs. A *pair* is (row, slot): `row · num_experts_per_tok + slot`.

Pairs are sorted by expert, so that each expert's weights are unpacked once for all rows that chose it; a pair's
result depends on its row and expert alone.
"""

from __future__ import annotations

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.config import RouterConfig
from relax_model.kernels.cpu_tiles import (
    CpuTile,
    StoredRows,
    block_rows,
    nothing,
    padded,
    product,
    scale_names,
    stored,
    unpacker,
    without,
)
from relax_model.kernels.moe import cpu_packed  # noqa: F401  (it enters the registry)
from relax_model.kernels.registry import kernel
from relax_model.layout import FloatLayout, Layout

_LOWEST = -3.0e38
_EXACT = FloatLayout("exact", "float32")


@kernel("route", "cpu")
def route(router: RouterConfig, hidden: int, *, tile: CpuTile) -> PrimFunc:
    """Which experts each row goes to, how much each counts, and the pairs expert by expert.

    x float32 (rows, hidden), gate float32 (experts, hidden), [bias (experts,)] → logits float32 (rows, experts), ids
    int32 and weights float32 (rows, top-k), pairs int32 (rows, top-k), starts int32 (experts + 1,).

    Scores are softmax or sigmoid; the choice is by score + `e_score_correction_bias` within the best groups (a group's
    score: its best expert's for group_limited_greedy, its best two experts' sum for noaux_tc), the weight by score
    alone (DeepSeek-V3 report, equations 13-16; DeepSeek-V2, section 2.2.2). The lower index wins a tie. Expert e's
    pairs lie at starts[e] … starts[e + 1] of the flattened `pairs`, in their own order.
    """
    experts, top_k = router.n_routed_experts, router.num_experts_per_tok
    groups, chosen_groups = router.n_group, router.topk_group
    size = experts // groups
    biased, sigmoid = router.has_correction_bias, router.scoring_func == "sigmoid"
    summed, normalized, scaling = router.group_score_experts, router.normalizes_weights, router.weight_factor
    block = tile.columns
    multiply = product(tile, block, hidden)

    @T.prim_func(private=True, s_tir=True)
    def route_cpu(
        x: T.handle,
        gate: T.Buffer((experts, hidden), "float32"),
        bias: T.Buffer((experts,), "float32"),
        logits: T.handle,
        ids: T.handle,
        weights: T.handle,
        pairs: T.handle,
        starts: T.Buffer((experts + 1,), "int32"),
    ):
        T.func_attr({"tirx.noalias": True})
        m = T.int64()
        X = T.match_buffer(x, (m, hidden), "float32")
        Logits = T.match_buffer(logits, (m, experts), "float32")
        Ids = T.match_buffer(ids, (m, top_k), "int32")
        Weights = T.match_buffer(weights, (m, top_k), "float32")
        Pairs = T.match_buffer(pairs, (m, top_k), "int32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            for b in T.parallel(T.ceildiv(experts, block)):
                multiply(
                    StoredRows(_EXACT, gate, b * block, experts - 1),
                    experts - b * block,
                    m,
                    lambda i, k: X[i, k],
                    Logits,
                    lambda i, n: (i, b * block + n),
                    nothing,
                )
            for i in T.parallel(m):
                score = T.alloc_buffer((experts,), "float32", scope="global")
                choice = T.alloc_buffer((experts,), "float32", scope="global")
                group = T.alloc_buffer((groups,), "float32", scope="global")
                best = T.alloc_buffer((1,), "int32", scope="global")
                total = T.alloc_buffer((2,), "float32", scope="global")
                if sigmoid:
                    for e in T.serial(experts):
                        score[e] = T.float32(1) / (T.float32(1) + T.exp(-Logits[i, e]))
                else:
                    total[0] = T.float32(_LOWEST)
                    total[1] = T.float32(0)
                    for e in T.serial(experts):
                        total[0] = T.max(total[0], Logits[i, e])
                    for e in T.serial(experts):
                        score[e] = T.exp(Logits[i, e] - total[0])
                        total[1] = total[1] + score[e]
                    for e in T.serial(experts):
                        score[e] = score[e] / total[1]
                for e in T.serial(experts):
                    choice[e] = score[e] + bias[e] if biased else score[e]
                if chosen_groups < groups:
                    for g in T.serial(groups):
                        total[0] = T.float32(_LOWEST)  # the best of the group
                        total[1] = T.float32(_LOWEST)  # the second best
                        for e in T.serial(size):
                            total[1] = T.max(total[1], T.min(total[0], choice[g * size + e]))
                            total[0] = T.max(total[0], choice[g * size + e])
                        group[g] = total[0] + total[1] if summed == 2 else total[0]
                    for _c in T.serial(chosen_groups):
                        best[0] = 0
                        for g in T.serial(groups):
                            if group[g] > group[best[0]]:
                                best[0] = g
                        group[best[0]] = T.float32(_LOWEST) * T.float32(1.1)  # -inf marks a chosen group
                    for g in T.serial(groups):
                        if group[g] >= T.float32(_LOWEST):
                            for e in T.serial(size):
                                choice[g * size + e] = T.float32(_LOWEST)
                total[0] = T.float32(0)
                for s in T.serial(top_k):
                    best[0] = 0
                    for e in T.serial(experts):
                        if choice[e] > choice[best[0]]:
                            best[0] = e
                    choice[best[0]] = T.float32(_LOWEST)
                    Ids[i, s] = best[0]
                    Weights[i, s] = score[best[0]]
                    total[0] = total[0] + score[best[0]]
                for s in T.serial(top_k):
                    Weights[i, s] = (
                        Weights[i, s] / (total[0] + T.float32(1e-20)) if normalized else Weights[i, s]
                    ) * T.float32(scaling)
            # A counting sort, which keeps the pairs of an expert in their order.
            place = T.alloc_buffer((experts,), "int32", scope="global")
            for e in T.serial(experts + 1):
                starts[e] = 0
            for i in T.serial(m):
                for s in T.serial(top_k):
                    starts[Ids[i, s] + 1] = starts[Ids[i, s] + 1] + 1
            for e in T.serial(experts):
                starts[e + 1] = starts[e + 1] + starts[e]
                place[e] = starts[e]
            for i in T.serial(m):
                for s in T.serial(top_k):
                    Pairs[place[Ids[i, s]] // top_k, place[Ids[i, s]] % top_k] = T.Cast("int32", i * top_k + s)
                    place[Ids[i, s]] = place[Ids[i, s]] + 1

    return without(route_cpu, *(() if biased else ("bias",)))


@kernel("expert_linear", "cpu")
def expert_linear(
    layout: Layout, experts: int, out: int, width: int, top_k: int, per_pair: bool, *, tile: CpuTile
) -> PrimFunc:
    """Each pair's row times its expert's matrix, W (experts, out, width) in `layout` → float32 (pairs, out).

    x is float32 (rows, width), one row for all pairs of a token, or with `per_pair` (pairs, width).
    Tasks are blocks of output rows through all experts, so that threads carry equal bytes whatever the routing.
    """
    (data_shape, data_dtype), (scale_shape, scale_dtype) = stored(layout, (experts, out, width))
    block = block_rows(tile, width)
    panel_width = padded(layout, width)
    unpack = unpacker(layout, width)
    multiply = product(tile, block, width)
    shared_by = 1 if per_pair else top_k  # pairs that read one row of x
    data_flat = (experts * out, data_shape[-1])
    scale_flat = (experts * out, scale_shape[-1])
    scaled = not scale_names(layout)

    @T.prim_func(private=True, s_tir=True)
    def expert_linear_cpu(
        x: T.handle,
        pairs: T.handle,
        starts: T.Buffer((experts + 1,), "int32"),
        data: T.Buffer(data_shape, data_dtype),
        scale: T.Buffer(scale_shape, scale_dtype),
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m, n, p = T.int64(), T.int64(), T.int64()
        X = T.match_buffer(x, (n, width), "float32")
        Pairs = T.match_buffer(pairs, (m, top_k), "int32")
        Y = T.match_buffer(y, (p, out), "float32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            Data = T.decl_buffer(data_flat, data_dtype, data=data.data)
            Scale = T.decl_buffer(scale_flat, scale_dtype, data=scale.data) if scaled else Data
            for b in T.parallel(T.ceildiv(out, block)):
                panel = T.alloc_buffer((block, panel_width), "float32", scope="global")
                for e in T.serial(experts):
                    if starts[e + 1] > starts[e]:
                        for i in T.serial(block):
                            unpack(panel, i, Data, Scale, e * out + T.min(b * block + i, out - 1), 0)
                        multiply(
                            panel,
                            out - b * block,
                            starts[e + 1] - starts[e],
                            lambda i, k: X[
                                Pairs[(starts[e] + i) // top_k, (starts[e] + i) % top_k] // shared_by,
                                k,
                            ],
                            Y,
                            lambda i, c: (Pairs[(starts[e] + i) // top_k, (starts[e] + i) % top_k], b * block + c),
                            nothing,
                        )

    return without(expert_linear_cpu, *scale_names(layout))


@kernel("combine_experts", "cpu")
def combine_experts(width: int, top_k: int, *, tile: CpuTile) -> PrimFunc:
    """Σ over slots, in order, of weight · expert output, onto `base` (the residual and the shared experts).

    outputs float32 (pairs, width), weights (rows, top-k), base (rows, width) → float32 (rows, width).
    """

    @T.prim_func(private=True, s_tir=True)
    def combine_experts_cpu(outputs: T.handle, weights: T.handle, base: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        m, p = T.int64(), T.int64()
        Outputs = T.match_buffer(outputs, (p, width), "float32")
        Weights = T.match_buffer(weights, (m, top_k), "float32")
        Base = T.match_buffer(base, (m, width), "float32")
        Y = T.match_buffer(y, (m, width), "float32")
        with T.sblock("root"):
            for i in T.parallel(m):
                for k in T.serial(width):
                    Y[i, k] = Base[i, k]
                for s in T.serial(top_k):
                    for k in T.serial(width):
                        Y[i, k] = T.fma(Weights[i, s], Outputs[i * top_k + s, k], Y[i, k])

    return combine_experts_cpu
