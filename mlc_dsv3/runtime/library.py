"""Opening a compiled library: its metadata, and its functions, only on a machine and device that can run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlc_dsv3.compiler.metadata import Metadata
from mlc_dsv3.compiler.targets import host_arch, host_features
from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.memory import HostMemory, Memory, memory_of
from mlc_dsv3.runtime.virtual_machine import open_machine


class Library:
    """An opened library: its `metadata`, `function(name)`, an exported function, and the `memory` that they work on."""

    def __init__(self, path: Path) -> None:
        """Open `path`. UserError: no such file, no library of ours, another format, a processor that lacks features."""
        self.path = Path(path)
        self.memory: Memory = HostMemory()
        self._machine, self.metadata = _open(self.path)
        self._refuse_other_processor()
        self._refuse_other_gpu()
        if self.metadata.device != "cpu":
            self.memory = memory_of(self.metadata.device)
            self._machine = open_machine(self.path, self.metadata.device)
        self.function: Callable[[str], Callable[..., Any]] = self._machine.get_function

    def instrument(self, around: Callable[..., int] | None) -> None:
        """Have the machine call `around(function, symbol, before, result, *arguments)` before and after every call that
        a function of the library makes; it returns 0. None ends it."""
        import tvm_ffi

        self._machine["set_instrument"](None if around is None else tvm_ffi.convert(around))

    def _refuse_other_gpu(self) -> None:
        """UserError where a library for CUDA has no code that this machine's GPU runs."""
        wanted = self.metadata.architectures
        if not wanted:
            return
        from mlc_dsv3.cuda import driver

        gpu = driver.first_device()
        if not driver.runs(wanted, gpu["capability"]):
            raise UserError(
                f"{self.path} has code for {', '.join(wanted)}, and {gpu['name']} is of compute capability "
                f"{gpu['capability'] // 10}.{gpu['capability'] % 10}; compile it with --arch {driver.architecture()}"
            )

    def _refuse_other_processor(self) -> None:
        if self.metadata.arch != host_arch():
            raise UserError(f"{self.path} is compiled for {self.metadata.arch}, and this machine is {host_arch()}")
        lacking = sorted(set(self.metadata.features) - host_features())
        if lacking:
            raise UserError(
                f"{self.path} is compiled for {self.metadata.level}, and this processor lacks {', '.join(lacking)}; "
                "compile it on this machine"
            )


def _open(path: Path) -> tuple[Any, Metadata]:
    """The virtual machine over a library, on the CPU, and what it says of itself: for that nothing else is needed."""
    if not path.is_file():
        raise UserError(f"library {path} is not there; make it with: mlc_dsv3 compile")
    try:
        machine = open_machine(path)
        text = str(machine.get_function("_metadata")())
    except (RuntimeError, ValueError, AttributeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} is no library of this program: {reason}") from None
    return machine, Metadata.from_json(text)


def read_metadata(path: Path) -> dict[str, Any]:
    """A library's metadata as a dictionary, for people and programs to read, on any machine."""
    return asdict(_open(Path(path))[1])
