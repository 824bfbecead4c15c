"""CUDA C++ → machine code for several architectures, by NVIDIA's compiler.

It is looked for on PATH, under CUDA_HOME, where PyPI's nvidia-cuda-nvcc puts it, and in /usr/local/cuda.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

from mlc_dsv3.errors import UserError
from mlc_dsv3.folders import temporary_folder

# nvcc calls or includes them, and each package has a version of its own.
_PARTS = ("nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-cccl", "nvidia-cuda-runtime")
_INSTALL = "pip install 'mlc-dsv3[cuda]', or NVIDIA's CUDA toolkit of version 13"


def find_nvcc() -> str:
    """The compiler's path; UserError says what to install where there is none, or no C++ compiler for it to call."""
    found = _find("nvcc")
    if found is None:
        raise UserError(f"no nvcc to compile for CUDA with; install {_INSTALL}")
    if shutil.which("g++") is None:
        raise UserError("nvcc needs a C++ compiler beside it (Debian: apt install g++)")
    return found


def version() -> str:
    """The versions of the compiler, of the C++ compiler that it calls and, where it is PyPI's, of its other parts."""
    program = find_nvcc()
    is_pypi = Path(program).is_relative_to(sysconfig.get_path("purelib"))
    parts = [f"{name} {metadata.version(name)}" for name in _PARTS if is_pypi]
    return "\n".join((_run([program, "--version"]), _run(["g++", "--version"]), *parts))


def find_cuobjdump() -> str:
    """The path of the program that reads machine code; UserError says what to install where there is none."""
    found = _find("cuobjdump")
    if found is None:
        raise UserError(f"no cuobjdump to read CUDA's machine code with; install {_INSTALL}")
    return found


def _find(program: str) -> str | None:
    return next((str(path) for path in _places(program) if path.is_file()), None)


def _places(program: str) -> Iterator[Path]:
    if on_path := shutil.which(program):
        yield Path(on_path)
    if home := os.environ.get("CUDA_HOME"):
        yield Path(home) / "bin" / program
    yield Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin" / program
    yield Path("/usr/local/cuda/bin") / program


@cache
def architectures() -> tuple[str, ...]:
    """The architectures that the compiler makes machine code for and the kernels run on: sm_80, sm_90a, …"""
    lines = [line for line in _run([find_nvcc(), "--list-gpu-code"]).split() if number(line) >= number(oldest())]
    # The compiler lists no variants with features of one architecture alone, and compiles for them.
    return tuple(sorted({*lines, *(f"{line}a" for line in lines if number(line) >= 90)}, key=lambda a: (number(a), a)))


def number(architecture: str) -> int:
    """90 of sm_90a. UserError for what is no architecture's name."""
    match = re.fullmatch(r"sm_(\d+)[af]?", architecture)
    if match is None:
        raise UserError(f"architecture {architecture!r} is none; they are called sm_80, sm_90a and so on")
    return int(match[1])


def oldest() -> str:
    """The first architecture that has what the kernels need."""
    from mlc_dsv3.compiler.targets import read_description

    return read_description("cuda")["target"]["oldest_architecture"]


def refuse_unknown(wanted: Sequence[str]) -> None:
    """UserError, with those that the compiler knows, for an architecture that it does not, or that is too old."""
    for architecture in wanted:
        if number(architecture) < number(oldest()):
            raise UserError(f"architecture {architecture} is older than {oldest()}, the first that the kernels run on")
        if architecture not in architectures():
            raise UserError(f"{find_nvcc()} knows no architecture {architecture}; it has {', '.join(architectures())}")


def intermediate_architecture(wanted: Sequence[str]) -> int:
    """The number of the architecture whose PTX a library for `wanted` holds: what later GPUs run."""
    return max(map(number, wanted))


def compile_source(source: str, wanted: Sequence[str]) -> bytes:
    """A fatbin of the kernels in `source`: machine code for each of `wanted`, and PTX for what comes after the last.

    RuntimeError, with the compiler's words, for source that is none.
    """
    refuse_unknown(wanted)
    later = intermediate_architecture(wanted)
    code = [f"-gencode=arch=compute_{arch.removeprefix('sm_')},code={arch}" for arch in wanted]
    code.append(f"-gencode=arch=compute_{later},code=compute_{later}")
    with tempfile.TemporaryDirectory(prefix="mlc_dsv3.") as folder:
        file, output = Path(folder) / "kernels.cu", Path(folder) / "kernels.fatbin"
        file.write_text(source)
        options = ["-fatbin", "-std=c++17", "-O3", "-w", "--threads", "0", "--split-compile", "0"]
        _run([find_nvcc(), *options, *code, "-o", str(output), str(file)])
        return output.read_bytes()


def _run(command: list[str]) -> str:
    # Where TMPDIR cannot be written to, this is another folder; the compiler would end.
    environment = {**os.environ, "TMPDIR": str(temporary_folder())}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout
