"""Runs one kernel by itself: built from the registry for this processor, on NumPy arrays."""

from __future__ import annotations

from functools import cache

import numpy as np
import tvm

from mlc_dsv3.compiler.compile import build_options, tvm_target
from mlc_dsv3.compiler.targets import resolve_target
from mlc_dsv3.quantization import dequantize, quantize
from mlc_dsv3.runtime.aligned import aligned_zeros
from relax_model.kernels import registry
from relax_model.layout import Layout


@cache
def compiled(operator: str, *arguments: object):
    """The compiled kernel of `operator` for these builder arguments."""
    target = resolve_target("cpu")
    func = registry.build(operator, target.family, *arguments, tile=build_options(target, "q0f32").tile)
    module = tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), tvm_target(target))
    return module["main"]


def run(operator: str, arguments: tuple, inputs: list[np.ndarray], *out: tuple[tuple[int, ...], str]) -> list:
    """Outputs, as arrays, of the kernel on `inputs`; without `out`, the inputs after an in-place kernel ran."""
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(array)) for array in inputs]
    outputs = [tvm.runtime.tensor(aligned_zeros(shape, dtype)) for shape, dtype in out]
    compiled(operator, *arguments)(*tensors, *outputs)
    return [tensor.numpy() for tensor in (outputs or tensors)]


def stored(layout: Layout, values: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """A matrix's stored arrays, and the float64 values that they stand for."""
    flat = values.reshape(-1, values.shape[-1])
    buffers = quantize(layout, flat)
    exact = dequantize(layout, buffers, values.shape[-1]).astype(np.float64).reshape(values.shape)
    arrays = [array.reshape(*values.shape[:-1], -1) for array in buffers.values()]
    return [
        array.view(np.uint16) if array.dtype.itemsize == 2 and array.dtype.kind == "V" else array for array in arrays
    ], exact


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference as a share of the expected values' spread."""
    return float(np.abs(found - expected).max() / expected.std())
