"""Linking object files into a shared library: with the machine's C compiler, or PyPI's ziglang in its place."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from mlc_dsv3.errors import UserError


def find_linker() -> list[str]:
    """The command that links: `$CC`, cc, gcc, clang, or ziglang; UserError says how to get one."""
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
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    raise UserError(
        "no C compiler to link the library with; install one (Debian: apt install gcc) or run: pip install ziglang"
    )


def link(output: str | Path, objects: list[str], options: list[str] | None = None) -> None:
    """Link `objects` into the shared library `output`; the linker's own words are in the error."""
    command = [*find_linker(), "-shared", "-fPIC", "-o", str(output), *map(str, objects), *(options or []), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"linking {output} failed: {' '.join((done.stderr or done.stdout).split())[:500]}")
