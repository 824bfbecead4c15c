"""The native part of the backend: the device API and the modules of kernels, in a library that CMake builds."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
from functools import cache
from pathlib import Path
from typing import Any

from mlc_dsv3 import native_parts
from mlc_dsv3.errors import DeviceError, UserError
from mlc_dsv3.folders import cache_folder, write_whole

_LIBRARY = Path(__file__).with_name("libmlc_vulkan.so")

NO_DEVICE = "there is no Vulkan device (Debian, for the processor: apt install mesa-vulkan-drivers)"


def not_built() -> str | None:
    """Why kernels cannot be compiled here, and what to do; None where they can: that takes no device."""
    return native_parts.not_built("vulkan", _LIBRARY)


def missing() -> str | None:
    """Why there is no Vulkan here, and what to do; None where there is."""
    if reason := not_built():
        return reason
    load()
    import tvm_ffi

    reason = str(tvm_ffi.get_global_func("mlc_dsv3.vulkan.missing")())
    return reason or None


@cache
def load() -> None:
    """Load the library into the process, with TVM's runtime there already. Where TVM has a Vulkan of its own, ours
    stays out."""
    import tvm_ffi

    if tvm_ffi.get_global_func("device_api.vulkan", allow_missing=True) is not None or not _LIBRARY.is_file():
        return
    tvm_ffi.register_error("DeviceError", DeviceError)
    ctypes.CDLL(str(_LIBRARY), ctypes.RTLD_GLOBAL)
    with contextlib.suppress(UserError):  # without a home, pipelines are compiled anew each time
        folder = cache_folder() / "pipelines"
        _call("keep_pipelines_in", str(folder))
        atexit.register(_keep_pipelines, folder)


def _keep_pipelines(folder: Path) -> None:
    """Write what the driver compiled in this process, for the next one; neither a full disk nor a lost device is a
    reason to end in an error."""
    with contextlib.suppress(OSError, RuntimeError, MemoryError):
        for name, data in _call("new_pipelines").items():
            write_whole(folder / str(name), data)


def devices() -> list[dict[str, Any]]:
    """The machine's devices, by the fields of `native/device.h`'s Properties; those that can be used come first."""
    return [dict(device.items()) for device in _call("devices")]


def first_device() -> dict[str, Any]:
    """The device that everything runs on. UserError where there is no Vulkan, no device, or none that can be used."""
    if reason := missing():
        raise UserError(reason)
    found = devices()
    if not found:
        raise UserError(NO_DEVICE)
    if lacking := found[0]["lacking"]:
        raise UserError(f"the Vulkan device {found[0]['name']} lacks {lacking}")
    return found[0]


def statistics(index: int = 0) -> dict[str, int]:
    """Launches, barriers, submissions and bytes moved since the process began, and the bytes of memory in use."""
    return dict(_call("statistics", index).items())


def launches() -> int:
    """Kernels that were started since the process began."""
    return statistics()["launches"]


def free_memory() -> int:
    """Bytes of the first device's memory that this process has not taken."""
    return devices()[0]["memory"] - statistics()["reserved"]


def shares_memory() -> bool:
    """Whether the first device's memory is the host's."""
    return devices()[0]["type"] != "discrete"


def profile(on: bool, index: int = 0) -> list[tuple[str, float]]:
    """(kernel, seconds on the device) of each launch since timing was switched on, which `on` does for what follows."""
    flat = list(_call("profile", index, on))
    return [(str(name), nanoseconds * 1e-9) for name, nanoseconds in zip(flat[::2], flat[1::2], strict=True)]


def validation_messages() -> str:
    """What the validation layers have said so far, where VK_INSTANCE_LAYERS switches them on."""
    return str(_call("validation_messages"))


def _call(name: str, *arguments: object) -> Any:
    load()
    import tvm_ffi

    return tvm_ffi.get_global_func(f"mlc_dsv3.vulkan.{name}")(*arguments)
