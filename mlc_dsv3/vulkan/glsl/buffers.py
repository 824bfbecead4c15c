"""Memory as kernels see it: buffers behind device addresses, shared and private arrays, loads and stores on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from mlc_dsv3.vulkan.glsl.scope import Code
from mlc_dsv3.vulkan.glsl.types import Scalar, Types

# Elements of one access, and bytes.
_MOST_ELEMENTS, _MOST_BYTES = 4, 16
_VECTORS = {"float": "vec", "float16_t": "f16vec", "double": "dvec", "int": "ivec", "uint": "uvec"}
_VECTORS |= {"int8_t": "i8vec", "uint8_t": "u8vec", "int16_t": "i16vec", "uint16_t": "u16vec"}
_VECTORS |= {"int64_t": "i64vec", "uint64_t": "u64vec"}
_COMPONENTS = "xyzw"


@dataclass(frozen=True)
class Index:
    """The place of an element: an expression, and whether it is of 64 bits."""

    text: str
    wide: bool = False

    def plus(self, offset: int) -> Index:
        """So many elements on."""
        return self if not offset else Index(f"({self.text} + {offset}{'l' if self.wide else ''})", self.wide)

    def narrow(self) -> str:
        """As 32 bits, which reach all of an array on the chip."""
        return f"int({self.text})" if self.wide else self.text


@dataclass
class References:
    """The buffer reference types that a shader uses: (type of an element, elements) → declaration."""

    declared: dict[tuple[str, int], str] = field(default_factory=dict)

    def name(self, element: str, count: int, size: int) -> str:
        """A reference to arrays of `element` or of vectors of `count` of it, `size` bytes an element."""
        type_ = element if count == 1 else f"{_VECTORS[element]}{count}"
        name = f"ref_{type_}"
        self.declared[element, count] = (
            f"layout(buffer_reference, scalar, buffer_reference_align = {size * count}) "
            f"buffer {name} {{ {type_} v[]; }};"
        )
        return name

    @property
    def elements(self) -> set[str]:
        """The types of elements in use."""
        return {element for element, _ in self.declared}


class Buffer(ABC):
    """Elements of one scalar type."""

    def __init__(self, types: Types, element: Scalar) -> None:
        self.types, self.element = types, element

    @abstractmethod
    def load(self, code: Code, index: Index) -> str:
        """An expression for an element."""

    @abstractmethod
    def store(self, code: Code, index: Index, value: str) -> None:
        """Append the storing of an element."""

    def load_run(self, code: Code, index: Index, count: int, aligned: int) -> list[str]:
        """`count` neighbours from `index`, which is a multiple of `aligned`."""
        return [self.load(code, index.plus(offset)) for offset in range(count)]

    def store_run(self, code: Code, index: Index, values: list[str], aligned: int) -> None:
        """Store neighbours from `index`, which is a multiple of `aligned`."""
        for offset, value in enumerate(values):
            self.store(code, index.plus(offset), value)


class GlobalBuffer(Buffer):
    """Behind a device address, `address` (uint64_t)."""

    def __init__(self, types: Types, element: Scalar, address: str, references: References) -> None:
        super().__init__(types, element)
        self.address, self._references = address, references
        self.stored = self._stored_type()

    def _stored_type(self) -> str:
        kind, bits = self.element.kind, self.element.bits
        if kind == "float":
            return {16: "float16_t", 32: "float", 64: "double"}[bits]
        if kind == "bool":
            return "uint8_t"
        return f"{kind}{bits}_t" if bits != 32 else kind

    @property
    def in_words(self) -> bool:
        """Whether the device has no memory accesses as narrow as an element, so that words stand in."""
        features, size = self.types.features, self.element.bytes
        return (size == 1 and not features.storage8) or (size == 2 and not features.storage16)

    def _place(self, index: Index, count: int = 1) -> str:
        size = self.element.bytes
        reference = self._references.name(self.stored, count, size)
        if index.wide:
            return f"{reference}({self.address} + uint64_t({index.text}) * {size}ul).v[0]"
        at = index.text if count == 1 else f"({index.text}) / {count}"
        return f"{reference}({self.address}).v[{at}]"

    def _from_stored(self, text: str) -> str:
        if self.element.kind == "bool":
            return f"(uint({text}) != 0u)"
        held = self.types.value(self.element)
        return text if held == self.stored else f"{held}({text})"

    def _to_stored(self, text: str) -> str:
        return text if self.types.value(self.element) == self.stored else f"{self.stored}({text})"

    def load(self, code: Code, index: Index) -> str:
        if self.in_words:
            bits = f"load_{self.element.bytes * 8}({self.address}, int64_t({index.text}))"
            return from_bits(self.types, self.element, bits)
        return self._from_stored(self._place(index))

    def store(self, code: Code, index: Index, value: str) -> None:
        if self.in_words:
            bits = to_bits(self.types, self.element, value)
            code.line(f"store_{self.element.bytes * 8}({self.address}, int64_t({index.text}), {bits});")
        else:
            code.line(f"{self._place(index)} = {self._to_stored(value)};")

    def _width(self, count: int, aligned: int) -> int:
        """Elements of one access of a run."""
        width = min(_MOST_ELEMENTS, _MOST_BYTES // self.element.bytes)
        while width > 1 and (count % width or aligned % width):
            width //= 2
        return 1 if self.in_words else width

    def load_run(self, code: Code, index: Index, count: int, aligned: int) -> list[str]:
        width = self._width(count, aligned)
        if width == 1:
            return super().load_run(code, index, count, aligned)
        values = []
        for start in range(0, count, width):
            vector = code.temporary(f"{_VECTORS[self.stored]}{width}", self._place(index.plus(start), width))
            values += [self._from_stored(f"{vector}.{component}") for component in _COMPONENTS[:width]]
        return values

    def store_run(self, code: Code, index: Index, values: list[str], aligned: int) -> None:
        width = self._width(len(values), aligned)
        if width == 1:
            super().store_run(code, index, values, aligned)
            return
        for start in range(0, len(values), width):
            parts = ", ".join(map(self._to_stored, values[start : start + width]))
            code.line(f"{self._place(index.plus(start), width)} = {_VECTORS[self.stored]}{width}({parts});")


class ArrayBuffer(Buffer):
    """A shared or private array of the values' own type."""

    def __init__(self, types: Types, element: Scalar, name: str) -> None:
        super().__init__(types, element)
        self.name = name

    def load(self, code: Code, index: Index) -> str:
        return f"{self.name}[{index.narrow()}]"

    def store(self, code: Code, index: Index, value: str) -> None:
        code.line(f"{self.name}[{index.narrow()}] = {value};")


class WordBuffer(Buffer):
    """A view with elements of any width on a shared array of words, which other views use as well."""

    def __init__(self, types: Types, element: Scalar, name: str) -> None:
        super().__init__(types, element)
        self.name = name

    def load(self, code: Code, index: Index) -> str:
        at, size = index.narrow(), self.element.bytes
        if size == 8:
            first = code.temporary("int", f"({at}) * 2")
            return from_bits64(self.types, self.element, f"uvec2({self.name}[{first}], {self.name}[{first} + 1])")
        if size == 4:
            return from_bits(self.types, self.element, f"{self.name}[{at}]")
        place = code.temporary("int", at)
        each, bits = 4 // size, size * 8
        word = f"{self.name}[{place} / {each}]"
        return from_bits(self.types, self.element, f"bitfieldExtract({word}, ({place} & {each - 1}) * {bits}, {bits})")

    def store(self, code: Code, index: Index, value: str) -> None:
        at, size = index.narrow(), self.element.bytes
        if size == 8:
            first = code.temporary("int", f"({at}) * 2")
            words = code.temporary("uvec2", to_bits64(self.types, self.element, value))
            code.line(f"{self.name}[{first}] = {words}.x;")
            code.line(f"{self.name}[{first} + 1] = {words}.y;")
        elif size == 4:
            code.line(f"{self.name}[{at}] = {to_bits(self.types, self.element, value)};")
        else:
            # Other threads may store into the same word.
            place = code.temporary("int", at)
            each, bits = 4 // size, size * 8
            shift = code.temporary("int", f"({place} & {each - 1}) * {bits}")
            mask = (1 << bits) - 1
            code.line(f"atomicAnd({self.name}[{place} / {each}], ~({mask}u << {shift}));")
            stored = to_bits(self.types, self.element, value)
            code.line(f"atomicOr({self.name}[{place} / {each}], ({stored} & {mask}u) << {shift});")


def from_bits(types: Types, of: Scalar, bits: str) -> str:
    """The value, of up to 32 bits, that lies in the low bits of a uint."""
    if of.kind == "bool":
        return f"({bits} != 0u)"
    if of.kind == "float":
        if of.bits == 32:
            return f"uintBitsToFloat({bits})"
        return f"{types.value(of)}(unpackHalf2x16({bits}).x)"
    if of.kind == "uint":
        return bits if of.bits == 32 else f"({bits} & {(1 << of.bits) - 1}u)"
    return f"int({bits})" if of.bits == 32 else f"bitfieldExtract(int({bits}), 0, {of.bits})"


def to_bits(types: Types, of: Scalar, value: str) -> str:
    """The bits of a value of up to 32 bits, as a uint; above the value's own they may be anything."""
    if of.kind == "float":
        if of.bits == 32:
            return f"floatBitsToUint({value})"
        return f"packHalf2x16(vec2(float({value}), 0.0f))"
    return value if of.kind == "uint" else f"uint({value})"


def from_bits64(types: Types, of: Scalar, words: str) -> str:
    """The 64-bit value in two words."""
    if of.kind == "float":
        return f"packDouble2x32({words})"
    return f"{types.value(of)}(packUint2x32({words}))"


def to_bits64(types: Types, of: Scalar, value: str) -> str:
    """A 64-bit value's two words."""
    return f"unpackDouble2x32({value})" if of.kind == "float" else f"unpackUint2x32(uint64_t({value}))"


# Elements narrower than a device's memory accesses, behind any address.
WORD_ACCESSES = """\
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer ref_words { uint v[]; };
uint load_narrow(uint64_t address, uint bits) {
    uint word = ref_words(address & ~3ul).v[0];
    return bitfieldExtract(word, int(address & 3ul) * 8, int(bits));
}
void store_narrow(uint64_t address, uint bits, uint value) {
    // Other threads may store into the same word.
    int shift = int(address & 3ul) * 8;
    uint mask = ((1u << bits) - 1u) << shift;
    atomicAnd(ref_words(address & ~3ul).v[0], ~mask);
    atomicOr(ref_words(address & ~3ul).v[0], (value << shift) & mask);
}
uint load_8(uint64_t base, int64_t i) { return load_narrow(base + uint64_t(i), 8u); }
uint load_16(uint64_t base, int64_t i) { return load_narrow(base + uint64_t(i) * 2ul, 16u); }
void store_8(uint64_t base, int64_t i, uint value) { store_narrow(base + uint64_t(i), 8u, value); }
void store_16(uint64_t base, int64_t i, uint value) { store_narrow(base + uint64_t(i) * 2ul, 16u, value); }
"""

# A sum of floats with the exchange of words that every device has.
ATOMIC_ADD_FLOAT = """\
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer ref_exchanged { uint v[]; };
float atomic_add_float(uint64_t address, float addend) {
    ref_exchanged place = ref_exchanged(address);
    uint before = place.v[0];
    while (true) {
        uint wanted = floatBitsToUint(uintBitsToFloat(before) + addend);
        uint found = atomicCompSwap(place.v[0], before, wanted);
        if (found == before) return uintBitsToFloat(before);
        before = found;
    }
}
"""
