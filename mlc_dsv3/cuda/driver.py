"""TVM's CUDA runtime in the process, where there is a driver for it, and what it says of the GPU."""

from __future__ import annotations

import ctypes
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

from mlc_dsv3 import native_parts
from mlc_dsv3._pins import tvm_library
from mlc_dsv3.errors import UserError

_LIBRARY = Path(__file__).with_name("libmlc_cuda.so")
_LOADER = "ffi.Module.load_from_bytes.cuda"
_DRIVER, _RUNTIME = "libcuda.so.1", "libcudart.so.13"
# DLPack's code, and TVM's of what it is asked for.
_CUDA = 2
_EXISTS, _CAPABILITY, _NAME, _MEMORY, _FREE_MEMORY = 0, 4, 5, 14, 15


def not_built() -> str | None:
    """Why kernels cannot be compiled here, and what to do; None where they can: that takes no GPU."""
    return native_parts.not_built("cuda", _LIBRARY)


@cache
def load() -> str | None:
    """Load TVM's CUDA runtime into the process, with TVM's own there already, and return why it is not there.

    Without a driver a library with kernels for CUDA can still be opened, to be looked at.
    """
    import tvm_ffi

    if _LIBRARY.is_file():
        ctypes.CDLL(str(_LIBRARY), ctypes.RTLD_GLOBAL)
    reason = _load_runtime()
    if reason and _LIBRARY.is_file() and tvm_ffi.get_global_func(_LOADER, allow_missing=True) is None:
        make = tvm_ffi.get_global_func("mlc_dsv3.cuda.make_module")
        tvm_ffi.register_global_func(_LOADER, lambda data: make(data, ""))
    return reason


def _load_runtime() -> str | None:
    ours = tvm_library("libtvm_runtime_cuda.so")
    if not ours.is_file():
        return "TVM's package for this system has no CUDA"
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        return f"there is no NVIDIA driver here ({_DRIVER})"
    if not _load_cuda_runtime():
        return f"{_RUNTIME} is not here; install it with: pip install nvidia-cuda-runtime"
    try:
        ctypes.CDLL(str(ours))
    except OSError as error:
        return f"TVM's CUDA runtime does not load: {error}"
    return None


def _load_cuda_runtime() -> bool:
    for place in (_RUNTIME, str(Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "lib" / _RUNTIME)):
        try:
            ctypes.CDLL(place, ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return True
    return False


def missing() -> str | None:
    """Why nothing can run on CUDA here, and what to do; None where something can."""
    if reason := load():
        return reason
    return None if _attribute(_EXISTS) else "there is no NVIDIA GPU here, or its driver is older than CUDA 13"


def first_device() -> dict[str, Any]:
    """name, capability (90 for 9.0) and memory in bytes of the GPU that everything runs on. UserError without one."""
    if reason := missing():
        raise UserError(reason)
    capability = int(str(_attribute(_CAPABILITY)).replace(".", ""))
    return {"name": str(_attribute(_NAME)), "capability": capability, "memory": int(_attribute(_MEMORY))}


def free_memory() -> int:
    """Bytes of the GPU's memory that nobody uses."""
    return int(_attribute(_FREE_MEMORY))


def shares_memory() -> bool:
    """Whether the GPU's memory is the host's."""
    return False


def architecture() -> str:
    """The architecture that suits the GPU here, with what only it has: sm_90a for 9.0. UserError for an old GPU."""
    from mlc_dsv3.cuda.nvcc import number, oldest

    gpu = first_device()
    capability, least = gpu["capability"], number(oldest())
    if capability < least:
        raise UserError(
            f"{gpu['name']} is of compute capability {_dotted(capability)}, and the kernels need {_dotted(least)}; "
            "--arch compiles for other GPUs"
        )
    return f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"


def _dotted(capability: int) -> str:
    return f"{capability // 10}.{capability % 10}"


def launches() -> int:
    """Kernels and graphs that were started since the process began."""
    return int(call("kernel_launches")) + int(call("graph_launches"))


def runs(architectures: list[str] | tuple[str, ...], capability: int) -> bool:
    """Whether a library for `architectures` has code for a GPU: machine code, or PTX of an earlier architecture.

    Machine code runs on the GPUs of its generation from its own number on, that of sm_90a on 9.0 alone.
    """
    from mlc_dsv3.cuda.nvcc import intermediate_architecture, number

    for architecture in architectures:
        exact = architecture[-1].isalpha()
        if number(architecture) == capability:
            return True
        if not exact and number(architecture) // 10 == capability // 10 and number(architecture) < capability:
            return True
    return intermediate_architecture(architectures) <= capability


def _attribute(kind: int) -> Any:
    import tvm_ffi

    return tvm_ffi.get_global_func("runtime.GetDeviceAttr")(_CUDA, 0, kind)


def call(name: str, *arguments: object) -> Any:
    """A function of the native part."""
    import tvm_ffi

    return tvm_ffi.get_global_func(f"mlc_dsv3.cuda.{name}")(*arguments)
