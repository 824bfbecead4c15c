"""Vulkan for TVM, out of tree: TIR → GLSL → SPIR-V in Python, and the device API in C++ (`native/`).

A general backend: any function that TVM lowers for a GPU compiles, or is refused with the name of what is missing.
"""

from __future__ import annotations


def register() -> None:
    """Register with TVM; called by `import tvm` through the entry point `tvm.backends`."""
    import tvm_ffi

    from mlc_dsv3.vulkan.errors import Unsupported
    from mlc_dsv3.vulkan.native import load

    if tvm_ffi.get_global_func("target.build.vulkan", allow_missing=True) is not None:
        return
    load()

    def build(module: object, target: object) -> object:
        from mlc_dsv3.vulkan.build import build_module

        return build_module(module, target)

    tvm_ffi.register_global_func("target.build.vulkan", build)
    # So that it is still of its class on the other side of TVM.
    tvm_ffi.register_error("Unsupported", Unsupported)
