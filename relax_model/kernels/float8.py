"""8-bit floats as float32, by integer operations that every device has."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

_LANES = 16  # codes of four words


def e4m3_vector(words: Any) -> Any:
    """The float32x16 of the codes in uint32x4, for processors, which convert float16: there the same bits, with the
    exponent at its place, stand for 2⁻⁸ of the value, subnormal or not."""

    def of(value: int) -> Any:
        return T.Broadcast(T.uint16(value), _LANES)

    code = T.Cast(f"uint16x{_LANES}", T.reinterpret(f"uint8x{_LANES}", words))
    sign = T.shift_left(T.bitwise_and(code, of(0x80)), of(8))
    half = T.bitwise_or(T.shift_left(T.bitwise_and(code, of(0x7F)), of(7)), sign)
    value = T.Cast(f"float32x{_LANES}", T.reinterpret(f"float16x{_LANES}", half))
    return value * T.Broadcast(T.float32(256), _LANES)


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
