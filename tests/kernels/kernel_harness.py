"""Runs one kernel by itself: built from the registry for this processor, on NumPy arrays."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import tvm

from mlc_dsv3.compiler.compile import build_options, tvm_target
from mlc_dsv3.compiler.targets import resolve_target
from mlc_dsv3.quantization import dequantize, quantize
from mlc_dsv3.runtime.aligned import aligned_zeros
from relax_model.kernels import registry
from relax_model.layout import Layout, PackedLayout

TILE = build_options(resolve_target("cpu"), "q0f32").tile


@cache
def compiled(operator: str, *arguments: object):
    """The compiled kernel of `operator` for these builder arguments."""
    target = resolve_target("cpu")
    func = registry.build(operator, target.family, *arguments, tile=TILE)
    module = tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), tvm_target(target))
    return module["main"]


def run(operator: str, arguments: tuple, inputs: list[np.ndarray], *out: tuple[tuple[int, ...], str]) -> list:
    """Outputs, as arrays, of the kernel on `inputs`; without `out`, the inputs after an in-place kernel ran."""
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(array)) for array in inputs]
    outputs = [tvm.runtime.tensor(aligned_zeros(shape, dtype)) for shape, dtype in out]
    compiled(operator, *arguments)(*tensors, *outputs)
    return [tensor.numpy() for tensor in (outputs or tensors)]


def stored(layout: Layout, values: np.ndarray, parts: tuple[int, ...] = ()) -> tuple[list[np.ndarray], np.ndarray]:
    """A matrix's stored arrays, and the float64 values that they stand for; `parts` as a parameter's."""
    *lead, rows, columns = values.shape
    if isinstance(layout, PackedLayout):
        return _packed(layout, values, parts or (rows,))
    buffers = quantize(layout, values.reshape(-1, columns))
    exact = dequantize(layout, buffers, columns).astype(np.float64).reshape(values.shape)
    arrays = [array.reshape(*lead, rows, -1) for array in buffers.values()]
    return [
        array.view(np.uint16) if array.dtype.itemsize == 2 and array.dtype.kind == "V" else array for array in arrays
    ], exact


def _packed(layout: PackedLayout, values: np.ndarray, parts: tuple[int, ...]) -> tuple[list[np.ndarray], np.ndarray]:
    """Each stacked matrix by itself, filled up to whole blocks."""
    columns = values.shape[-1]
    flat, exact, pieces, start = values.reshape(-1, columns), [], [], 0
    for length in itertools.cycle(parts):
        if start == len(flat):
            break
        pieces.append(quantize(layout, flat[start : start + length]))
        exact.append(dequantize(layout, pieces[-1], columns)[:length])
        start += length
    specs = layout.buffers(values.shape, parts)
    arrays = [np.concatenate([piece[suffix] for piece in pieces]).reshape(spec.shape) for suffix, spec in specs.items()]
    return arrays, np.concatenate(exact).astype(np.float64).reshape(values.shape)


def activations(layout: PackedLayout, x: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Codes, scales and offsets of float32 rows, and the float64 values that they stand for."""
    codes = run("quantize", (layout, x.shape[1]), [x], *quantized(layout, *x.shape))
    return codes, meaning(codes, x.shape[1])


def quantized(layout: PackedLayout, rows: int, width: int) -> list[tuple[tuple[int, ...], str]]:
    """Shapes and dtypes of a kernel's quantized output."""
    groups = layout.base.groups(width)
    return [((rows, groups * 32), "int8"), ((rows, groups), "float32"), ((rows, groups), "int32")]


def meaning(codes: list[np.ndarray], width: int) -> np.ndarray:
    """The float64 values (rows, width) of codes and scales; what fills the last group has to be zero."""
    values = codes[0].astype(np.float64) * np.repeat(codes[1].astype(np.float64), 32, axis=1)
    assert not np.any(values[:, width:])
    return values[:, :width]


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference as a share of the expected values' spread."""
    return float(np.abs(found - expected).max() / expected.std())
