"""Opening a compiled library: its metadata, and its functions, only on a machine and device that can run it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlc_dsv3.compiler.hosts import host_arch, host_system
from mlc_dsv3.compiler.metadata import Metadata
from mlc_dsv3.compiler.note import read_note
from mlc_dsv3.compiler.targets import host_features, known_hosts
from mlc_dsv3.errors import UserError, reason
from mlc_dsv3.runtime.calls import Calls
from mlc_dsv3.runtime.graphs import GraphCalls
from mlc_dsv3.runtime.memory import HostMemory, Memory, memory_of
from mlc_dsv3.runtime.virtual_machine import open_machines


class Library:
    """An opened library: its `metadata`, `calls` of its functions, and the `memory` that they work on."""

    def __init__(self, path: Path) -> None:
        """Open `path`. UserError: no such file, no library of ours, another format, another kind of machine, a
        processor that lacks features, a GPU that is not there or has no code in it."""
        self.path = Path(path)
        self.metadata = read_metadata(self.path)
        self._refuse_other_gpu()
        self.memory: Memory = HostMemory() if self.metadata.device == "cpu" else memory_of(self.metadata.device)
        self._machine, *others = _open(self.path, self.metadata.device)
        self.calls = Calls(self._machine.get_function, self.memory)
        if others:
            self.calls = GraphCalls(self._machine.get_function, others[0].get_function, self.memory)

    def instrument(self, around: Callable[..., int] | None) -> None:
        """Have the machine call `around(function, symbol, before, result, *arguments)` before and after every call that
        a function of the library makes; it returns 0. None ends it."""
        import tvm_ffi

        self._machine["set_instrument"](None if around is None else tvm_ffi.convert(around))
        self.calls.watch(around is not None)

    def _refuse_other_gpu(self) -> None:
        """UserError where a library for CUDA has no code that this machine's GPU runs."""
        wanted = self.metadata.architectures
        if not wanted:
            return
        from mlc_dsv3.cuda import driver

        gpu, own = driver.first_device(), driver.architecture()
        if not driver.runs(wanted, gpu["capability"]):
            raise UserError(
                f"{self.path} has code for {', '.join(wanted)}, and {gpu['name']} is of compute capability "
                f"{gpu['capability'] // 10}.{gpu['capability'] % 10}; compile it with --arch {own}"
            )


def read_metadata(path: Path) -> Metadata:
    """What a library says of itself, from its note: nothing of it is loaded and no device opened.

    UserError: no such file, no library of ours, another format, another kind of machine, or a processor that lacks
    features.
    """
    metadata = Metadata.from_fields(read_note(path)["metadata"])
    if not any(host.is_this for host in known_hosts() if host.name == metadata.host):
        raise UserError(f"{path} is compiled for {metadata.host}, and this machine is {host_arch()}-{host_system()}")
    lacking = sorted(set(metadata.features) - host_features())
    if lacking:
        raise UserError(
            f"{path} is compiled for {metadata.level}, and this processor lacks {', '.join(lacking)}; compile it on "
            "this machine"
        )
    return metadata


def _open(path: Path, device: str) -> list[Any]:
    """The virtual machine over a library; for CUDA one more, without a pool of memory, to record graphs."""
    try:
        return open_machines(path, device, [True, False] if device == "cuda" else [True])
    except (RuntimeError, ValueError, AttributeError, OSError) as error:
        raise UserError(f"{path} does not load: {reason(error)}") from None
