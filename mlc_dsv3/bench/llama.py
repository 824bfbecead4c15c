"""llama.cpp under the same clock as `SpeedBench`: its low-level interface, on a GGUF of the same shape."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlc_dsv3.bench.memory import rss_anon
from mlc_dsv3.bench.speed import FIRST_PROMPT, Memory, Startup, StepShape
from mlc_dsv3.errors import UserError

_ERROR_LEVEL = 4


class LlamaBench:
    """Random tokens through llama.cpp on the CPU, with its defaults but for the threads and the context's size."""

    def __init__(self, path: Path, threads: int, sequences: int, longest: int) -> None:
        import llama_cpp

        self._api, self._errors = llama_cpp, []
        self._keep = llama_cpp.llama_log_callback(self._log)
        llama_cpp.llama_log_set(self._keep, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        started = time.perf_counter()
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise UserError(f"llama.cpp cannot load {path}: {self._said()}")
        context = llama_cpp.llama_context_default_params()
        context.n_seq_max, context.n_ctx = sequences, sequences * (-(-longest // 256) * 256)
        context.n_threads = context.n_threads_batch = threads
        self._rows = max(context.n_batch, sequences)
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        if not self._context:
            raise UserError(f"llama.cpp cannot make a context for {path}: {self._said()}")
        self._load_seconds = time.perf_counter() - started
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(self._rows, 0, 1)
        self._random = np.random.default_rng(0)
        self._sequences, self._cached = sequences, 0

    def first_token(self) -> Startup:
        """As SpeedBench's."""
        started = time.perf_counter()
        self._run(0, StepShape(1, FIRST_PROMPT), want_all=False)
        seconds = time.perf_counter() - started
        self._cached = FIRST_PROMPT
        return Startup(self._load_seconds, seconds)

    def prefill(self, depth: int, tokens: int) -> float:
        """Seconds that a prompt of `tokens` takes after `depth` cached ones."""
        self._go_to(depth, 1)
        started = time.perf_counter()
        self._append(depth, tokens)
        seconds = time.perf_counter() - started
        self._cached = depth + tokens
        return seconds

    def steps(self, depth: int, count: int, shapes: Sequence[StepShape]) -> list[list[float]]:
        """Seconds of `count` steps of each shape, from `depth` on; the shapes take turns, step by step."""
        times: list[list[float]] = [[] for _ in shapes]
        self._go_to(depth, max(shape.sequences for shape in shapes))
        for step in range(count):
            for shape, taken in zip(shapes, times, strict=True):
                # What the step before left at these positions must go.
                for sequence in range(shape.sequences):
                    self._forget(sequence, depth + step)
                started = time.perf_counter()
                self._run(depth + step, shape, want_all=True)
                taken.append(time.perf_counter() - started)
        self._cached = depth
        for sequence in range(self._sequences):
            self._forget(sequence, depth)
        return times

    def memory(self) -> Memory:
        """Anonymous bytes now; how many of them the cache takes, llama.cpp does not tell."""
        return Memory(rss_anon(), 0)

    def _go_to(self, depth: int, sequences: int) -> None:
        """Make the first sequence `depth` tokens long, and the others copies of it."""
        if self._cached < depth:
            self._append(self._cached, depth - self._cached)
        self._forget(0, depth)
        self._cached = depth
        for sequence in range(1, sequences):
            self._api.llama_memory_seq_rm(self._memory, sequence, -1, -1)
            self._api.llama_memory_seq_cp(self._memory, 0, sequence, -1, -1)

    def _append(self, position: int, tokens: int) -> None:
        for start in range(0, tokens, self._rows):
            rows = min(self._rows, tokens - start)
            self._run(position + start, StepShape(1, rows), want_all=False)

    def _forget(self, sequence: int, start: int) -> None:
        self._api.llama_memory_seq_rm(self._memory, sequence, start, -1)

    def _run(self, position: int, shape: StepShape, *, want_all: bool) -> None:
        batch, place = self._batch, 0
        tokens = self._random.integers(0, self._vocab_size, shape.sequences * shape.rows)
        for sequence in range(shape.sequences):
            for row in range(shape.rows):
                batch.token[place] = int(tokens[place])
                batch.pos[place] = position + row
                batch.n_seq_id[place] = 1
                batch.seq_id[place][0] = sequence
                batch.logits[place] = want_all or place == len(tokens) - 1
                place += 1
        batch.n_tokens = place
        code = self._api.llama_decode(self._context, batch)
        if code:
            raise UserError(f"llama.cpp's decode failed with {code}: {self._said()}")
        self._api.llama_synchronize(self._context)
        self._api.llama_get_logits_ith(self._context, -1)

    def _log(self, level: int, text: bytes, _: Any) -> None:
        if level == _ERROR_LEVEL:
            self._errors.append(text.decode(errors="replace").strip())

    def _said(self) -> str:
        return " ".join(self._errors)[-500:] or "no reason given"
