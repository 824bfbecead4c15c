"""CUDA graphs of a library's functions: a step of few rows is recorded once for its shapes and then started as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlc_dsv3.cuda.driver import call

_MOST_RUNS = 16


@dataclass
class _Recorded:
    """A graph: the tensors that it reads its inputs from, and what it returns, both kept where they are."""

    inputs: list[Any]
    outputs: Any = None
    graph: int = 0


class Graphs:
    """Functions as graphs, one for each combination of function and shapes.

    A graph holds addresses. The inputs are tensors of its own; the outputs stay alive, and what lies between is memory
    of the virtual machine's pool, which gives nothing back to the device. The kernels' own temporary memory may be
    exchanged for more when a step needs it, which `watched` notices: then everything is recorded anew.
    """

    def __init__(self, empty: Callable[[tuple[int, ...], str], Any], write: Callable[[Any, np.ndarray], None]) -> None:
        """`empty(shape, dtype)` makes a tensor, `write(tensor, values)` fills it."""
        self._empty, self._write = empty, write
        self._recorded: dict[tuple[object, ...], _Recorded] = {}

    def run(self, name: str, function: Callable[..., Any], arrays: Sequence[np.ndarray], *fixed: Any) -> Any:
        """What `function(*arrays, *fixed)` returns, which the next run of the same shapes overwrites.

        `fixed` are the same in all calls of the function, and `arrays` are NumPy's, of the dtypes that it takes.
        """
        key = (name, *(array.shape for array in arrays))
        found = self._recorded.get(key)
        if found is None:
            found = _Recorded([self._empty(array.shape, str(array.dtype)) for array in arrays])
        for tensor, array in zip(found.inputs, arrays, strict=True):
            self._write(tensor, array)
        if not found.graph:
            self._prepare(function, *found.inputs, *fixed)
            found.outputs, found.graph = _record(function, *found.inputs, *fixed)
            self._recorded[key] = found
        call("launch_graph", found.graph)
        return found.outputs

    def _prepare(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Run the function until it takes no more memory from the device, which recording does not allow. The first
        run loads its kernels; the pools give other pieces to the next ones."""
        for _ in range(_MOST_RUNS):
            before = call("allocations"), call("frees")
            self.watched(function, *arguments)
            if (call("allocations"), call("frees")) == before:
                return
        raise RuntimeError(f"a step takes memory from the device even when it runs for the {_MOST_RUNS}th time")

    def watched(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(*arguments)`; where it gave memory back to the device, no graph is good any more."""
        freed = call("frees")
        result = function(*arguments)
        if call("frees") != freed:
            self.forget()
        return result

    def forget(self) -> None:
        """Record everything anew."""
        for recorded in self._recorded.values():
            call("destroy_graph", recorded.graph)
        self._recorded.clear()


def _record(function: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
    call("begin_graph")
    try:
        outputs = function(*arguments)
    except BaseException:
        call("end_graph", False)
        raise
    return outputs, int(call("end_graph", True))
