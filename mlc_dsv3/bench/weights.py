"""An artifact of random weights for any configuration, made without a checkpoint and kept in the cache folder.

It is written as conversion would have left it and mapped like any other, so that load time and memory are real ones.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mlc_dsv3.errors import UserError
from mlc_dsv3.folders import cache_folder
from mlc_dsv3.progress import progress
from mlc_dsv3.weights import Artifact, artifact_name
from mlc_dsv3.weights.chat_config import FILE_NAME, artifact_model_config
from mlc_dsv3.weights.lock import exclusive
from mlc_dsv3.weights.plan import TENSOR_CACHE, Plan, Record, plan, shard_name
from relax_model.config import parse_config
from relax_model.layout import layout_of
from relax_model.parameters import Parameter, parameters

# Raised when other values are written for the same configuration.
_VERSION = 1
_BLOCK_BYTES = 4 << 20


def random_artifact(fields: dict[str, Any], name: str, quantization: str) -> Artifact:
    """The artifact of random weights for the config.json `fields`, written now unless the cache folder has it.

    Raises UserError where the disk has no room. Safe to delete: `<cache>/bench/weights`.
    """
    fields = artifact_model_config(fields, without_mtp=False)
    config = parse_config(fields)
    placed = plan(config, layout_of(quantization))
    contents = json.dumps(
        [_VERSION, config.digest(), quantization, placed.tensor_cache([""] * len(placed.shard_sizes))]
    )
    folder = cache_folder() / "bench" / "weights" / hashlib.sha256(contents.encode()).hexdigest()[:20]
    output = folder / artifact_name(name, quantization)
    if not (output / TENSOR_CACHE).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < placed.nbytes:
            raise UserError(f"random weights need {placed.nbytes} bytes in {folder}, and its disk has {free} free")
        with exclusive(folder / ".lock"):
            partial = folder / ".partial"
            shutil.rmtree(partial, ignore_errors=True)
            try:
                partial.mkdir()
                checksums = _write_shards(placed, {p.name: p for p in parameters(config)}, quantization, partial)
                chat_config = {"model_type": config.model_type, "quantization": quantization, "model_config": fields}
                (partial / FILE_NAME).write_text(json.dumps(chat_config, indent=2))
                (partial / TENSOR_CACHE).write_text(json.dumps(placed.tensor_cache(checksums)))
                shutil.rmtree(output, ignore_errors=True)
                os.replace(partial, output)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return Artifact.open(output)


def _write_shards(placed: Plan, known: dict[str, Parameter], quantization: str, folder: Path) -> list[str]:
    """Write every shard and return their md5 sums."""
    random, checksums = np.random.default_rng(0), []
    with progress("Writing random weights", placed.nbytes) as advance:
        for shard in range(len(placed.shard_sizes)):
            digest = hashlib.md5(usedforsecurity=False)
            with (folder / shard_name(shard)).open("xb") as file:
                for record in placed.records.values():
                    if record.shard == shard:
                        pieces = _pieces(random, record, known, quantization, file.tell())
                        _write(pieces, file.write, digest.update, advance)
                file.flush()
                # Pages that are not yet on the disk cannot be dropped from the page cache for a cold start.
                os.fsync(file.fileno())
            checksums.append(digest.hexdigest())
    return checksums


def _write(pieces: Iterator[bytes], *sinks: Callable[[bytes], Any]) -> None:
    *receivers, advance = sinks
    for piece in pieces:
        for receive in receivers:
            receive(piece)
        advance(len(piece))


def _pieces(
    random: np.random.Generator, record: Record, known: dict[str, Parameter], quantization: str, position: int
) -> Iterator[bytes]:
    """The record's bytes from the file's `position`, its padding first.

    A large array repeats one random block: what counts is that every byte is really there and really read.
    """
    yield bytes(record.offset - position)
    parameter = known.get(record.name) or known[record.name.rpartition(".")[0]]
    itemsize = record.spec.nbytes // math.prod(record.spec.shape)
    count = min(math.prod(record.spec.shape), _BLOCK_BYTES // itemsize)
    block = random_values(random, record.name, record.spec.dtype, count, parameter.shape[-1], quantization).tobytes()
    for start in range(0, record.spec.nbytes, len(block)):
        yield block[: record.spec.nbytes - start]


def random_values(
    random: np.random.Generator, name: str, dtype: str, count: int, width: int, quantization: str
) -> np.ndarray:
    """`count` stored values of an array, of a trained model's magnitude: 1/√width, both signs, norms of one.

    Whatever order a layout keeps its codes in, they are random alike, and only the quantization's bits matter.
    """
    scale = width**-0.5
    bits = re.match(r"q(\d+)", quantization)
    assert bits is not None
    if name.endswith("norm.weight"):
        return np.ones(count, dtype)
    if dtype == "uint32":
        return _codes(random, count, int(bits[1]))
    if name.endswith("q_scale"):
        # Uniform codes from −(2ⁿ⁻¹−1) to 2ⁿ⁻¹−1 have this standard deviation times their largest.
        return np.full(count, scale / (3**-0.5 * (2 ** (int(bits[1]) - 1) - 1)), dtype)
    values = random.standard_normal(count, np.float32) * np.float32(scale)
    if dtype == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(dtype)


def _codes(random: np.random.Generator, count: int, bits: int) -> np.ndarray:
    """Words of uniform codes from 0 to 2 · zero, as quantization makes them: the highest code never comes."""
    most = 2**bits - 2
    if bits == 8:
        return random.integers(0, most, 4 * count, np.uint8, endpoint=True).view(np.uint32)
    assert bits == 4
    low, high = random.integers(0, most, (2, 4 * count), np.uint8, endpoint=True)
    return (low | high << 4).view(np.uint32)
