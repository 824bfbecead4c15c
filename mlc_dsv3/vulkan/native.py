"""The native part of the backend: the device API and the modules of kernels, in a library that CMake builds."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

_LIBRARY = Path(__file__).with_name("libmlc_vulkan.so")
_BUILD = (
    "this installation has no Vulkan backend: install a C++ compiler and the Vulkan headers "
    "(Debian: apt install g++ libvulkan-dev) and install mlc_dsv3 again"
)


def missing() -> str | None:
    """Why there is no Vulkan here, and what to do; None where there is."""
    if not _LIBRARY.is_file():
        return _BUILD
    load()
    import tvm_ffi

    reason = str(tvm_ffi.get_global_func("mlc_dsv3.vulkan.missing")())
    return reason or None


@cache
def load() -> None:
    """Load the library into the process, with TVM's runtime there already. Where TVM has a Vulkan of its own, ours
    stays out."""
    import tvm_ffi

    if tvm_ffi.get_global_func("device_api.vulkan", allow_missing=True) is None and _LIBRARY.is_file():
        ctypes.CDLL(str(_LIBRARY), ctypes.RTLD_GLOBAL)
