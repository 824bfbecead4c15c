"""Caches that are filled for a measurement hold normal numbers, as their readers decode them."""

from __future__ import annotations

import numpy as np
import pytest
from golden.latents import cached_values

from mlc_dsv3.runtime.cache_content import set_scales
from relax_model.kernels.attention.shape import AttentionShape


@pytest.mark.parametrize(("rank", "rope"), [(512, 64), (40, 24), (31, 8)])
def test_every_group_of_a_filled_cache_has_a_normal_scale(rank: int, rope: int) -> None:
    shape = AttentionShape(2, rank, 16, rope, 16, True, 0.2, 16, "int8")
    codes = np.random.default_rng(0).integers(-127, 128, (3, 16, shape.cache_width), np.int8)
    cache = codes.copy()
    set_scales(cache)
    latent_groups = -(-rank // 32) * 32
    expected = np.concatenate([codes[..., :rank], codes[..., latent_groups : latent_groups + rope]], axis=-1)
    np.testing.assert_array_equal(cached_values(shape, cache), expected * np.float32(2.0**-20))
