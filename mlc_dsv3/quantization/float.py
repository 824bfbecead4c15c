"""`q0f32`, `q0f16` and `q0bf16`: each value rounded to the nearest of a float format."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from mlc_dsv3.quantization.registry import WIDER_THAN_FLOAT16, Arrays, Scheme, ValueRangeError, register
from relax_model.layout import FloatLayout

_DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
# The smallest magnitude that rounds to infinity: half a step past the largest finite value.
_OVERFLOWS_AT = {"float32": np.inf, "float16": 65520.0, "bfloat16": 2.0**128 * (1 - 2.0**-9)}


def refuse_overflow(values: np.ndarray, dtype: str) -> None:
    """Raise ValueRangeError if one of the float32 `values` is not finite, or would not be in `dtype`."""
    largest = max(float(np.max(values)), -float(np.min(values)))
    if largest < _OVERFLOWS_AT[dtype]:
        return
    if not np.isfinite(largest):
        raise ValueRangeError("holds NaN or infinity; the checkpoint is damaged")
    advice = WIDER_THAN_FLOAT16 if dtype == "float16" else "q0f32"
    raise ValueRangeError(f"holds a value of magnitude {largest:.6g}, beyond the range of {dtype}; use {advice}")


def _quantize(layout: FloatLayout, values: np.ndarray) -> Arrays:
    refuse_overflow(values, layout.dtype)
    return {"weight": values.astype(_DTYPES[layout.dtype])}


def _dequantize(layout: FloatLayout, arrays: Arrays, columns: int) -> np.ndarray:
    stored = arrays["weight"]
    assert stored.shape[-1] == columns
    return stored.view(_DTYPES[layout.dtype]).astype(np.float32)


register(FloatLayout, Scheme(_quantize, _dequantize))
