"""Calling a library's functions with a step's inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from mlc_dsv3.runtime.forking import refuse_after_fork
from mlc_dsv3.runtime.memory import Memory

Functions = Callable[[str], Callable[..., Any]]


class Calls:
    """Calls functions as they are; see `graphs.GraphCalls` for another way."""

    # Whether few shapes of a step's inputs are better than many.
    prefers_few_shapes = False

    def __init__(self, functions: Functions, memory: Memory) -> None:
        """`functions(name)` finds one; arrays are passed into `memory`."""
        self._functions, self._memory = cache(functions), memory

    def __call__(self, name: str, inputs: Sequence[Any], *fixed: Any) -> Any:
        """What function `name` returns for `inputs`, int32 or float32 arrays, or tensors of the device, and behind them
        `fixed`, which are the same in all its calls until `forget`. ForkError in a child process."""
        refuse_after_fork()
        return self._result(name, inputs, *fixed)

    def wrap(self, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Call `wrapper(function)` in place of each function."""
        functions = self._functions
        self._functions = cache(lambda name: wrapper(functions(name)))

    def watch(self, watched: bool) -> None:
        """Whether somebody looks at what the functions call."""

    def forget(self) -> None:
        """What was fixed is another one now."""

    def _result(self, name: str, inputs: Sequence[Any], *fixed: Any) -> Any:
        return self._functions(name)(*self._passed_in(inputs), *fixed)

    def _passed_in(self, inputs: Sequence[Any]) -> list[Any]:
        pass_in = self._memory.pass_in
        return [pass_in(each, str(each.dtype)) if isinstance(each, np.ndarray) else each for each in inputs]
