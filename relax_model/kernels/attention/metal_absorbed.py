"""Absorbed attention's inner part with the 8 × 8 matrices of Apple's SIMD groups: heads are the rows of both products.

    16 cached tokens in shared memory, float16
    scores   (16, 16)    += Q (16, latent_width / 8) · Kᵀ     8 SIMD groups an eighth of the channels each, Q in theirs
    weights  (16, 16)    a thread each, exp2 of score − largest
    sums     (16, rank)  = factors · sums + weights · K        a SIMD group rank / 8 columns of them, in float32

Factors are a diagonal matrix. Its interface is that of `gpu_absorbed`'s by hand.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from relax_model.kernels.attention.gpu_cache import RUN, GpuTokens
from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.gpu_tiles import GROUP
from relax_model.kernels.metal_matrices import EDGE, MATRIX, load, multiply_add, scale, store, zero

HEADS, KEYS, THREADS = 16, 16, 256
_GROUPS, _DOWN, _BESIDE, _PAD = THREADS // 32, HEADS // EDGE, KEYS // EDGE, 8
_AT_ONCE = 2  # matrices of a group's sums that are handed on at once
_LOWEST = -1.0e30


def serves(shape: AttentionShape) -> bool:
    """Whether the shape is one that the matrices fit, and the cache in float16 or in codes."""
    fits = shape.latent_width % (EDGE * _GROUPS) == 0 and shape.kv_lora_rank % (EDGE * _GROUPS * _AT_ONCE) == 0
    return fits and (shape.cache_dtype == "float16" or (shape.cache_dtype == "int8" and shape.cache_width % RUN == 0))


class SimdGroupAttention:
    """Statements of a block of THREADS threads for HEADS heads; see `gpu_absorbed.ByHand`."""

    threads, heads, scope = THREADS, HEADS, "metal.simdgroup"

    def __init__(self, shape: AttentionShape) -> None:
        width, rank, page = shape.latent_width, shape.kv_lora_rank, shape.page_size
        stride, weight_stride = width + _PAD, KEYS + _PAD
        steps = width // _GROUPS // EDGE  # of a group's channels
        across = rank // _GROUPS // EDGE  # matrices of sums beside each other
        self.sums = _DOWN * across * MATRIX
        tokens = GpuTokens(shape)
        load_steps = tokens.step_loader(KEYS, THREADS, in_halves=True)
        groups, runs, in_codes = tokens.groups, width // RUN, tokens.in_codes

        def shuffled(value: Any, distance: Any) -> Any:
            return T.tvm_warp_shuffle_xor(T.uint32(0xFFFFFFFF), value, distance, 32, 32)

        @T.inline
        def take_queries(i, g, t, Q, key, query):
            """By way of the memory for keys."""
            for w in T.unroll(-(-HEADS * runs // THREADS)):
                if w * THREADS + t < HEADS * runs:
                    head, column = T.meta_var((w * THREADS + t) // runs), T.meta_var((w * THREADS + t) % runs * RUN)
                    for v in T.vectorized(RUN):
                        key[head * stride + column + v] = T.Cast(
                            "float16", Q[i, T.min(g * HEADS + head, shape.heads - 1), column + v]
                        )
            T.evaluate(T.tvm_storage_sync("shared"))
            for d in T.unroll(_DOWN):
                for s in T.unroll(steps):
                    load(query, d * steps + s, key, d * EDGE * stride + (t // 32 * steps + s) * EDGE, stride)
            T.evaluate(T.tvm_storage_sync("shared"))

        @T.inline
        def take_keys(i, t, first, Positions, Sequences, PageTable, Cache, step, run, key):
            if in_codes:
                load_steps(t, i, first, Positions, Sequences, PageTable, Cache, step)
                T.evaluate(T.tvm_storage_sync("shared"))
            for w in T.unroll(-(-KEYS * runs // THREADS)):
                if w * THREADS + t < KEYS * runs:
                    place, column = T.meta_var((w * THREADS + t) // runs), T.meta_var((w * THREADS + t) % runs * RUN)
                    at = T.meta_var(T.min(first + place, Positions[i]))
                    slot = T.meta_var((PageTable[Sequences[i], at // page], at % page))
                    if in_codes:
                        for v in T.vectorized(RUN):
                            run[v] = T.Cast("float32", Cache[slot[0], slot[1], column + v])
                        for v in T.unroll(RUN):
                            key[place * stride + column + v] = T.Cast(
                                "float16", run[v] * step[place * groups + column // GROUP]
                            )
                    else:
                        for v in T.vectorized(RUN):
                            key[place * stride + column + v] = Cache[slot[0], slot[1], column + v]
            T.evaluate(T.tvm_storage_sync("shared"))

        @T.inline
        def multiply_keys(t, query, key, part):
            product = T.alloc_buffer((_DOWN * _BESIDE * MATRIX,), "float32", scope="metal.simdgroup")
            right = T.alloc_buffer((MATRIX,), "float16", scope="metal.simdgroup")
            for m in T.unroll(_DOWN * _BESIDE):
                zero(product, m)
            for s in T.unroll(steps):
                for n in T.unroll(_BESIDE):
                    load(right, 0, key, n * EDGE * stride + (t // 32 * steps + s) * EDGE, stride, turned=True)
                    for d in T.unroll(_DOWN):
                        multiply_add(product, d * _BESIDE + n, query, d * steps + s, right, 0)
            for d in T.unroll(_DOWN):
                for n in T.unroll(_BESIDE):
                    store(product, d * _BESIDE + n, part, (t // 32 * HEADS + d * EDGE) * KEYS + n * EDGE, KEYS)
            T.evaluate(T.tvm_storage_sync("shared"))

        @T.inline
        def add_values(t, key, weight, diagonal, out):
            left = T.alloc_buffer((_DOWN * MATRIX,), "float16", scope="metal.simdgroup")
            right = T.alloc_buffer((MATRIX,), "float16", scope="metal.simdgroup")
            factors = T.alloc_buffer((_DOWN * MATRIX,), "float32", scope="metal.simdgroup")
            none = T.alloc_buffer((MATRIX,), "float32", scope="metal.simdgroup")
            zero(none, 0)
            for d in T.unroll(_DOWN):
                load(factors, d, diagonal, d * MATRIX, EDGE)
                for n in T.unroll(across):
                    scale(out, d * across + n, factors, d, none)
            for k in T.unroll(_BESIDE):
                for d in T.unroll(_DOWN):
                    load(left, d, weight, d * EDGE * weight_stride + k * EDGE, weight_stride)
                for n in T.unroll(across):
                    load(right, 0, key, k * EDGE * stride + (t // 32 * across + n) * EDGE, stride)
                    for d in T.unroll(_DOWN):
                        multiply_add(out, d * across + n, left, d, right, 0)
            T.evaluate(T.tvm_storage_sync("shared"))

        @T.inline
        def attend(i, g, t, first, limit, Q, Positions, Sequences, PageTable, Cache, state, factor, out):
            key = T.alloc_buffer((KEYS * stride,), "float16", scope="shared")
            part = T.alloc_buffer((_GROUPS * HEADS * KEYS,), "float32", scope="shared")
            weight = T.alloc_buffer((HEADS * weight_stride,), "float16", scope="shared")
            diagonal = T.alloc_buffer((_DOWN * MATRIX,), "float32", scope="shared")
            step = T.alloc_buffer((KEYS * groups,), "float32", scope="shared") if in_codes else T.meta_var(part)
            query = T.alloc_buffer((_DOWN * steps * MATRIX,), "float16", scope="metal.simdgroup")
            run = T.alloc_buffer((RUN,), "float32", scope="local")
            own = T.alloc_buffer((1,), "float32", scope="local")
            best = T.alloc_buffer((1,), "float32", scope="local")
            head, place = T.meta_var(t // KEYS), T.meta_var(t % KEYS)
            if t < _DOWN * MATRIX:
                diagonal[t] = T.float32(0)
            take_queries(i, g, t, Q, key, query)
            for m in T.unroll(_DOWN * across):
                zero(out, m)
            state[0] = T.float32(_LOWEST)
            state[1] = T.float32(0)
            for b in T.serial((limit + KEYS - 1) // KEYS):
                take_keys(i, t, first + b * KEYS, Positions, Sequences, PageTable, Cache, step, run, key)
                multiply_keys(t, query, key, part)
                own[0] = T.float32(0)
                for w in T.unroll(_GROUPS):
                    own[0] = own[0] + part[w * HEADS * KEYS + t]
                own[0] = T.if_then_else(first + b * KEYS + place <= Positions[i], own[0], T.float32(_LOWEST))
                best[0] = T.max(state[0], own[0])
                for s in T.unroll(4):
                    best[0] = T.max(best[0], shuffled(best[0], T.shift_right(T.int32(KEYS // 2), s)))
                if place == 0:
                    diagonal[head * EDGE + head % EDGE] = T.exp2(state[0] - best[0])
                own[0] = T.exp2(own[0] - best[0])
                state[1] = state[1] * T.exp2(state[0] - best[0]) + own[0]
                state[0] = best[0]
                weight[head * weight_stride + place] = T.Cast("float16", own[0])
                T.evaluate(T.tvm_storage_sync("shared"))
                add_values(t, key, weight, diagonal, out)
            # Each of a head's threads has the weights of its own tokens.
            for s in T.unroll(4):
                state[1] = state[1] + shuffled(state[1], T.shift_right(T.int32(KEYS // 2), s))

        @T.inline
        def each_head(t, put):
            if t % KEYS == 0:
                put(t // KEYS)

        @T.inline
        def each_sum(t, out, put):
            beside = T.meta_var(_GROUPS * _AT_ONCE * EDGE)
            held = T.alloc_buffer((HEADS * beside,), "float32", scope="shared")
            for piece in T.unroll(across // _AT_ONCE):
                T.evaluate(T.tvm_storage_sync("shared"))
                for d in T.unroll(_DOWN):
                    for n in T.unroll(_AT_ONCE):
                        column = T.meta_var((t // 32 * _AT_ONCE + n) * EDGE)
                        store(out, d * across + piece * _AT_ONCE + n, held, d * EDGE * beside + column, beside)
                T.evaluate(T.tvm_storage_sync("shared"))
                for n in T.unroll(HEADS * beside // THREADS):
                    column = T.meta_var(n * (THREADS // HEADS) + t % (THREADS // HEADS))
                    group = T.meta_var(column // (_AT_ONCE * EDGE))
                    put(
                        t // (THREADS // HEADS),
                        (group * across + piece * _AT_ONCE) * EDGE + column % (_AT_ONCE * EDGE),
                        held[t // (THREADS // HEADS) * beside + column],
                    )

        self.attend, self.each_head, self.each_sum = attend, each_head, each_sum
