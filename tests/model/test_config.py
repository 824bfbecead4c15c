"""A config.json is understood as transformers understands it, or refused in one line that names the field."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.families import CHECKPOINTS

from relax_model.config import MODEL_TYPES, parse_config
from relax_model.errors import ConfigError
from relax_model.parameters import parameters
from relax_model.rope_config import parse_rope

ROPE = json.loads((Path(__file__).parents[1] / "golden" / "rope.json").read_text())


def config(name: str = "deepseek_v3", **changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(CHECKPOINTS[name].config), **changes}


def without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


def refusal(fields: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(fields)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_family_is_understood(name: str) -> None:
    parsed = parse_config(config(name))
    assert parsed.model_type in MODEL_TYPES
    assert parsed.num_nextn_predict_layers == CHECKPOINTS[name].mtp_layers
    assert (parsed.router is None) == (parsed.model_type == "youtu")


def test_every_known_model_type_has_a_golden() -> None:
    assert {checkpoint.config["model_type"] for checkpoint in CHECKPOINTS.values()} == set(MODEL_TYPES)


@pytest.mark.parametrize("model_type", ["llama", None, 3, ["deepseek_v3"]])
def test_an_unknown_model_type_lists_those_known(model_type: object) -> None:
    message = refusal(config(model_type=model_type))
    assert all(known in message for known in MODEL_TYPES)


def test_an_unknown_field_names_the_option_that_accepts_it() -> None:
    fields = config(attention_sinks=4)
    message = refusal(fields)
    assert "attention_sinks" in message
    assert "--ignore-config-field attention_sinks" in message
    assert parse_config(fields, ignore=["attention_sinks"]) == parse_config(config())


def test_fields_without_effect_on_inference_are_passed_over() -> None:
    assert parse_config(config(torch_dtype="bfloat16", use_cache=False, ep_size=1)) == parse_config(config())


@pytest.mark.parametrize("case", ROPE)
def test_rope_is_transformers(case: str) -> None:
    expected = ROPE[case]
    rope = parse_rope(expected["config"], 64, True, 1e4)
    np.testing.assert_allclose(rope.inverse_frequencies(), expected["inverse_frequencies"], rtol=1e-6)
    assert rope.magnitude == pytest.approx(expected["magnitude"], rel=1e-12)
    assert rope.softmax_factor == pytest.approx(expected["softmax_factor"], rel=1e-12)


@pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v2_lite", "kimi_k2", "glm4_moe_lite"])
def test_both_spellings_of_rope_parse_equal(name: str) -> None:
    old = config(name)
    settings = dict(old["rope_scaling"] or {"type": "default"})
    kind = settings.pop("type")
    parameters = {**settings, "rope_type": kind, "rope_theta": float(old["rope_theta"])}
    new = {**without(old, "rope_theta", "rope_scaling"), "rope_parameters": parameters}
    assert parse_config(new) == parse_config(old)


def test_a_missing_rope_theta_means_the_familys_own() -> None:
    theta = {"deepseek_v3": 1e4, "deepseek_v2_lite": 1e4, "kimi_k2": 5e4, "glm4_moe_lite": 1e6}
    for name, expected in theta.items():
        assert parse_config(without(config(name), "rope_theta")).rope.theta == expected


def test_a_missing_epsilon_means_the_familys_own() -> None:
    assert parse_config(without(config("glm4_moe_lite"), "rms_norm_eps")).rms_norm_eps == 1e-5
    assert parse_config(without(config("deepseek_v3"), "rms_norm_eps")).rms_norm_eps == 1e-6


def test_a_missing_router_field_means_the_familys_own() -> None:
    fields = ("scoring_func", "topk_method", "norm_topk_prob")
    for name in ("deepseek_v3", "deepseek_v2_lite", "kimi_k2", "glm4_moe_lite", "joyai_llm_flash"):
        assert parse_config(without(config(name), *fields)) == parse_config(config(name))


def test_dense_and_moe_layers() -> None:
    def layers(**changes: Any) -> list[int]:
        return [int(moe) for moe in parse_config(config(num_hidden_layers=6, **changes)).moe_layers]

    assert layers(first_k_dense_replace=1) == [0, 1, 1, 1, 1, 1, 1]
    assert layers(first_k_dense_replace=3, num_nextn_predict_layers=0) == [0, 0, 0, 1, 1, 1]
    assert layers(first_k_dense_replace=1, moe_layer_freq=2) == [0, 0, 1, 0, 1, 0, 1]
    kinds = ["dense", "sparse", "sparse", "dense", "sparse", "sparse"]
    assert layers(mlp_layer_types=kinds) == [0, 1, 1, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": 160.5}, "hidden_size"),
        ({"hidden_size": "160"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"vocab_size": None}, "vocab_size"),
        ({"kv_lora_rank": 0}, "kv_lora_rank"),
        ({"q_lora_rank": 0}, "q_lora_rank"),
        ({"qk_rope_head_dim": 15}, "qk_rope_head_dim"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps"),
        ({"scoring_func": "tanh"}, "scoring_func"),
        ({"topk_method": "random"}, "topk_method"),
        ({"n_group": 3}, "n_group"),
        ({"topk_group": 5}, "topk_group"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"n_group": 16, "topk_group": 8}, "n_group"),
        ({"mlp_layer_types": ["dense"]}, "mlp_layer_types"),
        ({"mlp_layer_types": 3}, "mlp_layer_types"),
        ({"moe_layer_freq": 0}, "moe_layer_freq"),
        ({"routed_scaling_factor": "2.5"}, "routed_scaling_factor"),
        ({"norm_topk_prob": "yes"}, "norm_topk_prob"),
        ({"rope_interleave": "yes"}, "rope_interleave"),
        ({"num_nextn_predict_layers": -1}, "num_nextn_predict_layers"),
        ({"rope_theta": 1}, "rope_theta"),
        ({"rope_theta": "ten thousand"}, "rope_theta"),
        ({"rope_scaling": "yarn"}, "rope_scaling"),
        ({"rope_scaling": {"type": "linear", "factor": 4}}, "rope_type"),
        ({"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 4096}}, "factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 0.5, "original_max_position_embeddings": 4096}}, "factor"),
        ({"rope_scaling": {"type": "yarn", "factor": "4", "original_max_position_embeddings": 4096}}, "factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": -1}}, "original_max"),
        ({"rope_scaling": {"type": "yarn", "factor": 4, "gamma": 2}}, "gamma"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_values_out_of_range_are_refused_by_name(changes: dict[str, Any], named: str) -> None:
    assert named in refusal(config(**changes))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_parameters_hold_every_value_of_the_checkpoint_once(name: str) -> None:
    from golden import checkpoints

    weights = checkpoints.tensors(name)
    copies = ("shared_head.head.weight",)
    layer = CHECKPOINTS[name].config["num_hidden_layers"]
    count = sum(
        value.size
        for tensor, value in weights.items()
        if not tensor.endswith(copies) and tensor != f"model.layers.{layer}.embed_tokens.weight"
    )
    assert sum(int(np.prod(parameter.shape)) for parameter in parameters(parse_config(config(name)))) == count


def test_equal_digests_mean_equal_models() -> None:
    digests = {parse_config(checkpoint.config).digest() for checkpoint in CHECKPOINTS.values()}
    assert len(digests) == len(CHECKPOINTS)
    assert parse_config(config()).digest() == parse_config(config(use_cache=False)).digest()
    assert parse_config(config()).digest() != parse_config(config(routed_scaling_factor=2.4)).digest()
