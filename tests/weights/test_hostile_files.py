"""Whatever stands in a field of a checkpoint's or an artifact's files: it works, or it is refused in one line."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import hostile
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoints import DEEPSEEK_V3, write_checkpoint

from mlc_dsv3.cli.arguments import read_model
from mlc_dsv3.weights import Artifact, Checkpoint, checkpoint_identity, convert, gen_config
from mlc_dsv3.weights.generation import read_sampling
from mlc_dsv3.weights.names import check_tensors
from relax_model.fields import Fields, named, shown

CONFIG = {
    **DEEPSEEK_V3,
    "rope_theta": 1e4,
    "rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 128, "mscale": 1.0},
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "torch_dtype": "float32",
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
    "mlp_layer_types": ["dense", "sparse"],
    "head_dim": 8,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "rms_norm_eps": 1e-6,
}
GENERATION = {
    **{"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1},
    **{"eos_token_id": [1, 2], "bos_token_id": 0, "pad_token_id": 2, "num_beams": 1},
}
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_checkpoint(tmp_path_factory.mktemp("hostile") / "hf", CONFIG)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    names = json.loads(header(folder / "model-00001-of-00001.safetensors")[0]).keys() - {"__metadata__"}
    weight_map = dict.fromkeys(sorted(names), "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    return folder


@pytest.fixture(scope="module")
def artifact(checkpoint: Path) -> Path:
    return convert(Checkpoint.open(checkpoint), "q4f16_1", checkpoint.parent / "artifact", shard_bytes=65536)


def header(path: Path) -> tuple[bytes, bytes]:
    """A safetensors file's header and what follows it."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return data[8:end], data[end:]


def open_checkpoint(folder: Path) -> None:
    checkpoint_identity(folder)
    opened = Checkpoint.open(folder)
    check_tensors(opened, opened.model_config)
    gen_config(opened, "q4f16_1")
    opened.close()
    read_model(str(folder / "config.json"))


def open_artifact(folder: Path) -> None:
    opened = Artifact.open(folder)
    opened.map_parameters()
    read_sampling(Fields(opened.chat_config))


def read_artifact_alone(folder: Path) -> None:
    read_model(str(folder))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", INDEX])
@hostile.EXAMPLES
@given(data=st.data())
def test_a_checkpoints_files(checkpoint: Path, name: str, data: st.DataObject) -> None:
    changed = hostile.draw_change(json.loads((checkpoint / name).read_bytes()), data)
    with hostile.replaced(checkpoint / name, changed.encode()):
        hostile.check(open_checkpoint, checkpoint)


@hostile.EXAMPLES
@given(data=st.data())
def test_a_safetensors_header(checkpoint: Path, data: st.DataObject) -> None:
    path = checkpoint / "model-00001-of-00001.safetensors"
    fields, rest = header(path)
    changed = hostile.draw_change(json.loads(fields), data).encode()
    with hostile.replaced(path, len(changed).to_bytes(8, "little") + changed + rest):
        hostile.check(open_checkpoint, checkpoint)


@pytest.mark.parametrize("name", ["mlc-chat-config.json", "tensor-cache.json"])
@hostile.EXAMPLES
@given(data=st.data())
def test_an_artifacts_files(artifact: Path, name: str, data: st.DataObject) -> None:
    changed = hostile.draw_change(json.loads((artifact / name).read_bytes()), data)
    with hostile.replaced(artifact / name, changed.encode()):
        hostile.check(open_artifact, artifact)
        hostile.check(read_artifact_alone, artifact)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("config.json", ("num_hidden_layers",), "9223372036854775808"),
        ("config.json", ("rms_norm_eps",), "Infinity"),
        ("config.json", ("rope_scaling", "factor"), '"4"'),
        ("generation_config.json", ("eos_token_id", 0), '{"a": 1}'),
        ("generation_config.json", ("temperature",), "NaN"),
        (INDEX, ("weight_map", "lm_head.weight"), "[]"),
        ("mlc-chat-config.json", ("model_config",), "0.5"),
        ("mlc-chat-config.json", ("quantization",), "[]"),
        ("mlc-chat-config.json", ("context_window_size",), "1e30"),
        ("tensor-cache.json", ("records", 0, "nbytes"), "0.5"),
        ("tensor-cache.json", ("records", 0, "records", 0, "shape"), '{"a": 1}'),
        ("tensor-cache.json", ("records", 0, "records", 0, "byteOffset"), "9223372036854775808"),
    ],
)
def test_what_no_file_may_say_is_refused_by_the_files_name(
    checkpoint: Path, artifact: Path, name: str, place: tuple[str | int, ...], value: str
) -> None:
    path = (checkpoint if (checkpoint / name).exists() else artifact) / name
    folder, read = (checkpoint, open_checkpoint) if path.parent == checkpoint else (artifact, open_artifact)
    with hostile.replaced(path, hostile.changed(json.loads(path.read_bytes()), place, value).encode()):
        assert name in (hostile.check(read, folder) or "")


@pytest.mark.parametrize(
    "change",
    [
        {"data_offsets": [0.5, 1.5]},
        {"data_offsets": [0, -4]},
        {"data_offsets": [[], {}]},
        {"data_offsets": 4},
        {"shape": [0.5]},
        {"shape": ["x"]},
        {"shape": [True, 2**63]},
        {"dtype": []},
    ],
)
def test_what_no_safetensors_header_may_say(checkpoint: Path, change: dict[str, object]) -> None:
    path = checkpoint / "model-00001-of-00001.safetensors"
    fields, rest = header(path)
    tensors = json.loads(fields)
    tensors["lm_head.weight"].update(change)
    changed = json.dumps(tensors).encode()
    with hostile.replaced(path, len(changed).to_bytes(8, "little") + changed + rest):
        assert "has a damaged header: lm_head.weight is" in (hostile.check(open_checkpoint, checkpoint) or "")


@pytest.mark.parametrize("text", [b"", b"[", b"\xff", b"3", b"null", b"[" * 100_000, b'{"a": ' * 100_000, b"{}"])
def test_files_that_are_no_objects(checkpoint: Path, artifact: Path, text: bytes) -> None:
    for name in ("config.json", "generation_config.json", INDEX):
        with hostile.replaced(checkpoint / name, text):
            hostile.check(open_checkpoint, checkpoint)
    for name in ("mlc-chat-config.json", "tensor-cache.json"):
        with hostile.replaced(artifact / name, text):
            hostile.check(open_artifact, artifact)
    path = checkpoint / "model-00001-of-00001.safetensors"
    with hostile.replaced(path, len(text).to_bytes(8, "little") + text):
        hostile.check(open_checkpoint, checkpoint)


STRANGE = ["", "\x1b[31mEVIL", "x" * 100_000, "two words"]


@pytest.mark.parametrize("text", STRANGE)
def test_strings_of_a_header_are_quoted_where_they_are_not_plain(checkpoint: Path, text: str) -> None:
    path = checkpoint / "model-00001-of-00001.safetensors"
    head, data = header(path)
    fields, quoted = json.loads(head), shown(text)
    fields["model.norm.weight"]["dtype"] = text
    with hostile.replaced(path, with_header(fields, data)):
        said = hostile.check(open_checkpoint, checkpoint)
    assert said and said.startswith(f"{path}: model.norm.weight has dtype {quoted}; known: ")
    name = f"model.layers.0.{text}"
    fields = {**json.loads(head), name: {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}
    with hostile.replaced(path, with_header(fields, data)):
        said = hostile.check(open_checkpoint, checkpoint)
    assert said == (
        f"{checkpoint}: {named(name)} would change the results and is not understood; "
        "the model differs from what its config.json says"
    )


def with_header(fields: dict[str, object], data: bytes) -> bytes:
    head = json.dumps(fields).encode()
    return len(head).to_bytes(8, "little") + head + data


@pytest.mark.parametrize("text", STRANGE)
def test_names_that_are_not_plain_are_quoted(text: str) -> None:
    assert named(text) == shown(text) and len(named(text)) < 100 and named(text).isprintable()
    assert named("model.layers.0.mlp.weight") == "model.layers.0.mlp.weight"


def test_a_byte_order_mark_is_read_over(checkpoint: Path, artifact: Path) -> None:
    for folder, read in ((checkpoint, open_checkpoint), (artifact, open_artifact)):
        for path in folder.glob("*.json"):
            with hostile.replaced(path, codecs.BOM_UTF8 + path.read_bytes()):
                assert hostile.check(read, folder) is None


@pytest.mark.parametrize("text", ["{", "{}"])
def test_the_index_of_an_artifact_is_named_once(artifact: Path, text: str) -> None:
    with hostile.replaced(artifact / "tensor-cache.json", text.encode()):
        said = hostile.check(open_artifact, artifact)
    assert said and said.count("tensor-cache.json") == 1 and said.startswith(f"{artifact}/tensor-cache.json")
