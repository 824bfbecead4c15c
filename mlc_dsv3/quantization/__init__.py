"""How weights are stored: one file a scheme, entered in `registry` by the type of its layout."""

from mlc_dsv3.quantization import float, group, packed  # noqa: F401  (entering themselves in the registry)
from mlc_dsv3.quantization.group import keep_e4m3
from mlc_dsv3.quantization.packed import pack
from mlc_dsv3.quantization.registry import ValueRangeError, dequantize, quantize
from mlc_dsv3.quantization.underflow import Underflow, smallest_number, underflow, wider_formats

__all__ = [
    "Underflow",
    "ValueRangeError",
    "dequantize",
    "keep_e4m3",
    "pack",
    "quantize",
    "smallest_number",
    "underflow",
    "wider_formats",
]
