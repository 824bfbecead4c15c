"""Checkpoint → artifact, by blocks of rows: memory stays small whatever the model's size.

Everything is written into a `.partial` folder and moved at the end, `tensor-cache.json` last: whoever has it is whole.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlc_dsv3.errors import UserError
from mlc_dsv3.progress import progress as progress_bar
from mlc_dsv3.quantization import ValueRangeError, quantize
from mlc_dsv3.weights import chat_config
from mlc_dsv3.weights.checkpoint import Checkpoint
from mlc_dsv3.weights.files import GENERATION_CONFIG, TOKENIZER_FILES, Progress, md5, present, read_json
from mlc_dsv3.weights.lock import exclusive
from mlc_dsv3.weights.names import check_tensors, sources
from mlc_dsv3.weights.plan import SHARD_BYTES, TENSOR_CACHE, Plan, plan, shard_name
from relax_model.config import parse_config
from relax_model.layout import FloatLayout, Layout, PackedLayout, layout_of
from relax_model.parameters import Parameter, parameters

_BLOCK_VALUES = 1 << 18  # float32 values of a block: small enough for the cache, large enough to forget the calls
_MOST_WORKERS = 16
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
    without_mtp: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Quantize `checkpoint` into the artifact folder `output` and return it.

    A `mlc-chat-config.json` that `output` already has (from `gen_config`) is kept. Raises UserError for a checkpoint
    that is not whole, a full disk, a value beyond the format's range, or another process at work in the same folder.
    Whatever goes wrong, `output` never looks finished.
    """
    output = Path(output)
    layout = layout_of(quantization)
    model = parse_config(chat_config.artifact_model_config(checkpoint.config, without_mtp))
    check_tensors(checkpoint, model)
    placed = plan(model, layout, shard_bytes)
    fields = chat_config.gen_config(checkpoint, quantization, without_mtp=without_mtp)
    _make_folder(output)
    with exclusive(output / ".lock"):
        fields = _kept_chat_config(output, fields)
        partial = output / ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        _check_space(output, placed.nbytes)
        try:
            partial.mkdir()
            _write_shards(checkpoint, parameters(model), layout, placed, partial, progress)
            _write_small_files(checkpoint, fields, placed, partial, progress)
            _publish(partial, output)
        except OSError as error:
            raise UserError(
                f"{error.filename or output}: {error.strerror}; converting into {output} needs {placed.nbytes} bytes"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return output


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
        for first, last in _parts(rows, parameter.parts if together > 1 else ()):
            for start in range(first, last, step):
                stop = min(last, start + step)
                yield _Block(parameter, source, start, stop, row)
                row += -(-(stop - start) // together)


def _parts(rows: int, parts: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """The spans of a source's rows that are stored apart: the stacked matrices in it, where it is not one of them."""
    lengths = itertools.cycle(parts if rows > max(parts, default=rows) else (rows,))
    start = 0
    while start < rows:
        stop = start + next(lengths)
        yield start, stop
        start = stop


def _write_shards(
    checkpoint: Checkpoint, params: list[Parameter], layout: Layout, placed: Plan, folder: Path, progress: Progress
) -> None:
    workers = _workers()
    with ExitStack() as stack:
        advance = stack.enter_context(progress("Converting weights", placed.nbytes))
        shards = [folder / shard_name(index) for index in range(len(placed.shard_sizes))]
        for path, size in zip(shards, placed.shard_sizes, strict=True):
            _create(path, size)
        pool = ThreadPoolExecutor(workers)
        stack.callback(pool.shutdown, cancel_futures=True)
        pending: deque[Future[int]] = deque()
        for block in (block for parameter in params for block in _blocks(checkpoint, parameter, layout)):
            # A bounded queue: a block that has been read is a block of memory.
            if len(pending) == 2 * workers:
                advance(pending.popleft().result())
            pending.append(pool.submit(_convert_block, checkpoint, block, layout, placed, shards))
        while pending:
            advance(pending.popleft().result())


def _convert_block(checkpoint: Checkpoint, block: _Block, layout: Layout, placed: Plan, shards: list[Path]) -> int:
    """Read, quantize and write one block; the bytes written."""
    values = checkpoint.read_rows(block.source, block.start, block.stop)
    stored = _store(block, layout, values)
    for name, array in stored.items():
        record = placed.records[name]
        row_bytes = array.nbytes // array.shape[0]
        _write(shards[record.shard], array, record.offset + block.row * row_bytes)
    return sum(array.nbytes for array in stored.values())


def _store(block: _Block, layout: Layout, values: np.ndarray) -> dict[str, np.ndarray]:
    """Full name → stored rows. What is no matrix stays float32, and is one row a value or a row."""
    parameter = block.parameter
    try:
        if parameter.matrix:
            return {f"{parameter.name}.{suffix}": array for suffix, array in quantize(layout, values).items()}
        return {parameter.name: quantize(_EXACT, values.reshape(len(values), -1))["weight"]}
    except ValueRangeError as error:
        raise UserError(f"tensor {block.source} {error}") from error


def _create(path: Path, size: int) -> None:
    with path.open("xb") as file, _named(path):
        os.ftruncate(file.fileno(), size)


def _write(path: Path, array: np.ndarray, offset: int) -> None:
    """Write the array's bytes at `offset`; several threads may, each its own part."""
    rest = memoryview(np.ascontiguousarray(array).view(np.uint8).reshape(-1))
    # Opened for each block: a large model has more shards than a process may hold open files.
    with path.open("r+b", buffering=0) as file, _named(path):
        while rest:
            count = os.pwrite(file.fileno(), rest, offset)
            rest, offset = rest[count:], offset + count


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What goes wrong with a descriptor, under the name of its file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write_small_files(
    checkpoint: Checkpoint, fields: dict[str, Any], placed: Plan, folder: Path, progress: Progress
) -> None:
    with progress("Computing checksums", placed.nbytes) as advance:
        paths = [folder / shard_name(index) for index in range(len(placed.shard_sizes))]
        with ThreadPoolExecutor(_workers()) as pool:
            checksums = list(pool.map(lambda path: md5(path, advance), paths))
    for name in present(checkpoint.path, (*TOKENIZER_FILES, GENERATION_CONFIG)):
        shutil.copyfile(checkpoint.path / name, folder / name)
    _write_json(folder / chat_config.FILE_NAME, fields)
    _write_json(folder / TENSOR_CACHE, placed.tensor_cache(checksums))


def _publish(partial: Path, output: Path) -> None:
    """Move everything to its final name; from the first move to the last, `output` has no `tensor-cache.json`."""
    (output / TENSOR_CACHE).unlink(missing_ok=True)
    for old in output.glob("params_shard_*.bin"):
        old.unlink()
    for path in sorted(partial.iterdir(), key=lambda path: path.name == TENSOR_CACHE):
        os.replace(path, output / path.name)


def _workers() -> int:
    return min(_MOST_WORKERS, os.cpu_count() or 1)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"folder {output} cannot be made: {error.strerror}") from error


def _kept_chat_config(output: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """The folder's own `mlc-chat-config.json` where it is for the same model and quantization."""
    path = output / chat_config.FILE_NAME
    if not path.exists():
        return fields
    existing = read_json(path)
    for name in ("quantization", "model_config"):
        if existing.get(name) != fields[name]:
            raise UserError(f"{path} is for another {name}; remove it or choose another folder")
    return existing


def _check_space(output: Path, needed: int) -> None:
    free = shutil.disk_usage(output).free
    if free < needed:
        raise UserError(
            f"{output} needs {needed} bytes and its disk has {free} free; make room or choose another folder"
        )
