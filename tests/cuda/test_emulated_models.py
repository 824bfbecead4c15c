"""Whole models on an emulated NVIDIA GPU, against transformers and the CPU's library."""

from __future__ import annotations

from pathlib import Path

from emulated import run_tests

CASES = "deepseek_v3 and (transformers or graph or launches) or cuda_makes or quantized or drafts or bits_whatever"


def test_models(tmp_path: Path) -> None:
    run_tests(tmp_path, "vulkan/test_model.py", "-k", CASES)
