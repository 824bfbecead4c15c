"""A config.json is understood as transformers understands it, or refused in one line that names the field."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.families import CHECKPOINTS

from relax_model.config import MODEL_TYPES, ModelConfig, parse_config
from relax_model.errors import ConfigError
from relax_model.parameters import parameters

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


def test_an_absent_model_type_is_said_to_be_missing() -> None:
    assert refusal(without(config(), "model_type")) == f"model_type is missing; known: {', '.join(MODEL_TYPES)}"


def test_all_unknown_fields_are_named_at_once_with_the_option_that_accepts_them() -> None:
    fields = config(attention_sinks=4, novelty={"a": 1})
    message = refusal(fields)
    assert "attention_sinks (4), novelty" in message
    assert message.endswith("--ignore-config-field attention_sinks,novelty")
    assert parse_config(fields, ignore=["attention_sinks", "novelty"]) == parse_config(config())


# Fields of a config.json that transformers 4.30 wrote whole, with values of their own.
LEGACY = """
    {"_name_or_path": "x", "add_cross_attention": false, "bad_words_ids": null, "begin_suppress_tokens": null,
     "chunk_size_feed_forward": 0, "cross_attention_hidden_size": null, "decoder_start_token_id": null,
     "diversity_penalty": 0.0, "do_sample": false, "early_stopping": false, "encoder_no_repeat_ngram_size": 0,
     "exponential_decay_length_penalty": null, "finetuning_task": null, "forced_bos_token_id": null,
     "forced_eos_token_id": null, "id2label": {"0": "LABEL_0"}, "is_decoder": false, "is_encoder_decoder": false,
     "label2id": {"LABEL_0": 0}, "length_penalty": 1.0, "max_length": 20, "min_length": 0, "no_repeat_ngram_size": 0,
     "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1, "output_attentions": false,
     "output_hidden_states": false, "output_scores": false, "prefix": null, "problem_type": null, "pruned_heads": {},
     "remove_invalid_values": false, "repetition_penalty": 1.0, "return_dict": true, "return_dict_in_generate": false,
     "sep_token_id": null, "suppress_tokens": null, "task_specific_params": null, "temperature": 0.6,
     "tf_legacy_loss": false, "tie_encoder_decoder": false, "tokenizer_class": null, "top_k": 50, "top_p": 0.95,
     "torch_dtype": "bfloat16", "torchscript": false, "typical_p": 1.0, "use_bfloat16": false, "use_cache": true,
     "gradient_checkpointing": true}
"""


def test_fields_without_effect_on_inference_are_passed_over() -> None:
    others = {"ep_size": 1, "unsloth_fixed": True, "unsloth_version": "2026.1", "sliding_window": None}
    assert parse_config(config(**json.loads(LEGACY), **others)) == parse_config(config())


def test_fields_of_the_base_configuration_that_are_another_model_are_refused() -> None:
    assert "add_cross_attention" in refusal(config(add_cross_attention=True))
    assert "sliding_window" in refusal(config(sliding_window=4096))


@pytest.mark.parametrize("broken", [{}, {"novelty": 1}, {"hidden_size": -1}, {"rope_scaling": "yarn"}])
def test_attention_biases_are_refused_before_anything_else(broken: dict[str, Any]) -> None:
    assert refusal(config(attention_bias=True, **broken)).startswith("attention_bias is true")


@pytest.mark.parametrize("case", ROPE)
def test_rope_is_transformers(case: str) -> None:
    expected = ROPE[case]
    rope = parse_config(config(qk_rope_head_dim=64, rope_theta=None, rope_scaling=None) | expected["config"]).rope
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


# What config.json means where it leaves a field out, by model type, as transformers 5.24 reads it
# (tests/golden/test_live_config.py holds every field against it).
DEFAULTS = [
    ("deepseek_v2_lite", "rope_theta", lambda config: config.rope.theta, 1e4),
    ("deepseek_v3", "rope_theta", lambda config: config.rope.theta, 1e4),
    ("kimi_k2", "rope_theta", lambda config: config.rope.theta, 1e4),
    ("glm4_moe_lite", "rope_theta", lambda config: config.rope.theta, 1e4),
    ("deepseek_v2_lite", "routed_scaling_factor", lambda config: config.router.routed_scaling_factor, 1.0),
    ("deepseek_v3", "routed_scaling_factor", lambda config: config.router.routed_scaling_factor, 2.5),
    ("kimi_k2", "routed_scaling_factor", lambda config: config.router.routed_scaling_factor, 2.5),
    ("glm4_moe_lite", "routed_scaling_factor", lambda config: config.router.routed_scaling_factor, 1.8),
    ("deepseek_v2_lite", "n_shared_experts", lambda config: config.n_shared_experts, 2),
    ("deepseek_v3", "n_shared_experts", lambda config: config.n_shared_experts, 1),
    ("deepseek_v3", "q_lora_rank", lambda config: config.q_lora_rank, 1536),
    ("glm4_moe_lite", "q_lora_rank", lambda config: config.q_lora_rank, 768),
    ("deepseek_v3", "first_k_dense_replace", lambda config: sum(config.moe_layers[:3]), 0),
    ("deepseek_v2_lite", "first_k_dense_replace", lambda config: sum(config.moe_layers[:3]), 3),
    ("deepseek_v3", "max_position_embeddings", lambda config: config.max_position_embeddings, 4096),
    ("glm4_moe_lite", "rms_norm_eps", lambda config: config.rms_norm_eps, 1e-5),
    ("deepseek_v3", "rms_norm_eps", lambda config: config.rms_norm_eps, 1e-6),
    ("youtu", "tie_word_embeddings", lambda config: config.tie_word_embeddings, True),
]


@pytest.mark.parametrize(
    ("name", "field", "read", "expected"), DEFAULTS, ids=[f"{name}-{field}" for name, field, *_ in DEFAULTS]
)
def test_an_absent_field_means_transformers_default(
    name: str, field: str, read: Callable[[ModelConfig], Any], expected: Any
) -> None:
    fields = without(config(name), field)
    if field == "rope_theta" and fields.get("rope_parameters"):
        fields["rope_parameters"] = without(fields["rope_parameters"], field)
    assert read(parse_config(fields)) == expected


@pytest.mark.parametrize(
    "field",
    ["routed_scaling_factor", "first_k_dense_replace", "v_head_dim", "n_group", "rope_theta", "rope_interleave"],
)
def test_null_is_refused_where_no_reader_gives_it_a_meaning(field: str) -> None:
    assert f"{field} is null" in refusal(config(**{field: None}))


def test_null_means_what_it_means_to_those_who_write_it() -> None:
    assert parse_config(config(q_lora_rank=None)).q_lora_rank is None
    assert parse_config(config(n_shared_experts=None)).n_shared_experts == 0
    assert parse_config(config(n_routed_experts=None)).router is None
    assert parse_config(config(num_nextn_predict_layers=None)).num_nextn_predict_layers == 0
    assert parse_config(config(attention_bias=None, mlp_bias=None)) == parse_config(config())


YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("changes", "theta", "factor"),
    [
        ({"rope_scaling": YARN}, 1e4, 40),
        ({"rope_scaling": {**YARN, "rope_type": "yarn", "rope_theta": 5e4}}, 5e4, 40),
        ({"rope_theta": 5e4, "rope_scaling": YARN}, 5e4, 40),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e4}, "rope_scaling": None}, 5e4, None),
        # rope_scaling wins, and plain rope_parameters beside it are those that it extends.
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "rope_scaling": YARN}, 1e4, 40),
        ({"rope_theta": 5e4, "rope_parameters": {"rope_theta": 5e4}, "rope_scaling": YARN}, 5e4, 40),
        ({"rope_parameters": {**YARN, "rope_theta": 1e4}, "rope_scaling": YARN}, 1e4, 40),
        ({"rope_parameters": YARN, "rope_scaling": {}}, 1e4, 40),
    ],
)
def test_spellings_of_rope_that_agree(changes: dict[str, Any], theta: float, factor: float | None) -> None:
    rope = parse_config(without(config(), "rope_theta", "rope_scaling") | changes).rope
    assert (rope.theta, rope.yarn and rope.yarn.factor) == (theta, factor)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_scaling": {**YARN, "rope_type": "default"}}, "rope_scaling.type"),
        ({"rope_theta": 2e4, "rope_scaling": {**YARN, "rope_theta": 1e4}}, "rope_theta"),
        ({"rope_theta": 2e4, "rope_parameters": {"rope_theta": 1e4}}, "rope_theta"),
        # transformers would take 10000, the default, and drop what rope_parameters says.
        ({"rope_parameters": {"rope_theta": 5e4}, "rope_scaling": YARN}, "rope_theta"),
        ({"rope_parameters": {**YARN, "factor": 4}, "rope_scaling": YARN}, "YaRN"),
        ({"rope_parameters": YARN, "rope_scaling": {"type": "default"}}, "YaRN"),
    ],
)
def test_spellings_of_rope_that_disagree_are_refused(changes: dict[str, Any], named: str) -> None:
    assert named in refusal(without(config(), "rope_theta", "rope_scaling") | changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_local_experts": 8}, ("n_routed_experts", "num_local_experts")),
        ({"num_experts": 8}, ("n_routed_experts", "num_experts")),
        ({"num_mtp_layers": 2}, ("num_nextn_predict_layers", "num_mtp_layers")),
        ({"head_dim": 24}, ("head_dim", "qk_rope_head_dim")),
        ({"qk_head_dim": 24}, ("qk_head_dim", "qk_nope_head_dim")),
        ({"mlp_layer_types": ["dense", "dense", "sparse"]}, ("mlp_layer_types", "first_k_dense_replace")),
    ],
)
def test_two_spellings_that_disagree_are_refused(changes: dict[str, Any], named: tuple[str, ...]) -> None:
    message = refusal(config(**changes))
    assert all(name in message for name in named)


def test_two_spellings_that_agree_are_one() -> None:
    same = {"num_local_experts": 16, "num_experts": None, "num_mtp_layers": 1, "head_dim": 16, "qk_head_dim": 40}
    assert parse_config(config(**same, mlp_layer_types=["dense", "sparse", "sparse"])) == parse_config(config())


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
    fields = without(config(num_hidden_layers=6, mlp_layer_types=kinds), "first_k_dense_replace", "moe_layer_freq")
    assert parse_config(fields).moe_layers == (False, True, True, False, True, True, True)


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
        ({"rope_scaling": {"type": "linear", "factor": 4}}, "rope_scaling.type"),
        ({"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 4096}}, "factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 0.5, "original_max_position_embeddings": 4096}}, "factor"),
        ({"rope_scaling": {"type": "yarn", "factor": "4", "original_max_position_embeddings": 4096}}, "factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": -1}}, "original_max"),
        ({"rope_scaling": {"type": "yarn", "factor": 4, "gamma": 2}}, "gamma"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_hidden_layers": 9223372036854775808}, "num_hidden_layers"),
        ({"num_hidden_layers": 1e30}, "num_hidden_layers"),
        ({"num_hidden_layers": float("inf")}, "num_hidden_layers"),
        ({"vocab_size": float("nan")}, "vocab_size"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps"),
        ({"model_type": {}}, "model_type"),
        ({"rope_scaling": []}, "rope_scaling"),
        ({"rope_parameters": False}, "rope_parameters"),
        ({"model_type": "deepseek_v2", "topk_method": "greedy", "rope_interleave": False}, "rope_interleave"),
        ({"num_hidden_layers": 1024, "n_routed_experts": 16384}, "num_hidden_layers"),
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
