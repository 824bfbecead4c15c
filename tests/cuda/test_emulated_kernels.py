"""Every GPU kernel as CUDA's compiler translates it, tensor cores included, against NumPy: on an emulated GPU."""

from __future__ import annotations

from pathlib import Path

from emulation.gpus import cuda, run_tests


def test_kernels(tmp_path: Path) -> None:
    # Of the unquantized ones one is enough.
    run_tests(
        cuda(tmp_path),
        tmp_path,
        "vulkan/test_gpu_kernels.py",
        "vulkan/test_gpu_sampling.py",
        "-k",
        "not q0f32 and not q0f16",
    )
