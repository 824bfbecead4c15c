"""Outliers of what is kept in few bits, moved by powers of two into what meets them: equal in real numbers.

    latent channel c    kv_a_layernorm's weight / 2ⁿ       kv_b_proj's column · 2ⁿ
    rotary pair p       kv_a_proj's two rows / 2ⁿ          the two rows of every head's query · 2ⁿ
    a norm's channel c  its weight / 2ⁿ                    the columns of the matrices that it goes to · 2ⁿ

The first two are cached in 8 bits or float16, the third becomes 8-bit activations beside packed weights.

A rotation mixes the two of a pair, so that they share n. Rows by a power of two keep a quantization's codes, and
columns those of all groups that have no outlier. Only outliers are touched: what is LEAST times as large as the median
of a layer, and whole latents and keys that are larger than LARGE.

Values come from the checkpoint, a layer at a time, before they are quantized (`conversion.py`). The idea is
SmoothQuant's (arXiv:2211.10438, equation 4, with α = ½), for caches as well as for activations.
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
_BLOCK_ROWS = 512
_TENSOR = re.compile(r"(.+\.layers\.\d+)\.(.+)\.weight")
_MLP = re.compile(r"mlp\.((experts\.\d+\.|shared_experts\.)?(gate|up)_proj|gate)")


@dataclass(frozen=True)
class _Factors:
    """A layer's powers of two, by which what meets these channels grows: latents (kv_lora_rank,), key (rope,), and
    what attention and the experts are given (hidden_size,)."""

    latent: np.ndarray
    key: np.ndarray
    attention: np.ndarray
    mlp: np.ndarray


class Balance:
    """What a conversion multiplies tensors with; several threads may ask at once."""

    def __init__(self, checkpoint: Checkpoint, model: ModelConfig) -> None:
        self._checkpoint, self._model = checkpoint, model
        self._lock = threading.Lock()
        self._layers: dict[str, _Factors] = {}

    def apply(self, name: str, start: int, values: np.ndarray) -> np.ndarray:
        """Rows of the tensor `name` from `start` on, balanced; infinite where float32 cannot hold them."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self._balanced(name, start, values)

    def _balanced(self, name: str, start: int, values: np.ndarray) -> np.ndarray:
        found = _TENSOR.fullmatch(name)
        if found is None:
            return values
        layer, leaf, rows = found[1], found[2], slice(start, start + len(values))
        model = self._model
        match leaf:
            case "self_attn.kv_a_layernorm":
                return values / self._factors(layer).latent[rows]
            case "self_attn.kv_b_proj":
                return values * self._factors(layer).latent
            case "self_attn.kv_a_proj_with_mqa":
                factors = self._factors(layer)
                own = np.concatenate([np.ones(model.kv_lora_rank, np.float32), factors.key])
                return values * factors.attention / own[rows, None]
            case "self_attn.q_a_proj":
                return values * self._factors(layer).attention
            case "self_attn.q_b_proj" | "self_attn.q_proj":
                factors = self._factors(layer)
                head = np.concatenate([np.ones(model.qk_nope_head_dim, np.float32), factors.key])
                balanced = values * np.tile(head, model.num_attention_heads)[rows, None]
                return balanced * factors.attention if leaf == "self_attn.q_proj" else balanced
            case "input_layernorm":
                return values / self._factors(layer).attention[rows]
            case "post_attention_layernorm":
                return values / self._factors(layer).mlp[rows]
        return values * self._factors(layer).mlp if _MLP.fullmatch(leaf) else values

    def report(self) -> None:
        """Say in one line what was moved, if anything was."""
        layers = self._layers.values()
        kinds = {
            "latent channels": [layer.latent for layer in layers],
            "rotary pairs": [layer.key[: len(layer.key) // 2] for layer in layers],
            "channels after norms": [factors for layer in layers for factors in (layer.attention, layer.mlp)],
        }
        moved = []
        for what, each in kinds.items():
            factors = np.concatenate(each) if each else np.ones(1)
            if np.any(factors != 1):
                most = np.maximum(factors, 1 / factors).max()
                moved.append(f"{np.count_nonzero(factors != 1)} {what} (by up to {most:.0f})")
        if moved:
            note(f"balanced outliers of {', '.join(moved)} with the weights that they meet, by powers of two")

    def _factors(self, layer: str) -> _Factors:
        # What is not finite is left as it is, and quantization refuses it by the name of its tensor.
        with self._lock, np.errstate(invalid="ignore"):
            if layer not in self._layers:
                prefix = f"{layer}.self_attn"
                self._layers[layer] = _Factors(
                    self._normed(f"{prefix}.kv_a_layernorm", [f"{prefix}.kv_b_proj"]),
                    self._key(prefix),
                    self._normed(f"{layer}.input_layernorm", self._attention_inputs(prefix)),
                    self._normed(f"{layer}.post_attention_layernorm", self._mlp_inputs(f"{layer}.mlp")),
                )
            return self._layers[layer]

    def _normed(self, norm: str, matrices: list[str]) -> np.ndarray:
        """A norm's weight is its channels' root mean square; what meets one is its column of `matrices`."""
        squares, count = np.zeros(()), 0
        for matrix in matrices:
            name = f"{matrix}.weight"
            for span in _spans(self._checkpoint.shape(name)[0]):
                squares = squares + (self._rows(name, *span) ** 2).sum(axis=0)
                count += span[1] - span[0]
        return _powers(np.abs(self._checkpoint.read(f"{norm}.weight")), np.sqrt(squares / count))

    def _attention_inputs(self, prefix: str) -> list[str]:
        query = "q_proj" if self._model.q_lora_rank is None else "q_a_proj"
        return [f"{prefix}.{query}", f"{prefix}.kv_a_proj_with_mqa"]

    def _mlp_inputs(self, prefix: str) -> list[str]:
        """Of experts the first stands for all: reading every one would take as long as converting them."""
        if f"{prefix}.gate_proj.weight" in self._checkpoint:
            return [f"{prefix}.gate_proj"]
        return [f"{prefix}.gate", f"{prefix}.experts.0.gate_proj"]

    def _key(self, prefix: str) -> np.ndarray:
        """Magnitudes of a rotary key and of the heads' queries, if what comes out of their norms is white noise."""
        model, rope = self._model, self._model.qk_rope_head_dim
        norm = self._checkpoint.read(f"{prefix.removesuffix('self_attn')}input_layernorm.weight")
        rank, width = model.kv_lora_rank, model.qk_head_dim
        keys = self._rows(f"{prefix}.kv_a_proj_with_mqa.weight", rank, rank + rope) * norm
        key_squares = (keys**2).sum(axis=1)
        query = "q_proj" if model.q_lora_rank is None else "q_b_proj"
        if model.q_lora_rank is not None:
            norm = self._checkpoint.read(f"{prefix}.q_a_layernorm.weight")
        squares = np.zeros(rope)
        for head in range(model.num_attention_heads):
            last = (head + 1) * width
            squares += ((self._rows(f"{prefix}.{query}.weight", last - rope, last) * norm) ** 2).sum(axis=1)
        pairs = (lambda x: x.reshape(-1, 2)) if model.rope.interleaved else (lambda x: x.reshape(2, -1).T)
        cached, met = (np.sqrt(pairs(each).mean(axis=1)) for each in (key_squares, squares / model.num_attention_heads))
        powers = _powers(cached, met)
        return np.repeat(powers, 2) if model.rope.interleaved else np.tile(powers, 2)

    def _rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """In float64, which holds the squares of all that float32 does."""
        return self._checkpoint.read_rows(name, start, stop).astype(np.float64)


def _spans(rows: int) -> Iterator[tuple[int, int]]:
    return ((start, min(rows, start + _BLOCK_ROWS)) for start in range(0, rows, _BLOCK_ROWS))


def _powers(cached: np.ndarray, met: np.ndarray) -> np.ndarray:
    """The powers of two by which `cached` shrinks and `met` grows; 1 for all but outliers, which meet half-way."""
    cached = cached.astype(np.float64)
    sound = (cached > 0) & (met > 0) & np.isfinite(cached) & np.isfinite(met)
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
    return np.clip(powers, 2.0**-126, 2.0**126).astype(np.float32)
