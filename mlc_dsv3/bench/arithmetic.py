"""How fast a device can multiply: the limit that long prompts and large batches are held against."""

from __future__ import annotations

import os
import subprocess
import sys

from mlc_dsv3.bench.device_arithmetic import Arithmetic
from mlc_dsv3.bench.host_arithmetic import DotArithmetic
from mlc_dsv3.bench.remote import Remote
from mlc_dsv3.compiler.targets import CompileTarget
from relax_model.layout import PackedLayout, layout_of

_PASSES = 5
_PEAK_PROGRAM = """
import time, numpy as np
a = np.ones((2048, 2048), np.float32)
def seconds():
    started = time.perf_counter()
    a @ a
    return time.perf_counter() - started
print(2 * 2048**3 / min(seconds() for _ in range(6)) / 1e9)
"""


def limit_gflops(target: CompileTarget, quantization: str, threads: int) -> float:
    """Thousand million operations a second that the kernels of a quantization could do if they only multiplied.

    On the CPU dot products of 8-bit codes beside packed weights, and NumPy's float32 product beside others.
    """
    layout = layout_of(quantization)
    if target.device != "cpu":
        return 1e3 * device_tflops(target)
    if not isinstance(layout, PackedLayout):
        return float32_gflops(threads)
    with Remote(DotArithmetic, target, layout, threads) as process:
        return process.call("best", _PASSES) / 1e9


def device_tflops(target: CompileTarget) -> float:
    """A GPU's TFLOP/s, in a process of its own."""
    with Remote(Arithmetic, target) as process:
        return process.call("best", _PASSES)


def float32_gflops(threads: int) -> float:
    """GFLOP/s of NumPy's float32 matrix product on so many threads, which stands for what the processor can compute.

    In a process of its own, since a BLAS takes its number of threads at its start.
    """
    limits = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), str(threads))
    done = subprocess.run(
        [sys.executable, "-c", _PEAK_PROGRAM], env={**os.environ, **limits}, capture_output=True, text=True, check=True
    )
    return float(done.stdout)
