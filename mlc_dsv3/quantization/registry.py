"""Layout type → scheme: the functions that turn float32 rows into stored arrays and back.

Values come from the checkpoint by blocks of rows; arrays go to the artifact's shards. A row never looks at another one,
so a matrix can be cut anywhere between rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from relax_model.layout import Layout

Arrays = dict[str, np.ndarray]  # suffix of the parameter's name → stored array
WIDER_THAN_FLOAT16 = "q0bf16, e4m3f32_1 or q0f32"  # what to use for values outside of float16's range


class ValueRangeError(ValueError):
    """Values that the format cannot hold; the text continues a sentence that began with the tensor's name."""


@dataclass(frozen=True)
class Scheme:
    """A way to store a matrix, for every layout of one type."""

    quantize: Callable[[Any, np.ndarray], Arrays]
    dequantize: Callable[[Any, Arrays, int], np.ndarray]


_SCHEMES: dict[type, Scheme] = {}


def register(layout_type: type, scheme: Scheme) -> None:
    """Enter the scheme of a layout type; each has one."""
    assert layout_type not in _SCHEMES, f"{layout_type.__name__} has a scheme already"
    _SCHEMES[layout_type] = scheme


def quantize(layout: Layout, values: np.ndarray) -> Arrays:
    """Store float32 `values` (rows, columns) as `layout.buffers(values.shape)` says.

    bfloat16 arrays are `ml_dtypes.bfloat16`. Raises ValueRangeError for NaN, infinity and what the format cannot hold.
    """
    assert values.ndim == 2 and values.dtype == np.float32
    return _SCHEMES[type(layout)].quantize(layout, values)


def dequantize(layout: Layout, arrays: Arrays, columns: int) -> np.ndarray:
    """The float32 values (rows, columns) that stored `arrays` stand for; bfloat16 may also come as its 16 bits."""
    return _SCHEMES[type(layout)].dequantize(layout, arrays, columns)
