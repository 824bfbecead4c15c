"""How fast the processor multiplies 8-bit codes: a kernel that does nothing else, in a process of its own."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from mlc_dsv3.compiler.targets import CompileTarget
from mlc_dsv3.runtime.virtual_machine import configure_threads
from relax_model.layout import PackedLayout

_TASKS, _STEPS, _WORDS = 64, 1 << 14, 64
_SUMS = 12  # in turns, so that none waits for the one before


class DotArithmetic:
    """The dot products that a layout's kernels are made of, on operands from the first cache."""

    def __init__(self, target: CompileTarget, layout: PackedLayout, threads: int, steps: int = _STEPS) -> None:
        import tvm

        from mlc_dsv3.compiler.compile import build_options, tvm_target
        from mlc_dsv3.runtime.aligned import aligned_zeros
        from relax_model.kernels.cpu_packed import unit_of

        configure_threads(threads)
        unit = unit_of(layout, build_options(target, layout.name).tile)
        kernel = _multiplications(unit, steps).with_attr("global_symbol", "main")
        built = tvm.compile(tvm.IRModule({"main": kernel}), tvm_target(target))
        # A lane takes four codes of a weight row by four activations, of each of the step's rows.
        self._operations = 2 * 4 * unit.lanes * unit.rows * _SUMS * steps * _TASKS
        self._run: Any = built["main"]
        random = np.random.default_rng(0)
        words = random.integers(0, 2**31, (_WORDS * unit.rows, unit.lanes)).astype(np.uint32)
        codes = random.integers(-127, 128, (_SUMS * unit.rows, 16)).astype(np.int8)
        sums = aligned_zeros((_TASKS, unit.sum_type[1]), unit.sum_type[0])
        self._tensors = [tvm.runtime.tensor(each) for each in (words, codes, sums)]

    def best(self, passes: int) -> float:
        """The fastest of so many passes, in operations a second (a multiplication and an addition are two), after one
        that does not count."""
        best = 0.0
        for number in range(passes + 1):
            started = time.perf_counter()
            self._run(*self._tensors)
            if number:
                best = max(best, self._operations / (time.perf_counter() - started))
        return best


def _multiplications(unit: Any, steps: int) -> Any:
    from tvm.script import tirx as T

    lanes, rows, (dtype, elements) = unit.lanes, unit.rows, unit.sum_type

    def words_at(words: Any, step: Any) -> list[Any]:
        return [words[step % _WORDS * rows + word, T.Ramp(0, 1, lanes)] for word in range(rows)]

    def step_of(total: Any, words: Any, codes: Any, step: Any, s: Any) -> Any:
        x = unit.operand(lambda row, column, n: codes[row, T.Ramp(column, 1, n)], s * rows, 0)
        return unit.add(total, words_at(words, step), lambda values: values, x, 0)

    @T.prim_func(s_tir=True)
    def multiply(
        words: T.Buffer((_WORDS * rows, lanes), "uint32"),
        codes: T.Buffer((_SUMS * rows, 16), "int8"),
        y: T.Buffer((_TASKS, elements), dtype),
    ) -> None:
        T.func_attr({"tirx.noalias": True})
        for task in T.parallel(_TASKS):
            total = T.alloc_buffer((_SUMS * elements,), dtype, scope="global")
            for s in T.unroll(_SUMS):
                total[T.Ramp(s * elements, 1, elements)] = T.Broadcast(T.Cast(dtype, 0), elements)
            for step in T.serial(steps):
                for s in T.unroll(_SUMS):
                    total[T.Ramp(s * elements, 1, elements)] = step_of(
                        total[T.Ramp(s * elements, 1, elements)], words, codes, step, s
                    )
            for s in T.unroll(_SUMS - 1):
                total[T.Ramp(0, 1, elements)] = (
                    total[T.Ramp(0, 1, elements)] + total[T.Ramp((s + 1) * elements, 1, elements)]
                )
            y[task, T.Ramp(0, 1, elements)] = total[T.Ramp(0, 1, elements)]

    return multiply
