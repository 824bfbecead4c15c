"""Opening an artifact: mapped in place, and refused by name where something is wrong."""

import json

import numpy as np
import pytest
from tiny_checkpoints import DEEPSEEK_V3, write_checkpoint

from mlc_dsv3.errors import UserError
from mlc_dsv3.weights import Artifact, Checkpoint, convert
from relax_model.config import parse_config
from relax_model.layout import layout_of
from relax_model.parameters import parameters

SHARD = "params_shard_1.bin"


@pytest.fixture
def folder(tmp_path):
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "hf", DEEPSEEK_V3))
    return convert(checkpoint, "q4f16_1", tmp_path / "artifact", shard_bytes=65536)


def change_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_arrays_are_mapped_aligned_and_as_the_parameters_say(folder):
    arrays = Artifact.open(folder).map_parameters()
    layout = layout_of("q4f16_1")
    expected = {key: spec for p in parameters(parse_config(DEEPSEEK_V3)) for key, spec in p.buffers(layout).items()}
    assert list(arrays) == list(expected)
    for name, array in arrays.items():
        assert (array.shape, str(array.dtype)) == (expected[name].shape, expected[name].dtype)
        assert array.ctypes.data % 64 == 0 and array.flags.c_contiguous
        assert isinstance(array, np.memmap)


def test_bfloat16_is_mapped_as_its_bits(tmp_path):
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "hf", DEEPSEEK_V3))
    arrays = Artifact.open(convert(checkpoint, "q0bf16", tmp_path / "artifact")).map_parameters()
    bits = arrays["lm_head.weight"]
    assert bits.dtype == np.uint16
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(values, checkpoint.read("lm_head.weight"), rtol=2**-8)


def test_writing_into_a_mapped_array_does_not_reach_the_file(folder):
    artifact = Artifact.open(folder)
    artifact.map_parameters()["model.norm.weight"][:] = 7
    artifact.verify()


def test_it_says_what_it_is(folder):
    artifact = Artifact.open(folder)
    assert artifact.quantization == "q4f16_1" and artifact.path == folder
    assert artifact.model_config == parse_config(DEEPSEEK_V3)
    assert artifact.nbytes == sum(path.stat().st_size for path in folder.glob("*.bin"))


def test_tvm_loads_the_same_arrays_by_its_own_reader(folder):
    pytest.importorskip("tvm")
    from tvm.contrib.tvmjs import load_tensor_cache
    from tvm.runtime import device

    loaded, metadata = load_tensor_cache(str(folder), device("cpu"))
    arrays = Artifact.open(folder).map_parameters()
    assert metadata["ParamSize"] == len(arrays) == len(loaded)
    assert all(np.array_equal(loaded[name].numpy(), array) for name, array in arrays.items())


@pytest.mark.parametrize(
    ("file", "words"), [("mlc-chat-config.json", "an artifact is"), ("tensor-cache.json", "finish")]
)
def test_a_folder_without_its_descriptions_is_no_artifact(folder, file, words):
    (folder / file).unlink()
    with pytest.raises(UserError, match=f"no {file}.*{words}"):
        Artifact.open(folder)


def test_a_missing_shard_is_named(folder):
    (folder / SHARD).unlink()
    with pytest.raises(UserError, match=f"{SHARD} is missing"):
        Artifact.open(folder)


@pytest.mark.parametrize("name", ["/etc/passwd", "../hf/model.safetensors", "a/../../b", "a\0b", ""])
def test_a_shard_outside_the_folder_is_refused(folder, name):
    change_json(folder / "tensor-cache.json", lambda fields: fields["records"][1].update(dataPath=name))
    with pytest.raises(UserError, match=r"tensor-cache.json names the file .*; it must name one inside its folder"):
        Artifact.open(folder)


def test_a_truncated_shard_is_named_with_its_sizes(folder):
    size = (folder / SHARD).stat().st_size
    with (folder / SHARD).open("r+b") as file:
        file.truncate(size - 1)
    with pytest.raises(UserError, match=f"{SHARD} is truncated: {size - 1} bytes, and {size} were written"):
        Artifact.open(folder)


def test_a_changed_byte_is_found_by_verify(folder):
    artifact = Artifact.open(folder)
    artifact.verify()
    data = bytearray((folder / SHARD).read_bytes())
    data[1000] ^= 1
    (folder / SHARD).write_bytes(data)
    with pytest.raises(UserError, match=f"{SHARD} is damaged"):
        Artifact.open(folder).verify()


def test_weights_of_another_shape_than_the_config_are_named(folder):
    change_json(folder / "mlc-chat-config.json", lambda fields: fields["model_config"].update(intermediate_size=128))
    with pytest.raises(UserError, match=r"mlp.gate_up_proj.q_weight is uint32 \(192, 8\).*makes it uint32 \(256, 8\)"):
        Artifact.open(folder)


def test_weights_of_another_format_than_the_config_are_named(folder):
    change_json(folder / "mlc-chat-config.json", lambda fields: fields.update(quantization="q0f16"))
    with pytest.raises(UserError, match="has model.embed_tokens.q_weight, which the model"):
        Artifact.open(folder)


def test_weights_that_lack_a_parameter_are_named(folder):
    change_json(folder / "tensor-cache.json", lambda cache: cache["records"][1]["records"].pop(0))
    with pytest.raises(UserError, match=r"lacks model\.layers\."):
        Artifact.open(folder)


@pytest.mark.parametrize("change", [{"byteOffset": 8}, {"byteOffset": -64}, {"byteOffset": 1 << 40}, {"nbytes": 4}])
def test_records_that_cannot_be_are_refused(folder, change):
    change_json(folder / "tensor-cache.json", lambda cache: cache["records"][0]["records"][1].update(change))
    with pytest.raises(UserError, match="impossible extent|byteOffset is -64"):
        Artifact.open(folder)


@pytest.mark.parametrize("text", ["{}", '{"records": [{}]}', '{"records": 3}', "[]", "{"])
def test_a_damaged_tensor_cache_is_reported(folder, text):
    (folder / "tensor-cache.json").write_text(text)
    with pytest.raises(UserError, match=r"tensor-cache.json(: records|.records| is not valid JSON| holds a JSON list)"):
        Artifact.open(folder)


def test_a_config_without_a_needed_field_is_reported(folder):
    change_json(folder / "mlc-chat-config.json", lambda fields: fields.pop("quantization"))
    with pytest.raises(UserError, match="mlc-chat-config.json: quantization is missing"):
        Artifact.open(folder)


def test_importing_the_weights_does_not_import_tvm():
    import subprocess
    import sys
    from pathlib import Path

    import mlc_dsv3.weights

    script = "import sys, mlc_dsv3.weights; sys.exit('tvm' in sys.modules)"
    root = Path(mlc_dsv3.weights.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", script], cwd=root).returncode == 0
