"""CUDA graphs of a library's functions: a step of few rows is recorded for its shapes, and then started as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlc_dsv3.cuda.driver import call
from mlc_dsv3.cuda.graph import Graph, record
from mlc_dsv3.errors import reason, warn
from mlc_dsv3.runtime.calls import Calls, Functions
from mlc_dsv3.runtime.memory import Memory

# Longer inputs keep the GPU busy by themselves.
_MOST_ROWS = 64
# Calls of a shape before the one that it is recorded in. By then its kernels are loaded.
_CALLS_BEFORE = 1
_MOST_GRAPHS, _MOST_COUNTED = 32, 4096
_ALIGNMENT = 256  # of what the device itself allocates


class _Inputs:
    """The tensors that a graph reads: those of the device as they are, and arrays side by side in one tensor, so that
    one copy brings them there."""

    def __init__(self, memory: Memory, given: Sequence[Any]) -> None:
        import tvm_ffi

        self._memory = memory
        self._starts, size = [], 0
        for each in given:
            self._starts.append(size)
            if isinstance(each, np.ndarray):
                size += -(-each.nbytes // _ALIGNMENT) * _ALIGNMENT
        self._host, self._device = np.zeros(size, np.uint8), memory.empty((size,), "uint8")

        def part(start: int, array: np.ndarray) -> Any:
            return call("part", self._device, start, tvm_ffi.Shape(array.shape), tvm_ffi.dtype(str(array.dtype)))

        self.tensors = [
            part(start, each) if isinstance(each, np.ndarray) else each
            for start, each in zip(self._starts, given, strict=True)
        ]

    def write(self, given: Sequence[Any]) -> None:
        """The arrays' values, of the same shapes."""
        for start, each in zip(self._starts, given, strict=True):
            if isinstance(each, np.ndarray):
                self._host[start : start + each.nbytes] = np.ascontiguousarray(each).view(np.uint8).reshape(-1)
        self._memory.write(self._device, self._host)


@dataclass
class _Recorded:
    """A graph, what it reads, and what it returns, both kept where they are."""

    graph: Graph
    inputs: _Inputs
    outputs: Any


class GraphCalls(Calls):
    """Calls functions as graphs, one for each combination of function and shapes that keeps coming.

    A graph holds addresses. Its inputs are parts of a tensor of its own, or tensors of the device that come again; what
    it allocates while it is recorded stays its own (`cuda/native/graph.cc`). The kernels' temporary memory is in TVM's
    pool for a thread, which exchanges it for more where a call needs that. So graphs are recorded on a thread that does
    nothing else and lives as long as they do; where a call exchanges its memory, everything is recorded anew.
    """

    def __init__(self, functions: Functions, unpooled: Functions, memory: Memory) -> None:
        """`unpooled` are the same functions on a machine that asks the device for whatever it needs."""
        super().__init__(functions, memory)
        self._unpooled = unpooled
        self._graphs: dict[tuple[Any, ...], _Recorded] = {}
        self._calls: Counter[tuple[Any, ...]] = Counter()
        self._is_watched = False
        self._recorder = ThreadPoolExecutor(1, "cuda-graphs")
        self.prefers_few_shapes = True

    def _result(self, name: str, inputs: Sequence[Any], *fixed: Any) -> Any:
        """See `Calls`. What it returns may be overwritten by the next call of the same shapes."""
        if self._is_watched or not self.prefers_few_shapes or not all(map(_is_short, inputs)):
            return super()._result(name, inputs, *fixed)
        key = (name, *map(_identity, inputs))
        found = self._graphs.pop(key, None)
        if found is None:
            if len(self._calls) == _MOST_COUNTED:  # tensors of the device lie anywhere until graphs make them
                self._calls.clear()
            self._calls[key] += 1
            if self._calls[key] <= _CALLS_BEFORE:
                return super()._result(name, inputs, *fixed)
            return self._on_recorder(self._call_and_record, key, inputs, *fixed)
        self._graphs[key] = found  # behind those that were not used for longer
        found.inputs.write(inputs)
        found.graph.launch()
        return found.outputs

    def watch(self, watched: bool) -> None:
        """See `Calls`: a graph calls nothing that could be looked at."""
        self._is_watched = watched

    def forget(self) -> None:
        """See `Calls`."""
        for key in list(self._graphs):
            self._destroy(key)
        self._calls.clear()

    def _on_recorder(self, function: Callable[..., Any], *arguments: Any) -> Any:
        called = self._recorder.submit(function, *arguments)
        try:
            return called.result()
        finally:
            wait([called])  # an interrupt ends nothing on another thread

    def _call_and_record(self, key: tuple[Any, ...], inputs: Sequence[Any], *fixed: Any) -> Any:
        """Call a function on the recorder's thread, whose pool then has the memory that the graph needs, and record it.
        A warning, where the driver makes no graph: then there will be none at all."""
        name, kept = key[0], _Inputs(self._memory, inputs)
        kept.write(inputs)
        before = call("frees")
        result = self._functions(name)(*kept.tensors, *fixed)
        if call("frees") != before:
            self.forget()
        function = self._unpooled(name)
        try:
            graph, outputs = record(lambda: function(*kept.tensors, *fixed))
        except RuntimeError as error:
            self.forget()
            self.prefers_few_shapes = False
            why = reason(error)
            warn(f"steps are started kernel by kernel, which is slower: CUDA makes no graph of them ({why})")
            return result
        if len(self._graphs) == _MOST_GRAPHS:
            self._destroy(next(iter(self._graphs)))
        self._graphs[key] = _Recorded(graph, kept, outputs)
        return result

    def _destroy(self, key: tuple[Any, ...]) -> None:
        self._graphs.pop(key).graph.destroy()


def _is_short(each: Any) -> bool:
    return not isinstance(each, np.ndarray) or len(each) <= _MOST_ROWS


def _identity(each: Any) -> tuple[Any, ...]:
    """What a graph is made for: an array's shape and type, or a tensor of the device itself."""
    if isinstance(each, np.ndarray):
        return each.shape, str(each.dtype)
    return each.data_ptr(), tuple(each.shape)
