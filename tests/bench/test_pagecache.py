"""Files in and out of the page cache."""

from __future__ import annotations

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


def test_a_dropped_file_is_out_of_the_cache_or_the_reason_is_told(file: Path) -> None:
    pagecache.fill([file])
    reason = pagecache.drop([file])
    if reason is None:
        assert pagecache.resident([file]) <= 0.02
    else:  # a file system in memory, as /tmp may be one
        assert "stay in the page cache" in reason


def test_a_system_without_the_call_says_so(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.posix_fadvise")
    assert pagecache.drop([file]) == "this system has no posix_fadvise"
