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

    def buffers(self, shape: tuple[int, ...], parts: tuple[int, ...] = ()) -> dict[str, BufferSpec]:
        """Suffix of the parameter's name → stored array, for a matrix of the logical `shape`."""
        return {"weight": BufferSpec(shape, self.dtype)}


@dataclass(frozen=True)
class GroupLayout:
    """Groups of `group_size` neighbours in a row share a scale: value = (q − `zero`) · scale, or e4m3(q) · scale.

    `bits`-wide codes are packed into uint32, the first in the lowest bits (mlc-llm's `q4f16_1`, layout NK).
    A row whose width is no multiple of the group is padded with codes of value zero. Codes of `e4m3` are 8-bit floats
    (arXiv:2209.05433), as DeepSeek-V3's checkpoint has them: 128 columns of a row are in one of its blocks.
    """

    name: str
    bits: int
    group_size: int = 32
    scale_dtype: str = "float16"
    e4m3: bool = False

    @property
    def zero(self) -> int:
        """The code that stands for zero: 7 for 4 bits, 127 for 8; codes run from 0 to twice this. Of floats it is 0."""
        return 0 if self.e4m3 else 2 ** (self.bits - 1) - 1

    @property
    def codes_per_word(self) -> int:
        """Codes in one uint32."""
        return 32 // self.bits

    def groups(self, columns: int) -> int:
        """Groups in a row of `columns` values, the last one padded."""
        return -(-columns // self.group_size)

    def buffers(self, shape: tuple[int, ...], parts: tuple[int, ...] = ()) -> dict[str, BufferSpec]:
        """Suffix of the parameter's name → stored array, for a matrix of the logical `shape`."""
        groups = self.groups(shape[-1])
        words = groups * self.group_size // self.codes_per_word
        return {
            "q_weight": BufferSpec((*shape[:-1], words), "uint32"),
            "q_scale": BufferSpec((*shape[:-1], groups), self.scale_dtype),
        }


@dataclass(frozen=True)
class PackedLayout:
    """The values of a GroupLayout in the order that integer dot products read: 16 rows interleaved, 4 columns a word.

        word w of row r (a byte a column)    8 bits: columns 4w … 4w+3 of the group
                                             4 bits: columns 4w … 4w+3 in the low nibbles, 16 columns on in the high
        one group of 16 rows                 words (group_size · bits / 32) × rows (16), and 16 scales

    `parts` are the row counts of what is stacked in a matrix (gate and up; a head's W_UK and W_UV), over and over:
    each part is filled up to whole blocks of 16 rows with values of zero, so that every part begins with a block.
    """

    name: str
    base: GroupLayout
    rows: int = 16

    @property
    def words(self) -> int:
        """Words of a row's group."""
        return self.base.group_size * self.base.bits // 32

    @property
    def halves(self) -> int:
        """Parts of a group that share its words: 2, low and high nibbles, with 4 bits."""
        return 8 // self.base.bits

    def blocks(self, parts: tuple[int, ...]) -> int:
        """Blocks of one round of `parts`."""
        return sum(-(-part // self.rows) for part in parts)

    def buffers(self, shape: tuple[int, ...], parts: tuple[int, ...] = ()) -> dict[str, BufferSpec]:
        """Suffix of the parameter's name → stored array, for a matrix of the logical `shape`."""
        *lead, rows, columns = shape
        parts = parts or (rows,)
        assert rows % sum(parts) == 0
        blocks, groups = rows // sum(parts) * self.blocks(parts), self.base.groups(columns)
        return {
            "q_weight": BufferSpec((*lead, blocks, groups, self.words, self.rows), "uint32"),
            "q_scale": BufferSpec((*lead, blocks, groups, self.rows), "float16"),
        }


Layout = FloatLayout | GroupLayout | PackedLayout

_GROUPED = (GroupLayout("q4f16_1", bits=4), GroupLayout("q8f16_1", bits=8))
_LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        FloatLayout("q0f32", "float32"),
        FloatLayout("q0f16", "float16"),
        FloatLayout("q0bf16", "bfloat16"),
        *_GROUPED,
        GroupLayout("e4m3f32_1", bits=8, group_size=128, scale_dtype="float32", e4m3=True),
        *(PackedLayout(f"{group.name}+vnni16", group) for group in _GROUPED),
    )
}
QUANTIZATIONS = tuple(_LAYOUTS)


def layout_of(quantization: str) -> Layout:
    """The layout of a name such as `q4f16_1` or `q4f16_1+vnni16`; ConfigError lists the known names."""
    if quantization not in _LAYOUTS:
        raise ConfigError(f"quantization {quantization!r} is unknown; known: {', '.join(QUANTIZATIONS)}")
    return _LAYOUTS[quantization]


_CACHE_BYTES = {"float32": 4, "float16": 2, "int8": 1}
CACHE_DTYPES = tuple(_CACHE_BYTES)
CACHE_GROUP = 32  # values of a latent cache in 8 bits that share a scale


def cache_width(dtype: str, kv_lora_rank: int, rope: int) -> int:
    """Elements of a cached token in a layer: its latent and its rotated key, in floats.

    In 8 bits both are whole groups of codes, and behind them lie the groups' bfloat16 scales: value = code · scale.
    """
    if dtype != "int8":
        return kv_lora_rank + rope
    return (CACHE_GROUP + 2) * (-(-kv_lora_rank // CACHE_GROUP) + -(-rope // CACHE_GROUP))


def cached_token_bytes(dtype: str, kv_lora_rank: int, rope: int) -> int:
    """Bytes of a cached token in one layer."""
    return cache_width(dtype, kv_lora_rank, rope) * _CACHE_BYTES[dtype]
