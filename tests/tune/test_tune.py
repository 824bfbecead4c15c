"""`mlc_dsv3 tune` as a user has it: a record that `compile` uses, and mistakes said in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlc_dsv3.cli.main import main

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from tiny_shape import tiny

COMMAND = [sys.executable, "-m", "mlc_dsv3"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config.json of one dense layer."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tiny(num_hidden_layers=1, num_attention_heads=1)))
    return path


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--threads", "0"], "--threads is 0; this machine has 1 to"),
        (["--seconds", "0"], "--seconds is 0.0; it must be more than 0"),
        (["--seconds", "nan"], "--seconds is nan; it must be more than 0"),
        (["--quantization", "q5"], "quantization 'q5' is unknown"),
        (["--device", "abacus"], "device 'abacus' is unknown"),
        (["-o", "."], ". is a folder; name a file in it"),
    ],
)
def test_mistakes_are_said_in_one_line(
    config: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", str(config), *options]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert shown.err.count("\n") == 1


def test_a_model_that_is_not_there_is_a_users_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "no/such/model.json"]) == 2
    assert capsys.readouterr().err.startswith("mlc_dsv3: error: ")


@pytest.mark.full
def test_a_tuned_record_is_what_compile_uses(config: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path / "data"), "HOME": str(tmp_path)}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=True)

    done = run("tune", config, "--quantization", "q0f32", "--seconds", "1", "--json")
    kernels = json.loads(done.stdout)
    assert kernels
    assert all({"kernel", "tile", "seconds", "gain"} <= set(kernel) for kernel in kernels)
    record = Path(done.stderr.strip().removeprefix("written to "))
    assert tmp_path in record.parents

    # Which tile is faster is the machine's business; that a choice is used, ours.
    content = json.loads(record.read_text())
    linear = next(each for each in content["kernels"] if each["kernel"].startswith("linear layout=q0f32"))
    content["kernels"] = [linear | {"tile": {"rows": 2}}]
    record.write_text(json.dumps(content))
    compiled = run("compile", config, "--quantization", "q0f32", "-o", tmp_path / "lib.so")
    assert compiled.stderr == ""
    assert json.loads(run("inspect", tmp_path / "lib.so", "--json").stdout)["tuned"] == [linear["kernel"]]
