"""Linking object files into a shared library: with the machine's C compiler or, for another kind of machine or where
there is none, with PyPI's ziglang."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from mlc_dsv3.compiler.hosts import Host
from mlc_dsv3.errors import UserError

# What a library calls by name; the rest reaches it through pointers that TVM's runtime fills in. Windows wants to know
# beforehand from where.
_IMPORTED = "LIBRARY tvm_ffi.dll\nEXPORTS\nTVMFFIErrorSetRaisedFromCStrParts\n"


def find_linker(host: Host | None = None) -> list[str]:
    """The command that links for `host`: for this kind of machine (the default) `$CC`, cc, gcc, clang, or ziglang, for
    another one ziglang. UserError says how to get one."""
    if host is not None and not host.is_this:
        if not _has_zig():
            raise UserError(f"linking for {host.name} takes zig's compiler; run: pip install ziglang")
        return [*_zig("cc"), "-O2", "-target", host.zig]
    named = os.environ.get("CC")
    if named:
        command = named.split()
        if shutil.which(command[0]) is None:
            raise UserError(f"CC is {named!r}, and there is no such program")
        return command
    for compiler in ("cc", "gcc", "clang"):
        path = shutil.which(compiler)
        if path:
            return [path]
    if _has_zig():
        return _zig("cc")
    raise UserError(
        "no C compiler to link the library with; install one (Debian: apt install gcc) or run: pip install ziglang"
    )


def link(output: Path, inputs: list[Path], host: Host) -> None:
    """Link object files and C sources into the shared library `output`; the linker's own words are in the error."""
    command = [*find_linker(host), "-shared", "-o", str(output), *map(str, inputs)]
    if host.system == "windows":
        command.append(str(_import_library(output.parent)))
    elif host.system == "macos":
        command += ["-Wl,-undefined,dynamic_lookup"]
    else:
        command += ["-fPIC", "-lm"]
    _run(command, output)


def _import_library(folder: Path) -> Path:
    definition, library = folder / "tvm_ffi.def", folder / "tvm_ffi.lib"
    definition.write_text(_IMPORTED)
    _run([*_zig("dlltool"), "-m", "i386:x86-64", "-d", str(definition), "-l", str(library)], library)
    return library


def is_zig(command: list[str]) -> bool:
    """Whether a command of `find_linker` is PyPI's ziglang."""
    return command[:3] == _zig("cc")[:3]


def _has_zig() -> bool:
    return importlib.util.find_spec("ziglang") is not None


def _zig(program: str) -> list[str]:
    return [sys.executable, "-m", "ziglang", program]


def _run(command: list[str], output: Path) -> None:
    # What it writes meanwhile goes where the library goes, and where there is room for it.
    environment = {**os.environ, "TMPDIR": str(output.parent.absolute())}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
    if done.returncode:
        raise UserError(f"linking {output} failed: {' '.join((done.stderr or done.stdout).split())[:500]}")
