"""config.json read by us and by transformers (extra `[reference]`): every default, every null, every spelling of RoPE.

tests/model/test_config.py has what comes out as constants, for machines without transformers.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golden.families import CHECKPOINTS
from relax_model.config import ModelConfig, parse_config
from relax_model.errors import ConfigError

torch = pytest.importorskip("torch", reason="the live oracle needs the extra [reference]")
transformers = pytest.importorskip("transformers", reason="the live oracle needs the extra [reference]")

from transformers.models.deepseek_v3.modeling_deepseek_v3 import (  # noqa: E402  it imports torch
    DeepseekV3RotaryEmbedding,
    yarn_apply_mscale,
)

MODEL_TYPES = ("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "youtu")  # those that transformers has a class for
_BASE = {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
_SAME_NAME = {
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
    *("rms_norm_eps", "max_position_embeddings", "tie_word_embeddings"),
}
_OF_ROUTERS = {"n_routed_experts", "num_experts_per_tok", "routed_scaling_factor", "norm_topk_prob"}
# Read as DeepSeek's own code reads them: null says that there are none.
_NULL_IS_NONE = {"n_routed_experts", "n_shared_experts", "num_mtp_layers"}
# An absent number of MTP layers is none to us and one to transformers' class, which never looks for it by itself.
_OUR_OWN_DEFAULT = {"num_mtp_layers"}


def fields_of(model_type: str) -> list[str]:
    """What transformers' class has beyond all models' base class, and what it takes for RoPE besides."""
    cls = transformers.AutoConfig.for_model(model_type).__class__
    own = [field.name for field in dataclasses.fields(cls) if field.name not in _BASE]
    return [*own, "rope_theta", "rope_scaling"]


def config_of(model_type: str) -> dict[str, Any]:
    config = copy.deepcopy(CHECKPOINTS[model_type].config)
    # Numbers that fit the classes' defaults, wherever one of them comes in.
    return config | ({"num_attention_heads": 4, "n_group": 4} if model_type == "deepseek_v2" else {})


def theirs(config: dict[str, Any]) -> dict[str, Any]:
    """transformers' reading of a config.json, in our names."""
    read = type(transformers.AutoConfig.for_model(config["model_type"])).from_dict(copy.deepcopy(config))
    values = {name: getattr(read, name) for name in _SAME_NAME}
    if getattr(read, "n_routed_experts", None):
        values |= {name: getattr(read, name) for name in _OF_ROUTERS}
        values |= {"moe_intermediate_size": read.moe_intermediate_size, "n_shared_experts": read.n_shared_experts}
        if getattr(read, "topk_method", "noaux_tc") != "greedy":
            values |= {"n_group": read.n_group, "topk_group": read.topk_group}
        values["topk_method"] = getattr(read, "topk_method", "noaux_tc")
        values["moe_layers"] = _their_moe_layers(read)
    if read.model_type != "deepseek_v2":  # whose modeling code always interleaves
        values["interleaved"] = bool(read.rope_interleave)
    return values | _their_rope(read)


def _their_moe_layers(read: transformers.PreTrainedConfig) -> tuple[bool, ...]:
    if hasattr(read, "mlp_layer_types"):
        return tuple(kind == "sparse" for kind in read.mlp_layer_types)
    return tuple(layer >= read.first_k_dense_replace for layer in range(read.num_hidden_layers))


def _their_rope(read: transformers.PreTrainedConfig) -> dict[str, Any]:
    rotary = DeepseekV3RotaryEmbedding(read)
    return {
        "inverse_frequencies": rotary.inv_freq.numpy(),
        "magnitude": rotary.attention_scaling,
        "softmax_factor": yarn_apply_mscale(read.rope_parameters, 1.0),
    }


def ours(config: ModelConfig, names: dict[str, Any]) -> dict[str, Any]:
    """Our reading, of what transformers' reading has."""
    flat = dataclasses.asdict(config) | dataclasses.asdict(config.rope)
    flat |= dataclasses.asdict(config.router) if config.router else {}
    flat["moe_layers"] = config.moe_layers[: config.num_hidden_layers]
    flat["inverse_frequencies"] = config.rope.inverse_frequencies()
    flat |= {"magnitude": config.rope.magnitude, "softmax_factor": config.rope.softmax_factor}
    return {name: flat[name] for name in names}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        if name == "inverse_frequencies":
            np.testing.assert_allclose(found[name], value, rtol=2e-6, err_msg=name)
        elif isinstance(value, float):
            assert found[name] == pytest.approx(value, rel=1e-12), name
        else:
            assert found[name] == value, name


CASES = [(model_type, field) for model_type in MODEL_TYPES for field in fields_of(model_type)]


@pytest.mark.parametrize(("model_type", "field"), CASES)
def test_an_absent_field_means_what_transformers_means(model_type: str, field: str) -> None:
    config = config_of(model_type)
    config.pop(field, None)
    if field == "num_mtp_layers":
        config.pop("num_nextn_predict_layers", None)
    if field == "rope_theta" and config.get("rope_parameters"):
        config["rope_parameters"].pop("rope_theta")
    expected = theirs(config)
    if any(expected.get(name, 0) is None for name in ("num_experts_per_tok", "n_group", "topk_group")):
        with pytest.raises(ConfigError, match=f"{field} is missing"):
            parse_config(config)
        return
    parsed = parse_config(config)
    assert_same(ours(parsed, expected), expected)
    if field in _OUR_OWN_DEFAULT:
        assert parsed.num_nextn_predict_layers == 0


@pytest.mark.parametrize(("model_type", "field"), CASES)
def test_null_is_read_as_transformers_reads_it_or_refused(model_type: str, field: str) -> None:
    config = config_of(model_type)
    if field == "num_mtp_layers":
        config.pop("num_nextn_predict_layers", None)
    unchanged = parse_config(config)
    config[field] = None
    try:
        parsed = parse_config(config)
    except ConfigError as error:
        message = str(error)
    else:
        message = None
    if message is not None:
        # transformers refuses it too, fails when the model runs, or takes a flag for false.
        assert f"{field} is null" in message
        return
    if field in _NULL_IS_NONE or parsed == unchanged:
        return
    expected = theirs(config)
    assert_same(ours(parsed, expected), expected)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_what_transformers_writes_is_understood(model_type: str, tmp_path: Path) -> None:
    """Its own fields, those of its base class and its generation parameters, which older versions wrote out."""
    config = type(transformers.AutoConfig.for_model(model_type)).from_dict(config_of(model_type))
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    expected = theirs(written)
    assert_same(ours(parse_config(written), expected), expected)
    base = json.loads(json.dumps(transformers.PreTrainedConfig().to_dict(), default=str))
    generation = transformers.GenerationConfig._get_default_generation_params()
    assert parse_config({**base, **generation, **written}) == parse_config(written)


_YARN = {"factor": 40, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 0.7}
_PLACES: list[dict[str, Any] | None] = [
    None,
    {},
    {"rope_theta": 5e4},
    {"type": "default"},
    {"rope_type": "default", "rope_theta": 1e4},
    {"type": "yarn", **_YARN},
    {"rope_type": "yarn", "rope_theta": 5e4, **_YARN},
    {"type": "yarn", "rope_type": "yarn", **_YARN, "beta_fast": 16, "beta_slow": None, "mscale": 0, "truncate": False},
    {"type": "yarn", "factor": None, "original_max_position_embeddings": 4096, "attention_factor": 1.25},
    {"rope_type": "yarn", "factor": 4, "beta_fast": 1, "beta_slow": 32},
]


def _contradicts(theta: float | None, scaling: dict[str, Any] | None, parameters: dict[str, Any] | None) -> bool:
    """Whether the places state different values of one thing, of which transformers drops one."""
    places = [place for place in (scaling, parameters) if place]
    read = places[0] if places else {}
    effective = read.get("rope_theta", theta or 1e4)
    thetas = {place["rope_theta"] for place in places if "rope_theta" in place} | ({theta} if theta else set())
    if thetas - {effective}:
        return True
    other = places[1] if len(places) > 1 else {}
    common = {"type", "rope_type", "rope_theta"}
    settings = [
        {name: value for name, value in place.items() if name not in common and value} for place in (read, other)
    ]
    return _kind(other) == "yarn" and (_kind(read) != "yarn" or settings[0] != settings[1])


def _kind(place: dict[str, Any]) -> str:
    return place.get("rope_type") or place.get("type") or "default"


@pytest.mark.parametrize("theta", [None, 5e4])
def test_every_pair_of_spellings_of_rope_is_read_as_transformers_reads_it(theta: float | None) -> None:
    base = {name: value for name, value in config_of("deepseek_v3").items() if not name.startswith("rope_")}
    base["max_position_embeddings"] = 65536
    base |= {} if theta is None else {"rope_theta": theta}
    refused = 0
    for scaling, parameters in itertools.product(_PLACES, _PLACES):
        config = {**base, "rope_scaling": scaling, "rope_parameters": parameters}
        if _contradicts(theta, scaling, parameters):
            with pytest.raises(ConfigError, match="rope_"):
                parse_config(copy.deepcopy(config))
            refused += 1
            continue
        expected = theirs(config)
        assert_same(ours(parse_config(copy.deepcopy(config)), expected), expected)
    assert 0 < refused < len(_PLACES) ** 2
