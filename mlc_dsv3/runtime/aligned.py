"""Arrays aligned as compiled kernels take them for granted."""

from __future__ import annotations

import math

import numpy as np

# TVM's code generator assumes this of every buffer and loads whole vectors by it.
ALIGNMENT = 64


def aligned_zeros(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Zeros at a multiple of 64 bytes; memory is taken only where it is first written."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes].view(dtype).reshape(shape)
