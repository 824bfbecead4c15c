"""A plugin of pytest, and what runs a command: Metal in this process is the emulated one.

python emulated_metal.py ARGUMENTS…     mlc_dsv3 with these arguments

Everything but the GPU, its compiler and TVM's runtime for it is what people run. EMULATED_METAL_FOLDER is where the
emulator was built; kernels are kept there, too.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

_FOLDER = Path(os.environ["EMULATED_METAL_FOLDER"])
os.environ["EMULATED_METAL_COMPILER"] = f"{sys.executable} {Path(__file__).with_name('build.py')}"


def install() -> None:
    """Put the emulated Metal where the real one would be, and have this kind of machine be one that has it."""
    from mlc_dsv3.compiler import targets
    from mlc_dsv3.metal import driver
    from mlc_dsv3.runtime.virtual_machine import load_runtime

    load_runtime()
    import tvm_ffi

    ctypes.CDLL(str(_FOLDER / "libemulated_metal.so"), ctypes.RTLD_GLOBAL)
    description = targets.read_description("metal")["target"]
    description["host"] = targets.host_of("cpu").name
    description["hosts"].append(description["host"])
    driver.load = lambda: None
    driver.first_device = lambda: {"name": "emulated Metal", "memory": driver.free_memory()}
    driver.launches = lambda: int(tvm_ffi.get_global_func("emulated_metal.launches")())
    _run_what_is_built(tvm_ffi)


def _run_what_is_built(tvm_ffi: Any) -> None:
    """Without a library between: what TVM builds for Metal runs at once, as on a Mac."""
    import tvm  # noqa: F401  it registers the hook

    hook = "target.build.metal"
    original, make = tvm_ffi.get_global_func(hook), tvm_ffi.get_global_func("emulated_metal.make")
    tvm_ffi.register_global_func(hook, lambda module, target: make(original(module, target)), override=True)


install()

if __name__ == "__main__":
    from mlc_dsv3.cli.main import main

    sys.exit(main(sys.argv[1:]))
