"""One run of `mlc_dsv3 tune`: a budget of seconds, shared among a model's kernels by what they take of a token."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mlc_dsv3.compiler.targets import resolve_target
from mlc_dsv3.compiler.tuning_record import TunedKernel, TuningRecord, kernels_version
from mlc_dsv3.errors import UserError
from mlc_dsv3.progress import progress
from mlc_dsv3.runtime.virtual_machine import configure_threads, usable_cores

if TYPE_CHECKING:
    from mlc_dsv3.tune.search import KernelSearch
    from relax_model.config import ModelConfig

_CONFIRMING = 0.15  # of the seconds: measuring the choices once more


def tune(config: ModelConfig, quantization: str, device: str, threads: int | None, seconds: float) -> TuningRecord:
    """Measure tiles for the kernels of `config` for about `seconds`, on `threads` (default: all cores).

    Building the kernels with their default tiles comes first and is done for one of them at least. Raises UserError for
    numbers out of range, and for an unknown device or quantization.
    """
    cores = usable_cores()
    threads = cores if threads is None else threads
    if not 1 <= threads <= cores:
        raise UserError(f"--threads is {threads}; this machine has 1 to {cores}")
    if not seconds > 0:
        raise UserError(f"--seconds is {seconds}; it must be more than 0")
    target = resolve_target(device)
    if target.device != "cpu":
        raise UserError(f"tune knows the kernels of the device cpu alone so far, not {target.device}'s")
    end = time.perf_counter() + seconds
    configure_threads(threads)  # before tvm is imported, whose threads it decides on

    from mlc_dsv3.compiler.compile import build_options, tvm_target
    from mlc_dsv3.tune.cases import kernel_cases
    from mlc_dsv3.tune.search import KernelSearch

    options = build_options(target, quantization)
    with progress(f"Tuning for {target.level}", total=seconds) as advance:
        clock = _Clock(advance)
        clock.tick("reading the model")
        searches = []
        for cases in kernel_cases(config, options):
            if searches and time.perf_counter() > end:
                break
            clock.tick(cases.operator)
            searches.append(KernelSearch(cases, options.tile, tvm_target(target)))
        kernels = _search(searches, end - _CONFIRMING * seconds, clock)
    return TuningRecord(
        kernels_version=kernels_version(target),
        device=target.device,
        level=target.level,
        processor=processor_name(),
        threads=threads,
        kernels=tuple(sorted(kernels, key=lambda kernel: kernel.kernel)),
    )


def _search(searches: list[KernelSearch], end: float, clock: _Clock) -> list[TunedKernel]:
    found: list[TunedKernel] = []
    waiting = sorted(searches, key=lambda search: search.share)
    while waiting:
        search = waiting.pop()
        left, share = end - time.perf_counter(), search.share + sum(other.share for other in waiting)
        operator = search.cases.operator
        clock.tick(operator)
        if left <= 0:
            found += search.untuned()
        else:
            deadline = time.perf_counter() + left * search.share / share
            found += search.run(deadline, lambda operator=operator: clock.tick(operator))
    return found


class _Clock:
    """Moves the bar by the seconds that have passed."""

    def __init__(self, advance: Callable[..., None]) -> None:
        self._advance, self._last = advance, time.perf_counter()

    def tick(self, doing: str) -> None:
        now = time.perf_counter()
        self._advance(now - self._last, doing)
        self._last = now


def processor_name() -> str:
    """The processor's name as the operating system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
