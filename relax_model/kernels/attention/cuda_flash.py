"""A tile of queries over all the keys that they see, on NVIDIA's tensor cores: what `gpu_flash` does, in float16.

    64 rows of one head; a warp has 16 of them, all keys and at most 128 of the values' columns
    keys' and values' tiles in shared memory, each on its way while the other one is multiplied
    score (16, keys) = Q · Kᵀ        Q in registers;   weights stay there too: a product's result lies as its left side
    out (16, columns) += weights · V

            ┌ copy V ─────────┐         ┌ copy the next K ─┐
    … meet ─┴─ Q · Kᵀ, softmax ┴─ meet ─┴─ weights · V ────┴─ meet …

A tile is of 64 keys, or of 32 where more do not fit in 48 KiB; values of 256 columns take a second set of four warps,
which makes the scores once more. Registers of a thread at widths 192 and 128: 48 of queries, 32 of scores, 64 of sums.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from relax_model.kernels.attention.cache import rounded_to
from relax_model.kernels.attention.gpu_cache import GpuTokens
from relax_model.kernels.attention.shape import AttentionShape

ROWS = 64
_SET, _COLUMNS = 128, 128  # threads that have all rows, and columns of values that they take
_VECTOR, _PAD = 8, 8  # float16 values of a copy; in a row's stride, so that 8 rows of a matrix lie in 32 banks
_SHARED = 48 * 1024
_LOWEST = -1.0e30


def serves(shape: AttentionShape) -> bool:
    """Whether the shape is one that the tiles fit, with keys and values in float16."""
    even = all(width % 16 == 0 for width in (shape.nope, shape.rope, shape.kv_lora_rank))
    sets = -(-shape.v // _COLUMNS)
    return even and shape.v % (16 * sets) == 0 and shape.cache_dtype in ("float16", "int8")


class TensorCoreFlash:
    """A block of `threads` threads, which takes `keys` positions at a time."""

    def __init__(self, shape: AttentionShape) -> None:
        nope, rope, v, rank, width = shape.nope, shape.rope, shape.v, shape.kv_lora_rank, shape.query_width
        tokens, page, sets = GpuTokens(shape), shape.page_size, -(-v // _COLUMNS)
        self.threads = threads = _SET * sets
        key_stride, value_stride = width + _PAD, v + _PAD
        self.keys = keys = 64 if 64 * 2 * (key_stride + value_stride) <= _SHARED else 32
        steps, key_tiles, value_tiles = width // 16, keys // 8, v // sets // 8

        def shuffled(value: Any, distance: Any) -> Any:
            return T.tvm_warp_shuffle_xor(T.uint32(0xFFFFFFFF), value, distance, 32, 32)

        def power(exponent: Any) -> Any:
            return T.call_extern("float32", "mlc_exp2", exponent)

        @T.inline
        def copy(to, source):
            T.evaluate(T.call_extern("void", "mlc_copy_16", T.address_of(to), T.address_of(source)))

        @T.inline
        def load_keys(t, h, first, last, sequence, PageTable, Wide, Cache, key):
            for w in T.unroll(-(-keys * nope // (_VECTOR * threads))):
                n = T.meta_var(w * threads + t)
                place, c = T.meta_var(n // (nope // _VECTOR)), T.meta_var(n % (nope // _VECTOR) * _VECTOR)
                if n < keys * nope // _VECTOR:
                    copy(key[place * key_stride + c], Wide[h, T.min(first + place, last), c])
            for w in T.unroll(-(-keys * rope // (_VECTOR * threads))):
                n = T.meta_var(w * threads + t)
                place, c = T.meta_var(n // (rope // _VECTOR)), T.meta_var(n % (rope // _VECTOR) * _VECTOR)
                at = T.meta_var(T.min(first + place, last))
                slot = T.meta_var((PageTable[sequence, at // page], at % page))
                if n < keys * rope // _VECTOR:
                    if tokens.in_codes:
                        for i in T.unroll(_VECTOR):
                            key[place * key_stride + nope + c + i] = rounded_to(
                                "float16", tokens.value(Cache, slot, rank + c + i)
                            )
                    else:
                        copy(key[place * key_stride + nope + c], Cache[slot[0], slot[1], rank + c])

        @T.inline
        def load_values(t, h, first, last, Wide, value):
            for w in T.unroll(-(-keys * v // (_VECTOR * threads))):
                n = T.meta_var(w * threads + t)
                place, c = T.meta_var(n // (v // _VECTOR)), T.meta_var(n % (v // _VECTOR) * _VECTOR)
                if n < keys * v // _VECTOR:
                    copy(value[place * value_stride + c], Wide[h, T.min(first + place, last), nope + c])

        @T.inline
        def meet():
            """Copies are there, and nobody reads what the next ones overwrite."""
            T.evaluate(T.call_extern("void", "mlc_await_copies"))
            T.evaluate(T.tvm_storage_sync("shared"))

        @T.inline
        def weigh(first, column, position, score, largest, total, out):
            """Scores → weights; the rows' largest score, sums of weights and `out` follow."""
            rescale = T.alloc_buffer((4,), "float32", scope="local")  # the new largest scores, and factors
            for i in T.unroll(2):
                rescale[i] = largest[i]
            for n in T.unroll(key_tiles * 4):
                score[n] = T.if_then_else(
                    first + n // 4 * 8 + column + n % 2 <= position[n % 4 // 2], score[n], T.float32(_LOWEST)
                )
                rescale[n % 4 // 2] = T.max(rescale[n % 4 // 2], score[n])
            for i in T.unroll(2):
                for step in T.unroll(2):
                    rescale[i] = T.max(rescale[i], shuffled(rescale[i], T.shift_right(T.int32(2), step)))
                rescale[2 + i] = power(largest[i] - rescale[i])
                largest[i] = rescale[i]
                total[i] = total[i] * rescale[2 + i]
            for n in T.unroll(key_tiles * 4):
                score[n] = power(score[n] - largest[n % 4 // 2])
                total[n % 4 // 2] = total[n % 4 // 2] + score[n]
            for n in T.unroll(value_tiles * 4):
                out[n] = out[n] * rescale[2 + n % 4 // 2]

        @T.inline
        def attend(t, reach, h, last, sequence, query, place, store, PageTable, Wide, Cache):
            """For the head h of `Wide`'s; see `gpu_flash` for the others."""
            key = T.alloc_buffer((keys * key_stride,), "float16", scope="shared")
            value = T.alloc_buffer((keys * value_stride,), "float16", scope="shared")
            q = T.alloc_buffer((steps * 4,), "uint32", scope="local")
            score = T.alloc_buffer((key_tiles * 4,), "float32", scope="local")
            out = T.alloc_buffer((value_tiles * 4,), "float32", scope="local")
            right = T.alloc_buffer((4,), "uint32", scope="local")
            weights = T.alloc_buffer((4,), "uint32", scope="local")
            largest = T.alloc_buffer((2,), "float32", scope="local")
            total = T.alloc_buffer((2,), "float32", scope="local")
            position = T.alloc_buffer((2,), "int32", scope="local")
            lane = T.meta_var(t % 32)
            row, column = T.meta_var(t % _SET // 32 * 16 + lane // 4), T.meta_var(lane % 4 * 2)
            start = T.meta_var(t // _SET * (v // sets))
            if reach > 0:
                load_keys(t, h, 0, last, sequence, PageTable, Wide, Cache, key)
            for n in T.unroll(steps * 4):
                channel = T.meta_var(n // 4 * 16 + n % 4 // 2 * 8 + column)
                q[n] = T.call_extern(
                    "uint32",
                    "mlc_half2",
                    query(row + n % 2 * 8, channel),
                    query(row + n % 2 * 8, channel + 1),
                )
            for i in T.unroll(2):
                position[i] = place(row + i * 8)
                largest[i] = T.float32(_LOWEST)
                total[i] = T.float32(0)
            for n in T.unroll(value_tiles * 4):
                out[n] = T.float32(0)
            for j in T.serial(reach):
                meet()
                load_values(t, h, j * keys, last, Wide, value)
                for n in T.unroll(key_tiles * 4):
                    score[n] = T.float32(0)
                for s in T.unroll(steps):
                    for n in T.unroll(key_tiles // 2):
                        # Four matrices of 8 keys by 8 channels: channels beside each other, then the next keys.
                        of_lane = T.meta_var((n * 16 + lane // 16 * 8 + lane % 8) * key_stride + lane // 8 % 2 * 8)
                        T.evaluate(
                            T.call_extern(
                                "void",
                                "mlc_matrices_4",
                                T.address_of(right[0]),
                                T.address_of(key[of_lane + s * 16]),
                            )
                        )
                        for i in T.unroll(2):
                            T.evaluate(
                                T.call_extern(
                                    "void",
                                    "mlc_mma_half",
                                    T.address_of(score[n * 8 + i * 4]),
                                    q[s * 4],
                                    q[s * 4 + 1],
                                    q[s * 4 + 2],
                                    q[s * 4 + 3],
                                    right[i * 2],
                                    right[i * 2 + 1],
                                )
                            )
                weigh(j * keys, column, position, score, largest, total, out)
                meet()
                if j + 1 < reach:
                    load_keys(t, h, (j + 1) * keys, last, sequence, PageTable, Wide, Cache, key)
                for s in T.unroll(keys // 16):
                    for i in T.unroll(4):
                        of_tile = T.meta_var((s * 2 + i // 2) * 4 + i % 2 * 2)
                        weights[i] = T.call_extern("uint32", "mlc_half2", score[of_tile], score[of_tile + 1])
                    for n in T.unroll(value_tiles // 2):
                        # Four matrices of 8 positions by 8 columns: positions under each other, then the next columns.
                        T.evaluate(
                            T.call_extern(
                                "void",
                                "mlc_matrices_4_turned",
                                T.address_of(right[0]),
                                T.address_of(
                                    value[(s * 16 + lane % 16) * value_stride + start + n * 16 + lane // 16 * 8]
                                ),
                            )
                        )
                        for i in T.unroll(2):
                            T.evaluate(
                                T.call_extern(
                                    "void",
                                    "mlc_mma_half",
                                    T.address_of(out[n * 8 + i * 4]),
                                    weights[0],
                                    weights[1],
                                    weights[2],
                                    weights[3],
                                    right[i * 2],
                                    right[i * 2 + 1],
                                )
                            )
            for i in T.unroll(2):
                for step in T.unroll(2):
                    total[i] = total[i] + shuffled(total[i], T.shift_right(T.int32(2), step))
                total[i] = T.float32(1) / total[i]
            for n in T.unroll(value_tiles * 4):
                store(row + n % 4 // 2 * 8, start + n // 4 * 8 + column + n % 2, out[n] * total[n % 4 // 2])

        self.attend = attend
