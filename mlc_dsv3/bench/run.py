"""What `mlc_dsv3 bench` measures: speed of any model or configuration, and the demo's quality."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mlc_dsv3.bench.bandwidth import BandwidthMeter
from mlc_dsv3.bench.speed import SpeedBench
from mlc_dsv3.compiler.targets import resolve_target
from mlc_dsv3.progress import progress
from mlc_dsv3.runtime.library import Library
from mlc_dsv3.runtime.model import CompiledModel, set_threads
from mlc_dsv3.runtime.prepare import cached_library, prepare
from relax_model.config import ModelConfig


def bench_model(
    model: str | None,
    quantizations: Sequence[str],
    device: str,
    *,
    prefill: int,
    decode: int,
    depths: Sequence[int],
    threads: int | None,
) -> list[dict[str, Any]]:
    """Speed of a model (None: the demo) in each quantization (none named: its own), a dictionary a measurement."""
    results = []
    meter = BandwidthMeter(set_threads(threads))
    for quantization in quantizations or [None]:
        prepared = prepare(model, quantization, device, None)
        meter.measure()
        started = time.perf_counter()
        compiled = CompiledModel.load(prepared.artifact, prepared.library, threads=threads)
        load_seconds = time.perf_counter() - started
        found = SpeedBench(compiled, prepared.artifact.quantization, meter).run(prefill, decode, depths)
        results += [{**asdict(measurement), "load_seconds": load_seconds} for measurement in found]
    return results


def bench_random(
    config: ModelConfig,
    name: str,
    quantizations: Sequence[str],
    device: str,
    *,
    prefill: int,
    decode: int,
    depths: Sequence[int],
    threads: int | None,
) -> list[dict[str, Any]]:
    """The same for random weights of a configuration."""
    from mlc_dsv3.bench.weights import random_weights

    target = resolve_target(device)
    results = []
    meter = BandwidthMeter(set_threads(threads))
    for quantization in quantizations or [target.default("quantization")]:
        started = time.perf_counter()
        path, was_compiled = cached_library(config, quantization, name, target)
        compile_seconds = time.perf_counter() - started if was_compiled else None
        library = Library(path)
        with progress("Filling random weights", total=1) as advance:
            arrays = random_weights(config, quantization)
            advance(1)
        meter.measure()
        model = CompiledModel.from_arrays(library, config, arrays)
        found = SpeedBench(model, quantization, meter).run(prefill, decode, depths)
        results += [{**asdict(measurement), "compile_seconds": compile_seconds} for measurement in found]
    return results
