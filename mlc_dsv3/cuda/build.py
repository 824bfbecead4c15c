"""TVM's hook for code generation: lowered device functions → a module of machine code."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mlc_dsv3.cuda import driver
from mlc_dsv3.cuda.nvcc import compile_source
from relax_model.kernels import cuda_functions

_HOOK, _FORCE_SOURCE = "target.build.cuda", "TVM_COMPILE_FORCE_FALLBACK"


@contextmanager
def machine_code(architectures: Sequence[str]) -> Iterator[None]:
    """What TVM builds for CUDA inside holds machine code for `architectures`, and no source to be compiled later."""
    import tvm  # noqa: F401  it registers the hook
    import tvm_ffi

    driver.load()
    to_source = tvm_ffi.get_global_func(_HOOK)

    def build(module: Any, target: Any) -> Any:
        os.environ[_FORCE_SOURCE] = "1"
        try:
            generated = to_source(module, target)
        finally:
            del os.environ[_FORCE_SOURCE]
        return make_module(generated, architectures)

    tvm_ffi.register_global_func(_HOOK, build, override=True)
    try:
        yield
    finally:
        tvm_ffi.register_global_func(_HOOK, to_source, override=True)


def make_module(generated: Any, architectures: Sequence[str]) -> Any:
    """The module of machine code for a module of source: one that runs, where there is a driver."""
    import tvm_ffi

    source = generated.inspect_source("cuda")
    code = compile_source(cuda_functions.SOURCE + source, architectures)
    data = driver.call("with_machine_code", generated, code)
    if driver.missing() is None:
        return tvm_ffi.get_global_func("ffi.Module.load_from_bytes.cuda")(data)
    return driver.call("make_module", data, source)
