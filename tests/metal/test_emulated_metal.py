"""Kernels and whole models as TVM writes them for Metal, against NumPy, transformers and the CPU's library: on an
emulated GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from emulation.gpus import metal, run_tests

# All instructions are among these, and tests of NVIDIA's GPU and of Vulkan's take the others.
KERNELS = "not q0f32 and not q0f16 and not e4m3"
MODELS = "deepseek_v3 and (transformers or launches or draft or expanded) or quantized and q4f16_1 or same_bits"
EMULATED = Path(__file__).parent / "emulator" / "emulated_metal.py"


def test_kernels(tmp_path: Path) -> None:
    run_tests(metal(tmp_path), tmp_path, "vulkan/test_gpu_kernels.py", "vulkan/test_gpu_sampling.py", "-k", KERNELS)


def test_models(tmp_path: Path) -> None:
    run_tests(metal(tmp_path), tmp_path, "vulkan/test_model.py", "-k", MODELS)


def test_measuring(tmp_path: Path) -> None:
    run_tests(metal(tmp_path), tmp_path, "vulkan/test_device_bench.py")


def test_chat_answers_and_tune_measures(tmp_path: Path) -> None:
    """Converted, compiled and run as `chat` does it."""
    folders = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_DATA_HOME": str(tmp_path / "data")}
    environment = {**metal(tmp_path / "gpu"), **folders}

    def run(*arguments: str) -> Any:
        command = [sys.executable, EMULATED, *arguments, "--device", "metal", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert run("chat", "--prompt", "What is 34 + 57?")["text"].endswith("= 91.")
    first, *_ = run("tune", "--seconds", "1")
    assert all(seconds > 0 for both in first["seconds"].values() for seconds in both)
