"""Runs tests of the GPU's kernels and models on emulated GPUs.

Everything but the GPU is what people run. NVIDIA's: our library with nvcc's code in it, and TVM's CUDA runtime, below
which `tests/cuda/emulator` stands in for NVIDIA's two libraries and runs the code's PTX. Apple's: our library, for this
kind of machine in place of a Mac; `tests/metal/emulator` stands in for TVM's Metal runtime, and compiles their source.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_TESTS = Path(__file__).parents[1]
_CUDA, _METAL = (_TESTS / device / "emulator" for device in ("cuda", "metal"))


def cuda(folder: Path) -> dict[str, str]:
    """Environment variables of a process that is to find NVIDIA's GPU; what is made for it goes to `folder`."""
    _run([sys.executable, _CUDA / "build.py", folder])
    return {
        **os.environ,
        "LD_LIBRARY_PATH": f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        "EMULATED_GPU_FOLDER": str(folder),
        "EMULATED_GPU_TRANSLATOR": f"{sys.executable} {_CUDA / 'build.py'} translate",
        "MLC_DSV3_TEST_GPU": "cuda",
    }


def metal(folder: Path) -> dict[str, str]:
    """The same for Apple's, in a process that imports `emulated_metal`."""
    _run([sys.executable, _METAL / "build.py", folder])
    return {
        **os.environ,
        "PYTHONPATH": f"{_METAL}:{os.environ.get('PYTHONPATH', '')}",
        "EMULATED_METAL_FOLDER": str(folder),
        "MLC_DSV3_TEST_GPU": "metal",
    }


def run_tests(environment: dict[str, str], folder: Path, *arguments: str) -> None:
    """Run pytest with these arguments, from the folder of tests on."""
    plugin = ["-p", "emulated_metal"] if environment["MLC_DSV3_TEST_GPU"] == "metal" else []
    options = ["-n0", "-x", "-p", "no:cacheprovider", f"--basetemp={folder / 'tests'}", *plugin]
    command = [sys.executable, "-m", "pytest", *options, *arguments]
    done = subprocess.run(command, cwd=_TESTS, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    # All might have been left out, for want of a GPU.
    assert "passed" in done.stdout, done.stdout


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
