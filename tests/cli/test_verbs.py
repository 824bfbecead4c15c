"""What each verb hands to its package and prints, and what it says about bad input."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from golden import checkpoints, tokenizer

from mlc_dsv3 import compiler
from mlc_dsv3.cli.main import main
from mlc_dsv3.compiler.link import link
from mlc_dsv3.compiler.note import write_note
from mlc_dsv3.compiler.targets import host_of
from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.engine import EngineStats


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = checkpoints.write("deepseek_v3", tmp_path_factory.mktemp("models") / "tiny")
    tokenizer.write(folder)
    return folder


@pytest.fixture(scope="module")
def artifact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts") / "tiny-q0f32-MLC"
    assert main(["convert_weight", str(checkpoint), "--quantization", "q0f32", "-o", str(folder)]) == 0
    return folder


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """What the compiler is asked for; it makes nothing."""
    calls: list[SimpleNamespace] = []

    def compile_model(config, quantization, device, output, *, level, context_window, **_: object):
        calls.append(SimpleNamespace(**locals()))
        return output

    monkeypatch.setattr(compiler, "compile_model", compile_model)
    return calls


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command line that must fail as a user's mistake; what it says."""

    def run(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("mlc_dsv3: error: ")
        assert shown.err.count("\n") == 1
        return shown.err

    return run


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


def test_inspect_names_what_it_cannot_read(tmp_path: Path, complaint: Callable[..., str]) -> None:
    assert "does not exist" in complaint("inspect", tmp_path / "absent")
    assert "mlc-chat-config.json" in complaint("inspect", tmp_path)
    (tmp_path / "a.so").touch()
    assert "is a library" in complaint("inspect", tmp_path / "a.so", "--verify")


def test_a_name_on_the_hub_is_downloaded(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, compiled: list) -> None:
    asked = []

    def snapshot_download(repository: str, **options: object) -> str:
        asked.append((repository, options))
        return str(checkpoint)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert main(["compile", "someone/tiny-model", "--quantization", "q0f32"]) == 0
    assert asked[0][0] == "someone/tiny-model"
    assert "*.safetensors" in asked[0][1]["allow_patterns"]
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


class FakeLLM:
    """Stands for `LLM` in the chat verb: keeps how it was made, and answers with the words it was given."""

    made: dict[str, object]
    template_error: UserError | None = None
    answer = "An answer."
    context_window = 100

    def __init__(self, model: object, *, check_tokenizer: Callable, **options: object) -> None:
        from mlc_dsv3.runtime.sampling import SamplingParams

        check_tokenizer(self.tokenizer)
        FakeLLM.made = {"model": model, **options}
        self.artifact = SimpleNamespace(quantization="q4f16_1")
        self.device = "cpu"
        self.default_params = SamplingParams(temperature=0.6, top_p=0.9)
        self.stats = EngineStats()

    @property
    def tokenizer(self) -> SimpleNamespace:
        def chat_prompt(prompt: object, **_: object) -> None:
            if self.template_error is not None:
                raise self.template_error

        template = SimpleNamespace(variables={"messages", "thinking"}, origin="folder/chat_template.jinja")
        return SimpleNamespace(chat_template=template, chat_prompt=chat_prompt, thinking_variables=("thinking",))

    def answer_opening(self, prompt: object, **options: object) -> str:
        return ""

    def stream(self, prompt: object, params: object, **options: object):
        FakeLLM.made |= {"prompt": prompt, "params": params, **options}
        yield SimpleNamespace(text=self.answer, token_ids=(1, 2), finish_reason="stop", prompt_tokens=3)


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> type[FakeLLM]:
    monkeypatch.setattr("mlc_dsv3.runtime.llm.LLM", FakeLLM)
    return FakeLLM


def stdin(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_chat_answers_one_prompt(llm: type[FakeLLM], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--quantization", "q8f16_1", "--device", "cpu", "--model-lib", "a.so", "--ignore-config-field", "x"]
    options += ["--cache-dtype", "int8"]
    assert main(["chat", "folder", "--prompt", " Hello? ", "--system", "Be brief.", *options]) == 0
    assert capsys.readouterr().out == "An answer.\n"
    assert llm.made["model"] == "folder"
    assert llm.made["quantization"] == "q8f16_1"
    assert llm.made["device"] == "cpu"
    assert llm.made["model_lib"] == Path("a.so")
    assert llm.made["cache_dtype"] == "int8"
    assert llm.made["ignore_config_fields"] == ["x"]
    assert llm.made["prompt"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello?"},
    ]


def test_chat_options_go_over_the_models_defaults(llm: type[FakeLLM]) -> None:
    options = ["--temperature", "0", "--top-k", "5", "--max-tokens", "7", "--seed", "1", "--stop", "a", "--stop", "b"]
    assert main(["chat", "--prompt", "x", *options, "--ignore-eos"]) == 0
    params = llm.made["params"]
    assert (params.temperature, params.top_k, params.max_tokens, params.seed) == (0, 5, 7, 1)
    assert (params.stop, params.ignore_eos, params.top_p) == (("a", "b"), True, 0.9)


def test_chat_reads_the_prompt_from_a_pipe_and_answers_in_json(
    llm: type[FakeLLM], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(monkeypatch, "two\nlines\n")
    assert main(["chat", "--prompt", "-", "--raw", "--json"]) == 0
    assert llm.made["prompt"] == "two\nlines\n"
    answer = json.loads(capsys.readouterr().out)
    assert (answer["text"], answer["model"], answer["quantization"], answer["device"]) == (
        "An answer.",
        "demo",
        "q4f16_1",
        "cpu",
    )


def test_chat_takes_bytes_that_are_no_text(
    llm: type[FakeLLM], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\xffb"), encoding="utf-8"))
    assert main(["chat", "--prompt", "-", "--raw"]) == 0
    assert llm.made["prompt"] == "a\ufffdb"


def test_chat_answers_a_terminal_of_another_encoding(llm: type[FakeLLM], monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(llm, "answer", "Größe.")
    assert main(["chat", "--prompt", "x"]) == 0
    assert written.getvalue() == b"Gr??e.\n"


def test_chat_answers_lines_in_json_lines(
    llm: type[FakeLLM], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(monkeypatch, "one\ntwo\n")
    assert main(["chat", "--json"]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ["An answer."] * 2
    assert len(llm.made["prompt"]) == 3


def test_chat_holds_a_session_and_introduces_the_demo(
    llm: type[FakeLLM], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlc_dsv3.demo import HINT

    stdin(monkeypatch, "hello\n")
    assert main(["chat"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "An answer.\n"
    assert shown.err.splitlines() == ["demo · q4f16_1 · cpu  (/help lists the commands)", HINT]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-tokens", "0"], "max_tokens is 0"),
        (["--temperature", "-1"], "temperature is -1"),
        (["--top-p", "1.5"], "top_p is 1.5"),
        (["--prompt", "  "], "--prompt is empty"),
        (["--prompt", "-"], "standard input has no prompt"),
        (["--raw", "--system", "x"], "--raw uses no chat template; leave out --system"),
        (["--raw", "--template-kwargs", '{"thinking": true}'], "leave out --template-kwargs"),
        (["--template-kwargs", "{thinking: true}"], "--template-kwargs: '{thinking: true}' is not valid JSON"),
        (["--template-kwargs", "[1]"], "'[1]' is not a JSON object, such as {\"thinking\": true}"),
        (["--on-overflow", "forget"], "--on-overflow: invalid choice: 'forget'"),
    ],
)
def test_chat_refuses_before_it_loads_anything(
    monkeypatch: pytest.MonkeyPatch, complaint: Callable[..., str], arguments: list[str], said: str
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("loaded a model")

    monkeypatch.setattr("mlc_dsv3.runtime.llm.LLM", never)
    stdin(monkeypatch, "\n")
    assert said in complaint("chat", *arguments)


def test_chat_misses_a_template_before_the_first_message(
    llm: type[FakeLLM], monkeypatch: pytest.MonkeyPatch, complaint: Callable[..., str]
) -> None:
    monkeypatch.setattr(llm, "template_error", UserError("tiny has no chat template"))
    assert "no chat template" in complaint("chat", "tiny", "--prompt", "x")
    assert main(["chat", "tiny", "--prompt", "x", "--raw"]) == 0


def test_chat_hands_on_what_the_template_is_to_be_told(llm: type[FakeLLM], complaint: Callable[..., str]) -> None:
    options = ["--template-kwargs", '{"thinking": true}', "--parse-control-tokens"]
    assert main(["chat", "--prompt", "x", *options]) == 0
    assert (llm.made["template_kwargs"], llm.made["parse_control_tokens"]) == ({"thinking": True}, True)
    assert main(["chat", "--prompt", "x"]) == 0
    assert (llm.made["template_kwargs"], llm.made["parse_control_tokens"]) == ({}, False)


def test_chat_refuses_a_variable_that_the_template_does_not_have(
    llm: type[FakeLLM], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", "--template-kwargs", '{"thinknig": true, "thinking": true}']) == 2
    assert "the chat template in folder/chat_template.jinja has no variable thinknig" in capsys.readouterr().err


def without(checkpoint: Path, folder: Path, *names: str) -> Path:
    """A checkpoint without some of its files."""
    return Path(shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns(*names)))


@pytest.mark.parametrize(
    ("make", "arguments", "said"),
    [
        (lambda source, to: without(source, to, "tokenizer*"), (), "has no tokenizer"),
        (lambda source, to: without(source, to, "tokenizer*"), ("--raw",), "has no tokenizer"),
        (lambda source, to: with_template(source, to, None), (), "has no chat template"),
        (lambda source, to: with_template(source, to, "{% if %}"), (), "not valid Jinja"),
        (lambda source, to: with_template(source, to, REFUSING), ("--system", "Be brief."), "no system prompts here"),
        (lambda source, to: with_template(source, to, REFUSING), ("--template-kwargs", '{"x": 1}'), "no variable x"),
    ],
)
@pytest.mark.parametrize("made", ["checkpoint", "artifact"])
def test_chat_misses_what_a_conversation_needs_before_it_converts_or_compiles(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    complaint: Callable[..., str],
    tmp_path: Path,
    made: str,
    make: Callable[[Path, Path], Path],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("made something")

    for name in ("convert", "pack_artifact", "cached_library"):
        monkeypatch.setattr(f"mlc_dsv3.runtime.prepare.{name}", never)
    folder = make(request.getfixturevalue(made), tmp_path / "copy")
    capsys.readouterr()  # what made the fixture says its name
    assert said in complaint("chat", folder, "--prompt", "x", *arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rebalance", "{folder}", "--text", "{text}"], "has no tokenizer"),
        (["bench", "{folder}", "--experts", "{text}"], "has no tokenizer"),
        (["bench", "{folder}", "--speculative", "1", "--prompts", "{text}"], "has no tokenizer"),
    ],
)
def test_a_text_needs_a_tokenizer_before_anything_is_converted_or_compiled(
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    complaint: Callable[..., str],
    tmp_path: Path,
    arguments: list[str],
    said: str,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("made something")

    for name in ("convert", "pack_artifact", "cached_library"):
        monkeypatch.setattr(f"mlc_dsv3.runtime.prepare.{name}", never)
    (tmp_path / "text.txt").write_text("Some words.")
    folder = without(checkpoint, tmp_path / "copy", "tokenizer*")
    assert said in complaint(*(argument.format(folder=folder, text=tmp_path / "text.txt") for argument in arguments))


REFUSING = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system prompts here') }}{% endif %}"
    "{{ m.content }}{% endfor %}"
)


def with_template(checkpoint: Path, folder: Path, template: str | None) -> Path:
    """A checkpoint with another chat template, or with none."""
    shutil.copytree(checkpoint, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    return folder
