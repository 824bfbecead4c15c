"""An artifact of random weights for any configuration, made without a checkpoint and kept in the cache folder.

It is written as conversion would have left it and mapped like any other, so that load time and memory are real ones.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from mlc_dsv3.folders import cache_folder
from mlc_dsv3.progress import progress
from mlc_dsv3.weights import Artifact
from mlc_dsv3.weights.chat_config import artifact_model_config
from mlc_dsv3.weights.lock import make_once
from mlc_dsv3.weights.plan import TENSOR_CACHE, plan
from mlc_dsv3.weights.writer import Piece, write_artifact
from relax_model.config import ModelConfig, parse_config
from relax_model.layout import BufferSpec, GroupLayout, PackedLayout, layout_of
from relax_model.parameters import parameters

# Raised when other values are written for the same configuration.
_VERSION = 2
_PIECE_BYTES = 32 << 20
_BLOCK_VALUES = 1 << 20


def random_artifact(fields: dict[str, Any], quantization: str) -> Artifact:
    """The artifact of random weights for the config.json `fields`, written now unless the cache folder has it.

    Raises UserError where the disk has no room. Safe to delete: `<cache>/bench/weights`.
    """
    fields = artifact_model_config(fields)
    config = parse_config(fields)
    placed = plan(config, layout_of(quantization))
    contents = json.dumps(
        [_VERSION, config.digest(), quantization, placed.tensor_cache([""] * len(placed.shard_sizes))]
    )
    folder = cache_folder() / "bench" / "weights" / hashlib.sha256(contents.encode()).hexdigest()[:20]
    output = folder / quantization

    def write() -> None:
        write_artifact(
            output,
            {"model_type": config.model_type, "quantization": quantization, "model_config": fields},
            placed,
            _pieces(config, quantization),
            small_files=output,
            title="Writing random weights",
            progress=progress,
        )

    make_once(output / TENSOR_CACHE, write, doing="writes the same weights")
    return Artifact.open(output)


def _pieces(config: ModelConfig, quantization: str) -> Iterator[Piece]:
    seed = 0
    for parameter in parameters(config):
        for name, spec in parameter.buffers(layout_of(quantization)).items():
            rows = spec.shape[0]
            step = max(1, _PIECE_BYTES * rows // spec.nbytes)
            for start in range(0, rows, step):
                part = BufferSpec((min(step, rows - start), *spec.shape[1:]), spec.dtype)
                yield Piece(start, partial(_make, name, part, parameter.shape[-1], quantization, seed))
                seed += 1


def _make(name: str, spec: BufferSpec, width: int, quantization: str, seed: int) -> dict[str, np.ndarray]:
    """A piece of an array. A large one repeats a random block: every byte is really there and really read."""
    count = min(math.prod(spec.shape), _BLOCK_VALUES)
    block = random_values(np.random.default_rng(seed), name, spec.dtype, count, width, quantization)
    return {name: np.resize(block, spec.shape)}


def random_values(
    random: np.random.Generator, name: str, dtype: str, count: int, width: int, quantization: str
) -> np.ndarray:
    """`count` stored values of an array, of a trained model's magnitude: 1/√width, both signs, norms of one.

    Whatever order a layout keeps its codes in, they are random alike, and only the quantization's bits matter.
    """
    scale, layout = width**-0.5, layout_of(quantization)
    if name.endswith("norm.weight"):
        return np.ones(count, dtype)
    codes = layout.base if isinstance(layout, PackedLayout) else layout
    if isinstance(codes, GroupLayout) and dtype == "uint32":
        return _e4m3_codes(random, count) if codes.e4m3 else _codes(random, count, codes.bits)
    if isinstance(codes, GroupLayout) and name.endswith("q_scale"):
        # Uniform codes have this standard deviation times their largest, those of floats one of 1.
        return np.full(count, scale if codes.e4m3 else scale / (3**-0.5 * codes.zero), dtype)
    values = random.standard_normal(count, np.float32) * np.float32(scale)
    if dtype == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(dtype)


def _e4m3_codes(random: np.random.Generator, count: int) -> np.ndarray:
    """Words of normally distributed 8-bit floats."""
    return random.standard_normal(4 * count, np.float32).astype(ml_dtypes.float8_e4m3fn).view(np.uint32)


def _codes(random: np.random.Generator, count: int, bits: int) -> np.ndarray:
    """Words of uniform codes from 0 to 2 · zero, as quantization makes them: the highest code never comes."""
    most = 2**bits - 2
    if bits == 8:
        return random.integers(0, most, 4 * count, np.uint8, endpoint=True).view(np.uint32)
    assert bits == 4
    low, high = random.integers(0, most, (2, 4 * count), np.uint8, endpoint=True)
    return (low | high << 4).view(np.uint32)
