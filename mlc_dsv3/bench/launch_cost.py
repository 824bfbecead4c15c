"""What a launch costs the host: the recording of a kernel that does nothing, in a process of its own."""

from __future__ import annotations

import statistics
import time
from typing import Any

from mlc_dsv3.bench.remote import Remote
from mlc_dsv3.compiler.targets import CompileTarget

# The first launches after the host has waited are submitted, and wake the device; the recorder keeps what follows, up
# to 2,048, until the host waits again. So what is timed is recorded and no more.
_SUBMITTED, _TIMED = 64, 1024


def host_seconds_per_launch(target: CompileTarget) -> float:
    """Seconds of the calling thread for one launch with three buffers, argument checks included: the median of batches.

    Each waits for the one before, as a model's kernels do, so that a barrier is recorded too.
    """
    with Remote(Launches, target) as process:
        return process.call("seconds")


class Launches:
    """Launches of a kernel that reads one number, timed in batches."""

    def __init__(self, target: CompileTarget, batches: int = 15) -> None:
        import tvm
        from tvm.script import tirx as T

        from mlc_dsv3.compiler.compile import backend, tvm_target
        from mlc_dsv3.runtime.memory import DeviceMemory

        self._memory, self._batches = DeviceMemory(target.device), batches

        @T.prim_func(s_tir=True)
        def nothing(x: T.Buffer((1,), "uint32"), y: T.Buffer((1,), "uint32"), z: T.Buffer((1,), "uint32")) -> None:
            for _ in T.thread_binding(1, "blockIdx.x"):
                for _ in T.thread_binding(1, "threadIdx.x"):
                    if x[0] == T.uint32(0xFFFFFFFF):
                        z[0] = y[0]

        with backend(target):
            built = tvm.tirx.build(nothing.with_attr("global_symbol", "main"), target=tvm_target(target))
        self._run: Any = built["main"]
        self._buffers = [self._memory.empty((1,), "uint32") for _ in range(3)]

    def seconds(self) -> float:
        """Of one launch: the median of the batches, after one that does not count."""
        return statistics.median([self._batch() for _ in range(self._batches + 1)][1:])

    def _batch(self) -> float:
        self._memory.wait()
        for _ in range(_SUBMITTED):
            self._run(*self._buffers)
        started = time.perf_counter()
        for _ in range(_TIMED):
            self._run(*self._buffers)
        return (time.perf_counter() - started) / _TIMED
