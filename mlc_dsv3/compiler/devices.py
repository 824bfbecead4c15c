"""What this machine can compile for and run on, and why not."""

from __future__ import annotations

from dataclasses import dataclass

from mlc_dsv3.compiler.link import find_linker
from mlc_dsv3.compiler.targets import device_names, resolve_target
from mlc_dsv3.errors import UserError


@dataclass(frozen=True)
class DeviceStatus:
    """One device: `reason` says which processor level is used, or what is missing."""

    name: str
    can_compile: bool
    can_run: bool
    reason: str


def devices() -> list[DeviceStatus]:
    """The status of every device that `build/` describes."""
    return [_status(name) for name in device_names()]


def _status(name: str) -> DeviceStatus:
    try:
        target = resolve_target(name)
    except UserError as error:
        return DeviceStatus(name, False, False, str(error))
    try:
        linker = find_linker()
    except UserError as error:
        return DeviceStatus(name, False, True, str(error))
    return DeviceStatus(name, True, True, f"{target.level}, linked by {' '.join(linker)}")
