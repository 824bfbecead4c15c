"""A checkpoint's config.json as a checked, frozen `ModelConfig`; everything later takes its values as valid.

One dataclass serves the whole family; what differs between model types is a row of defaults in `families.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from relax_model.errors import ConfigError
from relax_model.families import FAMILIES, MODEL_TYPES
from relax_model.fields import MOST_TOKENS, Fields, shown
from relax_model.known_fields import refuse_unknown
from relax_model.rope_config import RopeConfig, parse_rope

# More than any model has, and little enough that a damaged number ends in an error before it takes hours or memory.
_MOST_LAYERS, _MOST_EXPERTS, _MOST_WIDTH = 1024, 1 << 14, 1 << 20
_MOST_EXPERTS_OF_ALL_LAYERS = 1 << 17
_EXPERT_SPELLINGS = ("n_routed_experts", "num_local_experts", "num_experts")
_MTP_SPELLINGS = ("num_nextn_predict_layers", "num_mtp_layers")


@dataclass(frozen=True)
class RouterConfig:
    """How a token chooses its experts (DeepSeek-V3 report, section 2.1.2, and DeepSeek-V2, section 2.2.2)."""

    n_routed_experts: int
    num_experts_per_tok: int
    scoring_func: str  # "softmax" or "sigmoid"
    topk_method: str  # "greedy", "group_limited_greedy" or "noaux_tc"
    n_group: int
    topk_group: int
    norm_topk_prob: bool
    routed_scaling_factor: float

    @property
    def has_correction_bias(self) -> bool:
        """Whether `e_score_correction_bias` is added to the scores for the choice (not for the weights)."""
        return self.topk_method == "noaux_tc"

    @property
    def group_score_experts(self) -> int:
        """How many of a group's best experts its score is the sum of."""
        return 2 if self.topk_method == "noaux_tc" else 1

    @property
    def normalizes_weights(self) -> bool:
        """Whether the chosen experts' weights are made to sum up to one."""
        return self.norm_topk_prob and (self.scoring_func == "sigmoid" or self.num_experts_per_tok > 1)

    @property
    def weight_factor(self) -> float:
        """What weights are multiplied with in the end. DeepSeek-V2's gate scales only what it does not normalise."""
        unscaled = self.normalizes_weights and self.scoring_func != "sigmoid"
        return 1.0 if unscaled else self.routed_scaling_factor


@dataclass(frozen=True)
class ModelConfig:
    """The architecture's numbers, named as in DeepSeek's config.json."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    n_shared_experts: int
    router: RouterConfig | None
    moe_layers: tuple[bool, ...]  # one a layer; the MTP layers follow the main ones
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    tie_word_embeddings: bool
    num_nextn_predict_layers: int

    @property
    def qk_head_dim(self) -> int:
        """Width of a head's query and key: the position-free and the rotary part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_width(self) -> int:
        """Values that the cache keeps for a token in a layer: the latent and the shared rotary key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """Factor on the attention scores, YaRN's included."""
        return self.qk_head_dim**-0.5 * self.rope.softmax_factor

    @property
    def num_cached_layers(self) -> int:
        """Layers that own a latent cache: the main ones and the MTP layers."""
        return self.num_hidden_layers + self.num_nextn_predict_layers

    def digest(self) -> str:
        """SHA-256 (hex) over every value: equal digests mean interchangeable libraries."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def parse_config(config: dict[str, Any], *, ignore: Collection[str] = ()) -> ModelConfig:
    """Check a config.json of the family and return it as a ModelConfig.

    `ignore` names fields to go on without. Raises ConfigError, in one line, for whatever is unknown, missing, out of
    range or contradictory.
    """
    given = {name: value for name, value in config.items() if name not in ignore}
    if "model_type" not in given:
        raise ConfigError(f"model_type is missing; known: {', '.join(MODEL_TYPES)}")
    model_type = Fields(given).choice("model_type", MODEL_TYPES)
    read = Fields({**FAMILIES[model_type], **given})
    # First what no other change of the file could mend.
    for name in ("attention_bias", "mlp_bias"):
        if read.flag(name, None):
            raise ConfigError(f"{name} is true; models with these biases are not supported")
    read.choice("hidden_act", ("silu",))
    if model_type == "deepseek_v2":
        read.choice("rope_interleave", (True,))  # its modeling code knows nothing else
    refuse_unknown(given)
    return _build(model_type, read, Fields(given))


def _build(model_type: str, read: Fields, given: Fields) -> ModelConfig:
    layers = read.integer("num_hidden_layers", least=1, most=_MOST_LAYERS)
    mtp_layers = read.integer(_spelling(read, given, _MTP_SPELLINGS), None, most=16) or 0
    nope_dim = _width(read, "qk_nope_head_dim")
    rope_dim = _width(read, "qk_rope_head_dim")
    if rope_dim % 2:
        raise ConfigError(f"qk_rope_head_dim is {rope_dim}; rotary channels come in pairs")
    _check_derived(read, "head_dim", rope_dim, "qk_rope_head_dim")
    _check_derived(read, "qk_head_dim", nope_dim + rope_dim, "qk_nope_head_dim + qk_rope_head_dim")
    router = _router(read, given)
    if router and layers * router.n_routed_experts > _MOST_EXPERTS_OF_ALL_LAYERS:
        raise ConfigError(
            f"num_hidden_layers ({layers}) times n_routed_experts ({router.n_routed_experts}) is more than "
            f"{_MOST_EXPERTS_OF_ALL_LAYERS}, which no model has"
        )
    moe_layers = _moe_layers(read, given, layers, mtp_layers) if router else (False,) * (layers + mtp_layers)
    return ModelConfig(
        model_type=model_type,
        vocab_size=read.integer("vocab_size", least=1, most=1 << 24),
        hidden_size=_width(read, "hidden_size"),
        intermediate_size=_width(read, "intermediate_size"),
        moe_intermediate_size=_width(read, "moe_intermediate_size") if router else 0,
        num_hidden_layers=layers,
        num_attention_heads=read.integer("num_attention_heads", least=1, most=1 << 14),
        q_lora_rank=read.integer("q_lora_rank", None, least=1, most=_MOST_WIDTH),
        kv_lora_rank=_width(read, "kv_lora_rank"),
        qk_nope_head_dim=nope_dim,
        qk_rope_head_dim=rope_dim,
        v_head_dim=_width(read, "v_head_dim"),
        n_shared_experts=(read.integer("n_shared_experts", None, most=_MOST_EXPERTS) or 0) if router else 0,
        router=router,
        moe_layers=moe_layers,
        rms_norm_eps=read.number("rms_norm_eps", over=0, most=0.5),
        rope=parse_rope(read, given, rope_dim, read.flag("rope_interleave")),
        max_position_embeddings=read.integer("max_position_embeddings", least=1, most=MOST_TOKENS),
        tie_word_embeddings=read.flag("tie_word_embeddings"),
        num_nextn_predict_layers=mtp_layers,
    )


def _width(read: Fields, name: str) -> int:
    return read.integer(name, least=1, most=_MOST_WIDTH)


def _spelling(read: Fields, given: Fields, names: tuple[str, ...]) -> str:
    """Which of several names of one field config.json has; ConfigError where two of them say different things."""
    there = [name for name in names if given.values.get(name) is not None]
    for name in there[1:]:
        if given.values[name] != given.values[there[0]]:
            raise ConfigError(
                f"{there[0]} is {shown(given.values[there[0]])} and {name}, another name of the same field, is "
                f"{shown(given.values[name])}; remove the wrong one"
            )
    return there[0] if there else names[0]


def _check_derived(read: Fields, name: str, expected: int, made_of: str) -> None:
    if read.integer(name, None) not in (None, expected):
        raise ConfigError(
            f"{name} is {shown(read.values[name])} and {made_of} is {expected}, which must be the same; "
            f"correct one, or go on without the first: --ignore-config-field {name}"
        )


def _router(read: Fields, given: Fields) -> RouterConfig | None:
    experts = read.integer(_spelling(read, given, _EXPERT_SPELLINGS), None, most=_MOST_EXPERTS)
    if not experts:
        return None
    chosen = read.integer("num_experts_per_tok", least=1, most=_MOST_EXPERTS)
    method = read.choice("topk_method", ("greedy", "group_limited_greedy", "noaux_tc"))
    grouped = method != "greedy"
    groups = read.integer("n_group", least=1, most=_MOST_EXPERTS) if grouped else 1
    chosen_groups = read.integer("topk_group", least=1, most=_MOST_EXPERTS) if grouped else 1
    if experts % groups:
        raise ConfigError(f"n_routed_experts ({experts}) is not a multiple of n_group ({groups})")
    if chosen_groups > groups:
        raise ConfigError(f"topk_group ({chosen_groups}) is more than n_group ({groups})")
    if method == "noaux_tc" and groups > 1 and experts // groups < 2:
        raise ConfigError(f"noaux_tc scores a group by its best two experts; n_group {groups} leaves it one")
    if chosen > experts // groups * chosen_groups:
        raise ConfigError(
            f"num_experts_per_tok ({chosen}) is more than the {experts // groups * chosen_groups} experts of "
            f"{chosen_groups} of {groups} groups"
        )
    return RouterConfig(
        n_routed_experts=experts,
        num_experts_per_tok=chosen,
        scoring_func=read.choice("scoring_func", ("softmax", "sigmoid")),
        topk_method=method,
        n_group=groups,
        topk_group=chosen_groups,
        norm_topk_prob=read.flag("norm_topk_prob"),
        routed_scaling_factor=read.number("routed_scaling_factor", over=0, most=1e4),
    )


def _moe_layers(read: Fields, given: Fields, layers: int, mtp_layers: int) -> tuple[bool, ...]:
    counted = {"first_k_dense_replace", "moe_layer_freq"} & given.values.keys()
    kinds = read.array("mlp_layer_types", None)
    first = read.integer("first_k_dense_replace", most=_MOST_LAYERS)
    every = read.integer("moe_layer_freq", least=1, most=_MOST_LAYERS)
    sparse = tuple(layer >= first and layer % every == 0 for layer in range(layers))
    if kinds is not None:
        if len(kinds) != layers or any(kind not in ("dense", "sparse") for kind in kinds):
            raise ConfigError(
                f"mlp_layer_types is {shown(kinds)}; it must name 'dense' or 'sparse' for each of {layers} layers"
            )
        listed = tuple(kind == "sparse" for kind in kinds)
        if counted and listed != sparse:
            raise ConfigError(
                f"mlp_layer_types and {' and '.join(sorted(counted))} make different layers dense; remove the wrong one"
            )
        sparse = listed
    return sparse + (True,) * mtp_layers
