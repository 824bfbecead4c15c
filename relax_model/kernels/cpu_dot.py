"""Integer dot products as processors have them: four unsigned 8-bit weights by four signed activations a lane.

A unit adds, to each 32-bit lane of a sum, the products of a word of weight codes with a word of activations that all
lanes share. Sums are exact integers, so that every unit gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T


def shared(word: Any, lanes: int, dtype: str) -> Any:
    """A 32-bit word in every lane, as a vector of `dtype`."""
    return T.reinterpret(dtype, T.Broadcast(word, lanes))


def unsigned(value: int, lanes: int) -> Any:
    """A constant 32-bit mask in every lane."""
    return T.Broadcast(T.uint32(value), lanes)


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
    def sum_type(self) -> tuple[str, int]:
        """(dtype, number of elements) of a running sum."""
        return "int32", self.lanes

    def first(self, weights: Any, word: Any) -> Any:
        """The running sum of one step: weights uint32 (lanes), word int32."""
        raise NotImplementedError

    def add(self, total: Any, weights: Any, word: Any) -> Any:
        """A running sum and one more step."""
        return total + self.first(weights, word)

    def finish(self, total: Any) -> Any:
        """int32 (lanes) from a running sum."""
        return total


class PortableUnit(DotUnit):
    """Shifts and multiplications of 32-bit lanes: for processors without a dot product."""

    def first(self, weights: Any, word: Any) -> Any:
        """See DotUnit."""
        lanes = self.lanes
        products = [
            T.reinterpret(
                f"int32x{lanes}",
                T.bitwise_and(T.shift_right(weights, unsigned(8 * byte, lanes)), unsigned(255, lanes)),
            )
            * T.Broadcast(T.shift_right(T.shift_left(word, T.int32(24 - 8 * byte)), T.int32(24)), lanes)
            for byte in range(4)
        ]
        return products[0] + products[1] + products[2] + products[3]


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

    def first(self, weights: Any, word: Any) -> Any:
        """See DotUnit."""
        bytes_ = f"int8x{4 * self.lanes}"
        activations = shared(word, self.lanes, bytes_)
        if self.bits == 4:
            return self._pairs(T.reinterpret(bytes_, weights), activations)
        signed = T.reinterpret(bytes_, weights) - T.Broadcast(T.int8(self.zero), 4 * self.lanes)
        zero = T.Broadcast(T.int8(0), 4 * self.lanes)
        magnitude = T.Select(signed < zero, zero - signed, signed)
        return self._widen(self._pairs(magnitude, self._with_sign_of(activations, signed)))

    def finish(self, total: Any) -> Any:
        """See DotUnit."""
        return self._widen(total) if self.bits == 4 else total

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

    def first(self, weights: Any, word: Any) -> Any:
        """See DotUnit."""
        return self.add(T.Broadcast(T.int32(0), self.lanes), weights, word)

    def add(self, total: Any, weights: Any, word: Any) -> Any:
        """See DotUnit."""
        name = {8: "llvm.x86.avx512.vpdpbusd.256", 16: "llvm.x86.avx512.vpdpbusd.512"}[self.lanes]
        return T.call_llvm_pure_intrin(
            f"int32x{self.lanes}",
            name,
            total,
            T.reinterpret(f"uint8x{4 * self.lanes}", weights),
            shared(word, self.lanes, f"int8x{4 * self.lanes}"),
        )


class SdotUnit(DotUnit):
    """aarch64 with `dotprod`: `sdot` of signed bytes; 8-bit codes lose their top bit's weight to become signed."""

    @property
    def zero_left(self) -> int:
        """Codes of 8 bits are 128 less on the way."""
        return self.zero if self.bits == 4 else self.zero - 128

    def first(self, weights: Any, word: Any) -> Any:
        """See DotUnit."""
        return self.add(T.Broadcast(T.int32(0), self.lanes), weights, word)

    def add(self, total: Any, weights: Any, word: Any) -> Any:
        """See DotUnit."""
        codes = weights if self.bits == 4 else T.bitwise_xor(weights, unsigned(0x80808080, self.lanes))
        return T.call_llvm_pure_intrin(
            "int32x4",
            "llvm.aarch64.neon.sdot.v4i32.v16i8",
            total,
            T.reinterpret("int8x16", codes),
            shared(word, self.lanes, "int8x16"),
        )


_UNITS: dict[str, type[DotUnit]] = {
    "portable": PortableUnit,
    "maddubs": MaddubsUnit,
    "vnni": VnniUnit,
    "sdot": SdotUnit,
}


def dot_unit(name: str, lanes: int, bits: int, zero: int) -> DotUnit:
    """The unit of a target's `dot`."""
    return _UNITS[name](lanes, bits, zero)
