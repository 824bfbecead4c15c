"""The machines that libraries are made for: whose processor runs a model, or the part of it that drives a GPU.

`build/cpu.toml` lists them; any of them can link for any other through PyPI's ziglang.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

from mlc_dsv3.errors import UserError

_SYSTEMS = {"Linux": "linux", "Darwin": "macos", "Windows": "windows"}
_ARCHITECTURES = {"x86_64": "x86_64", "AMD64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Host:
    """A kind of machine: its processor's architecture by LLVM's name, LLVM's and zig's names of it, the suffix of its
    libraries, and the level (`build/cpu.toml`) that all such processors are at."""

    name: str
    arch: str
    triple: str
    zig: str
    suffix: str
    level: str

    @property
    def is_this(self) -> bool:
        """Whether this machine is one."""
        return (self.arch, self.system) == (host_arch(), host_system())

    @property
    def system(self) -> str:
        """linux, macos or windows."""
        return self.name.partition("-")[2]


def host_arch() -> str:
    """This machine's architecture by LLVM's name."""
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


def host_system() -> str:
    """This machine's system as `Host.system` has it."""
    return _SYSTEMS.get(platform.system(), platform.system().lower())


def find_host(hosts: list[Host], name: str) -> Host:
    """The one of this name. UserError lists them all."""
    for host in hosts:
        if host.name == name:
            return host
    raise UserError(f"--host {name!r} is unknown; known: {', '.join(host.name for host in hosts)}")


def host_with(hosts: list[Host], arch: str, system: str) -> Host:
    """The one of this architecture and system. UserError lists them all."""
    for host in hosts:
        if (host.arch, host.system) == (arch, system):
            return host
    known = ", ".join(host.name for host in hosts)
    raise UserError(f"there are no libraries for {arch}-{system}; known hosts: {known}")
