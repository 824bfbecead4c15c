"""Which tensors a model is made of, and what is said where a checkpoint has others."""

import numpy as np
import pytest
from tiny_checkpoints import DEEPSEEK_V3, FAMILIES, YOUTU, random_tensors, tensor_shapes, write_checkpoint

from mlc_dsv3.errors import UserError
from mlc_dsv3.weights import Checkpoint
from mlc_dsv3.weights.names import check_tensors, sources
from relax_model.config import parse_config
from relax_model.parameters import parameters


def check(folder, config, tensors):
    checkpoint = Checkpoint.open(write_checkpoint(folder, config, tensors))
    check_tensors(checkpoint, checkpoint.model_config)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_take_every_tensor_once_but_what_mtp_shares(family):
    config = FAMILIES[family]
    taken = [name for parameter in parameters(parse_config(config)) for name in sources(parameter)]
    shared = {
        name for name in tensor_shapes(config) if name.endswith((".2.embed_tokens.weight", "shared_head.head.weight"))
    }
    assert sorted(taken) == sorted(set(tensor_shapes(config)) - shared)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_checkpoint_is_accepted(tmp_path, family):
    check(tmp_path, FAMILIES[family], random_tensors(FAMILIES[family]))


def test_gate_comes_before_up_and_experts_follow_one_another():
    names = {parameter.name: sources(parameter) for parameter in parameters(parse_config(DEEPSEEK_V3))}
    experts = names["model.layers.1.mlp.experts.gate_up_proj"]
    assert experts[:3] == [
        "model.layers.1.mlp.experts.0.gate_proj.weight",
        "model.layers.1.mlp.experts.0.up_proj.weight",
        "model.layers.1.mlp.experts.1.gate_proj.weight",
    ]
    assert names["lm_head"] == ["lm_head.weight"]


def test_a_missing_tensor_is_named(tmp_path):
    tensors = random_tensors(DEEPSEEK_V3)
    del tensors["model.layers.1.mlp.experts.3.up_proj.weight"]
    with pytest.raises(UserError, match=r"tensor model.layers.1.mlp.experts.3.up_proj.weight is missing$"):
        check(tmp_path, DEEPSEEK_V3, tensors)


def test_a_shape_that_contradicts_the_config_is_named_with_both(tmp_path):
    tensors = random_tensors(DEEPSEEK_V3)
    tensors["model.layers.0.self_attn.o_proj.weight"] = np.zeros((64, 25), np.float32)
    with pytest.raises(UserError, match=r"o_proj.weight has shape \(64, 25\); its config.json makes it \(64, 24\)"):
        check(tmp_path, DEEPSEEK_V3, tensors)


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.self_attn.o_proj.bias", "lm_head.bias", "model.layers.3.mlp.gate_proj.weight", "model.new.weight"],
)
def test_a_tensor_that_would_change_the_results_is_refused(tmp_path, name):
    strangers = {name: np.zeros((4,), np.float32)}
    with pytest.raises(UserError, match=f"{name} would change the results and is not understood"):
        check(tmp_path / "one", DEEPSEEK_V3, random_tensors(DEEPSEEK_V3) | strangers)
    strangers["model.zzz.weight"] = np.zeros((4,), np.float32)
    with pytest.raises(UserError, match=" and 1 more would change the results and are not understood"):
        check(tmp_path / "two", DEEPSEEK_V3, random_tensors(DEEPSEEK_V3) | strangers)


def test_tensors_without_effect_are_passed_over(tmp_path):
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}
    check(tmp_path / "rotary", DEEPSEEK_V3, random_tensors(DEEPSEEK_V3) | extra)
    tied = {"lm_head.weight": np.zeros((160, 64), np.float32)}
    check(tmp_path / "tied", YOUTU, random_tensors(YOUTU) | tied)


def test_mtp_layers_that_the_config_does_not_announce_are_passed_over(tmp_path):
    config = {**DEEPSEEK_V3, "num_nextn_predict_layers": 0}
    check(tmp_path, config, random_tensors(DEEPSEEK_V3))
