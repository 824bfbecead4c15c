"""Time by kernel, through the Relax virtual machine's instrument hook."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from mlc_dsv3.runtime.library import Library

# Calls that the virtual machine itself makes: memory and shapes.
_NOT_KERNELS = ("vm.", "shape_func")
_Key = tuple[str, tuple[int, ...]]  # operator and shape


@dataclass(frozen=True)
class KernelTime:
    """One kernel in a step (or a prompt): `shape` is its last output's, which tells one `linear` from another.

    `launches` are the device's; the CPU has none. `bytes` are what all its calls together have to move
    (`traffic.Traffic`).
    """

    operator: str
    shape: tuple[int, ...]
    calls: int
    milliseconds: float
    share: float
    bytes: int
    launches: int = 0

    @property
    def is_expert(self) -> bool:
        """Whether it works on the routed experts, whose time grows with the tokens of a step."""
        return "expert" in self.operator and "shared" not in self.operator


@dataclass
class _Run:
    seconds: dict[_Key, float] = field(default_factory=lambda: defaultdict(float))
    calls: dict[_Key, int] = field(default_factory=lambda: defaultdict(int))
    bytes: dict[_Key, int] = field(default_factory=lambda: defaultdict(int))
    launches: dict[_Key, int] = field(default_factory=lambda: defaultdict(int))


class KernelTimer:
    """Times every kernel that `library` calls while the context is open, in runs that `end_run` ends.

    `count(operator, tensors)` are the bytes that a call has to move. A GPU is waited for after each call, so that a
    launch's submission is in its time. Of each kernel's sums over a run the median is told, so that a run that was
    disturbed does not count.
    """

    def __init__(self, library: Library, count: Callable[[str, Sequence[Any]], int]) -> None:
        self._library, self._count = library, count
        self._runs: list[_Run] = []
        self._run = _Run()
        self._started, self._launched = 0.0, 0

    def __enter__(self) -> KernelTimer:
        self._library.instrument(self._around)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._library.instrument(None)

    def end_run(self) -> None:
        """A step, or a prompt, is through."""
        self._runs.append(self._run)
        self._run = _Run()

    def _around(self, _: Any, symbol: str, before: bool, __: Any, *arguments: Any) -> int:
        if not symbol.startswith(_NOT_KERNELS):
            memory = self._library.memory
            memory.wait()
            ended = time.perf_counter()
            if not before:
                tensors = [argument for argument in arguments if hasattr(argument, "shape")]
                key = (str(symbol), _output_shape(tensors))
                self._run.seconds[key] += ended - self._started
                self._run.calls[key] += 1
                self._run.bytes[key] += self._count(str(symbol), tensors)
                self._run.launches[key] += memory.launches() - self._launched
            self._launched = memory.launches()
            self._started = time.perf_counter()
        return 0

    def kernels(self) -> list[KernelTime]:
        """What was timed, the longest first."""
        first = self._runs[0]
        seconds = {key: statistics.median(run.seconds[key] for run in self._runs) for key in first.calls}
        total = sum(seconds.values())
        found = [
            KernelTime(*key, first.calls[key], taken * 1e3, taken / total, first.bytes[key], first.launches[key])
            for key, taken in seconds.items()
        ]
        return sorted(found, key=lambda kernel: -kernel.milliseconds)


def _output_shape(tensors: Sequence[Any]) -> tuple[int, ...]:
    """A kernel's outputs are its last tensors."""
    return tuple(map(int, tensors[-1].shape)) if tensors else ()
