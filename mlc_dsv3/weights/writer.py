"""Writing an artifact, whoever makes its arrays: in pieces, by several threads, and whole or not at all.

Everything goes into a `.partial` folder and is moved at the end, `tensor-cache.json` last: whoever has it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlc_dsv3.errors import UserError
from mlc_dsv3.output_paths import artifact_folder, folder_made
from mlc_dsv3.weights import chat_config
from mlc_dsv3.weights.files import GENERATION_CONFIG, TOKENIZER_FILES, Progress, copy_files, md5
from mlc_dsv3.weights.lock import exclusive
from mlc_dsv3.weights.mapping import make_huge_pages
from mlc_dsv3.weights.plan import TENSOR_CACHE, Plan, shard_name

_MOST_WORKERS = 16


@dataclass(frozen=True)
class Piece:
    """Rows of stored arrays: `make()` returns them by their full names; they begin at `row` of the first axis."""

    row: int
    make: Callable[[], dict[str, np.ndarray]]


def write_artifact(
    output: Path,
    fields: dict[str, Any],
    placed: Plan,
    pieces: Iterable[Piece],
    *,
    small_files: Path,
    title: str,
    progress: Progress,
) -> None:
    """Write the arrays that `pieces` make to the places of `placed`, with `fields` as `mlc-chat-config.json`.

    A `mlc-chat-config.json` that `output` already has (from `gen_config`) is kept. The tokenizer's files are copied
    from the folder `small_files`. Raises UserError for a folder that cannot be written or holds a checkpoint, a full
    disk, or another process at work in the same folder. Where it fails, a folder that it made is removed.
    """
    with folder_made(artifact_folder(output)), exclusive(output / ".lock"):
        fields = _kept_chat_config(output, fields)
        partial = output / ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        _check_space(output, placed.nbytes)
        try:
            partial.mkdir()
            _write_shards(pieces, placed, partial, title, progress)
            _write_small_files(small_files, fields, placed, partial, progress)
            _publish(partial, output)
        except OSError as error:
            raise UserError(
                f"{error.filename or output}: {error.strerror}; writing {output} needs {placed.nbytes} bytes"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _write_shards(pieces: Iterable[Piece], placed: Plan, folder: Path, title: str, progress: Progress) -> None:
    workers = _workers()
    with ExitStack() as stack:
        advance = stack.enter_context(progress(title, placed.nbytes))
        shards = [folder / shard_name(index) for index in range(len(placed.shard_sizes))]
        for path, size in zip(shards, placed.shard_sizes, strict=True):
            _create(path, size)
        pool = ThreadPoolExecutor(workers)
        stack.callback(pool.shutdown, cancel_futures=True)
        pending: deque[Future[int]] = deque()
        for piece in pieces:
            # A bounded queue: a piece that has been read is a piece of memory.
            if len(pending) == 2 * workers:
                advance(pending.popleft().result())
            pending.append(pool.submit(_write_piece, piece, placed, shards))
        while pending:
            advance(pending.popleft().result())


def _write_piece(piece: Piece, placed: Plan, shards: list[Path]) -> int:
    """Make and write one piece; the bytes written."""
    stored = piece.make()
    for name, array in stored.items():
        record = placed.records[name]
        row_bytes = array.nbytes // array.shape[0]
        place = record.offset + piece.row * row_bytes
        _write(shards[record.shard], array, place, placed.shard_sizes[record.shard])
    return sum(array.nbytes for array in stored.values())


def _create(path: Path, size: int) -> None:
    with path.open("xb") as file, _named(path):
        os.ftruncate(file.fileno(), size)


def _write(path: Path, array: np.ndarray, offset: int, size: int) -> None:
    """Write the array's bytes at `offset` of a file of `size` bytes; several threads may, each its own part."""
    rest = memoryview(np.ascontiguousarray(array).view(np.uint8).reshape(-1))
    # Opened for each block: a large model has more shards than a process may hold open files.
    with path.open("r+b", buffering=0) as file, _named(path):
        make_huge_pages(file.fileno(), size, offset, offset + len(rest))
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


def _write_small_files(source: Path, fields: dict[str, Any], placed: Plan, folder: Path, progress: Progress) -> None:
    with progress("Computing checksums", placed.nbytes) as advance:
        paths = [folder / shard_name(index) for index in range(len(placed.shard_sizes))]
        with ThreadPoolExecutor(_workers()) as pool:
            checksums = list(pool.map(lambda path: md5(path, advance), paths))
    copy_files(source, (*TOKENIZER_FILES, GENERATION_CONFIG), folder)
    _write_json(folder / chat_config.FILE_NAME, fields)
    _write_json(folder / TENSOR_CACHE, placed.tensor_cache(checksums))


def _publish(partial: Path, output: Path) -> None:
    """Move everything to its final name; from the first move to the last, `output` has no `tensor-cache.json`."""
    (output / TENSOR_CACHE).unlink(missing_ok=True)
    for old in output.glob("params_shard_*.bin"):
        old.unlink()
    files = [path for path in partial.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == TENSOR_CACHE):
        target = output / path.relative_to(partial)
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)


def _workers() -> int:
    return min(_MOST_WORKERS, os.cpu_count() or 1)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _kept_chat_config(output: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """The folder's own `mlc-chat-config.json` where it is for the same model and quantization."""
    path = output / chat_config.FILE_NAME
    if not path.exists():
        return fields
    existing = chat_config.read_chat_config(path)
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
