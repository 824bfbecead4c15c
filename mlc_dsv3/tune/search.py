"""The search for one kernel: field by field, each candidate timed in turns with the default on all shapes it serves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import tvm
import tvm_ffi

from mlc_dsv3.compiler.compile import backend, tvm_target
from mlc_dsv3.compiler.targets import CompileTarget
from mlc_dsv3.compiler.tuned import is_possible
from mlc_dsv3.compiler.tuning_record import TunedKernel
from mlc_dsv3.errors import UserError
from mlc_dsv3.tune.cases import Case, KernelCases
from mlc_dsv3.tune.device import TuneDevice
from mlc_dsv3.tune.inputs import arguments
from mlc_dsv3.tune.stopwatch import Kernel, compare, measure
from mlc_dsv3.vulkan.errors import Unsupported
from relax_model.kernels import registry
from relax_model.kernels.cpu_tiles import CpuTile
from relax_model.kernels.gpu_tiles import GpuTile

LEAST_GAIN = 1.03  # less is within what a machine's mood makes
_MOST_LOSS = 0.97  # in one regime, for a gain in the other

# Rounds by regime, at least and at most: prefill takes long, and is steadier for it.
_SEARCHING = {"decode": (4, 10), "prefill": (2, 4)}
_CONFIRMING = {"decode": (12, 24), "prefill": (4, 6)}

Tile = tuple[tuple[str, int], ...]  # what differs from the default
Times = dict[str, tuple[float, float]]  # regime → seconds of the default and of a candidate


@dataclass(frozen=True)
class _Job:
    """A case's work in one regime."""

    case: Case
    regime: str
    lists: list[list[Any]]


class KernelSearch:
    """One kernel under the clock. `share` is what its calls take of a token's time, in seconds, by the default tile."""

    def __init__(self, cases: KernelCases, tile: CpuTile | GpuTile, target: CompileTarget, device: TuneDevice) -> None:
        self.cases, self._tile, self._target, self._clock = cases, tile, target, device.clock
        self._default = self._compile(())
        self._jobs = [
            _Job(case, regime, arguments(self._func(()), case.call, regime, workload, device))
            for case in cases.cases
            for regime, workload in case.workloads.items()
        ]
        self._seconds = {id(job): measure(self._clock, self._default, job.lists, rounds=1) for job in self._jobs}
        self.share = sum(
            self._seconds[id(job)] * (load := job.case.workloads[job.regime]).count / load.rows for job in self._jobs
        )

    def untuned(self) -> list[TunedKernel]:
        """Entries that leave everything as it is, where there is no time to search."""
        return [
            TunedKernel(case.call.key, {}, {job.regime: (self._seconds[id(job)],) * 2 for job in self._of(case)})
            for case in self.cases.cases
        ]

    def run(self, deadline: float, step: Callable[[], None]) -> list[TunedKernel]:
        """Search until `deadline` (of time.perf_counter); an entry for each case. Tells `step` of each candidate."""
        found: dict[Tile, dict[str, Times]] = {}
        kernels: dict[Tile, Kernel] = {(): self._default}
        best: Tile = ()
        for field, values in self.cases.choices.items():
            for value in values:
                tile = _with(best, field, value)
                if time.perf_counter() > deadline or not self._is_new(tile, kernels):
                    continue
                if kernel := self._candidate(tile):
                    kernels[tile] = kernel
                    found[tile] = self._compare(kernel)
                step()
            best = max([(), *found], key=lambda tile: _total_gain(found[tile]) if tile else 1.0)
        return [self._confirmed(case, self._choose(case, best, found), kernels) for case in self.cases.cases]

    def _choose(self, case: Case, best: Tile, found: dict[Tile, dict[str, Times]]) -> Tile:
        """The case's own best only where it is clearly better than the kernel's: each more tile is one more kernel."""

        def gain(tile: Tile) -> float:
            return _gain(found[tile][case.call.key]) if tile else 1.0

        own = max([(), *found], key=gain)
        chosen = own if gain(own) > LEAST_GAIN * max(gain(best), 1.0) else best
        return chosen if gain(chosen) >= LEAST_GAIN else ()

    def _confirmed(self, case: Case, tile: Tile, kernels: dict[Tile, Kernel]) -> TunedKernel:
        """Measured again: the winner of many comparisons owes some of its lead to luck, and has to win twice more."""
        if tile:
            twice = [
                {job.regime: self._time(job, kernels[tile], _CONFIRMING) for job in self._of(case)} for _ in range(2)
            ]
            if min(map(_gain, twice)) >= LEAST_GAIN:
                return TunedKernel(case.call.key, dict(tile), twice[-1])
        seconds = {
            job.regime: measure(self._clock, self._default, job.lists, _CONFIRMING[job.regime][0])
            for job in self._of(case)
        }
        return TunedKernel(case.call.key, {}, {regime: (taken, taken) for regime, taken in seconds.items()})

    def _compare(self, kernel: Kernel) -> dict[str, Times]:
        times: dict[str, Times] = {}
        for job in self._jobs:
            times.setdefault(job.case.call.key, {})[job.regime] = self._time(job, kernel, _SEARCHING)
        return times

    def _time(self, job: _Job, kernel: Kernel, rounds: dict[str, tuple[int, int]]) -> tuple[float, float]:
        least, most = rounds[job.regime]
        return compare(self._clock, self._default, kernel, job.lists, rounds=least, most=most)

    def _of(self, case: Case) -> Iterator[_Job]:
        return (job for job in self._jobs if job.case is case)

    def _is_new(self, tile: Tile, known: Collection[Tile]) -> bool:
        """Whether a tile makes another kernel than those known, which takes and returns what its neighbours expect."""
        if not is_possible(self.cases.family, {**asdict(self._tile), **dict(tile)}):
            return False
        func = self._func(tile)
        if _interface(func) != _interface(self._func(())):
            return False
        return not any(tvm_ffi.structural_equal(func, self._func(other)) for other in known)

    def _func(self, tile: Tile) -> tvm.tirx.PrimFunc:
        cases = self.cases
        return registry.build(cases.operator, cases.family, *cases.arguments, tile=replace(self._tile, **dict(tile)))

    def _candidate(self, tile: Tile) -> Kernel | None:
        """The kernel, but for one that wants more shared memory than there is."""
        try:
            return self._compile(tile)
        except (Unsupported, UserError):
            return None

    def _compile(self, tile: Tile) -> Kernel:
        func = self._func(tile).with_attr("global_symbol", "main")
        with backend(self._target):
            return tvm.compile(tvm.IRModule({"main": func}), tvm_target(self._target))["main"]


def _with(tile: Tile, field: str, value: int) -> Tile:
    return tuple(sorted({**dict(tile), field: value}.items()))


def _interface(func: tvm.tirx.PrimFunc) -> list[str]:
    """Its parameters' types, symbols by their names."""
    return [f"{parameter.shape} {parameter.dtype}" for parameter in func.params]


def _gain(times: Times) -> float:
    """The geometric mean of the regimes' gains, or none where one of them loses."""
    ratios = [default / tuned for default, tuned in times.values()]
    return math.prod(ratios) ** (1 / len(ratios)) if min(ratios) >= _MOST_LOSS else 0.0


def _total_gain(times: dict[str, Times]) -> float:
    """The same over all of a kernel's shapes, each with the time that it takes."""
    total: Times = {}
    for each in times.values():
        for regime, (default, tuned) in each.items():
            before = total.get(regime, (0.0, 0.0))
            total[regime] = (before[0] + default, before[1] + tuned)
    return _gain(total)
