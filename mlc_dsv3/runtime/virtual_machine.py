"""TVM's runtime without its compiler: `import tvm` takes seconds, and running a library needs none of it."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mlc_dsv3._pins import check_pins, tvm_library
from mlc_dsv3.cuda import driver as cuda
from mlc_dsv3.metal import driver as metal
from mlc_dsv3.native_names import native_name
from mlc_dsv3.runtime.forking import claim
from mlc_dsv3.vulkan import native as vulkan

_FIRST_DEVICE = 0
_UNPOOLED_ALLOCATOR, _POOLED_ALLOCATOR = 1, 2
# DLPack's.
DEVICE_CODES = {"cpu": 1, "cuda": 2, "vulkan": 7, "metal": 8}


@cache
def load_runtime() -> None:
    """Load TVM's runtime library into the process, for all that loads after it."""
    check_pins()
    # Its thread pool would pin the calling thread to one core, and all that it starts afterwards with it; and it would
    # take half of the cores for hyper-threads.
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    os.environ.setdefault("TVM_NUM_THREADS", str(usable_cores()))
    # Its threads would spin 300,000 times before they sleep, and keep others from a busy core for seconds.
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "1000")
    import tvm_ffi  # noqa: F401  it must come first: the runtime library is linked with its own

    suffix = "dylib" if sys.platform == "darwin" else "so"
    ctypes.CDLL(str(tvm_library(f"libtvm_runtime.{suffix}")), ctypes.RTLD_GLOBAL)
    # A library with kernels for a GPU cannot even be opened without.
    vulkan.load()
    cuda.load()
    metal.load()


def open_machines(library: Path, device: str, pooled: Sequence[bool]) -> list[Any]:
    """Relax virtual machines over a compiled library on a device, whose `get_function` finds functions: one for each of
    `pooled`, which says whether it keeps a pool of memory.

    Raises ForkError in a child of a process that had loaded a model, and in TVM's words RuntimeError, OSError or
    AttributeError for a file that is no such library.
    """
    claim()
    load_runtime()
    import tvm_ffi

    loaded = tvm_ffi.load_module(native_name(library))
    # The host comes last, for what is computed there.
    devices = [DEVICE_CODES[device]] + ([DEVICE_CODES["cpu"]] if device != "cpu" else [])
    machines = []
    for each in pooled:
        machine = loaded["vm_load_executable"]()
        allocator = _POOLED_ALLOCATOR if each else _UNPOOLED_ALLOCATOR
        machine["vm_initialization"](*(value for code in devices for value in (code, _FIRST_DEVICE, allocator)))
        machines.append(machine)
    return machines


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def configure_threads(threads: int) -> None:
    """Run kernels on this many threads."""
    claim()
    load_runtime()
    import tvm_ffi

    use_as_many_as_asked = 0
    tvm_ffi.get_global_func("runtime.config_threadpool")(use_as_many_as_asked, threads)


def thread_count() -> int:
    """Threads that kernels run on now."""
    load_runtime()
    import tvm_ffi

    return int(tvm_ffi.get_global_func("runtime.NumThreads")())
