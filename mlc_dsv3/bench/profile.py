"""Time by kernel, through the Relax virtual machine's instrument hook."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from mlc_dsv3.runtime.library import Library

# Calls that the virtual machine itself makes: memory and shapes.
_NOT_KERNELS = ("vm.", "shape_func")


@dataclass(frozen=True)
class KernelTime:
    """One kernel's part in a step (or a prompt): `shape` is its output's, which tells `linear1` from `linear2`."""

    operator: str
    shape: tuple[int, ...]
    calls: float
    milliseconds: float
    share: float

    @property
    def is_expert(self) -> bool:
        """Whether it works on the routed experts, whose time grows with the tokens of a step."""
        return "expert" in self.operator and "shared" not in self.operator


class KernelTimer:
    """Times every kernel that `library` calls while the context is open; sums are divided by `runs`."""

    def __init__(self, library: Library, runs: int) -> None:
        self._library, self._runs = library, runs
        self._seconds: dict[tuple[str, tuple[int, ...]], float] = defaultdict(float)
        self._calls: dict[tuple[str, tuple[int, ...]], int] = defaultdict(int)
        self._started = 0.0

    def __enter__(self) -> KernelTimer:
        self._library.instrument(self._around)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._library.instrument(None)

    def _around(self, _: Any, symbol: str, before: bool, __: Any, *arguments: Any) -> int:
        ended = time.perf_counter()
        if not symbol.startswith(_NOT_KERNELS):
            if not before:
                key = (str(symbol), _output_shape(arguments))
                self._seconds[key] += ended - self._started
                self._calls[key] += 1
            self._started = time.perf_counter()
        return 0

    def kernels(self) -> list[KernelTime]:
        """What was timed, the longest first."""
        total = sum(self._seconds.values())
        found = [
            KernelTime(
                symbol, shape, self._calls[symbol, shape] / self._runs, seconds / self._runs * 1e3, seconds / total
            )
            for (symbol, shape), seconds in self._seconds.items()
        ]
        return sorted(found, key=lambda kernel: -kernel.milliseconds)


def _output_shape(arguments: tuple[Any, ...]) -> tuple[int, ...]:
    """A kernel writes into its last tensor."""
    shapes = [argument.shape for argument in arguments if hasattr(argument, "shape")]
    return tuple(map(int, shapes[-1])) if shapes else ()
