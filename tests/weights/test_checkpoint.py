"""Reading checkpoint folders: whole ones in every spelling, and what is said about broken ones."""

import json

import ml_dtypes
import numpy as np
import pytest
from tiny_checkpoints import DEEPSEEK_V3, random_tensors, to_fp8, write_checkpoint

from mlc_dsv3.errors import UserError
from mlc_dsv3.weights import Checkpoint
from mlc_dsv3.weights.decode import E4M3

NAME = "model.layers.1.mlp.experts.2.down_proj.weight"


def test_every_e4m3_code_has_the_value_that_ml_dtypes_gives_it():
    expected = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(E4M3, expected)
    np.testing.assert_array_equal(np.signbit(E4M3), np.signbit(expected))  # -0.0 included
    assert np.isnan(E4M3[0x7F]) and E4M3[1] == 2.0**-9 and E4M3[0x7E] == 448


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_float_tensors_are_read_as_float32(tmp_path, dtype):
    tensors = random_tensors(DEEPSEEK_V3, dtype=dtype)
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, DEEPSEEK_V3, tensors))
    for name, values in tensors.items():
        found = checkpoint.read(name)
        assert found.dtype == np.float32 and checkpoint.shape(name) == values.shape
        np.testing.assert_array_equal(found, values.astype(np.float32))
    np.testing.assert_array_equal(checkpoint.read_rows(NAME, 3, 17), tensors[NAME][3:17].astype(np.float32))


def test_shards_hold_the_same_as_one_file(tmp_path):
    single = Checkpoint.open(write_checkpoint(tmp_path / "single", DEEPSEEK_V3))
    sharded = Checkpoint.open(write_checkpoint(tmp_path / "sharded", DEEPSEEK_V3, shards=3))
    assert set(single.names()) == set(sharded.names())
    assert all(np.array_equal(single.read(name), sharded.read(name)) for name in single.names())


@pytest.mark.parametrize(("block", "config_block"), [(128, None), (16, [16, 16])])
def test_fp8_is_multiplied_by_the_scale_of_its_block(tmp_path, block, config_block):
    quantization = {"quant_method": "fp8", "fmt": "e4m3"} | (
        {"weight_block_size": config_block} if config_block else {}
    )
    tensors = random_tensors({**DEEPSEEK_V3, "hidden_size": 200})
    stored, meant = to_fp8(tensors, (block, block))
    config = {**DEEPSEEK_V3, "hidden_size": 200, "quantization_config": quantization}
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, config, stored))
    assert set(checkpoint.names()) == set(meant)
    for name, values in meant.items():
        np.testing.assert_array_equal(checkpoint.read(name), values)
    for start in range(0, 199, 7):  # rows cut across the blocks
        rows = checkpoint.read_rows(NAME, start, start + 1)
        np.testing.assert_array_equal(rows, meant[NAME][start : start + 1])
    np.testing.assert_array_equal(checkpoint.read_rows(NAME, 10, 150), meant[NAME][10:150])


def test_a_folder_that_is_absent_or_has_no_config_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere is absent"):
        Checkpoint.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no config.json"):
        Checkpoint.open(tmp_path)


def test_a_broken_config_is_named_with_the_place(tmp_path):
    write_checkpoint(tmp_path, DEEPSEEK_V3)
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(UserError, match=r"config.json is not valid JSON.*line 1"):
        Checkpoint.open(tmp_path)


def test_a_config_that_is_out_of_range_is_reported_with_its_file(tmp_path):
    write_checkpoint(tmp_path, DEEPSEEK_V3)
    (tmp_path / "config.json").write_text(json.dumps({**DEEPSEEK_V3, "kv_lora_rank": -1}))
    with pytest.raises(UserError, match=r"config.json: .*kv_lora_rank"):
        Checkpoint.open(tmp_path)


def test_a_field_that_is_not_understood_can_be_ignored(tmp_path):
    write_checkpoint(tmp_path, {**DEEPSEEK_V3, "new_trick": 1})
    with pytest.raises(UserError, match="new_trick"):
        Checkpoint.open(tmp_path)
    assert "new_trick" not in Checkpoint.open(tmp_path, ignore=["new_trick"]).config


@pytest.mark.parametrize("kept", [0, 5, 300, -1])
def test_a_truncated_file_is_reported_on_opening(tmp_path, kept):
    path = write_checkpoint(tmp_path, DEEPSEEK_V3) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="model.safetensors is truncated"):
        Checkpoint.open(tmp_path)


def test_a_git_lfs_pointer_is_recognised(tmp_path):
    path = write_checkpoint(tmp_path, DEEPSEEK_V3) / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(UserError, match="git lfs pull"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    "header", [b"not json", b"[]", b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}']
)
def test_a_damaged_header_is_reported(tmp_path, header):
    path = write_checkpoint(tmp_path, DEEPSEEK_V3) / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    with pytest.raises(UserError, match="damaged header"):
        Checkpoint.open(tmp_path)


def test_a_file_that_shrinks_while_it_is_read_is_an_error_and_not_a_crash(tmp_path):
    path = write_checkpoint(tmp_path, DEEPSEEK_V3) / "model.safetensors"
    checkpoint = Checkpoint.open(tmp_path)
    with path.open("r+b") as file:
        file.truncate(6000)
    with pytest.raises(UserError, match="was cut while it was read"):
        for name in checkpoint.names():
            checkpoint.read(name)


def test_fp8_without_scales_or_with_scales_of_another_shape_is_reported(tmp_path):
    stored, _ = to_fp8(random_tensors(DEEPSEEK_V3), (16, 16))
    config = {**DEEPSEEK_V3, "quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 16]}}
    with pytest.raises(UserError, match=r"blocks of 32x16 needs float scales"):
        Checkpoint.open(write_checkpoint(tmp_path / "a", config, stored)).read(NAME)
    del stored[f"{NAME}_scale_inv"]
    with pytest.raises(UserError, match="its scales .*down_proj.weight_scale_inv are missing"):
        Checkpoint.open(write_checkpoint(tmp_path / "b", config, stored)).read(NAME)


def test_integers_are_no_weights(tmp_path):
    tensors = random_tensors(DEEPSEEK_V3)
    tensors[NAME] = tensors[NAME].astype(np.int32)
    with pytest.raises(UserError, match="has dtype I32"):
        Checkpoint.open(write_checkpoint(tmp_path, DEEPSEEK_V3, tensors)).read(NAME)
