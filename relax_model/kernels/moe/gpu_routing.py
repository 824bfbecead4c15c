"""The choice of experts on GPUs, by a block for a row, and the pairs of many rows brought into the experts' order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from relax_model.config import RouterConfig

_LOWEST = -3.0e38


def chooser(router: RouterConfig, threads: int) -> Callable[..., Any]:
    """Statement `choose(t, logit, bias, ids, weights)`: a row's experts and what they count, from logit(e).

    ids int32 and weights float32 (top-k,) are in shared memory. What is chosen and how it is weighed is said at the
    CPU's kernel (DeepSeek-V3 report, equations 13-16; DeepSeek-V2, section 2.2.2). An expert's place among the chosen
    is the number of those before it: all find theirs at once.
    """
    experts, top_k = router.n_routed_experts, router.num_experts_per_tok
    groups, chosen_groups = router.n_group, router.topk_group
    size = experts // groups
    biased, sigmoid = router.has_correction_bias, router.scoring_func == "sigmoid"
    summed, normalized, scaling = router.group_score_experts, router.normalizes_weights, router.weight_factor
    each, each_group = -(-experts // threads), -(-groups // threads)

    @T.inline
    def rank(values, count, e, place, w):
        """place[w] = how many of the values come before number e: larger ones, and equal ones of a lower number."""
        place[w] = 0
        for j in T.serial(count):
            # TVM takes shared memory in a statement's value, but not in its condition.
            place[w] = place[w] + T.if_then_else(
                T.Or(values[j] > values[e], T.And(values[j] == values[e], j < e)), 1, 0
            )

    def scored(score, total):
        return score if sigmoid else score / total

    def preference(expert, score, total, bias):
        value = scored(score[expert], total)
        return value + bias[expert] if biased else value

    @T.inline
    def choose(t, logit, bias, ids, weights):
        score = T.alloc_buffer((experts,), "float32", scope="shared")
        choice = T.alloc_buffer((experts,), "float32", scope="shared")
        left = T.alloc_buffer((experts,), "float32", scope="shared")  # of the choice, in the groups that were chosen
        group = T.alloc_buffer((groups,), "float32", scope="shared")
        open_group = T.alloc_buffer((groups,), "int32", scope="shared")
        chosen = T.alloc_buffer((top_k,), "float32", scope="shared")
        total = T.alloc_buffer((2,), "float32", scope="local")
        best = T.alloc_buffer((2,), "float32", scope="local")
        place = T.alloc_buffer((max(each, each_group),), "int32", scope="local")
        for w in T.unroll(each):
            if w * threads + t < experts:
                if sigmoid:
                    score[w * threads + t] = T.float32(1) / (T.float32(1) + T.exp(-logit(w * threads + t)))
                else:
                    choice[w * threads + t] = logit(w * threads + t)
        T.evaluate(T.tvm_storage_sync("shared"))
        if not sigmoid:
            total[0] = T.float32(_LOWEST)
            for e in T.serial(experts):
                total[0] = T.max(total[0], choice[e])
            for w in T.unroll(each):
                if w * threads + t < experts:
                    score[w * threads + t] = T.exp(logit(w * threads + t) - total[0])
            T.evaluate(T.tvm_storage_sync("shared"))
            total[1] = T.float32(0)
            for e in T.serial(experts):
                total[1] = total[1] + score[e]
            T.evaluate(T.tvm_storage_sync("shared"))
        for w in T.unroll(each):
            if w * threads + t < experts:
                choice[w * threads + t] = preference(w * threads + t, score, total[1], bias)
        T.evaluate(T.tvm_storage_sync("shared"))
        if chosen_groups < groups:
            for w in T.unroll(each_group):
                if w * threads + t < groups:
                    best[0] = T.float32(_LOWEST)  # the best of the group
                    best[1] = T.float32(_LOWEST)  # the second best
                    for e in T.serial(size):
                        best[1] = T.max(best[1], T.min(best[0], choice[(w * threads + t) * size + e]))
                        best[0] = T.max(best[0], choice[(w * threads + t) * size + e])
                    group[w * threads + t] = best[0] + best[1] if summed == 2 else best[0]
            T.evaluate(T.tvm_storage_sync("shared"))
            for w in T.unroll(each_group):
                if w * threads + t < groups:
                    rank(group, groups, w * threads + t, place, w)
            T.evaluate(T.tvm_storage_sync("shared"))
            for w in T.unroll(each_group):
                if w * threads + t < groups:
                    open_group[w * threads + t] = T.if_then_else(place[w] < chosen_groups, 1, 0)
            T.evaluate(T.tvm_storage_sync("shared"))
            for w in T.unroll(each):
                if w * threads + t < experts:
                    left[w * threads + t] = T.if_then_else(
                        open_group[(w * threads + t) // size] == 0,
                        T.float32(_LOWEST),
                        # Not `choice` itself: TVM would let the two share memory and miss a barrier.
                        preference(w * threads + t, score, total[1], bias),
                    )
            T.evaluate(T.tvm_storage_sync("shared"))
        for w in T.unroll(each):
            if w * threads + t < experts:
                if chosen_groups < groups:
                    rank(left, experts, w * threads + t, place, w)
                else:
                    rank(choice, experts, w * threads + t, place, w)
        T.evaluate(T.tvm_storage_sync("shared"))  # TVM may give the chosen the memory of what they were chosen from
        for w in T.unroll(each):
            if T.And(w * threads + t < experts, place[w] < top_k):
                ids[place[w]] = w * threads + t
                chosen[place[w]] = scored(score[w * threads + t], total[1])
        T.evaluate(T.tvm_storage_sync("shared"))
        total[0] = T.float32(0)
        for s in T.serial(top_k):
            total[0] = total[0] + chosen[s]
        T.evaluate(T.tvm_storage_sync("shared"))  # TVM may give the weights the memory of the chosen
        for w in T.serial(-(-top_k // threads)):
            if w * threads + t < top_k:
                weights[w * threads + t] = (
                    chosen[w * threads + t] / (total[0] + T.float32(1e-20)) if normalized else chosen[w * threads + t]
                ) * T.float32(scaling)
        T.evaluate(T.tvm_storage_sync("shared"))

    return choose


def sorter(experts: int, top_k: int, threads: int, height: int) -> Callable[..., Any]:
    """Statement `sort(t, count, Ids, Pairs, Starts, Tiles)`: a counting sort of `count` pairs, a thread an expert.

    Ids int32 (rows, top-k) → Pairs (pairs,) expert by expert, in their order; Starts (experts + 1,), where each
    expert's begin; Tiles (experts + 1,), how many tiles of up to `height` pairs of one expert there are before it.
    """
    each = -(-experts // threads)

    @T.inline
    def sort(t, count, Ids, Pairs, Starts, Tiles):
        held = T.alloc_buffer((experts,), "int32", scope="shared")
        number = T.alloc_buffer((2,), "int32", scope="local")
        for w in T.unroll(each):
            if w * threads + t < experts:
                number[0] = 0
                for p in T.serial(count):
                    if Ids[p // top_k, p % top_k] == w * threads + t:
                        number[0] = number[0] + 1
                held[w * threads + t] = number[0]
        T.evaluate(T.tvm_storage_sync("shared"))
        for w in T.unroll(each):
            if w * threads + t < experts:
                number[0] = 0
                number[1] = 0
                for e in T.serial(w * threads + t):
                    number[0] = number[0] + held[e]
                    number[1] = number[1] + (held[e] + height - 1) // height
                Starts[w * threads + t] = number[0]
                Tiles[w * threads + t] = number[1]
                if w * threads + t == experts - 1:
                    Starts[experts] = number[0] + held[experts - 1]
                    Tiles[experts] = number[1] + (held[experts - 1] + height - 1) // height
                for p in T.serial(count):
                    if Ids[p // top_k, p % top_k] == w * threads + t:
                        Pairs[number[0]] = p
                        number[0] = number[0] + 1

    return sort
