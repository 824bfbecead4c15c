"""TVM's hook for a kernel in Metal's shading language: what our kernels use beside what TVM writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_HOOK = "tvm_callback_metal_compile"
_AS_SOURCE = "metal"
_START = "using namespace metal;\n"
# TVM has Metal compile with fast mathematics, which may take infinities and NaNs for impossible; attention begins with
# a maximum of minus infinity.
_FUNCTIONS = """
#if __METAL_VERSION__ >= 320
#pragma METAL fp math_mode(safe)
#endif

inline uint atomicAdd(threadgroup uint* word, uint amount) {
  return atomic_fetch_add_explicit((threadgroup atomic_uint*)word, amount, memory_order_relaxed);
}

inline uint atomicAdd(device uint* word, uint amount) {
  return atomic_fetch_add_explicit((device atomic_uint*)word, amount, memory_order_relaxed);
}
"""


@contextmanager
def completed_source() -> Iterator[None]:
    """What TVM builds for Metal inside can call the functions of above. The library holds source, which a Mac's own
    compiler, part of its system, takes when the library is loaded."""
    import tvm_ffi

    tvm_ffi.register_global_func(_HOOK, _completed, override=True)
    try:
        yield
    finally:
        tvm_ffi.remove_global_func(_HOOK)


def _completed(source: str, target: Any) -> list[str]:
    before, start, kernel = str(source).partition(_START)
    assert start, "TVM begins every kernel so"
    return [before + start + _FUNCTIONS + kernel, _AS_SOURCE]
