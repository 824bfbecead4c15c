"""Stored bytes of a checkpoint's tensor → float32, fp8 with its block scales included."""

from __future__ import annotations

import numpy as np

DECODABLE = ("F32", "F16", "BF16", "F8_E4M3", "F64")


def _e4m3_table() -> np.ndarray:
    """float32 (256,): the value of each e4m3 code (Micikevicius et al. 2022, arXiv:2209.05433, table 1).

    Sign, 4 exponent bits of bias 7, 3 mantissa bits; no infinities, and NaN where the other 7 bits are all ones.
    """
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    magnitude = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    magnitude[code & 127 == 127] = np.nan
    return np.where(code < 128, magnitude, -magnitude).astype(np.float32)


E4M3 = _e4m3_table()


def to_float32(raw: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 array of `shape` from its stored bytes (uint8); `dtype` by safetensors' name, one of DECODABLE."""
    if dtype == "F8_E4M3":
        return np.take(E4M3, raw).reshape(shape)
    if dtype == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinity, which quantization reports
        return raw.view({"F32": "<f4", "F16": "<f2", "F64": "<f8"}[dtype]).astype(np.float32, copy=False).reshape(shape)


def apply_block_scales(values: np.ndarray, scales: np.ndarray, block: tuple[int, int], first_row: int = 0) -> None:
    """Multiply `values` (rows, columns) in place by the scale of each one's block (DeepSeek-V3 report, section 3.3.2).

    `scales` covers the whole matrix, ragged edges included; `values` are its rows from `first_row` on.
    """
    rows, columns = values.shape
    of_row = np.arange(first_row, first_row + rows) // block[0]
    for row_block in range(of_row[0], of_row[-1] + 1):
        piece = slice(*np.searchsorted(of_row, (row_block, row_block + 1)))
        values[piece] *= np.repeat(scales[row_block], block[1])[:columns]
