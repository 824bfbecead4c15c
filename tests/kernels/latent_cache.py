"""A latent cache of any dtype in NumPy: its bytes for given values, and the float64 values that they stand for."""

from __future__ import annotations

import numpy as np

from relax_model.kernels.attention.shape import AttentionShape


def stored_cache(shape: AttentionShape, values: np.ndarray) -> np.ndarray:
    """Latents and keys (…, latent_width) as a cache of the shape's dtype holds them."""
    if shape.cache_dtype != "int8":
        return values.astype(shape.cache_dtype)
    parts = [values[..., : shape.kv_lora_rank], values[..., shape.kv_lora_rank :]]
    padded = [np.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, -part.shape[-1] % 32)]) for part in parts]
    groups = np.concatenate(padded, axis=-1).reshape(*values.shape[:-1], -1, 32)
    largest = np.abs(groups).max(axis=-1).astype(np.float64)
    scale = (largest.max(axis=-1, keepdims=True) / (127 * 32000)).astype(np.float32)
    factors = np.ceil(largest / (127 * scale.astype(np.float64))).astype(np.int16)
    codes = np.rint(groups / (factors * scale)[..., None]).astype(np.int8).reshape(*values.shape[:-1], -1)
    return np.concatenate([codes, factors.view(np.int8), scale.view(np.int8)], axis=-1)


def cached_values(shape: AttentionShape, cache: np.ndarray) -> np.ndarray:
    """The float64 values (…, latent_width) of a cache's slots."""
    if shape.cache_dtype != "int8":
        return cache.astype(np.float64)
    groups = (cache.shape[-1] - 4) // 34
    factors = np.ascontiguousarray(cache[..., groups * 32 : groups * 34]).view(np.int16).astype(np.float64)
    scales = factors * np.ascontiguousarray(cache[..., groups * 34 :]).view(np.float32)
    values = cache[..., : groups * 32].reshape(*cache.shape[:-1], groups, 32) * scales[..., None]
    values = values.reshape(*cache.shape[:-1], -1)
    start = -(-shape.kv_lora_rank // 32) * 32
    return np.concatenate([values[..., : shape.kv_lora_rank], values[..., start : start + shape.rope]], axis=-1)
