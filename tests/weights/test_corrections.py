"""Where config.json and the tensors contradict each other: MTP layers that are not there, quantization likewise."""

import ml_dtypes
import numpy as np
import pytest
from tiny_checkpoints import DEEPSEEK_V3, random_tensors, to_fp8, write_checkpoint

from mlc_dsv3.cli.arguments import read_model
from mlc_dsv3.cli.main import main
from mlc_dsv3.errors import UserError
from mlc_dsv3.weights import Artifact, Checkpoint, convert, gen_config

MODULE = "model.layers.1.self_attn.o_proj"


def without_layer(layer, tensors=None):
    tensors = random_tensors(DEEPSEEK_V3) if tensors is None else tensors
    return {name: value for name, value in tensors.items() if f"layers.{layer}." not in name}


@pytest.fixture
def without_mtp(tmp_path):
    """As transformers saves a fine-tune: an MTP layer in config.json, and none among the tensors."""
    return write_checkpoint(tmp_path / "hf", DEEPSEEK_V3, without_layer(2))


def mtp_layers(config):
    return config.num_nextn_predict_layers


def test_an_absent_mtp_layer_is_gone_without_and_said_once(without_mtp, capsys):
    checkpoint = Checkpoint.open(without_mtp)
    assert mtp_layers(checkpoint.model_config) == 0
    Checkpoint.open(without_mtp)
    said = capsys.readouterr().err
    assert said == f"mlc_dsv3: warning: {without_mtp}: the checkpoint has no MTP layer; going on without it\n"


def test_whoever_reads_a_model_agrees_on_its_layers(without_mtp, tmp_path):
    checkpoint = Checkpoint.open(without_mtp)
    artifact = Artifact.open(convert(checkpoint, "q4f16_1", tmp_path / "artifact"))
    digests = {config.digest() for config in (checkpoint.model_config, artifact.model_config)}
    digests |= {read_model(str(folder)).config.digest() for folder in (without_mtp, artifact.path)}
    assert len(digests) == 1
    assert gen_config(checkpoint, "q4f16_1")["model_config"]["num_nextn_predict_layers"] == 0


def test_a_config_alone_is_taken_at_its_word(without_mtp, tmp_path):
    assert mtp_layers(read_model(str(without_mtp / "config.json")).config) == 1
    (without_mtp / "model.safetensors").unlink()
    assert mtp_layers(read_model(str(without_mtp)).config) == 1
    assert mtp_layers(read_model(str(without_mtp), without_mtp=True).config) == 0


def test_copies_of_embedding_and_head_do_not_make_a_layer(tmp_path):
    copies = ("model.layers.2.embed_tokens.weight", "model.layers.2.shared_head.head.weight")
    tensors = random_tensors(DEEPSEEK_V3)
    tensors = without_layer(2) | {name: tensors[name] for name in copies}
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "hf", DEEPSEEK_V3, tensors))
    assert mtp_layers(checkpoint.model_config) == 0
    convert(checkpoint, "q4f16_1", tmp_path / "artifact")


def test_of_two_layers_the_one_that_is_there_stays(tmp_path, capsys):
    config = {**DEEPSEEK_V3, "num_nextn_predict_layers": 2}
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, config, without_layer(3, random_tensors(config))))
    assert mtp_layers(checkpoint.model_config) == 1
    assert "has 1 of 2 MTP layers; going on without it" in capsys.readouterr().err


@pytest.mark.parametrize("read", [Checkpoint.open, lambda folder: read_model(str(folder))])
def test_a_layer_that_is_there_in_part_is_refused_by_its_first_missing_tensors(tmp_path, read):
    lost = [f"model.layers.2.mlp.experts.{expert}.up_proj.weight" for expert in range(4)]
    tensors = {name: values for name, values in random_tensors(DEEPSEEK_V3).items() if name not in lost}
    folder = write_checkpoint(tmp_path, DEEPSEEK_V3, tensors)
    with pytest.raises(UserError, match=rf"lacks {', '.join(lost[:3])} and 1 more; --no-mtp leaves the layer out"):
        read(folder)
    assert mtp_layers(Checkpoint.open(folder, without_mtp=True).model_config) == 0


@pytest.mark.parametrize("verb", ["chat", "bench", "compile", "tune", "rebalance", "convert_weight", "gen_config"])
def test_every_verb_that_takes_a_checkpoint_takes_no_mtp(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert "--no-mtp" in capsys.readouterr().out


def test_an_artifact_cannot_lose_its_layer_any_more(tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path / "hf", DEEPSEEK_V3)
    artifact = convert(Checkpoint.open(folder), "q4f16_1", tmp_path / "artifact")
    from mlc_dsv3.runtime.prepare import prepare

    with pytest.raises(UserError, match=r"the artifact has its MTP layer; use --no-mtp when you convert"):
        read_model(str(artifact), without_mtp=True)
    with pytest.raises(UserError, match=r"the artifact has its MTP layer; use --no-mtp when you convert"):
        prepare(str(artifact), None, "cpu", None, without_mtp=True)


@pytest.mark.parametrize("fields", [{"quant_method": "awq"}, {"quant_method": "fp8", "fmt": "e4m3"}, {}])
def test_a_quantization_that_no_tensor_bears_out_is_passed_over(tmp_path, capsys, fields):
    tensors = random_tensors(DEEPSEEK_V3, dtype=ml_dtypes.bfloat16)
    folder = write_checkpoint(tmp_path / "hf", {**DEEPSEEK_V3, "quantization_config": fields}, tensors)
    checkpoint = Checkpoint.open(folder)
    convert(checkpoint, "q4f16_1", tmp_path / "artifact")
    assert "quantization_config" not in checkpoint.config
    assert "going on without its quantization_config" in capsys.readouterr().err


def test_fp8_is_read_whatever_the_config_calls_it(tmp_path):
    stored, meant = to_fp8(random_tensors(DEEPSEEK_V3), (128, 128))
    for name, fields in {"none": {}, "other": {"quantization_config": {"quant_method": "x"}}}.items():
        checkpoint = Checkpoint.open(write_checkpoint(tmp_path / name, {**DEEPSEEK_V3, **fields}, stored))
        np.testing.assert_array_equal(checkpoint.read(f"{MODULE}.weight"), meant[f"{MODULE}.weight"])


def zeros(dtype):
    return np.zeros((4, 4), dtype)


I32, U8, BF16, FP8 = np.int32, np.uint8, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
PACKED = {
    "compressed-tensors pack-quantized": {"weight_packed": I32, "weight_scale": BF16, "weight_shape": np.int64},
    "compressed-tensors nvfp4-pack-quantized": {"weight_packed": U8, "weight_scale": FP8, "weight_global_scale": BF16},
    "compressed-tensors mxfp4-pack-quantized": {"weight_packed": U8, "weight_scale": U8},
    "compressed-tensors int-quantized": {"weight": np.int8, "weight_scale": BF16},
    "GPTQ": {"qweight": I32, "qzeros": I32, "scales": np.float16, "g_idx": I32},
    "AWQ or GPTQ": {"qweight": I32, "qzeros": I32, "scales": np.float16},
    "bitsandbytes 4 bits": {"weight": U8, "weight.absmax": U8, "weight.quant_map": np.float32},
    "bitsandbytes 8 bits": {"weight": np.int8, "SCB": np.float32},
    "ModelOpt NVFP4": {"weight": U8, "weight_scale": FP8, "weight_scale_2": np.float32},
    "MLX": {"weight": np.uint32, "scales": BF16, "biases": BF16},
    "fp8 with other scales than those of blocks": {"weight": FP8, "weight_scale": BF16},
}


@pytest.mark.parametrize("title", PACKED)
@pytest.mark.parametrize("prefix", ["", "language_model."])
def test_packed_weights_are_refused_by_what_was_found(tmp_path, title, prefix):
    tensors = {f"{prefix}{name}": values for name, values in random_tensors(DEEPSEEK_V3).items()}
    del tensors[f"{prefix}{MODULE}.weight"]
    tensors |= {f"{prefix}{MODULE}.{leaf}": zeros(dtype) for leaf, dtype in PACKED[title].items()}
    folder = write_checkpoint(tmp_path, {**DEEPSEEK_V3, "quantization_config": {"quant_method": "its own"}}, tensors)
    with pytest.raises(UserError) as refused:
        Checkpoint.open(folder)
    said = str(refused.value)
    assert f"{MODULE}" in said and f"is quantized as {title}: it has " in said
    leaf = [*PACKED[title]][-1].rpartition(".")[2]
    assert f"{leaf} (" in said and 'quantization_config says "its own"' in said
    assert said.endswith(
        "weights are read as F32, F16, BF16, F64, and F8_E4M3 with weight_scale_inv for each 128x128 block"
    )
