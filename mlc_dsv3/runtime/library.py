"""Opening a compiled library: its metadata, and its functions, only on a machine and device that can run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlc_dsv3._pins import check_pins
from mlc_dsv3.compiler.metadata import Metadata
from mlc_dsv3.compiler.targets import host_arch, host_features
from mlc_dsv3.errors import UserError


class Library:
    """An opened library: `metadata`, and its functions by name."""

    def __init__(self, path: Path) -> None:
        """Open `path`. UserError: no such file, no library of ours, another format, a processor that lacks features."""
        check_pins()
        import tvm
        from tvm import relax

        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"library {self.path} is not there; make it with: mlc_dsv3 compile")
        try:
            module = tvm.runtime.load_module(str(self.path.absolute()))
            self._machine = relax.VirtualMachine(module, tvm.cpu())
            text = str(self._machine["_metadata"]())
        except (RuntimeError, ValueError, AttributeError, OSError) as error:
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise UserError(f"{self.path} is no library of this program: {reason}") from None
        self.metadata = Metadata.from_json(text)
        self._refuse_other_processor()

    def function(self, name: str) -> Callable[..., Any]:
        """An exported function of the library."""
        return self._machine[name]

    def _refuse_other_processor(self) -> None:
        if self.metadata.arch != host_arch():
            raise UserError(f"{self.path} is compiled for {self.metadata.arch}, and this machine is {host_arch()}")
        lacking = sorted(set(self.metadata.features) - host_features())
        if lacking:
            raise UserError(
                f"{self.path} is compiled for {self.metadata.level}, and this processor lacks {', '.join(lacking)}; "
                "compile it on this machine"
            )


def read_metadata(path: Path) -> dict[str, Any]:
    """A library's metadata as a dictionary, for people and programs to read."""
    return asdict(Library(path).metadata)
