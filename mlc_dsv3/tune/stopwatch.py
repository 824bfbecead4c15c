"""Two kernels on the same arguments, timed in turns, so that what disturbs the machine disturbs both."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

Kernel = Callable[..., Any]
Clock = Callable[[Callable[[], None]], float]  # seconds that some work takes, once all of it has run
_LEAST_SECONDS = 5e-3  # of what is timed at once: below it the clock and the threads' waking up count too much
_CLEARLY = 0.08  # a difference of this share needs no more rounds


def wall_clock(work: Callable[[], None]) -> float:
    """The host's, for kernels that return when they are through."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(
    clock: Clock, default: Kernel, other: Kernel, lists: list[list[Any]], *, rounds: int, most: int
) -> tuple[float, float]:
    """Seconds of a call of either: of `rounds` turns, or as many as `most` where the two are close.

    The default's are the median; the other's are in the median of the rounds' ratios to that, since a machine that
    slows down for a while slows both sides of a round.
    """
    repeats = _repeats(clock, default, lists)
    _pass(clock, other, lists, 1)
    taken, ratios = [], []
    while len(taken) < rounds or (len(taken) < most and _close(ratios)):
        # Each is first in every other round.
        turns = (default, other) if len(taken) % 2 else (other, default)
        seconds = {id(kernel): _pass(clock, kernel, lists, repeats) for kernel in turns}
        taken.append(seconds[id(default)])
        ratios.append(seconds[id(other)] / seconds[id(default)])
    median = statistics.median(taken)
    return median, median * statistics.median(ratios)


def measure(clock: Clock, kernel: Kernel, lists: list[list[Any]], rounds: int) -> float:
    """Median seconds of a call."""
    repeats = _repeats(clock, kernel, lists)
    return statistics.median(_pass(clock, kernel, lists, repeats) for _ in range(rounds))


def _close(ratios: list[float]) -> bool:
    return abs(math.log(statistics.median(ratios))) < _CLEARLY


def _repeats(clock: Clock, kernel: Kernel, lists: list[list[Any]]) -> int:
    """Passes over all arguments that are timed as one; warms up, too."""
    _pass(clock, kernel, lists, 1)
    return max(1, math.ceil(_LEAST_SECONDS / (_pass(clock, kernel, lists, 1) * len(lists))))


def _pass(clock: Clock, kernel: Kernel, lists: list[list[Any]], repeats: int) -> float:
    def work() -> None:
        for _ in range(repeats):
            for arguments in lists:
                kernel(*arguments)

    return clock(work) / (repeats * len(lists))
