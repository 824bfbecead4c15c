"""Kernels and whole models as TVM writes them for Metal, against NumPy, transformers and the CPU's library: on an
emulated GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from emulation.gpus import metal, run_tests

CASES = "deepseek_v3 and (transformers or launches or draft or expanded) or quantized or same_bits or pages"
EMULATED = Path(__file__).parent / "emulator" / "emulated_metal.py"


def test_kernels(tmp_path: Path) -> None:
    run_tests(metal(tmp_path), tmp_path, "vulkan/test_gpu_kernels.py", "vulkan/test_gpu_sampling.py", "-k", "not q0f16")


def test_models(tmp_path: Path) -> None:
    run_tests(metal(tmp_path), tmp_path, "vulkan/test_model.py", "-k", CASES)


def test_measuring(tmp_path: Path) -> None:
    run_tests(metal(tmp_path), tmp_path, "vulkan/test_device_bench.py")


def test_chat_answers(tmp_path: Path) -> None:
    """Converted, compiled and run as `chat` does it."""
    environment = {**metal(tmp_path / "gpu"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    question = ["chat", "--device", "metal", "--prompt", "What is 34 + 57?", "--json"]
    done = subprocess.run([sys.executable, EMULATED, *question], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"].endswith("= 91.")
