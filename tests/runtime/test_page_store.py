"""Pages on disk: bounded, checked, and nobody's trouble where the disk fails."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mlc_dsv3 import errors
from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.page_store import PageStore

SIZE = 1000
STORED = SIZE + 32


def content(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SIZE, np.uint8)


def name(number: int) -> str:
    return f"{number:02x}" * 32


def store(folder: Path, *, model: str = "model", files: int = 100) -> PageStore:
    return PageStore(folder, model, most_bytes=files * STORED)


def saved(folder: Path, *numbers: int, **options) -> None:
    opened = store(folder, **options)
    for number in numbers:
        opened.save(name(number), content(number))
    opened.close()


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_was_saved_is_there_in_the_next_process(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    again = store(tmp_path)
    assert name(1) in again and name(3) not in again
    assert np.array_equal(again.load(name(2), SIZE), content(2))
    assert again.load(name(3), SIZE) is None
    assert again.stored_bytes == 2 * STORED


def test_another_model_finds_nothing(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    other = store(tmp_path, model="other")
    assert name(1) not in other
    assert other.load(name(1), SIZE) is None
    assert other.stored_bytes == STORED, "they share the room"


@pytest.mark.parametrize("place", [0, 31, 32, STORED - 1])
def test_a_changed_byte_is_noticed_and_the_file_is_gone(
    tmp_path: Path, place: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "_said", set())
    saved(tmp_path, 1)
    (path,) = files(tmp_path)
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 1
    path.write_bytes(damaged)
    again = store(tmp_path)
    assert again.load(name(1), SIZE) is None
    assert f"the saved prefix {path} is damaged" in capsys.readouterr().err
    assert not files(tmp_path)
    assert name(1) not in again
    assert again.stored_bytes == 0


@pytest.mark.parametrize("length", [0, 31, 32, 500])
def test_a_file_that_was_cut_off_is_not_read(tmp_path: Path, length: int) -> None:
    saved(tmp_path, 1)
    (path,) = files(tmp_path)
    os.truncate(path, length)
    assert store(tmp_path).load(name(1), SIZE) is None


def test_a_file_does_not_pass_for_another(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    first, second = sorted(files(tmp_path))
    second.write_bytes(first.read_bytes())
    assert store(tmp_path).load(name(2), SIZE) is None


def test_the_least_recently_used_make_room(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, files=3)
    opened = store(tmp_path, files=3)
    time.sleep(0.02)  # a file's time is not finer than that everywhere
    assert opened.load(name(1), SIZE) is not None
    opened.save(name(4), content(4))
    opened.close()
    assert [name(number) in opened for number in (1, 2, 3, 4)] == [True, False, True, True]
    again = store(tmp_path, files=2)
    again.save(name(5), content(5))
    again.close()
    assert [name(number) in again for number in (1, 3, 4, 5)] == [False, False, True, True]
    assert len(files(tmp_path)) == 2


def test_what_is_larger_than_all_the_room_is_not_written(tmp_path: Path) -> None:
    saved(tmp_path, 1, files=0)
    assert not files(tmp_path)


def test_a_full_disk_is_said_once_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = store(tmp_path)
    monkeypatch.setattr(
        Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    for number in (1, 2, 3):
        opened.save(name(number), content(number))
    while not opened._writing.empty():
        time.sleep(0.001)
    time.sleep(0.05)
    monkeypatch.undo()
    opened.save(name(4), content(4))
    opened.close()
    assert capsys.readouterr().err.count("No space left on device") == 1
    assert [name(number) in opened for number in (1, 2, 3, 4)] == [False, False, False, True]
    assert len(files(tmp_path)) == 1, "what was begun is gone"


def test_a_killed_process_leaves_no_half_file_behind(tmp_path: Path) -> None:
    (tmp_path / "model" / "ab").mkdir(parents=True)
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    dead = tmp_path / "model" / "ab" / f"abc.{ended.stdout.strip()}.unfinished"
    alive = tmp_path / "model" / "ab" / f"abc.{os.getpid()}.unfinished"
    for path in (dead, alive):
        path.write_bytes(b"half")
    store(tmp_path)
    assert files(tmp_path) == [alive]


def test_a_folder_that_cannot_be_used_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"the folder .*file for saved prefixes cannot be used: "):
        store(tmp_path / "file")
