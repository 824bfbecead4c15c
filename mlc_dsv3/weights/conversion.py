"""Checkpoint → artifact, by blocks of rows: memory stays small whatever the model's size."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mlc_dsv3.errors import UserError
from mlc_dsv3.progress import progress as progress_bar
from mlc_dsv3.quantization import ValueRangeError, keep_e4m3, quantize, underflow
from mlc_dsv3.weights import chat_config
from mlc_dsv3.weights.balance import Balance
from mlc_dsv3.weights.checkpoint import Checkpoint
from mlc_dsv3.weights.files import Progress
from mlc_dsv3.weights.losses import Losses
from mlc_dsv3.weights.names import check_tensors, sources
from mlc_dsv3.weights.plan import SHARD_BYTES, plan
from mlc_dsv3.weights.writer import Piece, write_artifact
from relax_model.layout import FloatLayout, GroupLayout, Layout, PackedLayout, layout_of
from relax_model.parameters import Parameter, parameters

# Raised when a checkpoint becomes other bytes than before, so that what is cached is made again.
VERSION = 2
_BLOCK_VALUES = 1 << 18  # float32 values of a block: small enough for the cache, large enough to forget the calls
_EXACT = FloatLayout("exact", "float32")


def artifact_name(name: str, quantization: str) -> str:
    """The folder's name that an artifact of this model goes by."""
    return f"{name}-{quantization}-MLC"


def convert(
    checkpoint: Checkpoint,
    quantization: str,
    output: str | Path,
    *,
    progress: Progress = progress_bar,
    shard_bytes: int = SHARD_BYTES,
    balance: bool = True,
) -> Path:
    """Quantize `checkpoint` into the artifact folder `output` and return it.

    A `mlc-chat-config.json` that `output` already has (from `gen_config`) is kept. Raises UserError for a checkpoint
    that is not whole, a full disk, a value beyond the format's range, a tensor that is too small for it, or another
    process at work in the same folder; warns of groups that became zeros. Whatever goes wrong, `output` never looks
    finished. Outliers of what is cached are balanced (`balance.py`), which a line says, unless `balance` is False or
    the format keeps the checkpoint's own codes.
    """
    layout = layout_of(quantization)
    losses = Losses(layout)
    model = checkpoint.model_config
    check_tensors(checkpoint, model)
    balanced = Balance(checkpoint, model) if balance and not _keeps_codes(layout) else None
    pieces = (
        Piece(block.row, partial(_store, checkpoint, block, layout, losses, balanced))
        for parameter in parameters(model)
        for block in _blocks(checkpoint, parameter, layout)
    )
    write_artifact(
        Path(output),
        chat_config.gen_config(checkpoint, quantization),
        plan(model, layout, shard_bytes),
        pieces,
        small_files=checkpoint.path,
        title="Converting weights",
        progress=progress,
    )
    losses.report()
    if balanced is not None:
        balanced.report()
    return Path(output)


@dataclass(frozen=True)
class _Block:
    """Rows `start` to `stop` of one checkpoint tensor; what they become begins at `row` of the stored arrays."""

    parameter: Parameter
    source: str
    start: int
    stop: int
    row: int


def _blocks(checkpoint: Checkpoint, parameter: Parameter, layout: Layout) -> Iterator[_Block]:
    together = layout.rows if isinstance(layout, PackedLayout) and parameter.matrix else 1  # rows of a stored row
    row = 0
    for source in sources(parameter):
        rows, *rest = checkpoint.shape(source)
        step = max(1, _BLOCK_VALUES // int(np.prod(rest)) // together) * together
        for first, last in spans(rows, parameter.parts if together > 1 else ()):
            for start in range(first, last, step):
                stop = min(last, start + step)
                yield _Block(parameter, source, start, stop, row)
                row += -(-(stop - start) // together)


def spans(rows: int, parts: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """The spans of `rows` that are stored apart: the matrices stacked in them, or all where they are one matrix."""
    lengths = itertools.cycle(parts if rows > max(parts, default=rows) else (rows,))
    start = 0
    while start < rows:
        stop = start + next(lengths)
        yield start, stop
        start = stop


def _keeps_codes(layout: Layout) -> bool:
    return isinstance(layout, GroupLayout) and layout.e4m3


def _store(
    checkpoint: Checkpoint, block: _Block, layout: Layout, losses: Losses, balanced: Balance | None
) -> dict[str, np.ndarray]:
    """Full name → stored rows. What is no matrix stays float32, and is one row a value or a row."""
    parameter, rows = block.parameter, (block.source, block.start, block.stop)
    try:
        if not parameter.matrix:
            values = _read(checkpoint, block, balanced)
            return {parameter.name: quantize(_EXACT, values.reshape(len(values), -1))["weight"]}
        kept = checkpoint.read_e4m3(*rows, layout.group_size) if _keeps_codes(layout) else None
        if kept is None:
            values = _read(checkpoint, block, balanced)
            arrays = quantize(layout, values)
            losses.add(block.source, values, underflow(layout, values, arrays), checkpoint.shape(block.source)[0])
        else:
            arrays = keep_e4m3(layout, *kept)
        return {f"{parameter.name}.{suffix}": array for suffix, array in arrays.items()}
    except ValueRangeError as error:
        raise UserError(f"tensor {block.source} {error}") from error


def _read(checkpoint: Checkpoint, block: _Block, balanced: Balance | None) -> np.ndarray:
    values = checkpoint.read_rows(block.source, block.start, block.stop)
    return values if balanced is None else balanced.apply(block.source, block.start, values)
