"""Whatever a user names as a model → an artifact and a library that fit, converted and compiled where they are missing.

What is made is cached under keys that cover everything its bytes depend on, so that it is made once.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from mlc_dsv3.compiler.fingerprint import library_key
from mlc_dsv3.compiler.metadata import Metadata
from mlc_dsv3.compiler.targets import CompileTarget, resolve_target
from mlc_dsv3.errors import UserError
from mlc_dsv3.folders import cache_folder
from mlc_dsv3.runtime.capacity import Room, memory_need, plan_cache
from mlc_dsv3.runtime.hub import model_folder
from mlc_dsv3.runtime.library import read_metadata
from mlc_dsv3.runtime.memory import memory_of
from mlc_dsv3.weights import Artifact, Checkpoint, convert, gen_config, pack_artifact
from mlc_dsv3.weights.artifact import refuse_mtp_layers
from mlc_dsv3.weights.chat_config import FILE_NAME
from mlc_dsv3.weights.conversion import VERSION
from mlc_dsv3.weights.identity import artifact_identity, checkpoint_identity
from mlc_dsv3.weights.lock import make_once
from mlc_dsv3.weights.plan import TENSOR_CACHE
from relax_model.config import ModelConfig
from relax_model.layout import PackedLayout, layout_of


@dataclass(frozen=True)
class Prepared:
    """A model ready to be loaded."""

    artifact: Artifact
    library: Path
    device: str

    def identity(self) -> str:
        """SHA-256 (hex) over what decides the bits of the latent cache: the artifact and the library."""
        digest = hashlib.sha256(artifact_identity(self.artifact).encode())
        digest.update(hashlib.sha256(self.library.read_bytes()).digest())
        return digest.hexdigest()


def prepare(
    model: str | Path | None,
    quantization: str | None,
    device: str,
    model_lib: Path | None,
    *,
    cache_dtype: str | None = None,
    ignore_config_fields: Collection[str] = (),
    room: Room | None = None,
    without_mtp: bool = False,
    before_making: Callable[[Path], None] = lambda folder: None,
) -> Prepared:
    """The artifact and library of `model` (a checkpoint, an artifact, a Hub name; None is the demo).

    `model_lib` is a library to use as it is; `cache_dtype` is the latent cache's; `without_mtp` leaves out a
    checkpoint's MTP layers. `before_making` gets the model's folder when its configuration has been read and nothing
    has been made; it may raise. UserError for what cannot be found, converted or compiled, and before that for weights
    and a `room` that do not fit in the device's memory.
    """
    target = resolve_target(device, cache_dtype=cache_dtype)
    if model is None:
        from mlc_dsv3.demo import checkpoint_path

        folder = checkpoint_path()
    else:
        folder = model_folder(model)
    metadata = _metadata_of(model_lib, quantization, target) if model_lib is not None else None
    stored = metadata.quantization if metadata is not None else None
    if (folder / FILE_NAME).is_file():
        artifact = Artifact.open(folder, ignore=ignore_config_fields)
        if without_mtp:
            refuse_mtp_layers(folder, artifact.model_config)
        before_making(folder)
        stored = stored or target.stored_as(quantization or artifact.quantization)
        _refuse_other_values(artifact, stored, model_lib, target)
        _refuse_unless_it_fits(room, artifact.model_config, stored, target, metadata)
        artifact = _packed(artifact, stored, ignore_config_fields)
    else:
        stored = stored or target.stored_as(quantization or target.default("quantization"))
        checkpoint = Checkpoint.open(folder, ignore=ignore_config_fields, without_mtp=without_mtp)
        before_making(folder)
        _refuse_unless_it_fits(room, checkpoint.model_config, stored, target, metadata)
        artifact = _converted(checkpoint, stored, ignore_config_fields)
    library = Path(model_lib) if model_lib is not None else _library(artifact, target)
    return Prepared(artifact, library, target.device)


def _refuse_unless_it_fits(
    room: Room | None, config: ModelConfig, quantization: str, target: CompileTarget, library: Metadata | None
) -> None:
    """UserError where the model does not fit in the device's memory with `room`. (Without, nobody is going to load it.)

    What is planned here is thrown away: when all is made, less memory may be free.
    """
    if room is None:
        return
    max_rows = library.max_rows if library else target.default("max_rows")
    max_batch, device = room.batch(max_rows), library.device if library else target.device
    need = memory_need(
        config,
        quantization,
        device=device,
        attention_tile=dict(library.attention_tile if library else target.tuned),
        cache_dtype=library.cache_dtype if library else target.cache_dtype(quantization),
        page_size=library.page_size if library else target.default("page_size"),
        max_rows=max_rows,
        max_batch=max_batch,
    )
    longest = library.context_window if library else config.max_position_embeddings
    plan_cache(room, need, memory_of(device).available(), longest=longest, max_batch=max_batch)


def _metadata_of(library: str | Path, quantization: str | None, target: CompileTarget) -> Metadata:
    """A library's metadata; UserError where another quantization than it reads was asked for, or another dtype of its
    cache."""
    metadata = read_metadata(Path(library))
    read = metadata.quantization
    if target.chosen_cache not in (None, metadata.cache_dtype):
        raise UserError(
            f"library {library} has a cache in {metadata.cache_dtype}, not {target.chosen_cache}; "
            "leave --cache-dtype out"
        )
    if quantization is not None and read not in (quantization, target.stored_as(quantization)):
        raise UserError(f"library {library} reads {read}, not {quantization}; leave --quantization out")
    return metadata


def _converted(checkpoint: Checkpoint, quantization: str, ignore: Collection[str]) -> Artifact:
    """The artifact of a checkpoint, converted into the cache once."""
    # How it is sampled and rendered is written beside the weights.
    chat_config = json.dumps(gen_config(checkpoint, quantization), sort_keys=True)
    parts = (str(VERSION), checkpoint_identity(checkpoint.path), str(sorted(ignore)), quantization, chat_config)
    output = _cached_artifact("\n".join(parts), quantization)
    make_once(output / TENSOR_CACHE, lambda: convert(checkpoint, quantization, output), doing="converts this model")
    return Artifact.open(output)


def _refuse_other_values(artifact: Artifact, quantization: str, library: Path | None, target: CompileTarget) -> None:
    """UserError where the artifact has other values than `quantization` (the library's, where there is one), and what
    to type."""
    stored, layout = artifact.quantization, layout_of(quantization)
    if stored in (quantization, layout.base.name if isinstance(layout, PackedLayout) else None):
        return
    if library is None:
        raise UserError(
            f"artifact {artifact.path} is in {stored}, not {quantization}; leave --quantization out, or name the "
            "checkpoint that it was made from"
        )
    compiling = f"mlc_dsv3 compile {shlex.quote(str(artifact.path))} --device {target.device}"
    raise UserError(
        f"artifact {artifact.path} is in {stored}, and library {library} reads {quantization}; make a library that "
        f"reads {stored}: {compiling}"
    )


def _packed(artifact: Artifact, quantization: str, ignore: Collection[str]) -> Artifact:
    """The artifact in the layout that `quantization` names, packed into the cache once where it has another."""
    if quantization == artifact.quantization:
        return artifact
    parts = (artifact_identity(artifact), quantization, *([str(sorted(ignore))] if ignore else []))
    output = _cached_artifact("\n".join(parts), quantization)
    make_once(output / TENSOR_CACHE, lambda: pack_artifact(artifact, quantization, output), doing="packs this model")
    return Artifact.open(output)


def _cached_artifact(identity: str, quantization: str) -> Path:
    """Without the model's name: the same model in another folder is the same artifact."""
    key = hashlib.sha256(identity.encode()).hexdigest()
    return cache_folder() / "weights" / key[:20] / quantization


def _library(artifact: Artifact, target: CompileTarget) -> Path:
    return cached_library(artifact.model_config, artifact.quantization, target)[0]


def cached_library(config: ModelConfig, quantization: str, target: CompileTarget) -> tuple[Path, bool]:
    """The library of a configuration from the cache, whatever its models are called, and whether it had to be compiled
    now."""
    key = library_key(config, quantization, target, None)
    output = cache_folder() / "libraries" / key[:20] / f"{quantization}-{target.device}.so"

    def compile_now() -> None:
        from mlc_dsv3.compiler import compile_model

        started = time.perf_counter()
        compile_model(config, quantization, target.device, output, level=target.level, cache_dtype=target.chosen_cache)
        _compile_record(output).write_text(f"{time.perf_counter() - started:.3f}")

    return output, make_once(output, compile_now, doing="compiles this model")


def compile_seconds(library: Path) -> float | None:
    """What compiling a library of the cache took, in the run that did it."""
    record = _compile_record(library)
    return float(record.read_text()) if record.is_file() else None


def _compile_record(library: Path) -> Path:
    return library.with_suffix(".compile-seconds")
