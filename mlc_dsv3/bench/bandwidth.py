"""How fast this machine reads memory: the limit that decoding is held against, measured in the same run."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

DEFAULT_BYTES = 1 << 30  # beyond every cache


class BandwidthMeter:
    """Streams over at least 1 GiB with all threads; `best` is the fastest pass so far, in GB/s."""

    def __init__(self, threads: int, nbytes: int | None = None) -> None:
        nbytes = DEFAULT_BYTES if nbytes is None else nbytes
        self._parts = np.array_split(np.ones(nbytes // 8, np.uint64), threads)
        self._pool = ThreadPoolExecutor(threads)
        self._nbytes = sum(part.nbytes for part in self._parts)
        self.best = 0.0

    def measure(self, passes: int = 3) -> float:
        """Take `passes` more passes and return the best of all so far."""
        for _ in range(passes):
            started = time.perf_counter()
            # A sum over 64-bit words is the least arithmetic that NumPy cannot leave out.
            total = sum(map(int, self._pool.map(np.sum, self._parts)))
            seconds = time.perf_counter() - started
            assert total == self._nbytes // 8
            self.best = max(self.best, self._nbytes / seconds / 1e9)
        return self.best
