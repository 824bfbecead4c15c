"""Outliers of what is cached, moved by powers of two into what meets them: equal in real numbers, and kinder to caches.

    latent channel c    kv_a_layernorm's weight / 2ⁿ       kv_b_proj's column · 2ⁿ
    rotary pair p       kv_a_proj's two rows / 2ⁿ          the two rows of every head's query · 2ⁿ

A rotation mixes the two of a pair, so that they share n. Rows by a power of two keep a quantization's codes, and
columns those of all groups that have no outlier. Only outliers are touched: what is LEAST times as large as the median
of a layer, and whole latents and keys that are larger than LARGE.

Values come from the checkpoint, a layer at a time, before they are quantized (`conversion.py`). The idea is
SmoothQuant's (arXiv:2211.10438, equation 4, with α = ½), for a cache in place of activations.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mlc_dsv3.errors import note
from mlc_dsv3.weights.checkpoint import Checkpoint
from relax_model.config import ModelConfig

# Models as they are trained have channels that differ by several times, which no format minds.
LEAST = 8
# Root mean square; float16 ends at 65504, and single values are tens of times as large.
LARGE = 256
_BLOCK_ROWS = 1024
_TENSOR = re.compile(r"(.+\.self_attn)\.(kv_a_proj_with_mqa|kv_a_layernorm|kv_b_proj|q_b_proj|q_proj)\.weight")


@dataclass(frozen=True)
class _Factors:
    """A layer's powers of two, by which what meets the cache grows: latents (kv_lora_rank,) and key (rope,)."""

    latent: np.ndarray
    key: np.ndarray


class Balance:
    """What a conversion multiplies the tensors of attention with; several threads may ask at once."""

    def __init__(self, checkpoint: Checkpoint, model: ModelConfig) -> None:
        self._checkpoint, self._model = checkpoint, model
        self._lock = threading.Lock()
        self._layers: dict[str, _Factors] = {}

    def apply(self, name: str, start: int, values: np.ndarray) -> np.ndarray:
        """Rows of the tensor `name` from `start` on, balanced."""
        found = _TENSOR.fullmatch(name)
        if found is None:
            return values
        factors, rows = self._factors(found[1]), slice(start, start + len(values))
        rank, model = self._model.kv_lora_rank, self._model
        match found[2]:
            case "kv_a_layernorm":
                return values / factors.latent[rows]
            case "kv_b_proj":
                return values * factors.latent
            case "kv_a_proj_with_mqa":
                return values / np.concatenate([np.ones(rank, np.float32), factors.key])[rows, None]
        head = np.concatenate([np.ones(model.qk_nope_head_dim, np.float32), factors.key])
        return values * np.tile(head, model.num_attention_heads)[rows, None]

    def report(self) -> None:
        """Say in one line what was moved, if anything was."""
        latents = np.array([factor for layer in self._layers.values() for factor in layer.latent])
        keys = np.array([factor for layer in self._layers.values() for factor in layer.key[: len(layer.key) // 2]])
        moved = [
            f"{np.count_nonzero(factors != 1)} {what} (by up to {np.maximum(factors, 1 / factors).max():.0f})"
            for factors, what in ((latents, "latent channels"), (keys, "rotary pairs"))
            if np.any(factors != 1)
        ]
        if moved:
            note(f"balanced outliers of {' and '.join(moved)} with the weights that they meet, by powers of two")

    def _factors(self, prefix: str) -> _Factors:
        with self._lock:
            if prefix not in self._layers:
                self._layers[prefix] = _Factors(self._latent(prefix), self._key(prefix))
            return self._layers[prefix]

    def _latent(self, prefix: str) -> np.ndarray:
        """Latent channels have their norm's weight as root mean square; what meets one is its column of kv_b_proj."""
        name, rank = f"{prefix}.kv_b_proj.weight", self._model.kv_lora_rank
        rows = self._checkpoint.shape(name)[0]
        squares = sum((self._rows(name, *span) ** 2).sum(axis=0, dtype=np.float64) for span in _spans(rows))
        cached = np.abs(self._checkpoint.read(f"{prefix}.kv_a_layernorm.weight"))
        return _powers(cached, np.sqrt(squares / rows * rank))

    def _key(self, prefix: str) -> np.ndarray:
        """Magnitudes of a rotary key and of the heads' queries, if what comes out of their norms is white noise."""
        model, rope = self._model, self._model.qk_rope_head_dim
        norm = self._checkpoint.read(f"{prefix.removesuffix('self_attn')}input_layernorm.weight")
        rank, width = model.kv_lora_rank, model.qk_head_dim
        keys = self._rows(f"{prefix}.kv_a_proj_with_mqa.weight", rank, rank + rope) * norm
        query = "q_proj" if model.q_lora_rank is None else "q_b_proj"
        if model.q_lora_rank is not None:
            norm = self._checkpoint.read(f"{prefix}.q_a_layernorm.weight")
        squares = np.zeros(rope)
        for head in range(model.num_attention_heads):
            last = (head + 1) * width
            squares += ((self._rows(f"{prefix}.{query}.weight", last - rope, last) * norm) ** 2).sum(axis=1)
        key_squares = (keys.astype(np.float64) ** 2).sum(axis=1)
        pairs = (lambda x: x.reshape(-1, 2)) if model.rope.interleaved else (lambda x: x.reshape(2, -1).T)
        cached, met = (np.sqrt(pairs(each).mean(axis=1)) for each in (key_squares, squares / model.num_attention_heads))
        powers = _powers(cached, met)
        return np.repeat(powers, 2) if model.rope.interleaved else np.tile(powers, 2)

    def _rows(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._checkpoint.read_rows(name, start, stop)


def _spans(rows: int) -> Iterator[tuple[int, int]]:
    return ((start, min(rows, start + _BLOCK_ROWS)) for start in range(0, rows, _BLOCK_ROWS))


def _powers(cached: np.ndarray, met: np.ndarray) -> np.ndarray:
    """The powers of two by which `cached` shrinks and `met` grows; 1 for all but outliers, which meet half-way."""
    sound = (cached > 0) & (met > 0)
    if not sound.any():
        return np.ones(cached.shape, np.float32)
    typical = np.median(cached[sound])
    cached, met = (np.where(sound, each / np.median(each[sound]), 1) for each in (cached, met))
    powers = np.exp2(np.rint(np.log2(cached / met) / 2))
    large = np.maximum(cached, met) >= LEAST
    powers = np.where(large & (np.maximum(powers, 1 / powers) >= LEAST), powers, 1)
    typical *= np.median((cached / powers)[sound])
    if typical > LARGE:
        powers *= np.exp2(np.rint(np.log2(typical)))
    return powers.astype(np.float32)
