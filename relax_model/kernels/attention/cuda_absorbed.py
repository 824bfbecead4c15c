"""Absorbed attention's inner part on NVIDIA's tensor cores: 16 heads are the rows of both products.

    32 cached tokens in shared memory, float16
    scores   (16, 32)    = Q (16, latent_width) · Kᵀ     4 warps a half of the channels each, Q in registers
    weights  (16, 32)    16 threads a head, exp2 of score − largest
    sums     (16, rank) += weights · K's first channels   a warp rank / 8 of them, in float32 registers

Its interface is that of `gpu_absorbed`'s by hand; fragments' places are those of `cuda_functions`.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from relax_model.kernels.attention.gpu_cache import RUN, GpuTokens
from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.gpu_tiles import GROUP

HEADS, KEYS, THREADS = 16, 32, 256
_WARPS, _BESIDE, _PAD = THREADS // 32, THREADS // HEADS, 8
_LOWEST = -1.0e30
_VECTOR = 8


def serves(shape: AttentionShape) -> bool:
    """Whether the shape is one that the tiles fit, and the cache in float16 or in codes."""
    fits = shape.latent_width % 32 == 0 and shape.kv_lora_rank % (8 * _WARPS) == 0
    return fits and (shape.cache_dtype == "float16" or (shape.cache_dtype == "int8" and shape.cache_width % RUN == 0))


class TensorCoreAttention:
    """Statements of a block of THREADS threads for HEADS heads; see `gpu_absorbed.ByHand`."""

    threads, heads, scope = THREADS, HEADS, "local"

    def __init__(self, shape: AttentionShape) -> None:
        width, rank, page = shape.latent_width, shape.kv_lora_rank, shape.page_size
        stride, weight_stride = width + _PAD, KEYS + _PAD  # in shared memory: a fragment's values lie in 32 banks
        half_steps, vectors = width // 32, width // _VECTOR
        tiles = rank // _WARPS // 8  # of 8 columns of the sums, a warp's
        self.sums = tiles * 4
        tokens = GpuTokens(shape)
        load_steps = tokens.step_loader(KEYS, THREADS, in_halves=True)
        groups, runs, in_codes = tokens.groups, width // RUN, tokens.in_codes

        def shuffled(value: Any, distance: int) -> Any:
            return T.tvm_warp_shuffle_xor(T.uint32(0xFFFFFFFF), value, distance, 32, 32)

        @T.inline
        def attend(i, g, t, first, limit, Q, Positions, Sequences, PageTable, Cache, state, factor, out):
            key = T.alloc_buffer((KEYS * stride,), "float16", scope="shared")
            part = T.alloc_buffer((2 * HEADS * KEYS,), "float32", scope="shared")
            weight = T.alloc_buffer((HEADS * weight_stride,), "float16", scope="shared")
            query = T.alloc_buffer((half_steps * 4,), "uint32", scope="local")
            score = T.alloc_buffer((4,), "float32", scope="local")
            own = T.alloc_buffer((2,), "float32", scope="local")
            best = T.alloc_buffer((1,), "float32", scope="local")
            pair = T.alloc_buffer((2,), "uint32", scope="local")
            step = T.alloc_buffer((KEYS * groups,), "float32", scope="shared") if in_codes else T.meta_var(key)
            run = T.alloc_buffer((RUN,), "float32", scope="local")
            lane, warp = T.meta_var(t % 32), T.meta_var(t // 32)
            row, column = T.meta_var(lane // 4), T.meta_var(lane % 4 * 2)
            half, tile = T.meta_var(warp // 4), T.meta_var(warp % 4)
            for s in T.unroll(half_steps):
                for q in T.unroll(4):
                    head = T.meta_var(T.min(g * HEADS + row + q % 2 * 8, shape.heads - 1))
                    channel = T.meta_var((half * half_steps + s) * 16 + q // 2 * 8 + column)
                    for v in T.vectorized(2):
                        own[v] = Q[i, head, channel + v]
                    query[s * 4 + q] = T.call_extern("uint32", "mlc_half2", own[0], own[1])
            for n in T.unroll(tiles * 4):
                out[n] = T.float32(0)
            state[0] = T.float32(_LOWEST)
            state[1] = T.float32(0)
            for b in T.serial((limit + KEYS - 1) // KEYS):
                if in_codes:
                    load_steps(t, i, first + b * KEYS, Positions, Sequences, PageTable, Cache, step)
                    T.evaluate(T.tvm_storage_sync("shared"))
                    for w in T.unroll(-(-KEYS * runs // THREADS)):
                        if w * THREADS + t < KEYS * runs:
                            place = T.meta_var((w * THREADS + t) // runs)
                            at = T.meta_var(T.min(first + b * KEYS + place, Positions[i]))
                            column_of = T.meta_var((w * THREADS + t) % runs * RUN)
                            for v in T.vectorized(RUN):
                                run[v] = T.Cast(
                                    "float32", Cache[PageTable[Sequences[i], at // page], at % page, column_of + v]
                                )
                            for v in T.unroll(RUN):
                                key[place * stride + column_of + v] = T.Cast(
                                    "float16", run[v] * step[place * groups + column_of // GROUP]
                                )
                else:
                    for w in T.unroll(-(-KEYS * vectors // THREADS)):
                        if w * THREADS + t < KEYS * vectors:
                            place = T.meta_var((w * THREADS + t) // vectors)
                            at = T.meta_var(T.min(first + b * KEYS + place, Positions[i]))
                            for v in T.vectorized(_VECTOR):
                                key[place * stride + (w * THREADS + t) % vectors * _VECTOR + v] = Cache[
                                    PageTable[Sequences[i], at // page],
                                    at % page,
                                    (w * THREADS + t) % vectors * _VECTOR + v,
                                ]
                T.evaluate(T.tvm_storage_sync("shared"))
                for n in T.unroll(4):
                    score[n] = T.float32(0)
                for s in T.unroll(half_steps):
                    channel = T.meta_var((tile * 8 + row) * stride + (half * half_steps + s) * 16 + column)
                    T.evaluate(
                        T.call_extern(
                            "void",
                            "mlc_mma_half",
                            T.address_of(score[0]),
                            query[s * 4],
                            query[s * 4 + 1],
                            query[s * 4 + 2],
                            query[s * 4 + 3],
                            T.call_extern("uint32", "mlc_pair", T.address_of(key[channel])),
                            T.call_extern("uint32", "mlc_pair", T.address_of(key[channel + 8])),
                        )
                    )
                for n in T.unroll(4):
                    part[(half * HEADS + row + n // 2 * 8) * KEYS + tile * 8 + column + n % 2] = score[n]
                T.evaluate(T.tvm_storage_sync("shared"))
                for n in T.unroll(2):
                    place = T.meta_var(t % _BESIDE + n * _BESIDE)
                    own[n] = part[t // _BESIDE * KEYS + place] + part[(HEADS + t // _BESIDE) * KEYS + place]
                    own[n] = T.if_then_else(first + b * KEYS + place <= Positions[i], own[n], T.float32(_LOWEST))
                best[0] = T.max(state[0], T.max(own[0], own[1]))
                for step in T.unroll(4):
                    best[0] = T.max(best[0], shuffled(best[0], T.shift_right(T.int32(_BESIDE // 2), step)))
                if t % _BESIDE == 0:
                    factor[t // _BESIDE] = T.exp2(state[0] - best[0])
                state[1] = state[1] * T.exp2(state[0] - best[0])
                state[0] = best[0]
                for n in T.unroll(2):
                    own[n] = T.exp2(own[n] - state[0])
                    state[1] = state[1] + own[n]
                    weight[t // _BESIDE * weight_stride + t % _BESIDE + n * _BESIDE] = T.Cast("float16", own[n])
                T.evaluate(T.tvm_storage_sync("shared"))
                for n in T.unroll(tiles * 4):
                    out[n] = out[n] * factor[row + n % 4 // 2 * 8]
                for s in T.unroll(KEYS // 16):
                    for n in T.unroll(tiles):
                        # Two matrices of 8 tokens by 8 channels: each lane names the token of a row of one of them.
                        T.evaluate(
                            T.call_extern(
                                "void",
                                "mlc_matrices_2_turned",
                                T.address_of(pair[0]),
                                T.address_of(key[(s * 16 + lane % 16) * stride + (warp * tiles + n) * 8]),
                            )
                        )
                        value = T.meta_var(row * weight_stride + s * 16 + column)
                        T.evaluate(
                            T.call_extern(
                                "void",
                                "mlc_mma_half",
                                T.address_of(out[n * 4]),
                                T.call_extern("uint32", "mlc_pair", T.address_of(weight[value])),
                                T.call_extern("uint32", "mlc_pair", T.address_of(weight[value + 8 * weight_stride])),
                                T.call_extern("uint32", "mlc_pair", T.address_of(weight[value + 8])),
                                T.call_extern(
                                    "uint32", "mlc_pair", T.address_of(weight[value + 8 * weight_stride + 8])
                                ),
                                pair[0],
                                pair[1],
                            )
                        )
                T.evaluate(T.tvm_storage_sync("shared"))
            # Each of a head's threads has the weights of its own tokens.
            for step in T.unroll(4):
                state[1] = state[1] + shuffled(state[1], T.shift_right(T.int32(_BESIDE // 2), step))

        @T.inline
        def each_head(t, put):
            if t % _BESIDE == 0:
                put(t // _BESIDE)

        @T.inline
        def each_sum(t, out, put):
            for n in T.unroll(tiles * 4):
                put(t % 32 // 4 + n % 4 // 2 * 8, (t // 32 * tiles + n // 4) * 8 + t % 4 * 2 + n % 2, out[n])

        self.attend, self.each_head, self.each_sum = attend, each_head, each_sum
