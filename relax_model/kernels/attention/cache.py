"""How a cached token lies in its slot of a page: its latent and its rotated key, as floats or in 8 bits.

    float32, float16     kv_lora_rank values │ rope values
    int8                 codes of the latent │ codes of the key │ a 16-bit factor for each group │ a float32 scale
                         in groups of 32, the last of either part filled up with zeros

In 8 bits, value = code · factor of its group · scale; codes reach ±127 and the largest factor is LARGEST_FACTOR.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.cpu_packed import GROUP, lane_max
from relax_model.kernels.cpu_tiles import as_float32, span

LARGEST_CODE = 127
LARGEST_FACTOR = 32000
_FACTOR_BYTES, _SCALE_BYTES = 2, 4
# Below this a token counts as zeros: the reciprocal of its scale would not be finite.
LEAST = 1e-30


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

    def factor(self, cache: Any, at: tuple[Any, Any], group: Any) -> Any:
        """The factor of a group of codes, int16."""
        return T.reinterpret("int16", cache[(*at, self.factor_at(group))])

    def scale(self, cache: Any, at: tuple[Any, Any]) -> Any:
        """The scale of a token in codes."""
        return T.reinterpret("float32", cache[(*at, self.scale_at)])

    def factor_at(self, group: Any) -> Any:
        """Where a group's factor lies: its bytes."""
        return span(self.groups * GROUP + group * _FACTOR_BYTES, _FACTOR_BYTES)

    @property
    def scale_at(self) -> Any:
        """Where a token's scale lies: its bytes."""
        return span(self.groups * (GROUP + _FACTOR_BYTES), _SCALE_BYTES)

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
                    cache[page, slot, k] = T.Cast(self.shape.cache_dtype, row[k])

            return store

        @T.inline
        def store_codes(row, cache, page, slot):
            filled = T.alloc_buffer((self.groups * GROUP,), "float32", scope="global")
            largest = T.alloc_buffer((self.groups * lanes,), "float32", scope="global")
            scale = T.alloc_buffer((2,), "float32", scope="global")  # and what a group's step is divided by
            for k in T.serial(self.groups * GROUP):
                filled[k] = T.float32(0)
            for k in T.serial(rank):
                filled[k] = row[k]
            for p in T.serial(rope):
                filled[self.key_start + p] = row[rank + p]
            scale[0] = T.float32(0)
            for g in T.serial(self.groups):
                largest[T.Ramp(g * lanes, 1, lanes)] = T.Broadcast(T.float32(0), lanes)
                for w in T.unroll(GROUP // lanes):
                    largest[T.Ramp(g * lanes, 1, lanes)] = T.max(
                        largest[T.Ramp(g * lanes, 1, lanes)], T.abs(filled[T.Ramp(g * GROUP + w * lanes, 1, lanes)])
                    )
                largest[g * lanes] = lane_max(largest, lanes, g * lanes)
                scale[0] = T.max(scale[0], largest[g * lanes])
            scale[0] = scale[0] / T.float32(LARGEST_CODE * LARGEST_FACTOR)
            cache[page, slot, self.scale_at] = T.reinterpret(f"int8x{_SCALE_BYTES}", scale[0])
            for g in T.serial(self.groups):
                # Rounded up, so that no code is past the largest.
                scale[1] = T.if_then_else(
                    largest[g * lanes] > T.float32(LEAST),
                    T.ceil(largest[g * lanes] / (scale[0] * T.float32(LARGEST_CODE))),
                    T.float32(0),
                )
                cache[page, slot, self.factor_at(g)] = T.reinterpret(
                    f"int8x{_FACTOR_BYTES}", T.Cast("int16", T.Cast("int32", scale[1]))
                )
                scale[1] = T.if_then_else(scale[1] > T.float32(0), T.float32(1) / (scale[1] * scale[0]), T.float32(0))
                for w in T.unroll(GROUP // lanes):
                    cache[page, slot, T.Ramp(g * GROUP + w * lanes, 1, lanes)] = T.Cast(
                        f"int8x{lanes}",
                        T.Cast(
                            f"int32x{lanes}",
                            T.nearbyint(filled[T.Ramp(g * GROUP + w * lanes, 1, lanes)] * T.Broadcast(scale[1], lanes)),
                        ),
                    )

        return store_codes

    def _read(self, cache: Any, at: tuple[Any, Any], place: Any, group: Any, n: int) -> Any:
        value = as_float32(cache[(*at, span(place, n))])
        if not self.in_codes:
            return value
        scale = T.Cast("float32", self.factor(cache, at, group)) * self.scale(cache, at)
        return value * (scale if n == 1 else T.Broadcast(scale, n))
