"""How fast a GPU multiplies: a kernel that does nothing else, in a process of its own."""

from __future__ import annotations

import time
from typing import Any

from mlc_dsv3.compiler.targets import CompileTarget

_THREADS, _BLOCKS, _STEPS = 256, 4096, 512
_SUMS = 8  # that a thread or a warp adds to in turns, so that none waits for the one before
_OF_PRODUCT = 2 * 16 * 8 * 16  # operations of a warp's m16n8k16


class Arithmetic:
    """Products of float16 on tensor cores where the target's kernels use them, and of float32 elsewhere."""

    def __init__(self, target: CompileTarget, blocks: int = _BLOCKS, steps: int = _STEPS) -> None:
        import tvm

        from mlc_dsv3.compiler.compile import backend, tvm_target
        from mlc_dsv3.runtime.memory import DeviceMemory

        self._memory = DeviceMemory(target.device)
        on_tensor_cores = dict(target.tuned).get("tensor_cores", 0)
        kernel = _by_warps(blocks, steps) if on_tensor_cores else _by_threads(blocks, steps)
        of_step = _OF_PRODUCT / 32 if on_tensor_cores else 2
        self._operations = of_step * _SUMS * steps * blocks * _THREADS
        with backend(target):
            built = tvm.tirx.build(kernel.with_attr("global_symbol", "main"), target=tvm_target(target))
        self._run: Any = built["main"]
        self._sums = self._memory.empty((blocks * _THREADS,), "float32")

    def best(self, passes: int) -> float:
        """The fastest of so many passes, in TFLOP/s, after one that does not count."""
        best = 0.0
        for number in range(passes + 1):
            started = time.perf_counter()
            self._run(self._sums)
            self._memory.wait()
            if number:
                best = max(best, self._operations / (time.perf_counter() - started) / 1e12)
        return best


def _by_threads(blocks: int, steps: int) -> Any:
    """Of float32: a thread multiplies and adds, to as many sums as hide how long that takes."""
    from tvm.script import tirx as T

    @T.prim_func(s_tir=True)
    def multiply(y: T.Buffer((blocks * _THREADS,), "float32")) -> None:
        T.func_attr({"tirx.noalias": True})
        for b in T.thread_binding(blocks, "blockIdx.x"):
            for t in T.thread_binding(_THREADS, "threadIdx.x"):
                total = T.alloc_buffer((_SUMS,), "float32", scope="local")
                factor = T.alloc_buffer((1,), "float32", scope="local")
                factor[0] = T.float32(1e-3) * T.Cast("float32", t)
                for i in T.unroll(_SUMS):
                    total[i] = T.Cast("float32", i)
                for _ in T.serial(steps):
                    for i in T.unroll(_SUMS):
                        total[i] = total[i] * factor[0] + T.float32(1e-3)
                for i in T.unroll(_SUMS - 1):
                    total[0] = total[0] + total[i + 1]
                y[b * _THREADS + t] = total[0]

    return multiply


def _by_warps(blocks: int, steps: int) -> Any:
    """Of float16 with float32 sums: a warp's m16n8k16 on the same registers again and again."""
    from tvm.script import tirx as T

    @T.prim_func(s_tir=True)
    def multiply(y: T.Buffer((blocks * _THREADS,), "float32")) -> None:
        T.func_attr({"tirx.noalias": True})
        for b in T.thread_binding(blocks, "blockIdx.x"):
            for t in T.thread_binding(_THREADS, "threadIdx.x"):
                total = T.alloc_buffer((_SUMS * 4,), "float32", scope="local")
                factor = T.alloc_buffer((1,), "uint32", scope="local")
                factor[0] = T.Cast("uint32", t)
                for i in T.unroll(_SUMS * 4):
                    total[i] = T.float32(0)
                for _ in T.serial(steps):
                    for i in T.unroll(_SUMS):
                        T.evaluate(
                            T.call_extern(
                                "void",
                                "mlc_mma_half",
                                T.address_of(total[i * 4]),
                                factor[0],
                                factor[0],
                                factor[0],
                                factor[0],
                                factor[0],
                                factor[0],
                            )
                        )
                for i in T.unroll(_SUMS * 4 - 1):
                    total[0] = total[0] + total[i + 1]
                y[b * _THREADS + t] = total[0]

    return multiply
