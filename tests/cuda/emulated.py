"""Runs tests of the GPU's kernels and models on an emulated NVIDIA GPU.

Everything but the GPU is what people run: our library with nvcc's code in it, and TVM's CUDA runtime. `emulator/`
stands in for NVIDIA's two libraries and runs the code's PTX on the CPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_TESTS = Path(__file__).parents[1]
_BUILD = _TESTS / "cuda" / "emulator" / "build.py"


def environment(folder: Path) -> dict[str, str]:
    """Environment variables of a process that is to find the GPU; what is made for it goes to `folder`."""
    subprocess.run([sys.executable, str(_BUILD), str(folder)], check=True)
    return {
        **os.environ,
        "LD_LIBRARY_PATH": f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        "EMULATED_GPU_FOLDER": str(folder),
        "EMULATED_GPU_TRANSLATOR": f"{sys.executable} {_BUILD} translate",
    }


def run_tests(folder: Path, *arguments: str) -> None:
    """Run pytest with these arguments, from the folder of tests on."""
    command = [sys.executable, "-m", "pytest", "-n0", "-x", "-p", "no:cacheprovider", f"--basetemp={folder / 'tests'}"]
    on_gpu = {**environment(folder), "MLC_DSV3_TEST_GPU": "cuda"}
    done = subprocess.run([*command, *arguments], cwd=_TESTS, env=on_gpu, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    # All might have been left out, for want of a GPU.
    assert "passed" in done.stdout, done.stdout
