"""Paths for results that cannot be: one line, before any work is done."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mlc_dsv3
from mlc_dsv3.cli.main import main
from mlc_dsv3.demo import checkpoint_path
from mlc_dsv3.errors import UserError
from mlc_dsv3.output_paths import artifact_folder, folder_made, output_file, output_folder

Check = Callable[[Path], Path]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with one of everything in it."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("folder").mkdir()
    Path("loop").symlink_to("loop")
    Path("nowhere").symlink_to("absent")
    os.mkfifo("fifo")
    return tmp_path


@pytest.mark.parametrize(
    ("check", "path", "said"),
    [
        (output_file, ".", ". is a folder; name a file in it"),
        (output_file, "folder", "folder is a folder; name a file in it, as folder/NAME"),
        (output_file, "fifo", "fifo is not a regular file"),
        (output_file, "file/x.so", "file is a file, not a folder"),
        (output_file, "file/deep/x.so", "file is a file, not a folder"),
        (output_file, "nowhere/x.so", "nowhere is a link to a folder that is not there"),
        (output_file, "loop", "loop cannot be written: "),
        (output_file, "loop/x.so", "loop/x.so cannot be written: "),
        (output_file, "x" * 300, "File name too long"),
        (output_folder, "file", "file is a file, not a folder"),
        (output_folder, "fifo", "fifo is a file, not a folder"),
        (output_folder, "file/x", "file is a file, not a folder"),
        (output_folder, "nowhere", "nowhere is a link to a folder that is not there"),
        (output_folder, "loop", "loop cannot be written: "),
        (artifact_folder, "file", "file is a file, not a folder"),
    ],
)
def test_a_path_that_cannot_be_is_refused(place: Path, check: Check, path: str, said: str) -> None:
    with pytest.raises(UserError) as raised:
        check(Path(path))
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("check", "path"),
    [
        *((output_file, path) for path in ("new", "file", "folder/x.so", "new/deep/x.so", "nowhere", "x" * 255)),
        *((output_folder, path) for path in (".", "folder", "new", "new/deep")),
        *((artifact_folder, path) for path in ("folder", "new/deep")),
    ],
)
def test_one_that_can_be_is_returned_and_nothing_is_made(place: Path, check: Check, path: str) -> None:
    before = sorted(os.listdir())
    assert check(Path(path)) == Path(path)
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "x-00001-of-00002.safetensors"])
def test_a_checkpoints_folder_takes_no_artifact(place: Path, name: str) -> None:
    Path("folder", name).write_text("")
    with pytest.raises(UserError, match="folder holds a checkpoint"):
        artifact_folder("folder")


@pytest.mark.parametrize("check", [output_file, output_folder, artifact_folder])
def test_a_folder_that_may_not_be_written_is_refused(
    place: Path, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(UserError, match="you may not write in"):
        check(Path("folder/new"))


def test_folders_that_were_made_for_work_that_fails_are_removed(place: Path) -> None:
    with pytest.raises(ZeroDivisionError), folder_made(Path("folder/new/deep")):
        assert Path("folder/new/deep").is_dir()
        raise ZeroDivisionError
    assert Path("folder").is_dir() and not Path("folder/new").exists()
    with pytest.raises(ZeroDivisionError), folder_made(Path("new/deep")):
        Path("new/kept").write_text("")
        raise ZeroDivisionError
    assert os.listdir("new") == ["kept"]
    with folder_made(Path("made")):
        pass
    assert Path("made").is_dir()


DEMO = str(checkpoint_path())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compile", DEMO, "-o", "."], ". is a folder"),
        (["compile", DEMO, "-o", "folder"], "folder is a folder"),
        (["compile", DEMO, "-o", "file/x.so"], "file is a file"),
        (["compile", DEMO, "--debug-dump", "file"], "file is a file"),
        (["compile", DEMO, "--all", "-o", "file"], "file is a file"),
        (["convert_weight", DEMO, "-o", "file"], "file is a file"),
        (["convert_weight", DEMO, "-o", "checkpoint"], "holds a checkpoint"),
        (["gen_config", DEMO, "-o", "file"], "file is a file"),
        (["gen_config", DEMO, "-o", "checkpoint"], "holds a checkpoint"),
        (["rebalance", DEMO, "--text", "file", "-o", "file/x"], "file is a file"),
        (["rebalance", DEMO, "--text", "file", "-o", "checkpoint"], "holds a checkpoint"),
        (["tune", DEMO, "-o", "file/x"], "file is a file"),
        (["bench", DEMO, "--plot", "folder.png"], "folder.png is a folder"),
    ],
)
def test_every_verb_that_writes_checks_its_path_before_its_work(
    place: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("folder.png").mkdir()
    Path("checkpoint").mkdir()
    Path("checkpoint/config.json").write_text("{}")
    before = sorted(os.listdir())
    assert main([*arguments, "--quantization", "q4f16_1"]) == 2
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.count("\n") == 1 and not shown.out
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    ("arguments", "made"),
    [
        (["compile", DEMO], "demo-q4f16_1-cpu.so"),
        (["compile", DEMO, "--all"], "demo-q4f16_1-libraries/manifest.json"),
        (["gen_config", DEMO, "-o", "new"], "new/mlc-chat-config.json"),
    ],
)
def test_paths_that_nobody_names_are_checked_too(
    place: Path, arguments: list[str], made: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(made.replace("demo", checkpoint_path().name)).mkdir(parents=True)
    assert main([*arguments, "--quantization", "q4f16_1"]) == 2
    assert "is a folder" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["."], [DEMO, "-o", "x"]])
def test_a_current_folder_that_is_gone_is_one_line(tmp_path: Path, arguments: list[str]) -> None:
    script = "import os, sys; os.rmdir(os.getcwd()); from mlc_dsv3.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-P", "-c", script, "convert_weight", "--quantization", "q0f16", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(mlc_dsv3.__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "the current folder has been removed; change to another" in done.stderr
    assert done.stderr.count("\n") == 1
