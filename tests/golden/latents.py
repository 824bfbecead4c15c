"""Latent caches and attention over them, in float64 NumPy: what the attention kernels are held against.

A cache of any dtype: what its bytes are for given values, and the values that they stand for. Attention is taken from
an explicit list of keys and values.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from golden.reference import absorbed_in_eight_bits, in_eight_bits, upwards_in_bfloat16
from relax_model.kernels.attention.shape import AttentionShape


def stored_cache(shape: AttentionShape, values: np.ndarray) -> np.ndarray:
    """Latents and keys (…, latent_width) as a cache of the shape's dtype holds them."""
    if shape.cache_dtype != "int8":
        return values.astype(shape.cache_dtype)
    parts = [values[..., : shape.kv_lora_rank], values[..., shape.kv_lora_rank :]]
    padded = [np.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, -part.shape[-1] % 32)]) for part in parts]
    groups = np.concatenate(padded, axis=-1).reshape(*values.shape[:-1], -1, 32)
    scales = upwards_in_bfloat16(np.abs(groups).max(axis=-1) / 127)
    codes = np.rint(groups / np.where(scales == 0, 1, scales)[..., None]).astype(np.int8)
    bits = (scales.astype(np.float32).view(np.int32) >> 16).astype(np.int16)
    return np.concatenate([codes.reshape(*values.shape[:-1], -1), bits.view(np.int8)], axis=-1)


def cached_values(shape: AttentionShape, cache: np.ndarray) -> np.ndarray:
    """The float64 values (…, latent_width) of a cache's slots."""
    if shape.cache_dtype != "int8":
        return cache.astype(np.float64)
    groups = cache.shape[-1] // 34
    bits = np.ascontiguousarray(cache[..., groups * 32 :]).view(np.int16).astype(np.int32)
    scales = (bits << 16).view(np.float32).astype(np.float64)
    values = cache[..., : groups * 32].reshape(*cache.shape[:-1], groups, 32) * scales[..., None]
    values = values.reshape(*cache.shape[:-1], -1)
    start = -(-shape.kv_lora_rank // 32) * 32
    return np.concatenate([values[..., : shape.kv_lora_rank], values[..., start : start + shape.rope]], axis=-1)


def rotate(x: np.ndarray, angles: np.ndarray, interleaved: bool) -> np.ndarray:
    """Rotary embedding of x (…, dim) by angles (…, dim/2); results lie in halves."""
    half = x.shape[-1] // 2
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Latents:
    """Two sequences in one paged cache, their pages shuffled, with the tensors that a step brings.

    What is cached is `magnitudes` (latent_width,) times random values, and what meets it as much smaller. Those of the
    two values of a rotary pair, which lie in halves, must be equal.
    """

    def __init__(self, shape: AttentionShape, lengths: tuple[int, int], magnitudes: np.ndarray | None = None) -> None:
        self.shape = shape
        self.magnitudes = np.ones(shape.latent_width, np.float32) if magnitudes is None else magnitudes
        self.random = np.random.default_rng(11)
        pages = [-(-length // shape.page_size) for length in lengths]
        order = self.random.permutation(sum(pages) + 3).astype(np.int32)
        self.page_table = np.zeros((2, max(pages)), np.int32)
        self.page_table[0, : pages[0]] = order[: pages[0]]
        self.page_table[1, : pages[1]] = order[pages[0] : sum(pages)]
        cached = self.random.standard_normal((sum(pages) + 3, shape.page_size, shape.latent_width), np.float32)
        self.exact = cached * self.magnitudes
        self.cache = stored_cache(shape, self.exact)

    def expansion(self) -> np.ndarray:
        """Random values for `kv_b_proj`, (heads · (nope + v), kv_lora_rank)."""
        rows = self.shape.heads * self.shape.expanded_width
        rank = self.shape.kv_lora_rank
        return self.random.standard_normal((rows, rank), np.float32) * 0.3 / self.magnitudes[:rank]

    def set_expansion(self, exact: np.ndarray) -> None:
        """The values that `kv_b_proj` stands for once it is stored."""
        self.kv_b = exact.reshape(self.shape.heads, self.shape.expanded_width, self.shape.kv_lora_rank)

    def forget_rounding(self) -> None:
        """From now on what is expected is of the values themselves, and not of what the cache made of them."""
        self.shape = replace(self.shape, cache_dtype="float32")
        self.cache = self.exact

    def latents(self, sequence: int, length: int) -> np.ndarray:
        """The first `length` cached tokens of a sequence, float64."""
        size = self.shape.page_size
        tokens = [self.cache[self.page_table[sequence, i // size], i % size] for i in range(length)]
        return cached_values(self.shape, np.array(tokens))

    def table(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rotary table for some positions, and its angles."""
        frequencies = 0.7 ** np.arange(self.shape.rope // 2)
        angles = positions[:, None] * frequencies
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32), angles

    def expected(
        self, q: np.ndarray, positions: np.ndarray, sequences: np.ndarray, *, rounded: bool = False, absorbed=False
    ) -> np.ndarray:
        """Attention output (rows, heads · v) in float64, from explicit keys and values.

        `rounded` takes them from latents rounded to 8 bits. `absorbed` is what packed weights give before W_UV, (rows,
        heads, kv_lora_rank), with queries rounded to 8 bits.
        """
        shape = self.shape
        _, angles = self.table(positions)
        out = np.zeros((len(q), shape.heads, shape.kv_lora_rank if absorbed else shape.v))
        for sequence in np.unique(sequences):
            rows = np.flatnonzero(sequences == sequence)
            cached = self.latents(sequence, positions[rows].max() + 1)
            latent, k_pe = cached[:, : shape.kv_lora_rank], cached[:, shape.kv_lora_rank :]
            latent = in_eight_bits(latent) if rounded else latent
            for head, (w_uk, w_uv) in enumerate(np.split(kv_b, [shape.nope]) for kv_b in self.kv_b):
                keys, values = (latent, latent) if absorbed else (latent @ w_uk.T, latent @ w_uv.T)
                for row in rows:
                    query, seen = q[row].reshape(shape.heads, -1)[head].astype(np.float64), positions[row] + 1
                    q_nope, q_pe = query[: shape.nope], rotate(query[shape.nope :], angles[row], shape.interleaved)
                    if absorbed:
                        q_nope = absorbed_in_eight_bits(q_nope[None], w_uk)[0]
                    scores = (keys[:seen] @ q_nope + k_pe[:seen] @ q_pe) * shape.scale
                    weights = np.exp(scores - scores.max())
                    out[row, head] = weights / weights.sum() @ values[:seen]
        return out if absorbed else out.reshape(len(q), -1)

    def queries(self, rows: int) -> np.ndarray:
        """Random queries (rows, heads · (nope + rope))."""
        shape = self.shape
        q = self.random.standard_normal((rows, shape.heads, shape.query_width), np.float32)
        pairs = self.magnitudes[shape.kv_lora_rank : shape.kv_lora_rank + shape.rope // 2]
        q[..., shape.nope :] /= np.repeat(pairs, 2) if shape.interleaved else np.tile(pairs, 2)
        return q.reshape(rows, -1)
