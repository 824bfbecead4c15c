"""A checkpoint's config.json as a checked, frozen `ModelConfig`; everything later takes its values as valid.

One dataclass serves the whole family; what differs between model types is a row of defaults in `_FAMILIES`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from relax_model.errors import ConfigError
from relax_model.rope_config import RopeConfig, parse_rope

# What a config.json of each model type means when it leaves a field out.
_FAMILIES: dict[str, dict[str, Any]] = {
    "deepseek_v2": {
        "scoring_func": "softmax",
        "topk_method": "greedy",
        "norm_topk_prob": False,
        "rope_theta": 1e4,
        "first_k_dense_replace": 0,
    },
    "deepseek_v3": {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True, "rope_theta": 1e4},
    "kimi_k2": {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True, "rope_theta": 5e4},
    "glm4_moe_lite": {
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "rope_theta": 1e6,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "rms_norm_eps": 1e-5,
    },
    "joyai_llm_flash": {
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "rope_theta": 3.2e7,
    },
    "youtu": {"rope_theta": 1.6e6, "tie_word_embeddings": True, "n_routed_experts": None},
}
MODEL_TYPES = tuple(_FAMILIES)

# Fields that training, generation or tooling reads and inference does not.
_WITHOUT_EFFECT = frozenset(
    {
        "architectures",
        "attention_dropout",
        "auto_map",
        "aux_loss_alpha",
        "bos_token_id",
        "dtype",
        "embedding_initializer_range",
        "eos_token_id",
        "ep_size",
        "head_dim",
        "initializer_range",
        "model_type",
        "num_key_value_heads",
        "output_router_logits",
        "pad_token_id",
        "pretraining_tp",
        "qk_head_dim",
        "quantization_config",
        "seq_aux",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "_name_or_path",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "chunk_size_feed_forward",
        "is_encoder_decoder",
        "id2label",
        "label2id",
        "problem_type",
        "routed_scaling_learnable",
        "num_experts",
    }
)
_FIELDS = frozenset(
    {
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "moe_intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "q_lora_rank",
        "kv_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        "n_routed_experts",
        "num_local_experts",
        "n_shared_experts",
        "num_experts_per_tok",
        "first_k_dense_replace",
        "moe_layer_freq",
        "mlp_layer_types",
        "scoring_func",
        "topk_method",
        "n_group",
        "topk_group",
        "norm_topk_prob",
        "routed_scaling_factor",
        "rms_norm_eps",
        "hidden_act",
        "attention_bias",
        "mlp_bias",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "rope_interleave",
        "partial_rotary_factor",
        "max_position_embeddings",
        "tie_word_embeddings",
        "num_nextn_predict_layers",
        "num_mtp_layers",
    }
)


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

    `ignore` names fields to pass over although they are not understood.
    Raises ConfigError, in one line, for whatever is unknown, missing, out of range or contradictory.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        raise ConfigError(f"model_type is {model_type!r}; known: {', '.join(MODEL_TYPES)}")
    unknown = sorted(set(config) - _FIELDS - _WITHOUT_EFFECT - set(ignore))
    if unknown:
        raise ConfigError(
            f"config field {unknown[0]!r} ({config[unknown[0]]!r}) is not understood and may change the results; "
            f"--ignore-config-field {unknown[0]} goes on without it"
        )
    read = _Reader({**_FAMILIES[model_type], **{k: v for k, v in config.items() if v is not None}}, config)
    return _build(model_type, read)


class _Reader:
    """Typed look-ups that name the field in their errors; null counts as absent, and `raw` still tells them apart."""

    def __init__(self, fields: dict[str, Any], raw: dict[str, Any]) -> None:
        self.fields, self.raw = fields, raw

    def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
        value = self.fields.get(name, default)
        if value is None:
            raise ConfigError(f"config field {name!r} is missing")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or value < least:
            raise ConfigError(f"config field {name!r} is {value!r}; it must be a whole number of at least {least}")
        return int(value)

    def number(self, name: str, default: float) -> float:
        value = self.fields.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise ConfigError(f"config field {name!r} is {value!r}; it must be a number over 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.fields.get(name, default)
        if not isinstance(value, bool):
            raise ConfigError(f"config field {name!r} is {value!r}; it must be true or false")
        return value

    def choice(self, name: str, known: tuple[Any, ...], default: Any) -> Any:
        value = self.fields.get(name, default)
        if value not in known:
            raise ConfigError(f"config field {name!r} is {value!r}; known: {', '.join(map(repr, known))}")
        return value


def _build(model_type: str, read: _Reader) -> ModelConfig:
    read.choice("hidden_act", ("silu",), "silu")
    read.choice("attention_bias", (False,), False)
    read.choice("mlp_bias", (False,), False)
    layers = read.integer("num_hidden_layers")
    mtp_spelling = "num_mtp_layers" if "num_mtp_layers" in read.fields else "num_nextn_predict_layers"
    mtp_layers = read.integer(mtp_spelling, 0, least=0)
    rope_dim = read.integer("qk_rope_head_dim")
    if rope_dim % 2:
        raise ConfigError(f"config field 'qk_rope_head_dim' is {rope_dim}; rotary channels come in pairs")
    if "q_lora_rank" not in read.raw:
        raise ConfigError("config field 'q_lora_rank' is missing; null says that there is no such projection")
    router = _router(read)
    moe_layers = _moe_layers(read, layers, mtp_layers) if router else (False,) * (layers + mtp_layers)
    return ModelConfig(
        model_type=model_type,
        vocab_size=read.integer("vocab_size"),
        hidden_size=read.integer("hidden_size"),
        intermediate_size=read.integer("intermediate_size"),
        moe_intermediate_size=read.integer("moe_intermediate_size") if router else 0,
        num_hidden_layers=layers,
        num_attention_heads=read.integer("num_attention_heads"),
        q_lora_rank=read.integer("q_lora_rank") if read.fields.get("q_lora_rank") is not None else None,
        kv_lora_rank=read.integer("kv_lora_rank"),
        qk_nope_head_dim=read.integer("qk_nope_head_dim"),
        qk_rope_head_dim=rope_dim,
        v_head_dim=read.integer("v_head_dim"),
        n_shared_experts=read.integer("n_shared_experts", 0, least=0) if router else 0,
        router=router,
        moe_layers=moe_layers,
        rms_norm_eps=_epsilon(read),
        rope=parse_rope(
            read.raw,
            rope_dim,
            read.flag("rope_interleave", True),
            read.fields["rope_theta"],
        ),
        max_position_embeddings=read.integer("max_position_embeddings"),
        tie_word_embeddings=read.flag("tie_word_embeddings", False),
        num_nextn_predict_layers=mtp_layers,
    )


def _epsilon(read: _Reader) -> float:
    value = read.number("rms_norm_eps", 1e-6)
    if value >= 1:
        raise ConfigError(f"config field 'rms_norm_eps' is {value!r}; it must lie between 0 and 1")
    return value


def _router(read: _Reader) -> RouterConfig | None:
    spelling = "num_local_experts" if "num_local_experts" in read.fields else "n_routed_experts"
    if not read.fields.get(spelling):
        return None
    experts = read.integer(spelling)
    chosen = read.integer("num_experts_per_tok")
    method = read.choice("topk_method", ("greedy", "group_limited_greedy", "noaux_tc"), None)
    grouped = method != "greedy"
    groups = read.integer("n_group") if grouped else 1
    chosen_groups = read.integer("topk_group") if grouped else 1
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
        scoring_func=read.choice("scoring_func", ("softmax", "sigmoid"), None),
        topk_method=method,
        n_group=groups,
        topk_group=chosen_groups,
        norm_topk_prob=read.flag("norm_topk_prob", False),
        routed_scaling_factor=read.number("routed_scaling_factor", 1.0),
    )


def _moe_layers(read: _Reader, layers: int, mtp_layers: int) -> tuple[bool, ...]:
    kinds = read.fields.get("mlp_layer_types")
    if kinds is not None:
        if (
            not isinstance(kinds, list)
            or len(kinds) != layers
            or any(kind not in ("dense", "sparse") for kind in kinds)
        ):
            raise ConfigError(f"mlp_layer_types must name 'dense' or 'sparse' for each of {layers} layers")
        return tuple(kind == "sparse" for kind in kinds) + (True,) * mtp_layers
    first = read.integer("first_k_dense_replace", least=0)
    every = read.integer("moe_layer_freq", 1)
    return tuple(layer >= first and layer % every == 0 for layer in range(layers)) + (True,) * mtp_layers
