"""Mixture-of-experts kernels for GPUs. A *pair* is (row, slot): `row · num_experts_per_tok + slot`."""

from __future__ import annotations

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.config import RouterConfig
from relax_model.kernels.cpu_tiles import scale_names, stored, without
from relax_model.kernels.gpu_tiles import GpuTile, Matrix, few_rows
from relax_model.kernels.registry import kernel
from relax_model.layout import FloatLayout, Layout

_LOWEST = -3.0e38
_EXACT = FloatLayout("exact", "float32")


@kernel("route", "gpu")
def route(router: RouterConfig, hidden: int, *, tile: GpuTile) -> PrimFunc:
    """Which experts each row goes to, how much each counts, and the pairs expert by expert.

    x float32 (rows, hidden), gate float32 (experts, hidden), [bias (experts,)] → logits float32 (rows, experts), ids
    int32 and weights float32 (rows, top-k), pairs int32 (rows, top-k), starts int32 (experts + 1,).

    What is chosen and how it is weighed is said at the CPU's kernel (DeepSeek-V3 report, equations 13-16; DeepSeek-V2,
    section 2.2.2). An expert's place among the chosen is the number of those before it: all find theirs at once.
    """
    experts, top_k, threads = router.n_routed_experts, router.num_experts_per_tok, tile.threads
    groups, chosen_groups = router.n_group, router.topk_group
    size = experts // groups
    biased, sigmoid = router.has_correction_bias, router.scoring_func == "sigmoid"
    summed, normalized, scaling = router.group_score_experts, router.normalizes_weights, router.weight_factor
    outputs = threads // tile.lanes
    multiply = few_rows(tile, hidden, 1)
    each, each_group = -(-experts // threads), -(-groups // threads)

    @T.inline
    def rank(values, count, e, place):
        """place[0] = how many of the values come before number e: larger ones, and equal ones of a lower number."""
        place[0] = 0
        for j in T.serial(count):
            # TVM takes shared memory in a statement's value, but not in its condition.
            place[0] = place[0] + T.if_then_else(
                T.Or(values[j] > values[e], T.And(values[j] == values[e], j < e)), 1, 0
            )

    @T.prim_func(private=True, s_tir=True)
    def route_gpu(
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
            for i in T.thread_binding(m, "blockIdx.x"):
                for t in T.thread_binding(threads, "threadIdx.x"):
                    score = T.alloc_buffer((experts,), "float32", scope="shared")
                    choice = T.alloc_buffer((experts,), "float32", scope="shared")
                    group = T.alloc_buffer((groups,), "float32", scope="shared")
                    open_group = T.alloc_buffer((groups,), "int32", scope="shared")
                    chosen = T.alloc_buffer((top_k,), "float32", scope="shared")
                    total = T.alloc_buffer((2,), "float32", scope="local")
                    place = T.alloc_buffer((1,), "int32", scope="local")
                    part = T.alloc_buffer((threads,), "float32", scope="shared")
                    for b in T.serial(-(-experts // outputs)):
                        multiply(
                            t,
                            part,
                            Matrix(_EXACT, hidden, gate, gate),
                            lambda o: T.min(b * outputs + o, experts - 1),
                            lambda r, k: X[i, k],
                            Logits,
                            lambda r, o: (i, b * outputs + o),
                            lambda r, o: b * outputs + o < experts,
                            lambda r, o: T.float32(0),
                        )
                        T.evaluate(T.tvm_storage_sync("shared"))
                    total[0] = T.float32(_LOWEST)
                    total[1] = T.float32(0)
                    if not sigmoid:
                        for e in T.serial(experts):
                            total[0] = T.max(total[0], Logits[i, e])
                        for e in T.serial(experts):
                            total[1] = total[1] + T.exp(Logits[i, e] - total[0])
                    for w in T.serial(each):
                        if w * threads + t < experts:
                            if sigmoid:
                                score[w * threads + t] = T.float32(1) / (
                                    T.float32(1) + T.exp(-Logits[i, w * threads + t])
                                )
                            else:
                                score[w * threads + t] = T.exp(Logits[i, w * threads + t] - total[0]) / total[1]
                            choice[w * threads + t] = (
                                score[w * threads + t] + bias[w * threads + t] if biased else score[w * threads + t]
                            )
                    T.evaluate(T.tvm_storage_sync("shared"))
                    if chosen_groups < groups:
                        for w in T.serial(each_group):
                            if w * threads + t < groups:
                                total[0] = T.float32(_LOWEST)  # the best of the group
                                total[1] = T.float32(_LOWEST)  # the second best
                                for e in T.serial(size):
                                    total[1] = T.max(total[1], T.min(total[0], choice[(w * threads + t) * size + e]))
                                    total[0] = T.max(total[0], choice[(w * threads + t) * size + e])
                                group[w * threads + t] = total[0] + total[1] if summed == 2 else total[0]
                        T.evaluate(T.tvm_storage_sync("shared"))
                        for w in T.serial(each_group):
                            if w * threads + t < groups:
                                rank(group, groups, w * threads + t, place)
                                open_group[w * threads + t] = T.if_then_else(place[0] < chosen_groups, 1, 0)
                        T.evaluate(T.tvm_storage_sync("shared"))
                        for w in T.serial(each):
                            if w * threads + t < experts:
                                choice[w * threads + t] = T.if_then_else(
                                    open_group[(w * threads + t) // size] == 0,
                                    T.float32(_LOWEST),
                                    choice[w * threads + t],
                                )
                        T.evaluate(T.tvm_storage_sync("shared"))
                    for w in T.serial(each):
                        if w * threads + t < experts:
                            rank(choice, experts, w * threads + t, place)
                            if place[0] < top_k:
                                Ids[i, place[0]] = w * threads + t
                                chosen[place[0]] = score[w * threads + t]
                    T.evaluate(T.tvm_storage_sync("shared"))
                    total[0] = T.float32(0)
                    for s in T.serial(top_k):
                        total[0] = total[0] + chosen[s]
                    for w in T.serial(-(-top_k // threads)):
                        if w * threads + t < top_k:
                            Weights[i, w * threads + t] = (
                                chosen[w * threads + t] / (total[0] + T.float32(1e-20))
                                if normalized
                                else chosen[w * threads + t]
                            ) * T.float32(scaling)
            # A counting sort, which keeps the pairs of an expert in their order: a thread an expert.
            for _b in T.thread_binding(1, "blockIdx.x"):
                for t in T.thread_binding(threads, "threadIdx.x"):
                    count = T.alloc_buffer((experts + 1,), "int32", scope="shared")
                    number = T.alloc_buffer((1,), "int32", scope="local")
                    for w in T.serial(each):
                        if w * threads + t < experts:
                            number[0] = 0
                            for p in T.serial(m * top_k):
                                if Ids[p // top_k, p % top_k] == w * threads + t:
                                    number[0] = number[0] + 1
                            count[w * threads + t] = number[0]
                    T.evaluate(T.tvm_storage_sync("shared"))
                    for w in T.serial(each):
                        if w * threads + t < experts:
                            number[0] = 0
                            for e in T.serial(w * threads + t):
                                number[0] = number[0] + count[e]
                            starts[w * threads + t] = number[0]
                            if w * threads + t == experts - 1:
                                starts[experts] = number[0] + count[experts - 1]
                            for p in T.serial(m * top_k):
                                if Ids[p // top_k, p % top_k] == w * threads + t:
                                    Pairs[number[0] // top_k, number[0] % top_k] = T.Cast("int32", p)
                                    number[0] = number[0] + 1

    return without(route_gpu, *(() if biased else ("bias",)))


@kernel("expert_linear", "gpu")
def expert_linear(
    layout: Layout, experts: int, out: int, width: int, top_k: int, per_pair: bool, *, tile: GpuTile
) -> PrimFunc:
    """Each pair's row times its expert's matrix, W (experts, out, width) in `layout` → float32 (pairs, out).

    x is float32 (rows, width), one row for all pairs of a token, or with `per_pair` (pairs, width). Blocks run in the
    order of the sorted pairs, so that those of one expert find its rows in the cache.
    """
    (data_shape, data_dtype), (scale_shape, scale_dtype) = stored(layout, (experts, out, width))
    shared_by = 1 if per_pair else top_k  # pairs that read one row of x
    outputs, threads = tile.threads // tile.lanes, tile.threads
    multiply = few_rows(tile, width, 1)
    data_flat, scale_flat = (experts * out, data_shape[-1]), (experts * out, scale_shape[-1])
    scaled = not scale_names(layout)

    @T.prim_func(private=True, s_tir=True)
    def expert_linear_gpu(
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
            for b in T.thread_binding(-(-out // outputs), "blockIdx.x"):
                for q in T.thread_binding(T.Cast("int32", m * top_k), "blockIdx.y"):
                    for t in T.thread_binding(threads, "threadIdx.x"):
                        expert = T.alloc_buffer((1,), "int32", scope="shared")
                        for w in T.serial(-(-experts // threads)):
                            if T.And(
                                w * threads + t < experts,
                                T.And(starts[w * threads + t] <= q, q < starts[w * threads + t + 1]),
                            ):
                                expert[0] = w * threads + t
                        T.evaluate(T.tvm_storage_sync("shared"))
                        part = T.alloc_buffer((threads,), "float32", scope="shared")
                        multiply(
                            t,
                            part,
                            Matrix(layout, width, Data, Scale),
                            lambda o: expert[0] * out + T.min(b * outputs + o, out - 1),
                            lambda r, k: X[Pairs[q // top_k, q % top_k] // shared_by, k],
                            Y,
                            lambda r, o: (Pairs[q // top_k, q % top_k], b * outputs + o),
                            lambda r, o: b * outputs + o < out,
                            lambda r, o: T.float32(0),
                        )

    return without(expert_linear_gpu, *scale_names(layout))


@kernel("combine_experts", "gpu")
def combine_experts(width: int, top_k: int, *, tile: GpuTile) -> PrimFunc:
    """Σ over slots, in order, of weight · expert output, onto `base` (the residual and the shared experts).

    outputs float32 (pairs, width), weights (rows, top-k), base (rows, width) → float32 (rows, width).
    """
    threads = tile.threads

    @T.prim_func(private=True, s_tir=True)
    def combine_experts_gpu(outputs: T.handle, weights: T.handle, base: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        m, p = T.int64(), T.int64()
        Outputs = T.match_buffer(outputs, (p, width), "float32")
        Weights = T.match_buffer(weights, (m, top_k), "float32")
        Base = T.match_buffer(base, (m, width), "float32")
        Y = T.match_buffer(y, (m, width), "float32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            for b in T.thread_binding(-(-width // threads), "blockIdx.x"):
                for i in T.thread_binding(m, "blockIdx.y"):
                    for t in T.thread_binding(threads, "threadIdx.x"):
                        total = T.alloc_buffer((1,), "float32", scope="local")
                        if b * threads + t < width:
                            total[0] = Base[i, b * threads + t]
                            for s in T.serial(top_k):
                                total[0] = total[0] + Weights[i, s] * Outputs[i * top_k + s, b * threads + t]
                            Y[i, b * threads + t] = total[0]

    return combine_experts_gpu
