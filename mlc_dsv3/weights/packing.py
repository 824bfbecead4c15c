"""Artifact → artifact: the same quantized values in the order that a target's kernels read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from mlc_dsv3.progress import progress as progress_bar
from mlc_dsv3.quantization import pack
from mlc_dsv3.weights.artifact import Artifact
from mlc_dsv3.weights.conversion import spans
from mlc_dsv3.weights.files import Progress
from mlc_dsv3.weights.plan import SHARD_BYTES, plan
from mlc_dsv3.weights.writer import Piece, write_artifact
from relax_model.layout import PackedLayout, layout_of
from relax_model.parameters import Parameter, parameters

_ROWS = 4096  # of a piece: a few MB


def pack_artifact(
    artifact: Artifact,
    quantization: str,
    output: Path,
    *,
    progress: Progress = progress_bar,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write `artifact` to the folder `output` in the layout of `quantization`, a packed one of the same values.

    Raises UserError as `write_artifact` does.
    """
    layout = layout_of(quantization)
    assert isinstance(layout, PackedLayout)
    assert layout.base.name == artifact.quantization
    arrays = artifact.map_parameters()
    pieces = (piece for parameter in parameters(artifact.model_config) for piece in _pieces(arrays, parameter, layout))
    write_artifact(
        output,
        {**artifact.chat_config, "quantization": quantization},
        plan(artifact.model_config, layout, shard_bytes),
        pieces,
        small_files=artifact.path,
        title="Packing weights",
        progress=progress,
    )
    return output


def _pieces(arrays: dict[str, np.ndarray], parameter: Parameter, layout: PackedLayout) -> Iterator[Piece]:
    if not parameter.matrix:
        values = arrays[parameter.name]
        yield Piece(0, lambda: {parameter.name: values})
        return
    plain = {
        suffix: (array := arrays[f"{parameter.name}.{suffix}"]).reshape(-1, array.shape[-1])
        for suffix in ("q_weight", "q_scale")
    }
    step, row = _ROWS // layout.rows * layout.rows, 0
    matrix_rows = parameter.shape[-2]
    for matrix in range(len(plain["q_scale"]) // matrix_rows):
        for first, last in spans(matrix_rows, parameter.parts):
            for start in range(first, last, step):
                stop = min(last, start + step)
                rows = slice(matrix * matrix_rows + start, matrix * matrix_rows + stop)
                yield Piece(row, partial(_packed, parameter.name, layout, plain, rows))
                row += -(-(stop - start) // layout.rows)


def _packed(name: str, layout: PackedLayout, plain: dict[str, np.ndarray], rows: slice) -> dict[str, np.ndarray]:
    stored = pack(layout, {suffix: array[rows] for suffix, array in plain.items()})
    return {f"{name}.{suffix}": array for suffix, array in stored.items()}
