"""How fast a GPU reads its memory: a kernel that does nothing else, in a process of its own."""

from __future__ import annotations

import time
from typing import Any

from mlc_dsv3.bench.bandwidth import DEFAULT_BYTES
from mlc_dsv3.bench.remote import Remote
from mlc_dsv3.compiler.targets import CompileTarget

_THREADS, _BLOCKS, _WORDS = 256, 2048, 4  # 32-bit words that a thread reads at once


class DeviceBandwidthMeter:
    """As `BandwidthMeter`, for a device that kernels are compiled for."""

    def __init__(self, target: CompileTarget, nbytes: int = DEFAULT_BYTES) -> None:
        self._target, self._nbytes = target, nbytes
        self.best = 0.0

    def measure(self, passes: int = 3) -> float:
        """Take `passes` more passes, in a process that gives its memory back, and return the best of all so far."""
        with Remote(_Stream, self._target, self._nbytes) as process:
            self.best = max(self.best, process.call("best", passes))
        return self.best


class _Stream:
    """Reads a buffer again and again."""

    def __init__(self, target: CompileTarget, nbytes: int) -> None:
        import tvm
        from tvm.script import tirx as T

        from mlc_dsv3.compiler.compile import backend, tvm_target
        from mlc_dsv3.runtime.memory import DeviceMemory

        self._memory = DeviceMemory(target.device)
        at_once = _BLOCKS * _THREADS * _WORDS
        steps = -(-nbytes // (4 * at_once))
        self._nbytes = steps * 4 * at_once

        @T.prim_func(s_tir=True)
        def stream(x: T.Buffer((steps * at_once,), "uint32"), y: T.Buffer((_BLOCKS * _THREADS,), "uint32")) -> None:
            T.func_attr({"tirx.noalias": True})
            for b in T.thread_binding(_BLOCKS, "blockIdx.x"):
                for t in T.thread_binding(_THREADS, "threadIdx.x"):
                    total = T.alloc_buffer((_WORDS,), "uint32", scope="local")
                    for w in T.vectorized(_WORDS):
                        total[w] = T.uint32(0)
                    for s in T.serial(steps):
                        for w in T.vectorized(_WORDS):
                            total[w] = total[w] + x[((s * _BLOCKS + b) * _THREADS + t) * _WORDS + w]
                    y[b * _THREADS + t] = total[0] + total[1] + total[2] + total[3]

        with backend(target):
            built = tvm.tirx.build(stream.with_attr("global_symbol", "main"), target=tvm_target(target))
        self._run: Any = built["main"]
        self._read = self._memory.empty((steps * at_once,), "uint32")
        self._sums = self._memory.empty((_BLOCKS * _THREADS,), "uint32")

    def best(self, passes: int) -> float:
        """The fastest of so many passes, in GB/s, after one that does not count."""
        best = 0.0
        for number in range(passes + 1):
            started = time.perf_counter()
            self._run(self._read, self._sums)
            self._memory.wait()
            if number:
                best = max(best, self._nbytes / (time.perf_counter() - started) / 1e9)
        return best
