"""Files in and out of the page cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlc_dsv3.bench import pagecache


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(range(256)) * 4096 * 4)
    return path


def test_reading_a_file_makes_it_resident(file: Path) -> None:
    pagecache.fill([file])
    assert pagecache.resident([file]) == 1


def test_dropping_a_file_takes_it_out(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if pagecache.resident([file]):
        pytest.skip("a file system in memory drops nothing")
    pagecache.fill([file])
    assert pagecache.drop([file]) is None
    assert pagecache.resident([file]) <= 0.02


def test_what_cannot_be_dropped_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagecache, "resident", lambda files: 0.5)
    assert pagecache.drop([file]) == "50% of the weights stay in the page cache"


def test_a_system_without_the_call_says_so(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.posix_fadvise")
    assert pagecache.drop([file]) == "this system has no posix_fadvise"
