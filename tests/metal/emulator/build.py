"""Builds the emulated Metal and compiles kernels for it.

python build.py FOLDER                → FOLDER/libemulated_metal.so, which TVM's runtime must be in the process before
python build.py FILE.metal NAME       → FILE.so, with the kernel NAME as a function that C++ can call
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).parent
INCLUDE = HERE.parent / "include"
# What Metal writes otherwise than clang's C++: a block's own arrays, which are not automatic, and vectors' conversion.
SHARED_ARRAY = re.compile(r"^(\s*)threadgroup (\w+) (\w+)\[(\d+)\];", re.MULTILINE)
CONVERSION = re.compile(r"\((float4|half4)\)\*\(")
OPTIONS = ["-std=c++17", "-nostdinc++", "-Wno-unknown-attributes", "-Wno-unknown-pragmas", "-I", str(INCLUDE)]
_PARAMETER = re.compile(r"^\s*(.+?) (\w+) \[\[ *(\w+)(?:\((\d+)\))? *\]\]$", re.DOTALL)


def build(folder: Path) -> Path:
    """The library, in `folder`."""
    packages = Path(sysconfig.get_path("purelib"))
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / "libemulated_metal.so"
    headers = [f"-isystem{packages / package / 'include'}" for package in ("tvm", "tvm_ffi")]
    options = ["-std=c++20", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    _run(["g++", *options, *headers, str(HERE / "gpu.cc"), "-ldl", "-o", str(made)])
    return made


def as_cpp(source: str) -> str:
    """A kernel's source in clang's words, its shared arrays where the emulator has them."""
    numbers = iter(range(source.count("threadgroup ")))

    def shared(match: re.Match[str]) -> str:
        indent, dtype, name, size = match.groups()
        of = f"threadgroup {dtype}"
        return f"{indent}{of} (&{name})[{size}] = *({of} (*)[{size}])(ulong)emulated_shared({next(numbers)});"

    return CONVERSION.sub(r"To<\1>() | *(", SHARED_ARRAY.sub(shared, source))


def callable_kernel(source: str, name: str) -> str:
    """C++ with the function `run(buffers, values, block, thread)` for one thread, and what shared arrays take."""
    sizes = [f"sizeof({dtype}) * {count}" for _, dtype, _, count in SHARED_ARRAY.findall(source)]
    _, _, after = source.partition(f"kernel void {name}(")
    parameters = after[: after.index(") {")].split(",\n")
    return f"""{as_cpp(source)}
extern "C" const uint shared_sizes[] = {{{", ".join([*sizes, "0"])}}};
extern "C" void run(void* const* buffers, const void* values, const uint* block, const uint* thread_of) {{
  {name}({", ".join(_argument(parameter) for parameter in parameters)});
}}
"""


def _argument(parameter: str) -> str:
    match = _PARAMETER.match(parameter)
    assert match, parameter
    dtype, _, what, place = match.groups()
    if what == "buffer":
        return f"*({dtype[:-1]}*)(ulong)values" if dtype.endswith("&") else f"({dtype})(ulong)buffers[{place}]"
    of = {"threadgroup_position_in_grid": "block", "thread_position_in_threadgroup": "thread_of"}[what]
    lanes = int(dtype.removeprefix("uint") or 1)
    return f"{of}[0]" if lanes == 1 else f"({dtype}){{{', '.join(f'{of}[{i}]' for i in range(lanes))}}}"


def compile_kernel(file: Path, name: str) -> None:
    """FILE.so, or a copy of what was made of the same C++."""
    text = callable_kernel(file.read_text(), name)
    key = hashlib.sha256(text.encode() + (INCLUDE / "metal_stdlib").read_bytes()).hexdigest()
    kept = Path(os.environ["EMULATED_METAL_FOLDER"]) / f"{key}.so"
    if not kept.exists():
        file.with_suffix(".cc").write_text(text)
        part = kept.with_suffix(f".{os.getpid()}")
        compiler = [sys.executable, "-m", "ziglang", "c++", "-O1", "-fno-sanitize=undefined", "-fPIC", "-shared", "-w"]
        # Zig would build the C++ library first, which kernels do not use and which takes a minute.
        _run([*compiler, "-nostdlib", *OPTIONS, str(file.with_suffix(".cc")), "-o", str(part)])
        part.rename(kept)
    shutil.copy(kept, file.with_suffix(".so"))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        build(Path(sys.argv[1]))
    else:
        compile_kernel(Path(sys.argv[1]), sys.argv[2])
