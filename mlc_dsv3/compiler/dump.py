"""What a compilation looks like on the way, written for people who debug it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc_dsv3.output_paths import output_folder

if TYPE_CHECKING:
    import tvm

_SUFFIXES = {"cuda": "cu", "metal": "metal", "vulkan": "glsl"}


class Dump:
    """Files in a folder; without one, nothing. UserError where the folder cannot be made."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder and output_folder(folder)
        if folder:
            folder.mkdir(parents=True, exist_ok=True)

    def module(self, name: str, module: tvm.IRModule) -> None:
        """An IRModule as TVMScript: `<name>.py`."""
        if self._folder:
            (self._folder / f"{name}.py").write_text(module.script())

    def executable(self, executable: Any) -> None:
        """What came out: the virtual machine's bytecode, the host's assembly, and a GPU's kernels in its language."""
        if not self._folder:
            return
        (self._folder / "3-bytecode.txt").write_text(executable.as_text())
        for module in _tree(executable.mod):
            kind = str(module.kind)
            if kind == "llvm":
                (self._folder / "3-host.s").write_text(module.inspect_source("s"))
            elif kind in _SUFFIXES:
                (self._folder / f"3-kernels.{_SUFFIXES[kind]}").write_text(module.inspect_source(kind))


def _tree(module: Any) -> list[Any]:
    return [module, *(inner for imported in module.imports for inner in _tree(imported))]
