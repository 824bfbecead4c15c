"""TVM's Metal runtime in the process, on a Mac, and what it says of the GPU."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from functools import cache
from typing import Any

from mlc_dsv3._pins import tvm_library
from mlc_dsv3.errors import UserError

# DLPack's code, and TVM's of what it is asked for.
_METAL = 8
_EXISTS, _MEMORY = 0, 14


@cache
def load() -> str | None:
    """Load TVM's Metal runtime into the process, with TVM's own there already, and return why it is not there."""
    if sys.platform != "darwin":
        return "Metal is there on Apple's systems alone"
    ours = tvm_library("libtvm_runtime_metal.dylib")
    if not ours.is_file():
        return "TVM's package for this system has no Metal"
    try:
        ctypes.CDLL(str(ours))
    except OSError as error:
        return f"TVM's Metal runtime does not load: {error}"
    return None


def missing() -> str | None:
    """Why nothing can run on Metal here; None where something can."""
    if reason := load():
        return reason
    return None if _attribute(_EXISTS) else "there is no GPU that knows Metal"


def first_device() -> dict[str, Any]:
    """name and memory in bytes, as Metal recommends, of the GPU that everything runs on. UserError without one."""
    if reason := missing():
        raise UserError(reason)
    asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
    return {"name": asked.stdout.strip() or platform.processor(), "memory": int(_attribute(_MEMORY))}


def free_memory() -> int:
    """Bytes that Metal recommends to use at most: it does not tell what is in use."""
    return int(_attribute(_MEMORY))


def shares_memory() -> bool:
    """Whether the GPU's memory is the host's."""
    return True


def launches() -> int:
    """Nobody counts them."""
    return 0


def _attribute(kind: int) -> Any:
    import tvm_ffi

    return tvm_ffi.get_global_func("runtime.GetDeviceAttr")(_METAL, 0, kind)
