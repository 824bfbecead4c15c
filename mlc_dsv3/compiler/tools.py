"""The programs beside TVM that make a target's libraries, with their versions: other ones make other bytes."""

from __future__ import annotations

import subprocess
from importlib.metadata import version

from mlc_dsv3.compiler.link import find_linker, is_zig
from mlc_dsv3.compiler.targets import CompileTarget
from mlc_dsv3.errors import UserError

# The compiler has a version, and the linker that it calls another.
_VERSIONS = ("--version", "-Wl,--version")


def tools_version(target: CompileTarget) -> str:
    """What the linker and, for a GPU, the kernels' compilers say of themselves; where one is missing, that."""
    try:
        return "\n".join((_linker(target), _compilers(target.device)))
    except (UserError, RuntimeError) as error:
        return str(error)


def _linker(target: CompileTarget) -> str:
    command = find_linker(target.host)
    if is_zig(command):
        return f"ziglang {version('ziglang')}"
    said = (subprocess.run([*command, option], capture_output=True, text=True) for option in _VERSIONS)
    return "\n".join((" ".join(command), *(done.stdout for done in said)))


def _compilers(device: str) -> str:
    if device == "cuda":
        from mlc_dsv3.cuda import nvcc

        return nvcc.version()
    if device == "vulkan":
        from mlc_dsv3.vulkan import spirv

        return spirv.tools_version()
    return ""
