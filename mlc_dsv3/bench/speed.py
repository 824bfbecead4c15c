"""Prefill and decode of one sequence on the compiled model, without tokenizer and sampling around it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlc_dsv3.bench.bandwidth import BandwidthMeter
from mlc_dsv3.bench.weights import bytes_per_token
from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.batch import Batch
from mlc_dsv3.runtime.model import CompiledModel


@dataclass(frozen=True)
class Measurement:
    """One figure. `share_of_limit` is of the read bandwidth measured in the same run; prefill is not bound by it."""

    kind: str  # "prefill" or "decode"
    quantization: str
    depth: int
    batch: int
    tokens: int
    tokens_per_second: float
    bytes_per_token: int | None
    gb_per_second: float | None
    limit_gb_per_second: float
    share_of_limit: float | None


class SpeedBench:
    """Runs random tokens through a loaded model. Times are medians over steps (decode) or runs (prefill)."""

    def __init__(self, model: CompiledModel, quantization: str, meter: BandwidthMeter) -> None:
        self._model, self._quantization, self._meter = model, quantization, meter
        self._random = np.random.default_rng(0)

    def run(self, prefill: int, decode: int, depths: Sequence[int]) -> list[Measurement]:
        """Prefill of `prefill` tokens and decode of `decode` tokens after each of `depths` cached ones."""
        metadata = self._model.metadata
        longest = max(depths) + max(prefill, decode)
        if longest > metadata.context_window:
            raise UserError(f"depth and tokens make {longest}; the context window is {metadata.context_window}")
        pages = -(-longest // metadata.page_size)
        self._model.allocate_cache(pages + 1)
        self._pages = np.arange(1, pages + 1, dtype=np.int32)[None]
        results = []
        for depth in depths:
            self._meter.measure(1)
            self._fill(0, depth)
            if prefill:
                seconds = statistics.median(self._fill(depth, prefill) for _ in range(3))
                results.append(self._result("prefill", depth, prefill, prefill / seconds))
            if decode:
                self._fill(depth, 1)
                times = [self._step(depth + i, 1) for i in range(decode)]
                results.append(self._result("decode", depth, decode, 1 / statistics.median(times)))
        self._meter.measure(2)
        return results

    def _fill(self, start: int, count: int) -> float:
        """Seconds to run `count` tokens from position `start`, in blocks as the engine cuts them."""
        block = self._model.metadata.prefill_block
        seconds, position = 0.0, start
        while position < start + count:
            rows = min(block - position % block, start + count - position)
            seconds += self._step(position, rows, expanded=rows == block and position > 0)
            position += rows
        return seconds

    def _step(self, position: int, rows: int, expanded: bool = False) -> float:
        batch = Batch(
            tokens=self._random.integers(0, self._model.config.vocab_size, rows, np.int32),
            positions=np.arange(position, position + rows, dtype=np.int32),
            sequences=np.zeros(rows, np.int32),
            page_table=self._pages,
            wanted=np.array([rows - 1], np.int32),
            expanded=expanded,
        )
        started = time.perf_counter()
        self._model.step(batch)
        return time.perf_counter() - started

    def _result(self, kind: str, depth: int, tokens: int, rate: float) -> Measurement:
        limit = self._meter.best
        nbytes = gigabytes = share = None
        if kind == "decode":
            itemsize = np.dtype(self._model.metadata.cache_dtype).itemsize
            nbytes = bytes_per_token(self._model.config, self._quantization, itemsize, depth + tokens // 2)
            gigabytes = nbytes * rate / 1e9
            share = gigabytes / limit
        return Measurement(kind, self._quantization, depth, 1, tokens, rate, nbytes, gigabytes, limit, share)
