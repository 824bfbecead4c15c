"""One run of `mlc_dsv3 tune`: a budget of seconds, shared among a model's kernels by what they take of a token."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mlc_dsv3.compiler.targets import resolve_target
from mlc_dsv3.compiler.tuning_record import TunedKernel, TuningRecord, kernels_version
from mlc_dsv3.errors import UserError, warn
from mlc_dsv3.folders import import_tvm
from mlc_dsv3.progress import progress
from mlc_dsv3.runtime.virtual_machine import configure_threads, usable_cores

if TYPE_CHECKING:
    from mlc_dsv3.tune.search import KernelSearch
    from relax_model.config import ModelConfig

_CONFIRMING = 0.15  # of the seconds: measuring the choices once more


def tune(
    config: ModelConfig,
    quantization: str,
    device: str,
    threads: int | None,
    seconds: float,
    *,
    context_window: int | None = None,
) -> TuningRecord:
    """Measure tiles for the kernels of `config` for about `seconds`; on the CPU on `threads` (default: all cores).

    `context_window` is as `kernel_cases`'.

    Building the kernels with their default tiles comes first and is done for one of them at least. Raises UserError for
    numbers out of range, for an unknown device or quantization, and for a device that is not there.
    """
    if not seconds > 0:
        raise UserError(f"--seconds is {seconds}; it must be more than 0")
    target = resolve_target(device)
    threads = _thread_count(target.device, threads)
    end = time.perf_counter() + seconds
    configure_threads(threads or usable_cores())  # before tvm is imported, whose threads it decides on

    import_tvm()
    from mlc_dsv3.compiler.compile import build_options, check_backend
    from mlc_dsv3.tune.cases import kernel_cases
    from mlc_dsv3.tune.device import tune_device
    from mlc_dsv3.tune.search import KernelSearch

    check_backend(target)
    options, tried_on = build_options(target, quantization), tune_device(target.device)
    with progress(f"Tuning for {target.level}", total=seconds) as advance:
        clock = _Clock(advance)
        clock.tick("reading the model")
        searches = []
        for cases in kernel_cases(config, options, context_window):
            if searches and time.perf_counter() > end:
                break
            clock.tick(cases.operator)
            try:
                searches.append(KernelSearch(cases, options.tile, target, tried_on))
            except MemoryError as error:
                warn(f"{cases.operator} is left as it is: {error}")
        kernels = _search(searches, end - _CONFIRMING * seconds, clock)
    return TuningRecord(
        kernels_version=kernels_version(target),
        device=target.device,
        level=target.level,
        processor=tried_on.name,
        threads=threads,
        kernels=tuple(sorted(kernels, key=lambda kernel: kernel.kernel)),
    )


def _thread_count(device: str, threads: int | None) -> int:
    """Threads of the CPU that kernels are tried on; 0 on a GPU."""
    if device != "cpu":
        if threads is not None:
            raise UserError("--threads is for the device cpu; leave it out")
        return 0
    cores = usable_cores()
    threads = cores if threads is None else threads
    if not 1 <= threads <= cores:
        raise UserError(f"--threads is {threads}; this machine has 1 to {cores}")
    return threads


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
