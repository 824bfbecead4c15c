"""The numbers that an attention kernel is built for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from relax_model.layout import cache_width


@dataclass(frozen=True)
class AttentionShape:
    """Widths as in config.json; `cache_dtype` is the latent cache's (`cache.py`), `scale` the factor on the scores."""

    heads: int
    kv_lora_rank: int
    nope: int
    rope: int
    v: int
    interleaved: bool
    scale: float
    page_size: int
    cache_dtype: str

    @property
    def score_factor(self) -> float:
        """What queries are multiplied with so that a softmax can take powers of two: scale · log2(e)."""
        return self.scale * math.log2(math.e)

    @property
    def latent_width(self) -> int:
        """Values of a cached token."""
        return self.kv_lora_rank + self.rope

    @property
    def cache_width(self) -> int:
        """Elements of a cached token's slot."""
        return cache_width(self.cache_dtype, self.kv_lora_rank, self.rope)

    @property
    def query_width(self) -> int:
        """Values of a head's query."""
        return self.nope + self.rope

    @property
    def expanded_width(self) -> int:
        """Rows of `kv_b_proj` that belong to a head: its position-free key's and its value's."""
        return self.nope + self.v
