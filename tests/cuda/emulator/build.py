"""Builds the emulated GPU's libraries and translates modules for it.

python build.py FOLDER                  → FOLDER/libcuda.so.1 and libcudart.so.13, to be found by LD_LIBRARY_PATH
python build.py translate FOLDER        FOLDER/image.fatbin → its kernels' C++, and a list of them in kernels.txt
python build.py translate FOLDER NAME   → FOLDER/NAME.so, unless one of the same C++ was made before
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).parent
CUDA = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13"
_KERNEL = ["g++", "-std=c++20", "-O1", "-fPIC", "-w"]
_WARNINGS = ["-Wall", "-Wextra", "-Werror"]


def build(folder: Path) -> None:
    """The libraries, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / "libcuda.so.1"
    options = ["-std=c++20", "-O2", "-fPIC", "-shared", "-isystem", str(CUDA / "include")]
    versions = f"-Wl,--version-script={HERE / 'versions.map'}"
    _run(["g++", *options, *_WARNINGS, versions, str(HERE / "gpu.cc"), "-ldl", "-o", str(made)])
    # One library by both names: what it knows of the GPU is one thing.
    (folder / "libcudart.so.13").unlink(missing_ok=True)
    (folder / "libcudart.so.13").symlink_to(made.name)
    # The compiler takes it in place of the header, which is most of what a kernel costs it.
    _run([*_KERNEL, "-x", "c++-header", str(HERE / "kernel.h"), "-o", str(folder / "kernel.h.gch")])


def translate(folder: Path) -> None:
    """The kernels of `folder`/image.fatbin as C++."""
    from ptx import kernels

    from mlc_dsv3.cuda.nvcc import find_cuobjdump

    text = subprocess.run(
        [find_cuobjdump(), "-ptx", str(folder / "image.fatbin")], capture_output=True, text=True, check=True
    ).stdout
    lines = []
    for kernel in kernels(text):
        (folder / f"{kernel.name}.cc").write_text(kernel.source)
        lines.append(" ".join(map(str, [kernel.name, kernel.shared_bytes, len(kernel.parameters), *kernel.parameters])))
    (folder / "kernels.txt").write_text("\n".join(lines) + "\n")


def compile_kernel(folder: Path, name: str) -> None:
    """One kernel, or a copy of what was made of the same C++."""
    source = folder / f"{name}.cc"
    headers = (HERE / "kernel.h", HERE.parents[1] / "emulation" / "fibres.h")
    key = hashlib.sha256(b"".join(file.read_bytes() for file in (source, *headers))).hexdigest()
    kept = Path(os.environ["EMULATED_GPU_FOLDER"]) / f"{key}.so"
    if not kept.exists():
        part = kept.with_suffix(f".{os.getpid()}")
        _run([*_KERNEL, "-shared", "-I", str(kept.parent), "-I", str(HERE), str(source), "-o", str(part)])
        part.rename(kept)
    shutil.copy(kept, folder / f"{name}.so")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[0] != "translate":
        build(Path(arguments[0]))
    elif len(arguments) == 2:
        translate(Path(arguments[1]))
    else:
        compile_kernel(Path(arguments[1]), arguments[2])
