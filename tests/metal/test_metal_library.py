"""Libraries for Metal, compiled on any machine: as far as they can be checked without Apple's compiler and hardware."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from golden import checkpoints

from mlc_dsv3.compiler import compile_model, resolve_target
from mlc_dsv3.compiler.note import read_note
from mlc_dsv3.errors import UserError
from mlc_dsv3.metal import driver
from mlc_dsv3.runtime.library import Library
from mlc_dsv3.weights import Checkpoint

_INCLUDE = Path(__file__).parent / "include"
# What Metal writes otherwise than clang's C++: a block's own arrays, which are not automatic, and vectors' conversion.
_SHARED_ARRAY = re.compile(r"^(\s*)(threadgroup \w+ \w+\[\d+\];)", re.MULTILINE)
_CONVERSION = "(float4)*("


@pytest.fixture(scope="module", params=[("q4f16_1", None), ("q4f16_1", "int8"), ("q0bf16", None)])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's, with its kernels' source beside it."""
    folder = tmp_path_factory.mktemp("metal")
    checkpoints.write("deepseek_v3", folder / "model")
    config = Checkpoint.open(folder / "model").model_config
    quantization, cache = request.param
    made, dump = folder / "model.dylib", folder / "dump"
    return compile_model(config, quantization, "metal", made, cache_dtype=cache, dump=dump)


def sources(library: Path) -> list[str]:
    """Each kernel's, as the library holds it."""
    _, *parts = library.read_bytes().decode("latin-1").split("#include <metal_stdlib>")
    return [part[: part.rindex("\n}\n") + 3] for part in parts]


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


def test_kernels_are_valid_by_types_overloads_and_address_spaces(library: Path, tmp_path: Path) -> None:
    """Checked by clang, over our declarations of what they use of Metal's library."""
    kernels = sources(library)
    assert ["kernel void" in kernel for kernel in kernels] == [True] * len(read_note(library)["kernels"])
    text = "\n".join(f"namespace kernel_{i} {{\n{source}\n}}" for i, source in enumerate(kernels))
    file = tmp_path / "kernels.cc"
    text = _SHARED_ARRAY.sub(r"\1static \2", text).replace(_CONVERSION, "to_float4 | *(")
    file.write_text("#include <metal_stdlib>\n" + text)
    options = [
        "-c",
        "-o",
        str(tmp_path / "kernels.o"),
        "-std=c++17",
        "-nostdinc++",
        "-Wno-unknown-attributes",
        "-Wno-unknown-pragmas",
    ]
    command = [sys.executable, "-m", "ziglang", "c++", *options, "-I", str(_INCLUDE), str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.skipif(sys.platform == "darwin", reason="there may be a GPU")
def test_elsewhere_it_is_refused_by_the_kind_of_machine(library: Path) -> None:
    with pytest.raises(UserError, match=r"is compiled for arm64-macos, and this machine is \w+-linux"):
        Library(library)
    with pytest.raises(UserError, match="Metal is there on Apple's systems alone"):
        driver.first_device()


def test_another_kind_of_machine_has_no_metal() -> None:
    with pytest.raises(UserError, match="device metal is there on arm64-macos, not on aarch64-linux"):
        resolve_target("metal", host="aarch64-linux")
