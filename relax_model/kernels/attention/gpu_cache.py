"""What GPUs' kernels read of a cached token's slot (`cache.py`), by the channels of its latent with its key behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from relax_model.kernels.attention.cache import FLOAT16_END, LARGEST_CODE, CachedTokens, nan_from
from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.cpu_packed import GROUP

RUN = 4  # neighbouring channels that are read at once


class GpuTokens(CachedTokens):
    """Reads from a cache buffer whose last axis is a slot; `at` are the indices in front."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        assert shape.kv_lora_rank % RUN == 0 and shape.rope % RUN == 0
        # Whether a run begins at a multiple of its size in every slot.
        self.aligned = shape.cache_width % RUN == 0

    def place(self, k: Any) -> Any:
        """Where channel k's value or code lies."""
        rank = self.shape.kv_lora_rank
        return k if self.key_start == rank else T.if_then_else(k < rank, k, k - rank + self.key_start)

    def step_loader(self, keys: int, threads: int, *, in_halves: bool = False) -> Callable[..., Any]:
        """Statement `load(t, i, first, Positions, Sequences, PageTable, Cache, step)`: the scales of `keys` tokens from
        position `first` on, none past row i's own, into step[key · groups + group], by a block's threads.

        Where values go on as float16 (`in_halves`), the scale of a group that float16 cannot hold is NaN.
        """
        groups, page = self.groups, self.shape.page_size
        end = FLOAT16_END / LARGEST_CODE

        @T.inline
        def load(t, i, first, Positions, Sequences, PageTable, Cache, step):
            for w in T.serial(-(-keys * groups // threads)):
                if w * threads + t < keys * groups:
                    at = T.meta_var(T.min(first + (w * threads + t) // groups, Positions[i]))
                    scale = T.meta_var(
                        self.scale(Cache, (PageTable[Sequences[i], at // page], at % page), (w * threads + t) % groups)
                    )
                    step[w * threads + t] = nan_from(end, scale) if in_halves else scale

        return load

    def value(self, cache: Any, at: tuple[Any, ...], k: Any) -> Any:
        """Channel k as float32."""
        value = T.Cast("float32", cache[(*at, self.place(k))])
        return value * self.scale(cache, at, self.place(k) // GROUP) if self.in_codes else value
