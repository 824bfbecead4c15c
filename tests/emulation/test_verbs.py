"""The verbs on an NVIDIA or Apple GPU, real or emulated: chat answers, tune measures, compile takes its choice."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from golden import checkpoints

from emulation.session import FOLDERS, TESTS

DEVICE = os.environ.get("MLC_DSV3_TEST_GPU", "vulkan")
# Metal is emulated within a process, CUDA below one.
EMULATED_METAL = DEVICE == "metal" and FOLDERS["metal"] in os.environ
PROGRAM = [str(TESTS / "metal" / "emulator" / "emulated_metal.py")] if EMULATED_METAL else ["-m", "mlc_dsv3"]
pytestmark = pytest.mark.skipif(DEVICE == "vulkan", reason="test_model.py has Vulkan's")


@pytest.fixture
def run(tmp_path: Path):
    """`run(*arguments)`: the command, with folders of its own and DEVICE; what it says as JSON, and its notes."""
    environment = {**os.environ, **{f"XDG_{kind}_HOME": str(tmp_path / kind) for kind in ("CACHE", "DATA")}}

    def run_command(*arguments: object) -> tuple[Any, str]:
        command = [sys.executable, *PROGRAM, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if "--json" in arguments else done.stdout, done.stderr

    return run_command


def test_chat_answers(run) -> None:
    answer, _ = run("chat", "--prompt", "What is 34 + 57?", "--device", DEVICE, "--json")
    assert answer["text"].endswith("= 91.")


def test_tune_times_kernels_and_compile_takes_its_choice(run, tmp_path: Path) -> None:
    config = checkpoints.write("deepseek_v3", tmp_path / "model") / "config.json"
    quantized = ("--device", DEVICE, "--quantization", "q4f16_1")
    _, notes = run("tune", config, *quantized, "--seconds", "1", "--json")
    record = Path(notes.strip().removeprefix("written to "))
    content = json.loads(record.read_text())
    assert content["device"] == DEVICE
    first = content["kernels"][0]
    assert all(seconds > 0 for both in first["seconds"].values() for seconds in both)
    content["kernels"] = [first | {"tile": {"threads": 64}}]
    record.write_text(json.dumps(content))
    run("compile", config, *quantized, "-o", tmp_path / "lib.so")
    described, _ = run("inspect", tmp_path / "lib.so", "--json")
    assert described["tuned"] == [first["kernel"]]


def test_chat_holds_its_answer_to_a_grammar(run) -> None:
    """The pattern is long enough that CUDA records a graph of masked sampling."""
    pattern = r"(Anna|Ben|Leo) has (a|the) (red|green|blue) (ball|key|lamp) and [0-9]{2} (apples|nuts)\."
    options = ("--temperature", "1", "--seed", "3", "--speculative", "2", "--device", DEVICE, "--json")
    answer, _ = run("chat", "--prompt", "What is 34 + 57?", "--regex", pattern, *options)
    assert re.fullmatch(pattern, answer["text"])
