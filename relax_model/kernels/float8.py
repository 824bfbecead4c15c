"""8-bit floats as float32, by integer operations that every device has."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T


def e4m3_value(code: Any) -> Any:
    """The float32 of an e4m3 code (arXiv:2209.05433) in the low bits of a uint32: sign, 4 bits of exponent with bias 7,
    3 of mantissa; no NaN. Nothing on the way is a subnormal float32, which some devices take for zero."""
    magnitude = T.bitwise_and(code, T.uint32(0x7F))
    # Without an exponent, below 8, the code counts steps of 2⁻⁹: an integer in the mantissa of 2²³.
    small = T.reinterpret("float32", T.bitwise_or(magnitude, T.uint32(0x4B000000))) - T.float32(2.0**23)
    normal = T.reinterpret("float32", T.shift_left(magnitude, T.uint32(20)) + T.uint32((127 - 7) << 23))
    value = T.Select(magnitude < T.uint32(8), small * T.float32(2.0**-9), normal)
    sign = T.shift_left(T.bitwise_and(code, T.uint32(0x80)), T.uint32(24))
    return T.reinterpret("float32", T.bitwise_or(T.reinterpret("uint32", value), sign))
