"""Why the cache of 8 bits holds integers: what they keep of latents beside 8-bit floats of the same size."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from golden.latents import cached_values, stored_cache

from relax_model.kernels.attention.shape import AttentionShape

SHAPE = AttentionShape(128, 512, 128, 64, 128, True, 0.1, 16, "int8")
LARGEST = 448  # of e4m3


def error(found: np.ndarray, values: np.ndarray) -> float:
    """Root mean square, as a share of the values'."""
    return float(np.sqrt(((found - values) ** 2).mean() / (values**2).mean()))


def test_integers_are_several_times_as_exact_as_e4m3_with_a_scale_for_128_channels() -> None:
    values = np.random.default_rng(0).standard_normal((2000, SHAPE.latent_width)).astype(np.float32)
    integers = cached_values(SHAPE, stored_cache(SHAPE, values))
    latents = values[:, : SHAPE.kv_lora_rank]
    groups = latents.reshape(-1, 128)
    scales = np.abs(groups).max(axis=1, keepdims=True) / LARGEST
    floats = ((groups / scales).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scales).reshape(latents.shape)
    assert 0.0050 < error(integers[:, : SHAPE.kv_lora_rank], latents) < 0.0057
    assert 0.024 < error(floats, latents) < 0.027
