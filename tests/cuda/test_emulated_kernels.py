"""Every GPU kernel as CUDA's compiler translates it, tensor cores included, against NumPy: on an emulated GPU."""

from __future__ import annotations

from pathlib import Path

from emulation.gpus import cuda, run_tests

# Of formats the commonest, and those that are unpacked by other instructions; of sampling what threads do together.
FORMATS = "not q0f32 and not q0f16 and not q8f16_1"
KERNELS = f"{FORMATS} and (test_gpu_kernels or equal_logits or more_tokens or finite)"


def test_kernels(tmp_path: Path) -> None:
    run_tests(cuda(tmp_path), tmp_path, "vulkan/test_gpu_kernels.py", "vulkan/test_gpu_sampling.py", "-k", KERNELS)
