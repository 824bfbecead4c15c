"""What each verb but chat hands to its package and prints, and what it says about bad input."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlc_dsv3 import compiler, errors
from mlc_dsv3.cli.main import VERBS, main
from mlc_dsv3.compiler.link import link
from mlc_dsv3.compiler.note import write_note
from mlc_dsv3.compiler.targets import host_of
from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.prepare import prepare


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """What the compiler is asked for; it makes nothing."""
    calls: list[SimpleNamespace] = []

    def compile_model(config, quantization, device, output, *, level, context_window, **_: object):
        calls.append(SimpleNamespace(**locals()))
        return output

    monkeypatch.setattr(compiler, "compile_model", compile_model)
    return calls


def edited_config(checkpoint: Path, folder: Path, **fields: object) -> Path:
    config = json.loads((checkpoint / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_convert_weight_prints_the_artifact(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert_weight", str(checkpoint), "--quantization", "q4f16_1", "--no-mtp"]) == 0
    assert capsys.readouterr().out == "tiny-q4f16_1-MLC\n"
    written = json.loads((tmp_path / "tiny-q4f16_1-MLC" / "mlc-chat-config.json").read_text())
    assert written["quantization"] == "q4f16_1"
    assert written["model_config"]["num_nextn_predict_layers"] == 0


def test_gen_config_writes_the_configuration_and_the_tokenizer(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "artifact"
    options = ["--quantization", "q0f16", "--context-window-size", "32", "--conv-template", "mine"]
    assert main(["gen_config", str(checkpoint), "-o", str(output), *options]) == 0
    assert capsys.readouterr().out == f"{output / 'mlc-chat-config.json'}\n"
    written = json.loads((output / "mlc-chat-config.json").read_text())
    assert (written["quantization"], written["context_window_size"], written["conv_template"]) == ("q0f16", 32, "mine")
    assert sorted(path.name for path in output.iterdir()) == sorted(
        ["mlc-chat-config.json", *written["tokenizer_files"]]
    )


def test_compile_takes_a_checkpoint_a_config_or_an_artifact(
    checkpoint: Path, artifact: Path, tmp_path: Path, compiled: list, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", str(checkpoint), "--quantization", "q0f32", "--device", "cpu"]) == 0
    assert main(["compile", str(checkpoint / "config.json"), "--quantization", "q0f32"]) == 0
    assert main(["compile", str(artifact), "-o", str(tmp_path / "a.so"), "--level", "x", "--context-window", "8"]) == 0
    suffix = "dylib" if sys.platform == "darwin" else "so"
    name = f"tiny-q0f32-cpu.{suffix}"
    assert capsys.readouterr().out.splitlines() == [name, name, str(tmp_path / "a.so")]
    assert compiled[0].config == compiled[1].config == compiled[2].config
    assert [call.quantization for call in compiled] == ["q0f32"] * 3
    assert (compiled[2].level, compiled[2].context_window) == ("x", 8)


def test_an_unknown_level_lists_the_known_ones(artifact: Path, complaint: Callable[..., str]) -> None:
    for device, known in (("cpu", "x86-64-avx2"), ("vulkan", "discrete-32, discrete-64, integrated, cpu")):
        said = complaint("compile", artifact, "--device", device, "--level", "abacus")
        assert "--level 'abacus' is unknown; known: " in said
        assert known in said


def test_ignored_fields_reach_the_configuration(checkpoint: Path, tmp_path: Path, compiled: list) -> None:
    folder = edited_config(checkpoint, tmp_path, novelty=1, second_novelty=2, third_novelty=3)
    ignored = ["--ignore-config-field", "novelty,second_novelty", "--ignore-config-field", "third_novelty"]
    assert main(["compile", str(folder), "--quantization", "q0f32", *ignored]) == 0
    assert len(compiled) == 1


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - {"devices"}))
def test_every_verb_that_reads_a_configuration_takes_the_advice_to_ignore_a_field(verb: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert "--ignore-config-field" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("named", "options", "maker"),
    [
        ("{folder}", (), "prepare"),
        ("{folder}", ("--speculative", "1"), "prepare"),
        ("--model-config={folder}/config.json", ("--random-weights",), "random_artifact"),
    ],
)
def test_bench_goes_on_without_ignored_fields(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    complaint: Callable[..., str],
    named: str,
    options: tuple[str, ...],
    maker: str,
) -> None:
    def make(*given: object, **others: object) -> None:
        fields = given[0] if maker == "random_artifact" else {}
        raise UserError(f"made with {'novelty' in fields} {others.get('ignore_config_fields')}")

    monkeypatch.setattr(f"mlc_dsv3.bench.subject.{maker}", make)
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    named = named.format(folder=edited_config(checkpoint, tmp_path, novelty=1))
    options = (*options, "--prefill", "16", "--decode", "4") if "--speculative" not in options else options
    assert "--ignore-config-field novelty" in complaint("bench", named, *options)
    expected = "made with False None" if maker == "random_artifact" else "made with False ['novelty']"
    assert expected in complaint("bench", named, *options, "--ignore-config-field", "novelty")


def test_a_field_to_ignore_that_is_not_there_is_told(
    checkpoint: Path, artifact: Path, tmp_path: Path, compiled: list, capsys: pytest.CaptureFixture[str]
) -> None:
    edited_config(checkpoint, tmp_path, novelty=1)
    for model in (tmp_path, tmp_path / "config.json"):
        errors._said.clear()
        ignored = ["--ignore-config-field", "novelty,noveltee"]
        assert main(["compile", str(model), "--quantization", "q0f32", *ignored]) == 0
        said = capsys.readouterr().err
        assert f"warning: {tmp_path / 'config.json'} has no field noveltee to ignore (--ignore-config-field)" in said
        assert said.count("\n") == 1
    assert main(["inspect", str(artifact), "--ignore-config-field", "a,b"]) == 0
    assert "mlc-chat-config.json has no fields a, b to ignore" in capsys.readouterr().err


def test_an_artifacts_unknown_field_can_be_ignored(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complaint: Callable[..., str], capsys
) -> None:
    copied = shutil.copytree(artifact, tmp_path / "copy")
    config = json.loads((copied / "mlc-chat-config.json").read_text())
    config["model_config"]["novelty"] = 1
    (copied / "mlc-chat-config.json").write_text(json.dumps(config))
    assert "--ignore-config-field novelty" in complaint("inspect", copied)
    assert main(["inspect", str(copied), "--ignore-config-field", "novelty"]) == 0
    capsys.readouterr()
    monkeypatch.setattr("mlc_dsv3.runtime.prepare.cached_library", lambda *_: (tmp_path / "a.so", False))
    opened = prepare(copied, "q0f32", "cpu", None, ignore_config_fields=["novelty"])
    assert "novelty" not in opened.artifact.chat_config["model_config"]


@dataclass
class Device:
    name: str
    can_compile: bool
    can_run: bool
    reason: str


def test_devices_as_a_table_and_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = [Device("cpu", True, True, "x86-64-v3"), Device("cuda", True, False, "no [driver]" + " here" * 40)]
    monkeypatch.setitem(sys.modules, "mlc_dsv3.compiler", SimpleNamespace(devices=lambda: found))
    assert main(["devices"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["cpu", "yes", "yes", "x86-64-v3"]
    assert lines[2].split(maxsplit=3) == ["cuda", "yes", "no", found[1].reason]
    assert all(line == line.rstrip() for line in lines)
    assert main(["devices", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [vars(device) for device in found]


def test_inspect_an_artifact(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(artifact), "--verify"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["quantization"].strip() == "q0f32"
    assert rows["verified"].strip() == "yes"
    assert main(["inspect", str(artifact), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["model_type"] == "deepseek_v3"
    assert content["verified"] is False
    assert sum(entry["nbytes"] for entry in content["parameters"]) <= content["nbytes"]


def test_inspect_finds_a_changed_byte(artifact: Path, tmp_path: Path, complaint: Callable[..., str]) -> None:
    for path in artifact.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = tmp_path / "params_shard_0.bin"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    assert str(shard) in complaint("inspect", tmp_path, "--verify")


def test_inspect_a_library(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metadata = {"model_type": "deepseek_v3", "page_size": 16, "device": "vulkan"}
    kernel = {"name": "linear_kernel", "threads": 64, "shared_bytes": 128, "parameters": 4}
    note = {"metadata": metadata, "operators": ["linear"], "kernels": [kernel]}
    library = tmp_path / "a.so"
    link(library, [write_note(note, tmp_path / "note.c")], host_of("cpu"))
    assert main(["inspect", str(library), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"kind": "library", "path": str(library), **metadata, "operators": ["linear"], "kernels": [kernel]}
    assert main(["inspect", str(library)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["linear_kernel", "64", "128", "4"]


@pytest.mark.parametrize("verb", ["convert_weight", "gen_config", "compile"])
def test_bad_checkpoints_are_named(verb: str, checkpoint: Path, tmp_path: Path, complaint: Callable[..., str]) -> None:
    def run(path: Path, quantization: str = "q0f32") -> str:
        return complaint(verb, path, "--quantization", quantization, "-o", tmp_path / "out")

    assert "does not exist" in run(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "config.json" in run(tmp_path / "empty")
    assert "known: q0f32" in run(checkpoint, "q5")
    assert "known: deepseek_v2" in run(edited_config(checkpoint, tmp_path, model_type="llama"))
    assert "--ignore-config-field novelty" in run(edited_config(checkpoint, tmp_path, novelty=1))
    (tmp_path / "config.json").write_text("{")
    assert "config.json is not valid JSON" in run(tmp_path)


def test_quantization_is_required_where_nothing_states_it(checkpoint: Path, complaint: Callable[..., str]) -> None:
    assert "--quantization is required; known: q0f32" in complaint("compile", checkpoint)
    assert "--quantization is required" in complaint("convert_weight", checkpoint)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chat", ""], "the argument after chat is empty; give a value, or leave it out"),
        (["compile", "folder", "--arch", ""], "the argument after --arch is empty"),
        (["compile", "folder", "--level="], "--level is empty; give a value"),
        (["bench", "--quantization", ""], "the argument after --quantization is empty"),
    ],
)
def test_an_empty_argument_is_refused(arguments: list[str], said: str, complaint: Callable[..., str]) -> None:
    assert said in complaint(*arguments)


@pytest.mark.parametrize("verb", ["chat", "bench"])
def test_help_says_what_the_device_auto_is(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert "`mlc_dsv3 devices` lists devices (auto: cpu)" in " ".join(capsys.readouterr().out.split())


def test_the_context_window_goes_by_two_names(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("--context-window", "--context-window-size"):
        options = ["--quantization", "q0f16", name, "32", "-o", str(tmp_path)]
        assert main(["gen_config", str(checkpoint), *options]) == 0
        assert json.loads((tmp_path / "mlc-chat-config.json").read_text())["context_window_size"] == 32


def test_a_text_may_come_from_what_is_no_regular_file(tmp_path: Path, complaint: Callable[..., str]) -> None:
    assert "--experts is /dev/null, which is empty" in complaint("bench", "--experts", "/dev/null")
    assert "which is a folder; it takes a file of text" in complaint("bench", "--experts", tmp_path)


def test_inspect_names_what_it_cannot_read(tmp_path: Path, complaint: Callable[..., str]) -> None:
    assert "does not exist" in complaint("inspect", tmp_path / "absent")
    assert "mlc-chat-config.json" in complaint("inspect", tmp_path)
    (tmp_path / "a.so").touch()
    assert "/dev/null is no library of this program: it is no regular file" in complaint("inspect", "/dev/null")
    assert "is a library" in complaint("inspect", tmp_path / "a.so", "--verify")


def test_a_name_on_the_hub_is_downloaded(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, compiled: list) -> None:
    from huggingface_hub.utils import filter_repo_objects

    asked = []

    def snapshot_download(repository: str, **options: object) -> str:
        asked.append((repository, options))
        return str(checkpoint)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert main(["compile", "someone/tiny-model", "--quantization", "q0f32"]) == 0
    assert asked[0][0] == "someone/tiny-model"
    published = ["config.json", "a.safetensors", "fp8/a.safetensors", "fp8/config.json", "original/tokenizer.json"]
    published += ["additional_chat_templates/tool_use.jinja", "additional_chat_templates/rag.jinja", "README.md"]
    patterns = {name: asked[0][1][name] for name in ("allow_patterns", "ignore_patterns")}
    assert list(filter_repo_objects(published, **patterns)) == [*published[:2], published[5]]
    assert compiled[0].output.name.startswith("tiny-model-q0f32-cpu.")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("RepositoryNotFoundError", "no public repository"),
        ("GatedRepoError", "licence"),
        ("LocalEntryNotFoundError", "cannot be reached"),
        ("OfflineModeIsEnabled", "cannot be reached"),
        ("HFValidationError", "cannot be downloaded"),
    ],
)
def test_a_failed_download_says_why(
    monkeypatch: pytest.MonkeyPatch, complaint: Callable[..., str], error: str, said: str
) -> None:
    from huggingface_hub import errors

    def snapshot_download(*_: object, **__: object) -> str:
        # Their constructors want the server's response, which nothing here looks at.
        raise getattr(errors, error).__new__(getattr(errors, error), "one\ntwo")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    text = complaint("compile", "someone/tiny-model", "--quantization", "q0f32")
    assert "someone/tiny-model" in text
    assert said in text
