"""Compiling where what it writes has no room: one line, where LLVM would end the process."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from golden import checkpoints

from mlc_dsv3.cli.main import main
from mlc_dsv3.compiler.disk_space import refuse_full
from mlc_dsv3.errors import UserError
from mlc_dsv3.folders import temporary_folder


@pytest.fixture
def config(tmp_path: Path) -> str:
    return str(checkpoints.write("youtu", tmp_path / "tiny") / "config.json")


def small_disk(folder: Path):
    """Mount a disk of 64 KiB; None where that is not allowed."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    return done.returncode == 0


def test_a_full_disk_is_one_line(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not small_disk(tmp_path / "disk"):
        pytest.skip("needs the right to mount")
    try:
        assert main(["compile", config, "--quantization", "q0f32", "-o", str(tmp_path / "disk" / "a.so")]) == 2
        assert capsys.readouterr().err == (
            f"mlc_dsv3: error: compiling writes up to 32 MiB to {tmp_path / 'disk'}: No space left on device\n"
        )
        assert not list((tmp_path / "disk").iterdir())
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)


def test_a_limit_on_files_is_one_line(config: str, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

    done = subprocess.run(
        [sys.executable, "-m", "mlc_dsv3", "compile", config, "--quantization", "q0f32", "-o", str(tmp_path / "a.so")],
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == f"mlc_dsv3: error: compiling writes up to 32 MiB to {tmp_path}: File too large\n"


@pytest.mark.full
def test_compiling_for_a_processor_needs_no_folder_for_temporary_files(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "absent").write_text("no folder")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "absent"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    assert main(["compile", config, "--quantization", "q0f32", "-o", str(tmp_path / "a.so")]) == 0


def test_without_a_folder_for_temporary_files_the_error_names_tmpdir(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(UserError, match="set TMPDIR to one that can"):
        temporary_folder()


def test_room_is_left_as_it_was(tmp_path: Path) -> None:
    refuse_full(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="compiling writes up to 32 MiB to .*: No such file or directory"):
        refuse_full(tmp_path / "absent")
