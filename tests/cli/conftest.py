"""Fixtures of the verbs' tests: a tiny checkpoint, its artifact, and what a command line complains of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from golden import checkpoints, tokenizer

from mlc_dsv3.cli.main import main


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = checkpoints.write("deepseek_v3", tmp_path_factory.mktemp("models") / "tiny")
    tokenizer.write(folder)
    return folder


@pytest.fixture(scope="session")
def artifact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts") / "tiny-q0f32-MLC"
    assert main(["convert_weight", str(checkpoint), "--quantization", "q0f32", "-o", str(folder)]) == 0
    return folder


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command line that must fail as a user's mistake; what it says."""

    def run(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("mlc_dsv3: error: ")
        assert shown.err.count("\n") == 1
        return shown.err

    return run
