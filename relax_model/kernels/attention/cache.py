"""How a cached token lies in its slot of a page: its latent and its rotated key, as floats or in 8 bits.

    float32, float16     kv_lora_rank values │ rope values
    int8                 codes of the latent │ codes of the key │ a bfloat16 scale for each group
                         in groups of 32, the last of either part filled up with zeros

In 8 bits, value = code · scale of its group, and codes reach ±127. A latent and a rotary key, or two groups of either,
may be many powers of two apart: a scale has a float's range and is nobody else's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.cpu_packed import GROUP, lane_max
from relax_model.kernels.cpu_tiles import as_float32, span

LARGEST_CODE = 127
_SCALE_BYTES = 2
# Below this a group counts as zeros: the reciprocal of its scale would not be finite.
LEAST = 1e-30
FLOAT16_END = 65520  # what is smaller is rounded to a finite number


def scale_bits(largest: Any) -> Any:
    """The bfloat16 scale of a group whose largest magnitude is float32 `largest`, as the low bits of an int32.

    Rounded up, so that no code is past the largest; zero for a group of zeros.
    """
    bits = T.reinterpret("int32", largest / T.float32(LARGEST_CODE))
    return T.if_then_else(largest > T.float32(LEAST), T.shift_right(bits + T.int32(0xFFFF), T.int32(16)), T.int32(0))


def scale_of(bits: Any) -> Any:
    """The float32 value of a bfloat16 scale, from the low 16 bits of an int32; of vectors likewise."""
    lanes = bits.ty.dtype.lanes
    if lanes == 1:
        return T.reinterpret("float32", T.shift_left(bits, T.int32(16)))
    return T.reinterpret(f"float32x{lanes}", T.shift_left(bits, T.Broadcast(T.int32(16), lanes)))


def rounded_to(dtype: str, value: Any) -> Any:
    """A float32 value in a cache's or a key's float dtype: NaN where float16 cannot hold it.

    Infinity would do where scores become positive; a token of score −∞ is passed over without a word.
    """
    return T.Cast(dtype, nan_from(FLOAT16_END, value) if dtype == "float16" else value)


def nan_from(end: float, value: Any) -> Any:
    """A float32 value, or NaN where its magnitude reaches `end`."""
    # With all bits of the exponent and the first behind them. Not every GPU's language has a constant for it.
    nan = T.reinterpret("float32", T.bitwise_or(T.reinterpret("int32", value), T.int32(0x7FC00000)))
    return T.if_then_else(T.abs(value) < T.float32(end), value, nan)


class CachedTokens:
    """What reads a cache buffer (pages, page_size, cache_width); `at` is the (page, slot) of a token."""

    def __init__(self, shape: AttentionShape) -> None:
        self.shape = shape
        self.in_codes = shape.cache_dtype == "int8"
        self.latent_groups = -(-shape.kv_lora_rank // GROUP)
        self.groups = self.latent_groups + -(-shape.rope // GROUP)
        # Where the key begins in a slot.
        self.key_start = self.latent_groups * GROUP if self.in_codes else shape.kv_lora_rank

    def latent(self, cache: Any, at: tuple[Any, Any], k: Any, n: int = 1) -> Any:
        """`n` values of the latent from k on, which share a group, as float32."""
        return self._read(cache, at, k, k // GROUP, n)

    def key(self, cache: Any, at: tuple[Any, Any], p: Any, n: int = 1) -> Any:
        """`n` values of the rotated key from p on, which share a group, as float32."""
        return self._read(cache, at, self.key_start + p, self.latent_groups + p // GROUP, n)

    def scale(self, cache: Any, at: tuple[Any, ...], group: Any, n: int = 1) -> Any:
        """The scale of a group of codes, or of `n` neighbours, as float32."""
        bits = cache[(*at, span(self.groups * GROUP + group * _SCALE_BYTES, n * _SCALE_BYTES))]
        suffix = "" if n == 1 else f"x{n}"
        return scale_of(T.Cast(f"int32{suffix}", T.reinterpret(f"int16{suffix}", bits)))

    def latent_loader(self, lanes: int) -> Callable[..., Any]:
        """Statement `load(block, row, start, cache, page, slot)`: a latent as float32, block[row, start …]."""
        return self._loader(self.latent, self.shape.kv_lora_rank, lanes)

    def key_loader(self, lanes: int) -> Callable[..., Any]:
        """The same for a rotated key."""
        return self._loader(self.key, self.shape.rope, lanes)

    def _loader(self, read: Callable[..., Any], width: int, lanes: int) -> Callable[..., Any]:
        whole = width // GROUP * GROUP

        @T.inline
        def load(block, row, start, cache, page, slot):
            for v in T.serial(whole // lanes):
                block[row, T.Ramp(start + v * lanes, 1, lanes)] = read(cache, (page, slot), v * lanes, lanes)
            for k in T.serial(width - whole):
                block[row, start + whole + k] = read(cache, (page, slot), whole + k)

        return load

    def storer(self, lanes: int) -> Callable[..., Any]:
        """Statement `store(row, cache, page, slot)`: latent and key in a buffer (latent_width,) into a token's slot."""
        rank, rope = self.shape.kv_lora_rank, self.shape.rope
        if not self.in_codes:

            @T.inline
            def store(row, cache, page, slot):
                for k in T.serial(rank + rope):
                    cache[page, slot, k] = rounded_to(self.shape.cache_dtype, row[k])

            return store

        @T.inline
        def store_codes(row, cache, page, slot):
            filled = T.alloc_buffer((self.groups * GROUP,), "float32", scope="global")
            largest = T.alloc_buffer((lanes,), "float32", scope="global")
            bits = T.alloc_buffer((1,), "int32", scope="global")
            steps = T.alloc_buffer((1,), "float32", scope="global")  # codes for a value of one
            for k in T.serial(self.groups * GROUP):
                filled[k] = T.float32(0)
            for k in T.serial(rank):
                filled[k] = row[k]
            for p in T.serial(rope):
                filled[self.key_start + p] = row[rank + p]
            for g in T.serial(self.groups):
                largest[T.Ramp(0, 1, lanes)] = T.Broadcast(T.float32(0), lanes)
                for w in T.unroll(GROUP // lanes):
                    largest[T.Ramp(0, 1, lanes)] = T.max(
                        largest[T.Ramp(0, 1, lanes)], T.abs(filled[T.Ramp(g * GROUP + w * lanes, 1, lanes)])
                    )
                bits[0] = scale_bits(lane_max(largest, lanes))
                cache[page, slot, span(self.groups * GROUP + g * _SCALE_BYTES, _SCALE_BYTES)] = T.reinterpret(
                    f"int8x{_SCALE_BYTES}", T.Cast("int16", bits[0])
                )
                steps[0] = T.if_then_else(bits[0] > 0, T.float32(1) / scale_of(bits[0]), T.float32(0))
                for w in T.unroll(GROUP // lanes):
                    cache[page, slot, T.Ramp(g * GROUP + w * lanes, 1, lanes)] = T.Cast(
                        f"int8x{lanes}",
                        T.Cast(
                            f"int32x{lanes}",
                            T.nearbyint(filled[T.Ramp(g * GROUP + w * lanes, 1, lanes)] * T.Broadcast(steps[0], lanes)),
                        ),
                    )

        return store_codes

    def _read(self, cache: Any, at: tuple[Any, Any], place: Any, group: Any, n: int) -> Any:
        value = as_float32(cache[(*at, span(place, n))])
        if not self.in_codes:
            return value
        scale = self.scale(cache, at, group)
        return value * (scale if n == 1 else T.Broadcast(scale, n))
