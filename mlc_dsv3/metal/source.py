"""TVM's hooks for kernels in Metal's shading language: functions beside what TVM writes, and constants' bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

_HOOK, _BUILD_HOOK = "tvm_callback_metal_compile", "target.build.metal"
_AS_SOURCE = "metal"
_SHUFFLE, _SIMD_GROUP = "tirx.tvm_warp_shuffle_xor", 32
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
    """What TVM builds for Metal inside can call the functions of above, and has the constants that it should. The
    library holds source, which a Mac's own compiler, part of its system, takes when the library is loaded."""
    import tvm  # noqa: F401  it registers the hook
    import tvm_ffi

    original = tvm_ffi.get_global_func(_BUILD_HOOK)
    tvm_ffi.register_global_func(_BUILD_HOOK, lambda module, target: original(_adapted(module), target), override=True)
    tvm_ffi.register_global_func(_HOOK, _completed, override=True)
    try:
        yield
    finally:
        tvm_ffi.remove_global_func(_HOOK)
        tvm_ffi.register_global_func(_BUILD_HOOK, original, override=True)


def _completed(source: str, target: Any) -> list[str]:
    before, start, kernel = str(source).partition(_START)
    assert start, "TVM begins every kernel so"
    return [before + start + _FUNCTIONS + kernel, _AS_SOURCE]


def _adapted(module: Any) -> Any:
    """What TVM's generator does not write as it should, in words that it does."""
    import tvm_ffi
    from tvm import tirx
    from tvm.ir import Call

    def by_bits(constant: tirx.FloatImm) -> Any:
        """It writes seven digits, of which not every float32 comes back: 2⁻¹² becomes 2.441406e-04."""
        value = np.float32(constant.value)
        if str(constant.ty.dtype) != "float32" or not np.isfinite(value) or np.float32(f"{constant.value:e}") == value:
            return constant
        return tirx.op.reinterpret("float32", tirx.const(int(value.view(np.uint32)), "uint32"))

    def by_name(call: Call) -> Any:
        """It has no exchange with the lane at a distance, which Metal has."""
        if getattr(call.op, "name", "") != _SHUFFLE:
            return call
        _, value, distance, width, _ = call.args
        assert int(width) == _SIMD_GROUP, "as wide as a SIMD group"
        return tirx.call_extern(str(call.ty.dtype), "simd_shuffle_xor", value, distance.astype("uint16"))

    functions = {
        name: function.with_body(tvm_ffi.structural_map(function.body, [(tirx.FloatImm, by_bits), (Call, by_name)]))
        for name, function in module.functions.items()
    }
    return type(module)(functions, attrs=module.attrs)
