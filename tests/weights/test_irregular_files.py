"""Folders and pipes where a model's files should be: refused by name, and never waited for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from golden import checkpoints, tokenizer

from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.tokenizer import Tokenizer
from mlc_dsv3.weights import Checkpoint, gen_config

MAKE = {"not a regular file": os.mkfifo, "a folder": os.mkdir}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = checkpoints.write("youtu", tmp_path_factory.mktemp("whole") / "youtu")
    tokenizer.write(folder)
    return folder


def open_everything(folder: Path) -> None:
    Tokenizer.load(folder).chat_template  # noqa: B018
    gen_config(Checkpoint.open(folder), "q0f32")


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json", "tiktoken.model"),
    ],
)
@pytest.mark.parametrize(("said", "make"), MAKE.items())
def test_what_is_no_regular_file_is_refused_by_its_name(
    whole: Path, tmp_path: Path, name: str, said: str, make: Callable[[Path], None]
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "copy"))
    open_everything(folder)
    if name == "tiktoken.model":
        (folder / "tokenizer.json").unlink()
    if name == "model.safetensors.index.json":
        (folder / "model.safetensors").rename(folder / "x.safetensors")
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    with pytest.raises(UserError, match=f"{name} is {said}"):
        open_everything(folder)
