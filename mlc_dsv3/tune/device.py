"""What kernels are tried on: its memory, its clock, and how much its caches hold."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlc_dsv3.runtime.memory import HostMemory, Memory, driver_of, memory_of
from mlc_dsv3.tune.stopwatch import Clock, wall_clock

_LEAST_COLD = 64 << 20
# The last level's caches of GPUs with memory of their own hold up to 96 MiB.
_COLD_OF_GPU = 128 << 20


@dataclass(frozen=True)
class TuneDevice:
    """A device: its `name` is for people; after `cold_bytes` have been read, nothing of before is left in a cache."""

    name: str
    memory: Memory
    clock: Clock
    cold_bytes: int


def tune_device(device: str) -> TuneDevice:
    """The device of a target by its name. UserError where it is not there."""
    if device == "cpu":
        return TuneDevice(_processor_name(), HostMemory(), wall_clock, _cold_bytes_of_host())
    memory, found = memory_of(device), driver_of(device).first_device()
    clock = {"cuda": GraphClock, "metal": WaitingClock, "vulkan": GpuClock}[device](memory)
    # What has no memory of its own lies behind the host's caches.
    cold = _cold_bytes_of_host() if found.get("type") in ("integrated", "cpu") else _COLD_OF_GPU
    return TuneDevice(found["name"], memory, clock, cold)


class WaitingClock:
    """Seconds by the host's clock until all launches have run."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def __call__(self, work: Callable[[], None]) -> float:
        """See `Clock`."""
        started = time.perf_counter()
        work()
        self._memory.wait()
        return time.perf_counter() - started


class GpuClock:
    """Seconds that launches take by the GPU's own clock, which does not count what the host takes to record them.

    Where a GPU has no timestamps, the host's clock until all have run.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def __call__(self, work: Callable[[], None]) -> float:
        """See `Clock`."""
        from mlc_dsv3.vulkan import native

        native.profile(True)
        started = time.perf_counter()
        work()
        self._memory.wait()
        taken = time.perf_counter() - started
        return sum(seconds for _, seconds in native.profile(False)) or taken


class GraphClock:
    """Seconds that launches take as one CUDA graph, so that it does not count what the host takes to start each."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def __call__(self, work: Callable[[], None]) -> float:
        """See `Clock`."""
        from mlc_dsv3.cuda.graph import record

        work()  # what is loaded and allocated the first time cannot be recorded
        graph, _ = record(work)
        self._memory.wait()
        started = time.perf_counter()
        graph.launch()
        self._memory.wait()
        taken = time.perf_counter() - started
        graph.destroy()
        return taken


def _cold_bytes_of_host() -> int:
    """Twice the last level's cache, and at least 64 MiB."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    largest = max((int(size[:-1]) << 10 for size in sizes if size[:-1].isdigit() and size.endswith("K")), default=0)
    return max(_LEAST_COLD, 2 * largest)


def _processor_name() -> str:
    """The processor's name as the operating system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
