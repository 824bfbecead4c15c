"""Integer dot products as processors have them: four unsigned 8-bit weights by four signed activations a lane.

A unit adds, to each 32-bit lane of a sum, the products of a word of weight codes with a word of activations, which all
lanes share unless the kernel wants otherwise. Sums are exact integers, so that every unit gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

# codes(row, column, n) is n neighbouring int8 codes of a row of activations.
Codes = Callable[[Any, Any, int], Any]
Decoder = Callable[[Any], Any]


def unsigned(value: int, lanes: int) -> Any:
    """A constant 32-bit mask in every lane."""
    return T.Broadcast(T.uint32(value), lanes)


def fenced(total: Any, dtype: str, lanes: int) -> Any:
    """The same bits at no cost, but LLVM leaves a chain of such sums alone: as a tree it takes more registers."""
    floats = T.reinterpret(f"float32x{lanes}", total)
    return T.reinterpret(dtype, T.call_llvm_pure_intrin(f"float32x{lanes}", "llvm.arithmetic.fence", floats))


@dataclass(frozen=True)
class DotUnit:
    """`lanes` 32-bit lanes, for codes of `bits` that mean code − `zero`.

    `zero_left` is what remains of `zero` in the sums: Σ (code − zero)·x = sum − zero_left · Σ x.
    """

    lanes: int
    bits: int
    zero: int

    @property
    def zero_left(self) -> int:
        """By default the codes are multiplied as they are."""
        return self.zero

    @property
    def rows(self) -> int:
        """Rows of activations that a step takes, from as many words of each; there are as many running sums."""
        return 1

    @property
    def sum_type(self) -> tuple[str, int]:
        """(dtype, number of elements) of a running sum."""
        return "int32", self.lanes

    def for_rows(self, rows: int) -> DotUnit:
        """The unit for a tile of that many rows."""
        return self

    def operand(self, codes: Codes, row: Any, column: Any) -> Any:
        """A step's activations: those of its rows from `column` on, int32 (lanes) or as many bytes."""
        return T.Broadcast(T.reinterpret("int32", codes(row, column, 4)), self.lanes)

    def add(self, total: Any, words: list[Any], codes_of: Decoder, x: Any, part: int) -> Any:
        """Running sum `part` and one more step with the operand x; words are uint32 (lanes), and codes_of(words) are a
        code a byte."""
        raise NotImplementedError

    def finish(self, totals: list[Any], row: int) -> Any:
        """int32 (lanes) for a row of a step, from the running sums."""
        return totals[0]


class PortableUnit(DotUnit):
    """Shifts and multiplications of 32-bit lanes: for processors without a dot product."""

    def add(self, total: Any, words: list[Any], codes_of: Decoder, x: Any, part: int) -> Any:
        """See DotUnit."""
        lanes = self.lanes
        products = [
            T.reinterpret(
                f"int32x{lanes}",
                T.bitwise_and(T.shift_right(codes_of(words[0]), unsigned(8 * byte, lanes)), unsigned(255, lanes)),
            )
            * T.shift_right(
                T.shift_left(x, T.Broadcast(T.int32(24 - 8 * byte), lanes)), T.Broadcast(T.int32(24), lanes)
            )
            for byte in range(4)
        ]
        return total + (products[0] + products[1] + products[2] + products[3])


class MaddubsUnit(DotUnit):
    """AVX2 and AVX-512BW: `vpmaddubsw` adds pairs of products in 16 bits, saturating.

    A pair of 4-bit codes makes at most 2·15·127, and eight of those, a whole group, still fit: one widening a group.
    Of 8-bit codes only a pair fits, and only with magnitudes up to 127, so the sign goes over to the activations.
    """

    @property
    def zero_left(self) -> int:
        """8-bit codes are made signed on the way."""
        return self.zero if self.bits == 4 else 0

    @property
    def sum_type(self) -> tuple[str, int]:
        """16-bit pairs where a whole group fits in them."""
        return ("int16", 2 * self.lanes) if self.bits == 4 else ("int32", self.lanes)

    def add(self, total: Any, words: list[Any], codes_of: Decoder, x: Any, part: int) -> Any:
        """See DotUnit."""
        dtype, elements = self.sum_type
        return fenced(total + self._products(codes_of(words[0]), x), f"{dtype}x{elements}", self.lanes)

    def finish(self, totals: list[Any], row: int) -> Any:
        """See DotUnit."""
        return self._widen(totals[0]) if self.bits == 4 else totals[0]

    def _products(self, weights: Any, x: Any) -> Any:
        bytes_ = f"int8x{4 * self.lanes}"
        activations = T.reinterpret(bytes_, x)
        if self.bits == 4:
            return self._pairs(T.reinterpret(bytes_, weights), activations)
        signed = T.reinterpret(bytes_, weights) - T.Broadcast(T.int8(self.zero), 4 * self.lanes)
        # Written as a choice, LLVM would fold the zero's subtraction into it and lose the instruction for it.
        magnitude = T.call_llvm_pure_intrin(bytes_, "llvm.abs", signed, T.bool(False))
        return self._widen(self._pairs(magnitude, self._with_sign_of(activations, signed)))

    def _pairs(self, codes: Any, activations: Any) -> Any:
        name = {8: "llvm.x86.avx2.pmadd.ub.sw", 16: "llvm.x86.avx512.pmaddubs.w.512"}[self.lanes]
        return T.call_llvm_pure_intrin(f"int16x{2 * self.lanes}", name, codes, activations)

    def _widen(self, pairs: Any) -> Any:
        name = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}[self.lanes]
        return T.call_llvm_pure_intrin(f"int32x{self.lanes}", name, pairs, T.Broadcast(T.int16(1), 2 * self.lanes))

    def _with_sign_of(self, activations: Any, signed: Any) -> Any:
        if self.lanes == 8:
            return T.call_llvm_pure_intrin("int8x32", "llvm.x86.avx2.psign.b", activations, signed)
        zero = T.Broadcast(T.int8(0), 4 * self.lanes)
        return T.Select(signed < zero, zero - activations, activations)


class VnniUnit(DotUnit):
    """AVX-512 VNNI and AVX-VNNI: `vpdpbusd`."""

    def add(self, total: Any, words: list[Any], codes_of: Decoder, x: Any, part: int) -> Any:
        """See DotUnit."""
        name = {8: "llvm.x86.avx512.vpdpbusd.256", 16: "llvm.x86.avx512.vpdpbusd.512"}[self.lanes]
        return T.call_llvm_pure_intrin(
            f"int32x{self.lanes}",
            name,
            total,
            T.reinterpret(f"uint8x{4 * self.lanes}", codes_of(words[0])),
            T.reinterpret(f"int8x{4 * self.lanes}", x),
        )


class SdotUnit(DotUnit):
    """aarch64 with `dotprod`: `sdot` of signed bytes; 8-bit codes lose their top bit's weight to become signed."""

    @property
    def zero_left(self) -> int:
        """Codes of 8 bits are 128 less on the way."""
        return self.zero if self.bits == 4 else self.zero - 128

    def add(self, total: Any, words: list[Any], codes_of: Decoder, x: Any, part: int) -> Any:
        """See DotUnit."""
        codes = codes_of(words[0])
        signed = codes if self.bits == 4 else T.bitwise_xor(codes, unsigned(0x80808080, self.lanes))
        return _neon("sdot", total, signed, x)


class UsdotUnit(DotUnit):
    """aarch64 with `i8mm`: `usdot`, which takes codes as they are."""

    def add(self, total: Any, words: list[Any], codes_of: Decoder, x: Any, part: int) -> Any:
        """See DotUnit."""
        return _neon("usdot", total, codes_of(words[0]), x)


class UsmmlaUnit(UsdotUnit):
    """aarch64 with `i8mm`: `usmmla` multiplies two weight rows of eight codes with two rows of eight activations.

    Two words of four weight rows, zipped, are the eight columns of rows 0 and 1 (sum 0), and of rows 2 and 3 (sum 1); a
    sum is w0·x0, w0·x1, w1·x0, w1·x1.
    """

    @property
    def rows(self) -> int:
        """A pair."""
        return 2

    def for_rows(self, rows: int) -> DotUnit:
        """A single row has no partner."""
        return self if rows > 1 else UsdotUnit(self.lanes, self.bits, self.zero)

    def operand(self, codes: Codes, row: Any, column: Any) -> Any:
        """See DotUnit."""
        return T.Shuffle([T.reinterpret("int64", codes(row + i, column, 8)) for i in range(2)], [0, 1])

    def add(self, total: Any, words: list[Any], codes_of: Decoder, x: Any, part: int) -> Any:
        """See DotUnit."""
        # Zipped before they are decoded, as one zip then serves the low and the high nibbles.
        zipped = T.Shuffle(words, ([0, 4, 1, 5], [2, 6, 3, 7])[part])
        return _neon("usmmla", total, codes_of(zipped), x)

    def finish(self, totals: list[Any], row: int) -> Any:
        """See DotUnit."""
        return T.Shuffle(totals, [row, row + 2, row + 4, row + 6])


def _neon(name: str, total: Any, codes: Any, activations: Any) -> Any:
    intrinsic = f"llvm.aarch64.neon.{name}.v4i32.v16i8"
    bytes_ = (T.reinterpret("int8x16", value) for value in (codes, activations))
    return T.call_llvm_pure_intrin("int32x4", intrinsic, total, *bytes_)


_UNITS: dict[str, type[DotUnit]] = {
    "portable": PortableUnit,
    "maddubs": MaddubsUnit,
    "vnni": VnniUnit,
    "sdot": SdotUnit,
    "usmmla": UsmmlaUnit,
}


def dot_unit(name: str, lanes: int, bits: int, zero: int) -> DotUnit:
    """The unit of a target's `dot`."""
    return _UNITS[name](lanes, bits, zero)
