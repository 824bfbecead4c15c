"""`tensor-cache.json`, TVM's index of an artifact's shards, read into checked records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlc_dsv3.errors import UserError
from mlc_dsv3.json_files import naming, read_json
from mlc_dsv3.weights.files import inside
from mlc_dsv3.weights.plan import TENSOR_CACHE
from relax_model.fields import Fields, shown
from relax_model.layout import BufferSpec

_MOST_BYTES = 1 << 50
_MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class StoredArray:
    """One array of a shard: `nbytes` from its byte `offset`."""

    name: str
    spec: BufferSpec
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Shard:
    """One file of an artifact: its name, size and md5 (hex), and the arrays in it."""

    name: str
    nbytes: int
    md5: str
    arrays: tuple[StoredArray, ...]


def read_shards(folder: Path) -> tuple[Shard, ...]:
    """An artifact's shards, whose files are there and as long as they were written.

    UserError for the first field or file that is wrong.
    """
    path = folder / TENSOR_CACHE
    if not path.is_file():
        raise UserError(f"{folder} has no {TENSOR_CACHE}: its conversion did not finish; run convert_weight again")
    try:
        fields = Fields(read_json(path))
        with naming(path):
            records = fields.array("records")
            shards = tuple(_shard(Fields.of(record, f"records[{index}]")) for index, record in enumerate(records))
    except UserError as error:
        raise UserError(f"{error}; convert the model again") from error
    for shard in shards:
        _check_file(inside(folder, shard.name, path), shard.nbytes)
    return shards


def _shard(fields: Fields) -> Shard:
    arrays = fields.array("records")
    return Shard(
        fields.text("dataPath"),
        fields.integer("nbytes", most=_MOST_BYTES),
        fields.text("md5sum", ""),
        tuple(_array(Fields.of(each, f"{fields.where}records[{index}]")) for index, each in enumerate(arrays)),
    )


def _array(fields: Fields) -> StoredArray:
    shape = fields.integers("shape", most=_MOST_BYTES)
    if len(shape) > _MOST_DIMENSIONS:
        raise UserError(f"{fields.where}shape is {shown(list(shape))}; it has too many dimensions")
    return StoredArray(
        fields.text("name"),
        BufferSpec(shape, fields.text("dtype")),
        fields.integer("byteOffset", most=_MOST_BYTES),
        fields.integer("nbytes", most=_MOST_BYTES),
    )


def _check_file(file: Path, written: int) -> None:
    if not file.is_file():
        raise UserError(f"{file} is missing; convert the model again")
    size = file.stat().st_size
    if size != written:
        what = "truncated" if size < written else "too long"
        raise UserError(f"{file} is {what}: {size} bytes, and {written} were written; convert the model again")
