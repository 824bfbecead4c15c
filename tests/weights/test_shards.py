"""Which files a checkpoint is read from: one, an index's, a numbered series, or whatever the folder has."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_checkpoints import DEEPSEEK_V3, random_tensors, write_checkpoint

from mlc_dsv3.errors import UserError
from mlc_dsv3.weights import Checkpoint, checkpoint_identity, convert

INDEX = "model.safetensors.index.json"


def shard(number, total=3):
    return f"model-{number:05d}-of-{total:05d}.safetensors"


@pytest.fixture
def sharded(tmp_path):
    return write_checkpoint(tmp_path, DEEPSEEK_V3, shards=3)


def assert_whole(folder):
    found, expected = Checkpoint.open(folder), random_tensors(DEEPSEEK_V3)
    assert set(found.names()) == set(expected)
    assert all(np.array_equal(found.read(name), values) for name, values in expected.items())


def test_shards_are_read_without_an_index(sharded):
    (sharded / INDEX).unlink()
    assert_whole(sharded)
    convert(Checkpoint.open(sharded), "q4f16_1", sharded / "artifact")
    assert checkpoint_identity(sharded)


@pytest.mark.parametrize("first", [0, 1])
def test_a_missing_shard_of_a_numbered_series_is_named(sharded, first):
    (sharded / INDEX).unlink()
    for number in (1, 2, 3):
        (sharded / shard(number)).rename(sharded / f"other{shard(number + first - 1)}")
    assert_whole(sharded)
    (sharded / f"other{shard(first + 1)}").unlink()
    with pytest.raises(UserError, match=f"lacks other{shard(first + 1)}; download it"):
        Checkpoint.open(sharded)


def test_a_single_file_of_any_name_is_read(tmp_path):
    write_checkpoint(tmp_path, DEEPSEEK_V3)
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.bf16.safetensors")
    assert_whole(tmp_path)


def test_a_series_with_a_file_of_its_own_for_the_mtp_layer_is_read(sharded):
    (sharded / INDEX).unlink()
    tensors = load_file(sharded / shard(3))
    last = next(name for name in tensors if name.startswith("model.layers.2."))
    save_file({last: tensors.pop(last)}, sharded / "mtp.safetensors")
    save_file(tensors, sharded / shard(3))
    assert_whole(sharded)


def test_two_files_with_the_same_tensor_are_refused(tmp_path):
    write_checkpoint(tmp_path, DEEPSEEK_V3)
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    save_file({"lm_head.weight": np.zeros((160, 64), np.float32)}, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=r"a.safetensors and b.safetensors both have lm_head.weight; remove"):
        Checkpoint.open(tmp_path)


def test_a_folder_without_safetensors_says_what_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_V3))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"has no \*.safetensors; other weight formats are not read"):
        Checkpoint.open(tmp_path)


def test_an_index_that_names_an_absent_file_is_reported(sharded):
    (sharded / shard(2)).unlink()
    with pytest.raises(UserError, match=f"names {shard(2)}, which the folder lacks"):
        Checkpoint.open(sharded)


def test_an_index_that_names_a_tensor_in_the_wrong_file_is_of_no_account(sharded):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = shard(1)
    (sharded / INDEX).write_text(json.dumps(index))
    assert_whole(sharded)


def test_an_index_that_names_a_tensor_which_no_file_has_is_refused_where_the_model_needs_it(sharded):
    tensors = load_file(sharded / shard(1))
    lost = next(iter(tensors))
    del tensors[lost]
    save_file(tensors, sharded / shard(1))
    with pytest.raises(UserError, match=f"{lost} is in {shard(1)}, and it is not; download both again"):
        Checkpoint.open(sharded)


def test_an_index_that_names_a_tensor_which_nobody_needs_is_a_warning(sharded, capsys):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"] |= {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": shard(1) for n in range(2)}
    (sharded / INDEX).write_text(json.dumps(index))
    assert_whole(sharded)
    said = capsys.readouterr().err
    assert "names model.layers.0.self_attn.rotary_emb.inv_freq and 1 more: no file has it" in said


@pytest.mark.parametrize("name", ["/etc/passwd", "../model-00001-of-00003.safetensors", "a/../../b", "", 5, None])
def test_an_index_that_leads_out_of_the_folder_is_refused(sharded, name):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = name
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"index.json names the file .*; it must name one inside its folder"):
        Checkpoint.open(sharded)


SPELLINGS = {
    "a base model's": lambda name: name.removeprefix("model."),
    "inside a larger model": lambda name: f"language_model.{name}",
    "inside a larger model, the head apart": lambda name: (
        name if name.startswith("lm_head") else f"model.language_model.{name.removeprefix('model.')}"
    ),
    "without model.": lambda name: f"language_model.{name.removeprefix('model.')}",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("shards", [1, 3])
def test_other_prefixes_of_tensor_names_are_recognised(tmp_path, spelling, shards):
    tensors = {SPELLINGS[spelling](name): values for name, values in random_tensors(DEEPSEEK_V3).items()}
    write_checkpoint(tmp_path, DEEPSEEK_V3, tensors, shards=shards)
    assert_whole(tmp_path)
    convert(Checkpoint.open(tmp_path), "q4f16_1", tmp_path / "artifact")


def test_a_vision_tower_beside_the_language_model_is_passed_over(tmp_path):
    tensors = {f"language_model.{name}": values for name, values in random_tensors(DEEPSEEK_V3).items()}
    tensors["vision_tower.patch_embed.weight"] = np.zeros((2, 2), np.float32)
    convert(Checkpoint.open(write_checkpoint(tmp_path, DEEPSEEK_V3, tensors)), "q4f16_1", tmp_path / "artifact")
