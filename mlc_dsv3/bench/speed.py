"""A loaded model under the clock: what runs in the measuring process, without a tokenizer around it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlc_dsv3.bench.counting import chunks
from mlc_dsv3.bench.memory import rss_anon
from mlc_dsv3.bench.profile import KernelTime, KernelTimer
from mlc_dsv3.bench.traffic import StepSize, Traffic
from mlc_dsv3.runtime.batch import Batch
from mlc_dsv3.runtime.cache_content import set_scales
from mlc_dsv3.runtime.model import CompiledModel
from mlc_dsv3.runtime.sampler import Draw
from mlc_dsv3.runtime.sampling import SamplingParams
from mlc_dsv3.weights import Artifact

FIRST_PROMPT = 16
_PROFILED_STEPS = 8
_LIKELIEST = SamplingParams(temperature=0)


@dataclass(frozen=True)
class Startup:
    """Seconds from a running interpreter to a loaded model, and from there to the first token of a short prompt."""

    load_seconds: float
    first_token_seconds: float


@dataclass(frozen=True)
class Memory:
    """Bytes of the measuring process. Anonymous memory (RssAnon) leaves the mapped weights out."""

    rss_anon_bytes: int | None
    cache_bytes: int


@dataclass(frozen=True)
class StepShape:
    """A step of `rows` tokens in each of `sequences`: (1, 1) decodes, (n, 1) decodes a batch, (1, k) verifies."""

    sequences: int
    rows: int


class SpeedBench:
    """Random tokens through a model with a cache for `sequences`, each of `longest` tokens."""

    def __init__(
        self,
        artifact: Path,
        library: Path,
        threads: int,
        sequences: int,
        longest: int,
        ignored: tuple[str, ...] = (),
    ) -> None:
        started = time.perf_counter()
        self._model = CompiledModel.load(Artifact.open(artifact, ignore=ignored), library, threads=threads)
        self._metadata = self._model.metadata
        pages = -(-longest // self._metadata.page_size)
        self._model.allocate_cache(sequences * pages + 1)
        self._load_seconds = time.perf_counter() - started
        self._pages = np.arange(1, sequences * pages + 1, dtype=np.int32).reshape(sequences, pages)
        self._random = np.random.default_rng(0)
        self._size = StepSize(0, 0)  # of the step that runs

    def first_token(self) -> Startup:
        """Run a short prompt up to its next token; for the first call after loading."""
        started = time.perf_counter()
        self._run(0, StepShape(1, FIRST_PROMPT))
        return Startup(self._load_seconds, time.perf_counter() - started)

    def fill(self) -> None:
        """Fill the caches with random latents, so that any depth can be measured without computing what is there."""
        in_codes = self._metadata.cache_dtype == "int8"
        some = self._random.integers(-127, 128, 1 << 16) if in_codes else self._random.standard_normal(1 << 16)

        def latents(shape: tuple[int, ...]) -> np.ndarray:
            values = np.resize(some.astype(self._metadata.cache_dtype), shape)
            if in_codes:
                set_scales(values)
            return values

        self._model.fill_caches(latents)

    def prefill(self, depth: int, tokens: int) -> float:
        """Seconds that a prompt of `tokens` takes after `depth` cached ones, in blocks as the engine cuts them."""
        expanded = self._metadata.prefill_block
        block = expanded or self._metadata.max_rows
        started = time.perf_counter()
        for position, rows in chunks(depth, tokens, block):
            self._run(position, StepShape(1, rows), expanded=rows == expanded)
        return time.perf_counter() - started

    def steps(self, depth: int, count: int, shapes: Sequence[StepShape]) -> list[list[float]]:
        """Seconds of `count` steps of each shape, from `depth` on; the shapes take turns, step by step."""
        times: list[list[float]] = [[] for _ in shapes]
        for step in range(count):
            for shape, taken in zip(shapes, times, strict=True):
                started = time.perf_counter()
                self._run(depth + step, shape, want_all=True)
                taken.append(time.perf_counter() - started)
        return times

    def profile_prefill(self, depth: int, tokens: int) -> list[KernelTime]:
        """Time of each kernel in a prompt; being watched slows the whole down."""
        with self._timer() as timer:
            self.prefill(depth, tokens)
            timer.end_run()
        return timer.kernels()

    def profile_steps(self, depth: int, shapes: Sequence[StepShape]) -> list[list[KernelTime]]:
        """Time of each kernel in a step of each shape; the shapes take turns, so that they can be compared."""
        timers = [self._timer() for _ in shapes]
        for step in range(_PROFILED_STEPS):
            for shape, timer in zip(shapes, timers, strict=True):
                with timer:
                    self._run(depth + step, shape, want_all=True)
                    timer.end_run()
        return [timer.kernels() for timer in timers]

    def memory(self) -> Memory:
        """What is held now. The machine gives no memory back between steps, so that after them this is the peak."""
        return Memory(rss_anon(), self._model.cache_bytes())

    def _timer(self) -> KernelTimer:
        cache = tuple(map(int, self._model.caches[0].shape))
        traffic = Traffic(self._model.config, self._metadata.quantization, cache)
        return KernelTimer(
            self._model.library, lambda operator, tensors: traffic.call_bytes(operator, tensors, self._size)
        )

    def _run(self, position: int, shape: StepShape, *, expanded: bool = False, want_all: bool = False) -> None:
        """A step, until the host has the likeliest tokens, or where it chooses them by itself, the logits."""
        rows = shape.sequences * shape.rows
        self._size = StepSize(rows, shape.sequences * (position + shape.rows))
        sequences = np.repeat(np.arange(shape.sequences, dtype=np.int32), shape.rows)
        positions = np.tile(np.arange(position, position + shape.rows, dtype=np.int32), shape.sequences)
        batch = Batch(
            tokens=self._random.integers(0, self._model.config.vocab_size, rows, np.int32),
            positions=positions,
            sequences=sequences,
            page_table=self._pages[: shape.sequences],
            wanted=np.arange(0 if want_all else rows - 1, rows, dtype=np.int32),
            expanded=expanded,
        )
        output = self._model.step(batch)
        if "sample" in self._metadata.functions:
            self._model.sample(output, [Draw(row, _LIKELIEST, None, 0, 0) for row in range(len(batch.wanted))])
        else:
            _ = output.logits
