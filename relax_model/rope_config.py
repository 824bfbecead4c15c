"""Rotary embedding settings, from either spelling in a checkpoint's config.json, parsed and checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from relax_model.errors import ConfigError
from relax_model.fields import MOST_TOKENS, Fields, named, shown

_YARN_FIELDS = (
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "attention_factor",
    "truncate",
)
_COMMON_FIELDS = ("type", "rope_type", "rope_theta", "partial_rotary_factor")


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
        ramp = np.clip((np.arange(self.dim // 2) - low) / (high - low or 0.001), 0, 1)
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


def parse_rope(read: Fields, given: Fields, dim: int, interleaved: bool) -> RopeConfig:
    """The rotary embedding that a config.json asks for, in the reading of transformers (5.24).

    `rope_scaling` wins over `rope_parameters`, `rope_type` over `type`, and a `rope_theta` inside over the one beside
    them; `given` are config.json's own fields and `read` the same with the family's defaults. Raises ConfigError where
    the place that loses says something else, for a kind of RoPE other than plain and YaRN, and for unknown fields.
    """
    none = Fields({})
    scaling, parameters = given.object("rope_scaling", None) or none, given.object("rope_parameters", None) or none
    spelled, fields = ("rope_scaling", scaling) if scaling.values else ("rope_parameters", parameters)
    rope = _parse_spelling(fields, read, dim, interleaved)
    if scaling.values and parameters.values:
        _refuse_contradiction(rope, parameters, read)
    outer, inner = given.values.get("rope_theta"), fields.values.get("rope_theta")
    if outer != inner and None not in (outer, inner):
        raise ConfigError(
            f"rope_theta is {shown(outer)} and {spelled}.rope_theta is {shown(inner)}; remove the wrong one"
        )
    return rope


def _parse_spelling(fields: Fields, read: Fields, dim: int, interleaved: bool) -> RopeConfig:
    types = [fields.choice(name, ("default", "yarn")) for name in ("rope_type", "type") if name in fields]
    if len(set(types)) > 1:
        raise ConfigError(
            f"{fields.where}rope_type is {shown(types[0])} and {fields.where}type {shown(types[1])}; "
            "remove the wrong one"
        )
    is_yarn = types[:1] == ["yarn"]
    known = _COMMON_FIELDS + _YARN_FIELDS if is_yarn else _COMMON_FIELDS
    if unknown := sorted(set(fields.values) - set(known)):
        raise ConfigError(
            f"{fields.where}{named(unknown[0])} is not understood beside rope_type "
            f"{shown('yarn' if is_yarn else 'default')}; known: {', '.join(sorted(known))}"
        )
    for place in (fields, read):
        if place.number("partial_rotary_factor", None, most=1) not in (1, None):
            raise ConfigError(
                f"{place.where}partial_rotary_factor is below 1; rotating a part of a head is not supported"
            )
    theta = (fields if "rope_theta" in fields else read).number("rope_theta", over=1, most=1e15)
    return RopeConfig(dim, theta, interleaved, _yarn(fields, read) if is_yarn else None)


def _yarn(fields: Fields, read: Fields) -> YarnConfig:
    longest = read.integer("max_position_embeddings", least=1, most=MOST_TOKENS)
    original = fields.integer("original_max_position_embeddings", longest, least=1, most=MOST_TOKENS)
    if "factor" not in fields:
        raise ConfigError(f"{fields.where}factor is missing; YaRN needs it")
    # null means the ratio of the two lengths; null and 0 mean the default of beta_fast and beta_slow, and of the
    # mscales that they are not used.
    factor = fields.number("factor", None, least=1, most=1e6)
    if factor is None and longest < original:
        raise ConfigError(f"{fields.where}factor is null, and max_position_embeddings is below the original one")
    return YarnConfig(
        factor=longest / original if factor is None else factor,
        original_max_position_embeddings=original,
        beta_fast=fields.number("beta_fast", None, least=0, most=1e6) or 32.0,
        beta_slow=fields.number("beta_slow", None, least=0, most=1e6) or 1.0,
        mscale=fields.number("mscale", None, least=0, most=1e3) or 0.0,
        mscale_all_dim=fields.number("mscale_all_dim", None, least=0, most=1e3) or 0.0,
        attention_factor=fields.number("attention_factor", None, over=0, most=1e3),
        truncate=fields.flag("truncate", True),
    )


def _refuse_contradiction(rope: RopeConfig, unread: Fields, read: Fields) -> None:
    """ConfigError where `rope_parameters`, which nobody reads beside `rope_scaling`, asks for another embedding."""
    other = _parse_spelling(unread, read, rope.dim, rope.interleaved)
    # Plain parameters beside a scaling are what remains where someone adds the scaling to extend the context.
    other_theta = "rope_theta" in unread and other.theta != rope.theta
    if other_theta or other.yarn not in (None, rope.yarn):
        what = "rope_theta" if other_theta else "YaRN"
        raise ConfigError(
            f"rope_scaling and rope_parameters disagree on {what}; transformers reads rope_scaling: remove "
            "rope_parameters, or state the same in both"
        )
