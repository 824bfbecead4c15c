"""What is measured: an artifact with its library, made ready here; and how long compiling took."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlc_dsv3.bench.weights import random_artifact
from mlc_dsv3.compiler.targets import resolve_target
from mlc_dsv3.runtime.prepare import cached_library, prepare
from mlc_dsv3.weights import Artifact


@dataclass(frozen=True)
class Subject:
    """A model ready to be loaded. `compile_seconds` is of the run that compiled the library; None: not by `bench`."""

    name: str
    artifact: Artifact
    library: Path
    compile_seconds: float | None
    random_weights: bool

    @property
    def shards(self) -> list[Path]:
        """The files that hold the weights."""
        return [self.artifact.path / shard["dataPath"] for shard in self.artifact.shards]


def model_subject(model: str | None, name: str, quantization: str | None, device: str) -> Subject:
    """A checkpoint, an artifact or a Hub name (None: the demo), converted and compiled where that is missing."""
    artifact = prepare(model, quantization, device, None).artifact
    library, seconds = _library(artifact, name, device)
    return Subject(name, artifact, library, seconds, random_weights=False)


def random_subject(fields: dict[str, Any], name: str, quantization: str, device: str) -> Subject:
    """Random weights for the config.json `fields`."""
    artifact = random_artifact(fields, name, quantization)
    library, seconds = _library(artifact, name, device)
    return Subject(name, artifact, library, seconds, random_weights=True)


def _library(artifact: Artifact, name: str, device: str) -> tuple[Path, float | None]:
    """The library, and what its compilation took: kept beside it, for the runs that find it compiled."""
    started = time.perf_counter()
    path, was_compiled = cached_library(artifact.model_config, artifact.quantization, name, resolve_target(device))
    record = path.with_suffix(".compile-seconds")
    if was_compiled:
        record.write_text(f"{time.perf_counter() - started:.3f}")
    return path, float(record.read_text()) if record.is_file() else None
