"""What is cached for a model, and what is said where its artifact and a library do not go together."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from golden import checkpoints

import mlc_dsv3.compiler as compiler
from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime import prepare as prepare_module
from mlc_dsv3.runtime.prepare import prepare
from mlc_dsv3.weights import Checkpoint, convert


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The libraries that were asked for, with an empty cache; they are empty files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made: list[Path] = []

    def compile_model(config: object, quantization: str, device: str, output: Path, **_: object) -> Path:
        made.append(output)
        output.write_bytes(b"")
        return output

    monkeypatch.setattr(compiler, "compile_model", compile_model)
    return made


def test_a_model_under_another_name_is_neither_converted_nor_compiled_again(
    tmp_path: Path, compilations: list[Path]
) -> None:
    first = checkpoints.write("youtu", tmp_path / "first")
    shutil.copytree(first, tmp_path / "second")
    one, two = (prepare(tmp_path / name, "q4f16_1", "cpu", None) for name in ("first", "second"))
    assert (one.library, one.artifact.path) == (two.library, two.artifact.path)
    assert len(compilations) == 1


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    source = Checkpoint.open(checkpoints.write("youtu", tmp_path / "youtu"))
    return convert(source, "q4f16_1+vnni16", tmp_path / "its artifact")


def test_a_library_of_another_layout_is_told_from_the_artifact_with_the_command_that_makes_one(
    packed: Path, monkeypatch: pytest.MonkeyPatch, compiled: Callable[..., object]
) -> None:
    library = compiled("youtu").library  # type: ignore[attr-defined]
    metadata = prepare_module.read_metadata(library)
    monkeypatch.setattr(
        prepare_module, "read_metadata", lambda path: dataclasses.replace(metadata, quantization="q4f16_1")
    )
    for asked in (None, "q4f16_1"):
        with pytest.raises(UserError) as raised:
            prepare(packed, asked, "cpu", library)
        assert str(raised.value) == (
            f"artifact {packed} is in q4f16_1+vnni16, and library {library} reads q4f16_1; make a library that reads "
            f"q4f16_1+vnni16: mlc_dsv3 compile '{packed}' --device cpu"
        )


def test_another_quantization_than_the_artifacts_is_refused_with_what_to_do(packed: Path) -> None:
    with pytest.raises(UserError, match="is in q4f16_1.vnni16, not q8f16_1.*; leave --quantization out, or name the c"):
        prepare(packed, "q8f16_1", "cpu", None)
