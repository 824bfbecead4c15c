"""`q4f16_1+vnni16` and `q8f16_1+vnni16`: a group format's own values, with 16 rows interleaved (see `PackedLayout`)."""

from __future__ import annotations

import numpy as np

from mlc_dsv3.quantization.registry import Arrays, Scheme, dequantize, quantize, register
from relax_model.layout import PackedLayout


def pack(layout: PackedLayout, arrays: Arrays) -> Arrays:
    """The arrays of `layout.base`, (rows, words) and (rows, groups), packed; rows are filled up to whole blocks."""
    words, scales = arrays["q_weight"], arrays["q_scale"]
    short = -len(scales) % layout.rows
    # Any code will do beside a scale of zero; a float zero is all bits zero.
    words, scales = (np.pad(array, ((0, short), (0, 0))) for array in (words, scales))
    blocks, groups = len(scales) // layout.rows, scales.shape[1]
    codes = np.ascontiguousarray(words).view(np.uint8).reshape(blocks, layout.rows, groups, -1)
    if layout.base.bits == 4:
        nibbles = np.stack([codes & 15, codes >> 4], axis=-1).reshape(blocks, layout.rows, groups, 2, -1)
        codes = nibbles[..., 0, :] | nibbles[..., 1, :] << 4
    in_words = np.ascontiguousarray(codes).view("<u4")  # (blocks, rows, groups, words)
    return {
        "q_weight": np.ascontiguousarray(in_words.transpose(0, 2, 3, 1)),
        "q_scale": np.ascontiguousarray(scales.reshape(blocks, layout.rows, groups).transpose(0, 2, 1)),
    }


def unpack(layout: PackedLayout, arrays: Arrays) -> Arrays:
    """The arrays of `layout.base` from packed ones; every row of every block."""
    words, scales = arrays["q_weight"], arrays["q_scale"]
    blocks, groups = words.shape[:2]
    in_words = np.ascontiguousarray(words.transpose(0, 3, 1, 2))  # (blocks, rows, groups, words)
    codes = in_words.view(np.uint8).reshape(blocks * layout.rows, groups, -1)
    if layout.base.bits == 4:
        nibbles = np.concatenate([codes & 15, codes >> 4], axis=-1)
        codes = nibbles[..., 0::2] | nibbles[..., 1::2] << 4
    return {
        "q_weight": np.ascontiguousarray(codes).view("<u4").reshape(blocks * layout.rows, -1),
        "q_scale": np.ascontiguousarray(scales.transpose(0, 2, 1)).reshape(blocks * layout.rows, groups),
    }


def _quantize(layout: PackedLayout, values: np.ndarray) -> Arrays:
    return pack(layout, quantize(layout.base, values))


def _dequantize(layout: PackedLayout, arrays: Arrays, columns: int) -> np.ndarray:
    return dequantize(layout.base, unpack(layout, arrays), columns)


register(PackedLayout, Scheme(_quantize, _dequantize))
