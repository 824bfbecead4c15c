"""`q4f16_1` and `q8f16_1`: mlc-llm's group quantization, where 32 neighbours in a row share a float16 scale.

scale = float16(max |w| / m) and code = clip(round(w / scale + m), 0, 2m), where m is 7 or 127 and w the weight in
float16. A scale that would underflow is float16's next one up.

`e4m3f32_1`: 128 neighbours share a float32 scale, max |w| / 448, and a code is the 8-bit float nearest to w / scale.
What a checkpoint has in such codes stays as it is (`keep_e4m3`).
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from mlc_dsv3.quantization.float import refuse_overflow
from mlc_dsv3.quantization.registry import Arrays, Scheme, ValueRangeError, register
from relax_model.layout import GroupLayout

# Rows are worked on in pieces of about this many values, so that the temporaries stay in the cache.
_PIECE = 1 << 17
_LARGEST_E4M3 = 448.0


def _quantize(layout: GroupLayout, values: np.ndarray) -> Arrays:
    rows, columns = values.shape
    specs = layout.buffers(values.shape)
    words = np.empty(specs["q_weight"].shape, np.uint32)
    scales = np.empty(specs["q_scale"].shape, layout.scale_dtype)
    step = max(1, _PIECE // columns)
    for start in range(0, rows, step):
        piece = slice(start, start + step)
        codes, scales[piece] = (_e4m3_codes if layout.e4m3 else _codes)(layout, values[piece])
        words[piece] = _pack(layout, codes)
    return {"q_weight": words, "q_scale": scales}


def _codes(layout: GroupLayout, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 codes (rows, padded columns) and float16 scales (rows, groups)."""
    rows, columns = values.shape
    refuse_overflow(values, "float16")
    weights = np.zeros((rows, layout.groups(columns), layout.group_size), np.float32)
    weights.reshape(rows, -1)[:, :columns] = values.astype(np.float16)
    largest = np.abs(weights).max(axis=-1)  # (rows, groups)
    scales = _scales(layout, largest)
    # A scale of zero stands for a group of zeros, whatever the codes are.
    divisors = np.where(scales == 0, np.float32(np.inf), scales.astype(np.float32))
    weights /= divisors[..., None]
    codes = _mlc_codes(weights) if layout.bits == 4 else _nearest_codes(weights, layout.zero)
    return codes.reshape(rows, -1), scales


def _scales(layout: GroupLayout, largest: np.ndarray) -> np.ndarray:
    """float16 scales for groups whose largest magnitudes, themselves float16 values, are `largest`."""
    scales = (largest / np.float32(layout.zero)).astype(np.float16)
    # Subnormal scales are so coarse that their rounding may clip the largest values, or make zeros of the group. With
    # 4 bits it is mlc-llm's scale wherever that is not zero; in 8 bits, a format of ours, one that reaches the largest.
    if layout.bits == 4:
        short = (scales == 0) & (largest > 0)
    else:
        short = largest > scales.astype(np.float32) * np.float32(layout.zero + 0.5)
    return np.where(short, np.nextafter(scales, np.float16(np.inf)), scales)


def _e4m3_codes(layout: GroupLayout, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 codes (rows, padded columns) and float32 scales (rows, groups)."""
    rows, columns = values.shape
    refuse_overflow(values, "float32")
    weights = np.zeros((rows, layout.groups(columns), layout.group_size), np.float32)
    weights.reshape(rows, -1)[:, :columns] = values
    # At least the smallest normal number: beside it, values that are smaller still become steps of it.
    scales = np.maximum(np.abs(weights).max(axis=-1) / np.float32(_LARGEST_E4M3), np.finfo(np.float32).tiny)
    quotients = np.clip(weights / scales[..., None], -_LARGEST_E4M3, _LARGEST_E4M3)
    return quotients.astype(ml_dtypes.float8_e4m3fn).view(np.uint8).reshape(rows, -1), scales


def keep_e4m3(layout: GroupLayout, codes: np.ndarray, scales: np.ndarray) -> Arrays:
    """The stored arrays of rows that are in such codes already: uint8 (rows, columns), float32 (rows, groups).

    Raises ValueRangeError for a code that is no number, and scales that are none.
    """
    assert layout.e4m3
    if (codes & 127 == 127).any() or not np.isfinite(scales).all():
        raise ValueRangeError("holds NaN or infinity; the checkpoint is damaged")
    padding = scales.shape[1] * layout.group_size - codes.shape[1]
    return {
        "q_weight": _pack(layout, np.pad(codes, ((0, 0), (0, padding)))),
        "q_scale": scales.astype(np.float32),
    }


def _nearest_codes(quotients: np.ndarray, zero: int) -> np.ndarray:
    codes = np.rint(quotients + np.float32(zero))
    # The scale's own rounding can push a group's largest value past the last code.
    return np.clip(codes, 0, 2 * zero, out=codes).astype(np.uint8)


def _mlc_codes(quotients: np.ndarray) -> np.ndarray:
    """4-bit codes as mlc-llm finds them: in float16, so that a code is its code only if each step is rounded as there.

    mlc-llm ships no 8-bit format; there those roundings would only add 2 % to the error.
    """
    return np.take(_CODE_OF_HALF, quotients.astype(np.float16).view(np.uint16))


def _code_of_half() -> np.ndarray:
    """uint8 (65536,): the code of each float16 quotient, by its bits; NaN, which no quotient is, gets 0."""
    quotients = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    shifted = (np.nan_to_num(quotients, nan=-7) + np.float16(7)).astype(np.float32)
    return np.clip(np.rint(shifted), 0, 14).astype(np.uint8)


_CODE_OF_HALF = _code_of_half()


def _pack(layout: GroupLayout, codes: np.ndarray) -> np.ndarray:
    """uint8 codes (rows, n) → uint32 words (rows, n · bits / 32), the first code in the lowest bits."""
    if layout.bits == 4:
        codes = codes[:, 0::2] | codes[:, 1::2] << 4
    return np.ascontiguousarray(codes).view("<u4")


def _dequantize(layout: GroupLayout, arrays: Arrays, columns: int) -> np.ndarray:
    words, scales = arrays["q_weight"], arrays["q_scale"]
    rows, groups = scales.shape
    shifts = np.arange(0, 32, layout.bits, dtype=np.uint32)
    codes = (words[..., None] >> shifts) & np.uint32(2**layout.bits - 1)
    codes = codes.reshape(rows, groups, layout.group_size)
    if layout.e4m3:
        numbers = codes.astype(np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    else:
        numbers = codes.astype(np.float32) - np.float32(layout.zero)
    values = numbers * scales.astype(np.float32)[..., None]
    return np.ascontiguousarray(values.reshape(rows, -1)[:, :columns])


register(GroupLayout, Scheme(_quantize, _dequantize))
