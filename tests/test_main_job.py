"""The main job, as a user does it: the installed command, in processes of its own, with an empty cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from golden import checkpoints, tokenizer

COMMAND = Path(sys.executable).parent / "mlc_dsv3"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    """`run(*arguments)`: the installed command, away from the source tree."""
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "XDG_CACHE_HOME": str(home / "cache"), "XDG_DATA_HOME": str(home / "data")}
    environment.pop("PYTHONPATH", None)

    def run_command(*arguments: object, stdin: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [COMMAND, *map(str, arguments)], input=stdin, capture_output=True, text=True, cwd=home, env=environment
        )
        assert done.returncode == code, done.stderr
        return done

    return run_command


def test_the_tests_run_against_the_installed_package() -> None:
    import mlc_dsv3
    import relax_model

    repository = Path(__file__).parents[1]
    for package in (mlc_dsv3, relax_model):
        assert not Path(package.__file__).is_relative_to(repository / package.__name__)


def test_one_command_makes_the_demo_and_it_answers(run) -> None:
    first = run("chat", "--prompt", "What is 3 + 4?", "--temperature", "0", "--json")
    answer = json.loads(first.stdout)
    assert answer["text"]
    assert answer["finish_reason"] == "stop"
    started = time.monotonic()
    second = run("chat", "--prompt", "What is 3 + 4?", "--temperature", "0", "--json")
    assert json.loads(second.stdout)["token_ids"] == answer["token_ids"]
    assert time.monotonic() - started < 60  # nothing is made again


def test_a_checkpoint_goes_step_by_step_through_the_verbs(run, tmp_path: Path) -> None:
    folder = checkpoints.write("deepseek_v3", tmp_path / "tiny")
    tokenizer.write(folder)
    artifact, library = tmp_path / "tiny-q8f16_1-MLC", tmp_path / "tiny.so"
    made = run("convert_weight", folder, "--quantization", "q8f16_1", "-o", artifact)
    assert made.stdout == f"{artifact}\n"
    run("compile", artifact, "--device", "cpu", "-o", library)
    told = json.loads(run("inspect", library, "--json").stdout)
    assert told["quantization"] == "q8f16_1"
    run("inspect", artifact, "--verify")
    answer = run("chat", artifact, "--model-lib", library, "--raw", "--prompt", "ab", "--max-tokens", "8", "--json")
    assert len(json.loads(answer.stdout)["token_ids"]) <= 8
    refused = run("chat", artifact, "--model-lib", library, "--cache-dtype", "int8", "--prompt", "ab", code=2)
    assert refused.stderr.strip().endswith("has a cache in float16, not int8; leave --cache-dtype out")


def test_a_session_is_held_over_a_pipe(run) -> None:
    held = run("chat", "--temperature", "0", stdin="What is 3 + 4?\n/stats\n/exit\n")
    assert held.stdout.strip()
    assert "tok/s" in held.stderr


def test_mistakes_are_one_line_and_exit_code_2(run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    for arguments, text in (
        (("chat", tmp_path), 'model_type is "gpt2"; known: deepseek_v2, deepseek_v3'),
        (("chat", "--device", "abacus", "--prompt", "hi"), "device 'abacus' is unknown"),
        (("chat", "--cache-dtype", "int4", "--prompt", "hi"), "cache dtype 'int4' is unknown; known: float32, float16"),
        (("chat", "--model-lib", tmp_path / "absent.so", "--prompt", "hi"), "is not there"),
        (("chat", "--max-tokens", "0", "--prompt", "hi"), "max_tokens"),
        (("chat", "--prompt", "hi " * 5000), "context window"),
        (("bench", "--depth", "x"), "--depth is 'x'"),
        (("bench", "--device", "vulkan", "--versus", "llama.cpp"), "--versus llama.cpp measures on the CPU"),
        (("bench", "--device", "vulkan", "--quality"), "--quality and --plot are for the device cpu"),
        (("bench", "--random-weights"), "--model-config and --random-weights go together"),
    ):
        done = run(*arguments, code=2)
        assert done.stdout == ""
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1, done.stderr
        assert text in lines[0]
