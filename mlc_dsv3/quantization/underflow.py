"""What a format loses of values near its smallest number, beside the error that it has anyway.

Values of `q4f16_1`, `q8f16_1` and `q0f16` are multiples of float16's smallest number there, 2⁻²⁴ ≈ 6e-8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlc_dsv3.quantization.registry import WIDER_THAN_FLOAT16, Arrays
from relax_model.layout import FloatLayout, GroupLayout, Layout, PackedLayout

_STEPS = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149}
_SMALLEST_SCALE = 2.0**-126  # of a group of e4m3
_E4M3_STEP = _SMALLEST_SCALE * 2.0**-9
# Of a group whose largest value is beyond so many steps, rounding to the steps takes a 32nd of that value at most.
_SMALL = 16


@dataclass(frozen=True)
class Underflow:
    """groups: those of values that are not all zero and become so (a row is one where a format has no groups);
    lost: sum of the squares of what goes missing."""

    groups: int = 0
    lost: float = 0.0


def smallest_number(layout: Layout) -> float:
    """The step between a format's values near zero."""
    if isinstance(layout, PackedLayout):
        return smallest_number(layout.base)
    if isinstance(layout, GroupLayout):
        return _E4M3_STEP if layout.e4m3 else _STEPS[layout.scale_dtype]
    return _STEPS[layout.dtype]


def underflow(layout: Layout, values: np.ndarray, stored: Arrays) -> Underflow:
    """What float32 `values` (rows, columns) lose to the format's smallest number; `stored` is what they became."""
    step = smallest_number(layout)
    if "q_scale" in stored and stored["q_scale"].min() > (_SMALLEST_SCALE if step == _E4M3_STEP else _SMALL * step):
        return Underflow()  # a glance at the scales shows that no group is small
    size = values.shape[1] if isinstance(layout, FloatLayout) else _group_size(layout)
    groups = np.pad(values, ((0, 0), (0, -values.shape[1] % size))).reshape(-1, size)
    largest = np.abs(groups).max(axis=1)
    small = groups[(largest > 0) & (largest < _SMALL * step)].astype(np.float64)
    kept = np.rint(small / step) * step
    return Underflow(int((~kept.any(axis=1)).sum()), float(((small - kept) ** 2).sum()))


def wider_formats(layout: Layout) -> str:
    """The formats to recommend for values below this one's smallest number."""
    return WIDER_THAN_FLOAT16 if smallest_number(layout) == _STEPS["float16"] else "q0f32"


def _group_size(layout: GroupLayout | PackedLayout) -> int:
    return (layout.base if isinstance(layout, PackedLayout) else layout).group_size
