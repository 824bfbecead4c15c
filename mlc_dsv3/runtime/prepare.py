"""Whatever a user names as a model → an artifact and a library that fit, converted and compiled where they are missing.

What is made is cached under keys that cover everything its bytes depend on, so that it is made once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from mlc_dsv3.compiler.fingerprint import library_key
from mlc_dsv3.compiler.targets import CompileTarget, resolve_target
from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.folders import cache_folder
from mlc_dsv3.runtime.hub import model_folder, model_name
from mlc_dsv3.weights import Artifact, Checkpoint, artifact_name, checkpoint_identity, convert
from mlc_dsv3.weights.chat_config import FILE_NAME
from relax_model.config import ModelConfig


@dataclass(frozen=True)
class Prepared:
    """A model ready to be loaded."""

    artifact: Artifact
    library: Path
    device: str


def prepare(
    model: str | Path | None,
    quantization: str | None,
    device: str,
    model_lib: Path | None,
    *,
    ignore_config_fields: Collection[str] = (),
) -> Prepared:
    """The artifact and library of `model` (a checkpoint, an artifact, a Hub name; None is the demo).

    `model_lib` is a library to use as it is. UserError for what cannot be found, converted or compiled.
    """
    target = resolve_target(device)
    if model is None:
        from mlc_dsv3.demo import checkpoint_path

        folder, name = checkpoint_path(), "demo"
    else:
        folder, name = model_folder(model), model_name(model)
    artifact = _artifact(folder, name, quantization, target, ignore_config_fields)
    library = Path(model_lib) if model_lib is not None else _library(artifact, name, target)
    return Prepared(artifact, library, target.device)


def _artifact(
    folder: Path, name: str, quantization: str | None, target: CompileTarget, ignore: Collection[str]
) -> Artifact:
    if (folder / FILE_NAME).is_file():
        artifact = Artifact.open(folder)
        if quantization not in (None, artifact.quantization):
            raise UserError(
                f"{folder} is quantized as {artifact.quantization}, not {quantization}; name its checkpoint instead"
            )
        return artifact
    checkpoint = Checkpoint.open(folder, ignore=ignore)
    quantization = quantization or target.default("quantization")
    key = hashlib.sha256(f"{checkpoint_identity(folder)}\n{sorted(ignore)}\n{quantization}".encode()).hexdigest()
    output = cache_folder() / "weights" / key[:20] / artifact_name(name, quantization)
    if not (output / "tensor-cache.json").is_file():
        convert(checkpoint, quantization, output)
    return Artifact.open(output)


def _library(artifact: Artifact, name: str, target: CompileTarget) -> Path:
    return cached_library(artifact.model_config, artifact.quantization, name, target)[0]


def cached_library(config: ModelConfig, quantization: str, name: str, target: CompileTarget) -> tuple[Path, bool]:
    """The library of a configuration from the cache, and whether it had to be compiled now."""
    key = library_key(config, quantization, target, None)
    output = cache_folder() / "libraries" / key[:20] / f"{name}-{quantization}-{target.device}.so"
    if output.is_file():
        return output, False
    from mlc_dsv3.compiler import compile_model

    return compile_model(config, quantization, target.device, output), True
