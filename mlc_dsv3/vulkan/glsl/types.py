"""TIR's scalar types in GLSL: what holds a value, what memory holds, literals and conversions.

Integers of 8 and 16 bits are computed as 32-bit ones and wrapped afterwards, so that a device needs no narrow
arithmetic. float16 is computed as it is where the device can, and otherwise in float32, rounded after every operation,
which gives the same results.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np

from mlc_dsv3.vulkan.errors import Unsupported


@dataclass(frozen=True)
class Features:
    """What kernels are compiled for: the device's types of values and of memory, and its limits."""

    float16: bool
    float64: bool
    storage8: bool
    storage16: bool
    max_threads: int
    max_shared_memory: int  # bytes


@dataclass(frozen=True)
class Scalar:
    """A TIR dtype's kind ("bool", "int", "uint", "float") and width."""

    name: str
    kind: str
    bits: int

    @property
    def bytes(self) -> int:
        """Bytes in memory; a bool takes one."""
        return max(8, self.bits) // 8

    @property
    def is_narrow(self) -> bool:
        """Whether values are integers that a wider register holds."""
        return self.kind in ("int", "uint") and self.bits < 32


_KINDS = ("bool", "int", "uint", "float")
_BITS = {"bool": (1,), "int": (8, 16, 32, 64), "uint": (8, 16, 32, 64), "float": (16, 32, 64)}


def scalar(dtype: str) -> Scalar:
    """The scalar of a dtype's name, lanes aside; Unsupported for what has no values in GLSL."""
    name = dtype.partition("x")[0]
    if name == "bool":
        return Scalar(name, "bool", 1)
    kind = name.rstrip("0123456789")
    bits = name[len(kind) :]
    if kind not in _KINDS or not bits or int(bits) not in _BITS[kind]:
        raise Unsupported(f"values of type {name}")
    return Scalar(name, kind, int(bits))


def lanes(dtype: str) -> int:
    """How many lanes a dtype has."""
    return int(dtype.partition("x")[2] or 1)


class Types:
    """GLSL's types for the values of TIR's, on a device with some features."""

    def __init__(self, features: Features) -> None:
        self.features = features

    def value(self, of: Scalar) -> str:
        """The type of a variable; Unsupported where the device has none."""
        if of.kind == "bool":
            return "bool"
        if of.kind == "float":
            if of.bits == 64 and not self.features.float64:
                raise Unsupported("float64, which the device does not compute")
            if of.bits == 16:
                return "float16_t" if self.features.float16 else "float"
            return {32: "float", 64: "double"}[of.bits]
        wide = of.bits == 64
        return {"int": "int64_t" if wide else "int", "uint": "uint64_t" if wide else "uint"}[of.kind]

    def wrapped(self, text: str, of: Scalar) -> str:
        """A result of an operation in the range, or the precision, of its type."""
        if of.is_narrow:
            return f"bitfieldExtract({text}, 0, {of.bits})"
        if of.name == "float16" and not self.features.float16:
            return f"round_to_half({text})"
        return text

    def literal(self, number: float, of: Scalar) -> str:
        """A constant."""
        if of.kind == "bool":
            return "true" if number else "false"
        if of.kind == "float":
            return self._float_literal(float(number), of)
        return self._int_literal(int(number), of)

    def _int_literal(self, number: int, of: Scalar) -> str:
        mask = (1 << of.bits) - 1
        suffix = {"int": "", "uint": "u"}[of.kind] + ("l" if of.bits == 64 else "")
        if of.kind == "uint":
            return f"{number & mask}{suffix}"
        if number == -(1 << (max(of.bits, 32) - 1)):
            return f"(-{-(number + 1)}{suffix} - 1{suffix})"
        return f"{number}{suffix}" if number >= 0 else f"(-{-number}{suffix})"

    def _float_literal(self, number: float, of: Scalar) -> str:
        if of.bits == 64:
            if math.isfinite(number):
                return f"({number!r}lf)"
            low, high = struct.unpack("<II", struct.pack("<d", number))
            return f"packDouble2x32(uvec2({low}u, {high}u))"
        rounded = float(np.float16(number) if of.bits == 16 else np.float32(number))
        if math.isfinite(rounded):
            text = f"({rounded!r}f)" if rounded < 0 or math.copysign(1, rounded) < 0 else f"{rounded!r}f"
        else:
            text = f"uintBitsToFloat({struct.unpack('<I', struct.pack('<f', rounded))[0]}u)"
        return f"float16_t({text})" if of.bits == 16 and self.features.float16 else text

    def cast(self, text: str, of: Scalar, to: Scalar) -> str:
        """A value of one type as another one's."""
        if of == to:
            return text
        if to.kind == "bool":
            return text if of.kind == "bool" else f"({text} != {self.literal(0, of)})"
        held, holds = self.value(of), self.value(to)
        if to.kind == "float":
            converted = text if held == holds else f"{holds}({text})"
            return self.wrapped(converted, to) if to.bits == 16 else converted
        if held != holds:
            text = f"{holds}({text})"
        fits = (
            of.kind == "bool"
            or (of.kind == to.kind and of.bits <= to.bits)
            or (of.kind == "uint" and of.bits < to.bits)
        )
        return text if fits else self.wrapped(text, to)
