"""What is measured: an artifact with its library, made ready here."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlc_dsv3.bench.weights import random_artifact
from mlc_dsv3.compiler.targets import CompileTarget
from mlc_dsv3.runtime.prepare import cached_library, prepare
from mlc_dsv3.weights import Artifact
from mlc_dsv3.weights.chat_config import FILE_NAME, read_chat_config


@dataclass(frozen=True)
class Subject:
    """A model ready to be loaded; `ignored` are fields of its mlc-chat-config.json to go on without."""

    name: str
    artifact: Artifact
    library: Path
    random_weights: bool
    ignored: tuple[str, ...] = ()

    @property
    def shards(self) -> list[Path]:
        """The files that hold the weights."""
        return [self.artifact.path / shard.name for shard in self.artifact.shards]


def model_subject(
    model: str | None,
    name: str,
    quantization: str | None,
    target: CompileTarget,
    *,
    ignore_config_fields: Collection[str] = (),
    without_mtp: bool = False,
    before_making: Callable[[Path], None] = lambda folder: None,
) -> Subject:
    """A checkpoint, an artifact or a Hub name (None: the demo), converted and compiled where that is missing."""
    prepared = prepare(
        model,
        quantization,
        target.device,
        None,
        cache_dtype=target.chosen_cache,
        ignore_config_fields=ignore_config_fields,
        without_mtp=without_mtp,
        before_making=before_making,
    )
    # A converted or packed artifact lacks them already.
    there = read_chat_config(prepared.artifact.path / FILE_NAME)["model_config"]
    ignored = tuple(name for name in ignore_config_fields if name in there)
    return Subject(name, prepared.artifact, prepared.library, random_weights=False, ignored=ignored)


def random_subject(fields: dict[str, Any], name: str, quantization: str, target: CompileTarget) -> Subject:
    """Random weights for the config.json `fields`."""
    artifact = random_artifact(fields, quantization)
    library, _ = cached_library(artifact.model_config, artifact.quantization, target)
    return Subject(name, artifact, library, random_weights=True)
