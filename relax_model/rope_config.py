"""Rotary embedding settings, from either spelling in a checkpoint's config.json, parsed and checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from relax_model.errors import ConfigError

_YARN_FIELDS = {
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "attention_factor",
    "truncate",
}
_COMMON_FIELDS = {"type", "rope_type", "rope_theta", "partial_rotary_factor"}


@dataclass(frozen=True)
class YarnConfig:
    """YaRN context extension (Peng et al. 2023, arXiv:2309.00071) with DeepSeek's two mscales."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float
    attention_factor: float | None
    truncate: bool


@dataclass(frozen=True)
class RopeConfig:
    """Decoupled rotary embedding of `dim` channels; `interleaved` pairs (0,1),(2,3)… rather than (0,dim/2)…"""

    dim: int
    theta: float
    interleaved: bool
    yarn: YarnConfig | None

    def inverse_frequencies(self) -> np.ndarray:
        """float64 (dim/2,): radians per position of each channel pair (YaRN: paper section 3.2, "NTK-by-parts")."""
        pair = np.arange(0, self.dim, 2, dtype=np.float64)
        plain = self.theta ** (-pair / self.dim)
        if self.yarn is None:
            return plain
        yarn = self.yarn

        def pair_of(rotations: float) -> float:
            turns = yarn.original_max_position_embeddings / (rotations * 2 * math.pi)
            return self.dim * math.log(turns) / (2 * math.log(self.theta))

        low, high = pair_of(yarn.beta_fast), pair_of(yarn.beta_slow)
        if yarn.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.dim - 1)
        ramp = np.clip((np.arange(self.dim // 2) - low) / max(high - low, 0.001), 0, 1)
        return plain / yarn.factor * ramp + plain * (1 - ramp)

    @property
    def magnitude(self) -> float:
        """Factor on cos and sin: the ratio of the two mscales (1 for most checkpoints)."""
        if self.yarn is None:
            return 1.0
        if self.yarn.attention_factor is not None:
            return self.yarn.attention_factor
        if self.yarn.mscale and self.yarn.mscale_all_dim:
            return _mscale(self.yarn.factor, self.yarn.mscale) / _mscale(self.yarn.factor, self.yarn.mscale_all_dim)
        return _mscale(self.yarn.factor, 1.0)

    @property
    def softmax_factor(self) -> float:
        """Factor on the softmax scale: mscale_all_dim's, squared, since it stands for both query and key."""
        if self.yarn is None or not self.yarn.mscale_all_dim:
            return 1.0
        return _mscale(self.yarn.factor, self.yarn.mscale_all_dim) ** 2


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def parse_rope(config: dict[str, Any], dim: int, interleaved: bool, default_theta: float) -> RopeConfig:
    """Read `rope_parameters`, or `rope_theta` with `rope_scaling`, from a config.json.

    Raises ConfigError for a kind of RoPE other than plain and YaRN, and for a field that neither has.
    """
    spelled = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    fields = config.get(spelled) or {}
    if not isinstance(fields, dict):
        raise ConfigError(f"config field {spelled!r} is {fields!r}; it must be an object or null")
    kind = fields.get("rope_type") or fields.get("type") or "default"
    theta = _number("rope_theta", fields.get("rope_theta") or config.get("rope_theta") or default_theta, over=1)
    for place in (fields, config):
        if place.get("partial_rotary_factor", 1) not in (1, None):
            raise ConfigError(f"partial_rotary_factor is {place['partial_rotary_factor']}; only 1 is supported")
    if kind == "default":
        _refuse_unknown(fields, _COMMON_FIELDS, spelled)
        return RopeConfig(dim, theta, interleaved, None)
    if kind != "yarn":
        raise ConfigError(f"{spelled}.rope_type is {kind!r}; known: 'default', 'yarn'")
    _refuse_unknown(fields, _COMMON_FIELDS | _YARN_FIELDS, spelled)
    return RopeConfig(dim, theta, interleaved, _yarn(fields, config, spelled))


def _yarn(fields: dict[str, Any], config: dict[str, Any], spelled: str) -> YarnConfig:
    def number(name: str, default: float, over: float = 0) -> float:
        return _number(f"{spelled}.{name}", fields.get(name) or default, over)

    if "factor" not in fields:
        raise ConfigError(f"{spelled}.factor is missing; YaRN needs it")
    longest = config.get("max_position_embeddings") or 0
    original = number("original_max_position_embeddings", longest)
    # A factor of null means the ratio of the two lengths.
    factor = number("factor", longest / original)
    if factor < 1:
        raise ConfigError(f"{spelled}.factor is {factor}; it must be at least 1")
    attention_factor = fields.get("attention_factor")
    return YarnConfig(
        factor=factor,
        original_max_position_embeddings=int(original),
        beta_fast=number("beta_fast", 32),
        beta_slow=number("beta_slow", 1),
        # Absent or 0 means the same: this mscale is not used.
        mscale=number("mscale", 0, over=-1),
        mscale_all_dim=number("mscale_all_dim", 0, over=-1),
        attention_factor=None if attention_factor is None else number("attention_factor", 0),
        truncate=fields.get("truncate", True) is not False,
    )


def _number(name: str, value: Any, over: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > over:
        raise ConfigError(f"{name} is {value!r}; it must be a number over {over:g}")
    return float(value)


def _refuse_unknown(fields: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ConfigError(f"{where}.{unknown[0]} is not understood; known: {', '.join(sorted(known))}")
