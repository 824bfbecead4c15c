"""Runs kernels of the aarch64 levels under QEMU: linked with `aarch64_main.c`, their tensors in files."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import tvm_ffi
from levels import Output, built

from relax_model.kernels.cpu_tiles import CpuTile

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
MISSING = [program for program in (COMPILER, EMULATOR) if shutil.which(program) is None]
_DTYPE_CODES = {"i": 0, "u": 1, "f": 2}  # DLPack's
_FOLDER = tempfile.TemporaryDirectory(prefix="aarch64-kernels-")


def run_emulated(
    level: str, tile: CpuTile, operator: str, arguments: tuple, inputs: list[np.ndarray], *out: Output
) -> list[np.ndarray]:
    """Outputs of a kernel that runs under QEMU."""
    arrays = [*map(np.ascontiguousarray, inputs), *(np.zeros(shape, dtype) for shape, dtype in out)]
    given, found = Path(_FOLDER.name, "in"), Path(_FOLDER.name, "out")
    with given.open("wb") as file:
        file.write(np.int32(len(arrays)).tobytes())
        for array in arrays:
            header = [_DTYPE_CODES[array.dtype.kind], array.dtype.itemsize * 8, array.ndim]
            file.write(np.array(header, np.int32).tobytes() + np.array(array.shape, np.int64).tobytes())
            file.write(array.tobytes())
    _run(EMULATOR, "-cpu", "max", _executable(level, tile, operator, *arguments), given, found)
    data, outputs = found.read_bytes(), []
    for array in reversed(arrays[len(inputs) :]):
        outputs.append(np.frombuffer(data[len(data) - array.nbytes :], array.dtype).reshape(array.shape))
        data = data[: len(data) - array.nbytes]
    return outputs[::-1]


@cache
def _executable(*kernel: object) -> Path:
    folder = Path(tempfile.mkdtemp(dir=_FOLDER.name))
    built(*kernel).mod.write_to_file(str(folder / "kernel.o"), "o")
    main, headers = Path(__file__).with_name("aarch64_main.c"), tvm_ffi.libinfo.include_paths()
    warnings = ("-Wall", "-Wextra", "-Werror")
    includes = [word for path in headers for word in ("-isystem", path)]
    _run(COMPILER, "-O1", *warnings, *includes, "-static", main, folder / "kernel.o", "-o", folder / "kernel", "-lm")
    return folder / "kernel"


def _run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}: {done.stdout}{done.stderr}"
