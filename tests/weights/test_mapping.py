"""Weights lie in the page cache in huge pages, where the system has them for files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mlc_dsv3.weights.mapping import make_huge_pages, mapped

SIZE = 8 << 20
PIECE = 1_000_000


def in_huge_pages(data: np.ndarray) -> int:
    """Bytes of a mapping that its process sees in huge pages."""
    data[::4096].max()
    maps = Path("/proc/self/smaps").read_text()
    own = maps[maps.index(f"{data.ctypes.data:x}-") :]
    line = next(line for line in own.splitlines() if line.startswith("FilePmdMapped:"))
    return int(line.split()[1]) * 1024


@pytest.fixture
def huge_pages(tmp_path: Path) -> None:
    """Skips where a file that is written in one piece has none."""
    if not Path("/proc/self/smaps").is_file():
        pytest.skip("this system does not say how files are mapped")
    path = tmp_path / "whole"
    path.write_bytes(bytes(SIZE))
    if not in_huge_pages(mapped(path)):
        pytest.skip("this system has no huge pages for files here")


def content() -> bytes:
    return np.random.default_rng(0).integers(0, 256, SIZE, np.uint8).tobytes()


def written(path: Path, *, prepared: bool) -> Path:
    """A file that was written in pieces of odd sizes."""
    data = content()
    with path.open("w+b", buffering=0) as file:
        os.ftruncate(file.fileno(), SIZE)
        for start in range(0, SIZE, PIECE):
            piece = data[start : start + PIECE]
            if prepared:
                make_huge_pages(file.fileno(), SIZE, start, start + len(piece))
            os.pwrite(file.fileno(), piece, start)
    return path


def test_what_is_written_in_pieces_lies_in_huge_pages(huge_pages: None, tmp_path: Path) -> None:
    data = mapped(written(tmp_path / "weights", prepared=True))
    assert in_huge_pages(data) == SIZE
    assert data.tobytes() == content()


@pytest.mark.parametrize("size", [1, 4096, 5000, 2 << 20, (2 << 20) + 1])
def test_files_of_any_size_can_be_prepared_and_mapped(tmp_path: Path, size: int) -> None:
    path = tmp_path / "weights"
    with path.open("w+b", buffering=0) as file:
        os.ftruncate(file.fileno(), size)
        make_huge_pages(file.fileno(), size, 0, size)
        make_huge_pages(file.fileno(), size, size - 1, size)
        os.pwrite(file.fileno(), b"x", size - 1)
    assert mapped(path).tobytes() == bytes(size - 1) + b"x"


def test_a_mapping_is_private(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    mapped(path)[0] = 0
    assert path.read_bytes() == b"abc"
