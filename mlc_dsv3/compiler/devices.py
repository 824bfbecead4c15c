"""What this machine can compile for and run on, and why not."""

from __future__ import annotations

from dataclasses import dataclass

from mlc_dsv3.compiler.link import find_linker
from mlc_dsv3.compiler.targets import device_names, host_of, level_of_gpu, read_description, resolve_target
from mlc_dsv3.errors import UserError


@dataclass(frozen=True)
class DeviceStatus:
    """One device: `reason` says which level is used, or what is missing."""

    name: str
    can_compile: bool
    can_run: bool
    reason: str


def devices() -> list[DeviceStatus]:
    """The status of every device that `build/` describes."""
    return [_status(name) for name in device_names()]


def _status(name: str) -> DeviceStatus:
    if status := _GPUS.get(name):
        return status()
    try:
        target = resolve_target(name)
    except UserError as error:
        return DeviceStatus(name, False, False, str(error))
    try:
        linker = find_linker()
    except UserError as error:
        return DeviceStatus(name, False, True, str(error))
    return DeviceStatus(name, True, True, f"{target.level}, linked by {' '.join(linker)}")


def _vulkan_status() -> DeviceStatus:
    from mlc_dsv3.runtime.virtual_machine import load_runtime
    from mlc_dsv3.vulkan import native, spirv

    if reason := native.not_built():
        return DeviceStatus("vulkan", False, False, reason)
    load_runtime()
    reasons, can_compile = [], True
    try:
        spirv.tools()
        find_linker()
    except UserError as error:
        reasons, can_compile = [str(error)], False
    reason = native.missing()
    found = [] if reason else native.devices()
    usable = [device for device in found if not device["lacking"]]
    levels = read_description("vulkan")["level"]
    reasons += [f"{device['name']} ({level_of_gpu(levels, device)['name']})" for device in usable]
    reasons += [f"{device['name']} lacks {device['lacking']}" for device in found if device["lacking"]]
    if not found:
        reasons.append(reason or native.NO_DEVICE)
    return DeviceStatus("vulkan", can_compile, bool(usable), "; ".join(reasons))


def _cuda_status() -> DeviceStatus:
    from mlc_dsv3.cuda import driver, nvcc
    from mlc_dsv3.runtime.virtual_machine import load_runtime

    load_runtime()
    reasons, can_compile = [], True
    try:
        if reason := driver.not_built():
            raise UserError(reason)
        reasons.append(f"compiled by {nvcc.find_nvcc()}")
        find_linker()
    except UserError as error:
        reasons, can_compile = [str(error)], False
    lacking = None
    try:
        gpu = driver.first_device()
        reasons.insert(0, f"{gpu['name']} ({driver.architecture()})")
    except UserError as error:
        lacking = str(error)
    return DeviceStatus("cuda", can_compile, lacking is None, "; ".join([*reasons, *([lacking] if lacking else [])]))


def _metal_status() -> DeviceStatus:
    from mlc_dsv3.metal import driver
    from mlc_dsv3.runtime.virtual_machine import load_runtime

    load_runtime()
    host, can_compile = host_of("metal"), True
    try:
        reason = f"{host.name}, linked by {' '.join(find_linker(host)[:4])}"
    except UserError as error:
        reason, can_compile = str(error), False
    lacking = driver.missing()
    shown = f"{reason}; {lacking}" if lacking else f"{driver.first_device()['name']} ({reason})"
    return DeviceStatus("metal", can_compile, lacking is None, shown)


_GPUS = {"cuda": _cuda_status, "metal": _metal_status, "vulkan": _vulkan_status}
