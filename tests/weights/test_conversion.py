"""Conversion: what comes out is what went in, in every format; and what is said and left behind when it cannot be."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoints import DEEPSEEK_V3, FAMILIES, random_tensors, tensor_shapes, to_fp8, write_checkpoint

import mlc_dsv3.weights
from mlc_dsv3.errors import UserError
from mlc_dsv3.quantization import dequantize, quantize
from mlc_dsv3.weights import Artifact, Checkpoint, convert, gen_config
from relax_model.layout import QUANTIZATIONS, PackedLayout, layout_of
from relax_model.parameters import parameters

ROOT = Path(mlc_dsv3.weights.__file__).parents[2]
FINISHED = {"mlc-chat-config.json", "tensor-cache.json", "params_shard_0.bin"}


def convert_folder(folder, quantization="q4f16_1", name="artifact", **options):
    return convert(Checkpoint.open(folder), quantization, folder.parent / name, **options)


def stored_matrix(arrays, parameter, layout):
    """The float32 matrix that an artifact holds for a parameter, leading axes folded into rows."""
    columns = parameter.shape[-1]
    stored = {}
    for suffix, spec in layout.buffers((1, columns)).items():
        array = arrays[f"{parameter.name}.{suffix}"]
        stored[suffix] = array.reshape(-1, *array.shape[array.ndim - len(spec.shape) + 1 :])
    values = dequantize(layout, stored, columns)
    if not isinstance(layout, PackedLayout):
        return values
    rows = []
    for part in parameter.parts or parameter.shape[-2:-1]:
        rows += [True] * part + [False] * (-part % layout.rows)
    filling = np.tile(rows, len(values) // len(rows))
    assert not np.any(values[~filling]), "what fills a block is zero"
    return values[filling]


def rounded(layout, values):
    """What a format makes of a matrix."""
    return dequantize(layout, quantize(layout, values), values.shape[1])[: len(values)]


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_artifact_holds_the_checkpoints_values(tmp_path, family, quantization):
    config, layout = FAMILIES[family], layout_of(quantization)
    tensors = random_tensors(config)
    artifact = Artifact.open(convert_folder(write_checkpoint(tmp_path / "hf", config), quantization))
    arrays, known = artifact.map_parameters(), {p.name: p for p in parameters(artifact.model_config)}

    def check(parameter, *names):
        values = np.concatenate([tensors[name] for name in names])
        found = stored_matrix(arrays, known[parameter], layout)
        np.testing.assert_array_equal(found, rounded(layout, values))
        if quantization == "q0f32":
            np.testing.assert_array_equal(found, values)

    check("model.embed_tokens", "model.embed_tokens.weight")
    check("model.layers.0.self_attn.kv_b_proj", "model.layers.0.self_attn.kv_b_proj.weight")
    check("model.layers.0.mlp.gate_up_proj", *(f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up")))
    np.testing.assert_array_equal(arrays["model.norm.weight"], tensors["model.norm.weight"])
    assert ("lm_head.weight" in tensors) == any(name.startswith("lm_head") for name in arrays)
    if family == "youtu":
        return
    prefix = "model.layers.1.mlp"
    names = [f"{prefix}.experts.{expert}.{part}_proj.weight" for expert in range(4) for part in ("gate", "up")]
    check(f"{prefix}.experts.gate_up_proj", *names)
    check(f"{prefix}.experts.down_proj", *(f"{prefix}.experts.{expert}.down_proj.weight" for expert in range(4)))
    np.testing.assert_array_equal(arrays[f"{prefix}.gate.weight"], tensors[f"{prefix}.gate.weight"])


def test_fp8_becomes_four_bits(tmp_path):
    stored, meant = to_fp8(random_tensors(DEEPSEEK_V3), (16, 16))
    quantization = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    folder = write_checkpoint(tmp_path / "hf", {**DEEPSEEK_V3, "quantization_config": quantization}, stored)
    artifact = Artifact.open(convert_folder(folder))
    layout, name = layout_of("q4f16_1"), "model.layers.0.self_attn.o_proj"
    known = {p.name: p for p in parameters(artifact.model_config)}
    found = stored_matrix(artifact.map_parameters(), known[name], layout)
    np.testing.assert_array_equal(found, rounded(layout, meant[f"{name}.weight"]))
    assert "quantization_config" not in artifact.chat_config["model_config"]


@pytest.mark.parametrize("block", [(16, 128), (16, 16)])
def test_fp8_stays_what_it_is_where_its_blocks_fit(tmp_path, monkeypatch, block):
    monkeypatch.setattr("mlc_dsv3.weights.conversion._BLOCK_VALUES", 1000)  # rows that are not whole blocks
    stored, meant = to_fp8(random_tensors(DEEPSEEK_V3), block)
    quantization = {"quant_method": "fp8", "weight_block_size": list(block)}
    folder = write_checkpoint(tmp_path / "hf", {**DEEPSEEK_V3, "quantization_config": quantization}, stored)
    artifact = Artifact.open(convert_folder(folder, "e4m3f32_1"))
    layout, known = layout_of("e4m3f32_1"), {p.name: p for p in parameters(artifact.model_config)}
    for name in ("model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"):
        found = stored_matrix(artifact.map_parameters(), known[name], layout)
        expected = meant[f"{name}.weight"]
        assert np.array_equal(found, expected if block[1] == 128 else rounded(layout, expected))


def test_checkpoint_shards_and_block_size_do_not_change_a_byte(tmp_path, monkeypatch):
    single = convert_folder(write_checkpoint(tmp_path / "single", DEEPSEEK_V3), name="a")
    monkeypatch.setattr("mlc_dsv3.weights.conversion._BLOCK_VALUES", 100)
    sharded = convert_folder(write_checkpoint(tmp_path / "sharded", DEEPSEEK_V3, shards=4), name="b")
    for name in FINISHED:
        assert (single / name).read_bytes() == (sharded / name).read_bytes()


def test_artifact_shards_hold_the_same_arrays(tmp_path):
    folder = write_checkpoint(tmp_path / "hf", DEEPSEEK_V3)
    one = Artifact.open(convert_folder(folder, name="one"))
    many = Artifact.open(convert_folder(folder, name="many", shard_bytes=4096))
    assert len(many.shards) > 5
    # A shard is over its size only where it holds a single array.
    assert all(shard.nbytes <= 4096 or len(shard.arrays) == 1 for shard in many.shards)
    mapped = many.map_parameters()
    assert all(np.array_equal(array, mapped[name]) for name, array in one.map_parameters().items())
    many.verify()


def test_mtp_layers_can_be_left_out(tmp_path):
    folder = write_checkpoint(tmp_path / "hf", DEEPSEEK_V3)
    artifact = Artifact.open(convert(Checkpoint.open(folder, without_mtp=True), "q4f16_1", tmp_path / "artifact"))
    assert artifact.model_config.num_nextn_predict_layers == 0


def test_tokenizer_files_come_along(tmp_path):
    folder = write_checkpoint(tmp_path / "hf", DEEPSEEK_V3)
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
    for name in names:
        (folder / name).write_text("{}")
    (folder / "tiktoken.model").write_bytes(b"IQ== 0\n")
    output = convert_folder(folder)
    assert {path.name for path in output.iterdir()} == FINISHED | {*names, "tiktoken.model"}


def test_a_template_for_tools_comes_along_in_its_folder(tmp_path):
    folder = write_checkpoint(tmp_path / "hf", DEEPSEEK_V3)
    template = Path("additional_chat_templates", "tool_use.jinja")
    (folder / template).parent.mkdir()
    for text in ("one", "two"):  # the second conversion writes over the first one's
        (folder / template).write_text(text)
        assert (convert_folder(folder) / template).read_text() == text


def test_a_chat_config_from_gen_config_is_kept_and_one_for_another_format_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "hf", DEEPSEEK_V3)
    output = tmp_path / "artifact"
    output.mkdir()
    fields = gen_config(Checkpoint.open(folder), "q4f16_1", context_window_size=100)
    (output / "mlc-chat-config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="for another quantization"):
        convert_folder(folder, "q8f16_1")
    convert_folder(folder)
    assert Artifact.open(output).chat_config["context_window_size"] == 100


def test_a_value_beyond_float16_is_reported_with_its_tensor(tmp_path):
    tensors = random_tensors(DEEPSEEK_V3)
    tensors["model.layers.1.mlp.experts.2.up_proj.weight"][3, 4] = 1e5
    folder = write_checkpoint(tmp_path / "hf", DEEPSEEK_V3, tensors)
    with pytest.raises(
        UserError, match=r"experts.2.up_proj.weight holds .*100000.* float16; use q0bf16, e4m3f32_1 or q0f32"
    ):
        convert_folder(folder, "q0f16")
    assert not (tmp_path / "artifact").exists()
    convert_folder(folder, "q0bf16")


def test_nan_is_reported_with_its_tensor_even_in_a_norm(tmp_path):
    tensors = random_tensors(DEEPSEEK_V3)
    tensors["model.norm.weight"][3] = np.nan
    with pytest.raises(UserError, match="tensor model.norm.weight holds NaN or infinity"):
        convert_folder(write_checkpoint(tmp_path / "hf", DEEPSEEK_V3, tensors), "q0f32")


def test_a_disk_that_is_too_small_is_refused_before_writing(tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path / "hf", DEEPSEEK_V3)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 0, 10))
    with pytest.raises(UserError, match=r"artifact needs \d+ bytes and its disk has 10 free"):
        convert_folder(folder)


def test_a_disk_that_fills_up_is_reported_and_leaves_nothing(tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path / "hf", DEEPSEEK_V3)
    real, written = os.pwrite, []

    def full_after_ten(*arguments):
        written.append(arguments)
        if len(written) > 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, "pwrite", full_after_ten)
    with pytest.raises(UserError, match=r"params_shard_0.bin: No space left on device; .* needs \d+ bytes"):
        convert_folder(folder)
    assert not (tmp_path / "artifact").exists()


def test_a_file_size_limit_of_the_system_is_reported_too(tmp_path):
    folder = write_checkpoint(tmp_path / "hf", DEEPSEEK_V3)
    script = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n" + CONVERT
    done = subprocess.run(
        command(script, folder, tmp_path / "artifact"), env=ENVIRONMENT, capture_output=True, text=True
    )
    assert "UserError" in done.stderr and "File too large" in done.stderr
    assert not (tmp_path / "artifact").exists()


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    folder = write_checkpoint(tmp_path / "hf", DEEPSEEK_V3)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file, not a folder"):
        convert_folder(folder, name="file/artifact")


@pytest.mark.parametrize("moves", range(3))
def test_a_failure_while_publishing_leaves_nothing_that_looks_finished(tmp_path, monkeypatch, moves):
    folder = write_checkpoint(tmp_path / "hf", DEEPSEEK_V3)
    output = convert_folder(folder)  # an earlier artifact in the same place
    real, moved = os.replace, []

    def fail_later(*arguments):
        if len(moved) == moves:
            raise OSError(errno.EIO, "Input/output error")
        moved.append(arguments)
        real(*arguments)

    monkeypatch.setattr(os, "replace", fail_later)
    with pytest.raises(UserError, match="Input/output error"):
        convert_folder(folder)
    monkeypatch.setattr(os, "replace", real)
    with pytest.raises(UserError):
        Artifact.open(output)
    Artifact.open(convert_folder(folder)).verify()


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
CONVERT = """
import sys
from mlc_dsv3.weights import Checkpoint, convert
convert(Checkpoint.open(sys.argv[1]), "q4f16_1", sys.argv[2])
"""
CONVERT_HALF = """
import contextlib, sys, time
from mlc_dsv3.weights import Checkpoint, convert

@contextlib.contextmanager
def stop_halfway(title, total):
    done = []
    def advance(amount):
        done.append(amount)
        if sum(done) > total / 2:
            print("half", flush=True)
            time.sleep(600)
    yield advance

convert(Checkpoint.open(sys.argv[1]), "q4f16_1", sys.argv[2], progress=stop_halfway)
"""


def command(script, *arguments):
    return [sys.executable, "-c", script, *map(str, arguments)]


@pytest.fixture
def half_converted(tmp_path):
    """A process that stopped in the middle of a conversion into `artifact`."""
    folder = write_checkpoint(tmp_path / "hf", DEEPSEEK_V3)
    output = tmp_path / "artifact"
    process = subprocess.Popen(
        command(CONVERT_HALF, folder, output), env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "half\n"
    yield folder, process
    process.kill()
    process.communicate()


def test_a_killed_conversion_looks_unfinished_and_the_next_one_completes_it(half_converted):
    folder, process = half_converted
    process.kill()
    process.wait()
    output = folder.parent / "artifact"
    assert not {path.name for path in output.iterdir()} & FINISHED
    with pytest.raises(UserError):
        Artifact.open(output)
    Artifact.open(convert_folder(folder)).verify()
    assert {path.name for path in output.iterdir()} == FINISHED


def test_a_second_process_is_refused_with_the_firsts_id(half_converted):
    folder, process = half_converted
    with pytest.raises(UserError, match=f"artifact is being written by process {process.pid};"):
        convert_folder(folder)
    assert process.poll() is None


def test_memory_stays_under_the_largest_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr("mlc_dsv3.weights.writer._workers", lambda: 2)
    config = {**DEEPSEEK_V3, "vocab_size": 50_000, "hidden_size": 256, "num_nextn_predict_layers": 0}
    tensors = {name: np.full(shape, 0.01, np.float16) for name, shape in tensor_shapes(config).items()}
    folder = write_checkpoint(tmp_path / "hf", config, tensors)
    tracemalloc.start()
    convert_folder(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000 * 256 * 4 / 2  # the embedding in float32 is 51 MB


SMALL = "model.layers.1.mlp.experts.2.up_proj.weight"


@pytest.mark.parametrize("quantization", ["q4f16_1", "q4f16_1+vnni16", "q8f16_1", "q8f16_1+vnni16", "q0f16"])
def test_a_tensor_that_is_too_small_for_float16_is_reported_with_what_keeps_it(tmp_path, monkeypatch, quantization):
    monkeypatch.setattr("mlc_dsv3.weights.conversion._BLOCK_VALUES", 1000)  # several blocks
    tensors = random_tensors(DEEPSEEK_V3)
    tensors[SMALL] *= np.float32(1e-9)
    folder = write_checkpoint(tmp_path / "hf", DEEPSEEK_V3, tensors)
    words = f"{SMALL} holds values .* small for .*6e-08: 100% of them would be lost; use q0bf16, e4m3f32_1 or q0f32"
    with pytest.raises(UserError, match=words):
        convert_folder(folder, quantization)
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parametrize("quantization", ["q0bf16", "q0f32", "e4m3f32_1"])
def test_wide_formats_keep_a_tensor_of_any_magnitude(tmp_path, capsys, quantization):
    tensors = random_tensors(DEEPSEEK_V3)
    tensors[SMALL] *= np.float32(1e-9)
    artifact = Artifact.open(convert_folder(write_checkpoint(tmp_path / "hf", DEEPSEEK_V3, tensors), quantization))
    name = "model.layers.1.mlp.experts.gate_up_proj"
    known = {p.name: p for p in parameters(artifact.model_config)}
    found = stored_matrix(artifact.map_parameters(), known[name], layout_of(quantization))
    rows = len(tensors[SMALL])
    np.testing.assert_allclose(found.reshape(-1, 64)[5 * rows : 6 * rows], tensors[SMALL], rtol=0.1, atol=1e-12)
    assert "warning" not in capsys.readouterr().err


def test_groups_that_become_zeros_beside_others_are_counted_in_one_line(tmp_path, capsys):
    tensors = random_tensors(DEEPSEEK_V3)
    for name in (SMALL, "lm_head.weight"):
        tensors[name][3, :32] = 1e-9
    convert_folder(write_checkpoint(tmp_path / "hf", DEEPSEEK_V3, tensors))
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert "2 groups of values in " in said and " and 1 more lie below the smallest number of q4f16_1" in said


BALANCED = [
    *("self_attn.kv_a_layernorm", "self_attn.kv_b_proj", "self_attn.kv_a_proj_with_mqa", "self_attn.q_a_proj"),
    *("self_attn.q_b_proj", "input_layernorm"),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("leaf", BALANCED)
def test_values_near_float32s_end_are_balanced_or_refused_without_warnings(tmp_path, leaf):
    tensors = random_tensors(DEEPSEEK_V3)
    tensors[f"model.layers.1.{leaf}.weight"].reshape(-1)[5] = 3e38
    folder = write_checkpoint(tmp_path / "hf", DEEPSEEK_V3, tensors)
    arrays = Artifact.open(convert_folder(folder, "q0f32")).map_parameters()
    assert all(np.isfinite(each).all() for each in arrays.values())
    with pytest.raises(UserError, match=r"tensor model.layers.1.\S+ holds a value of magnitude .* beyond the range of"):
        convert_folder(folder, "q4f16_1", "narrow")
    assert not (tmp_path / "narrow").exists()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("leaf", [*BALANCED, "self_attn.q_a_layernorm", "mlp.gate"])
def test_what_is_not_finite_is_refused_by_its_tensor_before_it_is_balanced(tmp_path, leaf, value):
    tensors = random_tensors(DEEPSEEK_V3)
    tensors[f"model.layers.1.{leaf}.weight"].reshape(-1)[5] = value
    folder = write_checkpoint(tmp_path / "hf", DEEPSEEK_V3, tensors)
    with pytest.raises(UserError, match=f"tensor model.layers.1.{leaf}.weight holds NaN or infinity"):
        convert_folder(folder)
    assert not (tmp_path / "artifact").exists()
