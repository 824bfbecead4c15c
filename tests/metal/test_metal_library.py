"""Libraries for Metal, compiled on any machine: what they are, and that their kernels keep Metal's limits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from golden import checkpoints
from marks import quick_first

from mlc_dsv3.compiler import compile_model, resolve_target
from mlc_dsv3.compiler.note import read_note
from mlc_dsv3.errors import UserError
from mlc_dsv3.metal import driver
from mlc_dsv3.runtime.library import Library
from mlc_dsv3.weights import Checkpoint


@pytest.fixture(
    scope="module", params=quick_first([("q4f16_1", "int8"), ("q4f16_1", None), ("q0bf16", None)], 0, whole=True)
)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's."""
    folder = tmp_path_factory.mktemp("metal")
    checkpoints.write("deepseek_v3", folder / "model")
    config = Checkpoint.open(folder / "model").model_config
    quantization, cache = request.param
    return compile_model(config, quantization, "metal", folder / "model.dylib", cache_dtype=cache)


def test_it_is_an_arm64_mach_o_library_whose_open_symbols_are_tvms(library: Path) -> None:
    magic, processor, _, kind = (int.from_bytes(library.read_bytes()[at : at + 4], "little") for at in (0, 4, 8, 12))
    assert (magic, processor, kind) == (0xFEEDFACF, 0x0100000C, 6)
    metadata = read_note(library)["metadata"]
    assert (metadata["device"], metadata["host"]) == ("metal", "arm64-macos")


def test_kernels_keep_metals_limits(library: Path) -> None:
    kernels = read_note(library)["kernels"]
    assert len(kernels) > 30
    assert max(kernel["threads"] for kernel in kernels) <= 1024
    assert max(kernel["shared_bytes"] for kernel in kernels) <= 32 << 10
    assert max(kernel["parameters"] for kernel in kernels) <= 31


@pytest.mark.skipif(sys.platform == "darwin", reason="there may be a GPU")
def test_elsewhere_it_is_refused_by_the_kind_of_machine(library: Path) -> None:
    with pytest.raises(UserError, match=r"is compiled for arm64-macos, and this machine is \w+-linux"):
        Library(library)
    with pytest.raises(UserError, match="Metal is there on Apple's systems alone"):
        driver.first_device()


def test_another_kind_of_machine_has_no_metal() -> None:
    with pytest.raises(UserError, match="device metal is there on arm64-macos, not on aarch64-linux"):
        resolve_target("metal", host="aarch64-linux")
