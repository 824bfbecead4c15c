"""How a quantized matrix's bytes lie: the one description that conversion writes by and kernels read by."""

from __future__ import annotations

import math
from dataclasses import dataclass

from relax_model.errors import ConfigError


@dataclass(frozen=True)
class BufferSpec:
    """One stored array: its shape, and its dtype by NumPy's name ("bfloat16" is stored as its 16 bits)."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of the array without padding."""
        return math.prod(self.shape) * {"float32": 4, "uint32": 4, "float16": 2, "bfloat16": 2}[self.dtype]


@dataclass(frozen=True)
class FloatLayout:
    """A matrix (…, rows, columns) stored as it is, row by row, in a float dtype."""

    name: str
    dtype: str

    def buffers(self, shape: tuple[int, ...]) -> dict[str, BufferSpec]:
        """Suffix of the parameter's name → stored array, for a matrix of the logical `shape`."""
        return {"weight": BufferSpec(shape, self.dtype)}


@dataclass(frozen=True)
class GroupLayout:
    """Groups of `group_size` neighbours in a row share a float16 scale: value = (q − `zero`) · scale.

    `bits`-wide codes are packed into uint32, the first in the lowest bits (mlc-llm's `q4f16_1`, layout NK).
    A row whose width is no multiple of the group is padded with codes of value zero.
    """

    name: str
    bits: int
    group_size: int = 32

    @property
    def zero(self) -> int:
        """The code that stands for zero: 7 for 4 bits, 127 for 8; codes run from 0 to twice this."""
        return 2 ** (self.bits - 1) - 1

    @property
    def codes_per_word(self) -> int:
        """Codes in one uint32."""
        return 32 // self.bits

    def groups(self, columns: int) -> int:
        """Groups in a row of `columns` values, the last one padded."""
        return -(-columns // self.group_size)

    def buffers(self, shape: tuple[int, ...]) -> dict[str, BufferSpec]:
        """Suffix of the parameter's name → stored array, for a matrix of the logical `shape`."""
        groups = self.groups(shape[-1])
        words = groups * self.group_size // self.codes_per_word
        return {
            "q_weight": BufferSpec((*shape[:-1], words), "uint32"),
            "q_scale": BufferSpec((*shape[:-1], groups), "float16"),
        }


Layout = FloatLayout | GroupLayout

_LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        FloatLayout("q0f32", "float32"),
        FloatLayout("q0f16", "float16"),
        FloatLayout("q0bf16", "bfloat16"),
        GroupLayout("q4f16_1", bits=4),
        GroupLayout("q8f16_1", bits=8),
    )
}
QUANTIZATIONS = tuple(_LAYOUTS)


def layout_of(quantization: str) -> Layout:
    """The layout of a quantization name such as `q4f16_1`; ConfigError lists the known names."""
    if quantization not in _LAYOUTS:
        raise ConfigError(f"quantization {quantization!r} is unknown; known: {', '.join(QUANTIZATIONS)}")
    return _LAYOUTS[quantization]
