"""One `.safetensors` file: its header checked against its size, and rows of its tensors read as they lie.

Read with `pread` rather than mapped: a mapped checkpoint counts as the process's memory, page by page, and a file that
shrinks meanwhile would kill the process.
"""

from __future__ import annotations

import math
import os
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlc_dsv3.errors import UserError
from mlc_dsv3.json_files import parse_json
from mlc_dsv3.regular_files import regular_size
from relax_model.fields import named, shown

_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_ITEM_BYTES |= {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E8M0": 1}
_LONGEST_HEADER = 100 << 20  # the format's own limit
_MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies in its file."""

    dtype: str  # by safetensors' name: "F32", "BF16", "F8_E4M3", …
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    nbytes: int


class SafetensorsFile:
    """An open file: `tensors` by name; `read` gives a tensor's raw bytes, or a part of them."""

    def __init__(self, path: Path) -> None:
        """Open `path` and check its header; UserError where it is absent, no regular file, truncated, or no
        safetensors file."""
        self.path = path
        regular_size(path)
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        self._close = weakref.finalize(self, os.close, self._descriptor)
        self.size = os.fstat(self._descriptor).st_size
        self.header = self._read_header()
        self.tensors = self._parse(self.header)

    def close(self) -> None:
        """Close the file; nothing can be read any more."""
        self._close()

    def read(self, offset: int, nbytes: int) -> np.ndarray:
        """uint8 (nbytes,): the file's bytes from `offset`."""
        buffer = np.empty(nbytes, np.uint8)
        done = 0
        while done < nbytes:
            try:
                count = os.preadv(self._descriptor, [memoryview(buffer)[done:]], offset + done)
            except OSError as error:
                raise UserError(f"{self.path} cannot be read: {error.strerror}") from error
            if count == 0:
                raise UserError(f"{self.path} ends at byte {offset + done}: it was cut while it was read")
            done += count
        return buffer

    def _read_header(self) -> bytes:
        length = int.from_bytes(self.read(0, 8).tobytes(), "little") if self.size >= 8 else None
        if length is None or length > min(self.size - 8, _LONGEST_HEADER):
            if self.size and self.read(0, min(self.size, 18)).tobytes().startswith(b"version https://gi"):
                raise UserError(
                    f"{self.path} is a git-lfs pointer, not the file itself; run `git lfs pull` in its folder"
                )
            raise UserError(f"{self.path} is truncated or no safetensors file ({self.size} bytes); download it again")
        return self.read(8, length).tobytes()

    def _parse(self, header: bytes) -> dict[str, TensorEntry]:
        start = 8 + len(header)
        fields = parse_json(header, f"{self.path} has a damaged header: it")
        fields.pop("__metadata__", None)
        return {name: self._entry(name, field, start) for name, field in fields.items()}

    def _entry(self, name: str, field: object, start: int) -> TensorEntry:
        match field:
            case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]} if (
                len(shape) <= _MOST_DIMENSIONS and all(map(_is_extent, (*shape, begin, end))) and begin <= end
            ):
                entry = TensorEntry(dtype, tuple(shape), start + begin, end - begin)
            case _:
                raise UserError(f"{self.path} has a damaged header: {named(name)} is {shown(field)}; download it again")
        if start + end > self.size:
            raise UserError(
                f"{self.path} is truncated: {self.size} bytes, and {named(name)} ends at {start + end}; "
                "download it again"
            )
        item = _ITEM_BYTES.get(dtype)
        if item is not None and entry.nbytes != item * math.prod(shape):
            raise UserError(
                f"{self.path} has a damaged header: {named(name)} has {entry.nbytes} bytes for shape {shape}"
            )
        return entry


def _is_extent(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 50
