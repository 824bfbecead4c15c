"""What the GPU kernels share: their tuned values, stored matrices, and small statements.

Nothing depends on the width of a subgroup: threads meet in shared memory alone, at most 32 KiB of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from relax_model.kernels.float8 import e4m3_value
from relax_model.layout import FloatLayout, GroupLayout, Layout

WORD = 8  # columns that a thread takes at a time: one load of 4-bit codes
GROUP = 32  # columns that share a scale, or a part of those that do
UNROLL = {"pragma_unroll_explicit": False}  # by the device's compiler


@dataclass(frozen=True)
class GpuTile:
    """Tuned values: `threads` of a block; of a product of up to `rows` rows `lanes` threads share `each` outputs, and
    take `steps` words of each at once; above `few` rows it is made in squares. Where warps are known to have `warp`
    threads, they pass values among themselves; NVIDIA's `tensor_cores` or Apple's `simdgroup_matrices` make products of
    many rows. Attention takes `keys` cached tokens at a time, for up to `heads` heads, and a block `split` of them;
    expanded, its keys and values take up to `scratch` bytes at a time."""

    threads: int
    lanes: int
    rows: int
    few: int
    heads: int
    keys: int
    split: int
    scratch: int
    each: int = 1
    steps: int = 1
    warp: int = 0
    tensor_cores: int = 0
    simdgroup_matrices: int = 0

    @property
    def outputs(self) -> int:
        """Outputs that a block makes of a product of few rows."""
        return self.threads // self.lanes * self.each


class Matrix:
    """A stored matrix (rows, columns): `data` and `scale` are its arrays, two-dimensional."""

    def __init__(self, layout: Layout, columns: int, data: Any, scale: Any) -> None:
        assert isinstance(layout, (FloatLayout, GroupLayout)), layout
        self._layout, self._columns, self._data, self._scale = layout, columns, data, scale
        self._wide = math.prod(int(size) for size in data.shape) >= 2**31

    def _row(self, row: Any) -> Any:
        return T.Cast("int64", row) if self._wide else row

    def value(self, row: Any, column: Any) -> Any:
        """One value, float32."""
        row = self._row(row)
        if isinstance(self._layout, FloatLayout):
            return _as_float32(self._layout, self._data[row, column])
        codes = self._layout.codes_per_word
        code = _code(self._layout, self._data[row, column // codes], column % codes)
        return code * T.Cast("float32", self._scale[row, column // self._layout.group_size])

    @property
    def elements(self) -> int:
        """Stored elements of WORD columns."""
        return WORD // self._per_element

    @property
    def dtypes(self) -> tuple[str, str]:
        """Of a stored element and of a scale."""
        return str(self._data.dtype), str(self._scale.dtype)

    @property
    def scaled(self) -> bool:
        """Whether there are scales."""
        return isinstance(self._layout, GroupLayout)

    @property
    def exact(self) -> bool:
        """Whether it is in float32: products with it are not to round anything else."""
        return isinstance(self._layout, FloatLayout) and self._layout.dtype == "float32"

    @property
    def _per_element(self) -> int:
        return self._layout.codes_per_word if isinstance(self._layout, GroupLayout) else 1

    def element(self, row: Any, start: Any, i: Any) -> Any:
        """Stored element i of the WORD columns from `start` on, a multiple of WORD; past the last column it is zero."""
        row = self._row(row)
        if self.scaled or self._columns % GROUP == 0:
            return self._data[row, start // self._per_element + i]
        # Products take whole groups: of the last row, what is past the last column is past the end of the memory.
        zero = T.Cast(str(self._data.dtype), T.float32(0))
        return T.if_then_else(start + i < self._columns, self._data[row, start + i], zero)

    def scale(self, row: Any, start: Any) -> Any:
        """The stored scale of the columns from `start` on."""
        return self._scale[self._row(row), start // self._layout.group_size]

    def unpacked(self, elements: Callable[[int], Any], scale: Any) -> list[Any]:
        """WORD values from their stored elements, and what they are all to be multiplied with."""
        if isinstance(self._layout, FloatLayout):
            return [*(_as_float32(self._layout, elements(i)) for i in range(WORD)), T.float32(1)]
        codes = self._layout.codes_per_word
        values = [_code_in_place(self._layout, elements(i // codes), i % codes) for i in range(WORD)]
        return [*values, T.Cast("float32", scale)]

    def run(self, row: Any, start: Any) -> list[Any]:
        """WORD values from column `start` on, a multiple of WORD, and what they are all to be multiplied with; past the
        last column they are zero."""
        return self.unpacked(lambda i: self.element(row, start, i), self.scale(row, start) if self.scaled else None)


@dataclass(frozen=True)
class Rows:
    """Some rows of a stored matrix, by their numbers within a block: `row(o)` is the matrix' own."""

    matrix: Matrix
    row: Callable[[Any], Any]

    def run(self, o: Any, start: Any) -> list[Any]:
        """See `Matrix.run`."""
        return self.matrix.run(self.row(o), start)

    def element(self, o: Any, start: Any, i: Any) -> Any:
        """See `Matrix.element`."""
        return self.matrix.element(self.row(o), start, i)

    def scale(self, o: Any, start: Any) -> Any:
        """See `Matrix.scale`."""
        return self.matrix.scale(self.row(o), start)

    def held(self, elements: Any, scales: Any, place: Any) -> list[Any]:
        """What `run` gives, of run number `place` of those whose elements and scales are in these buffers."""
        count = self.matrix.elements
        return self.matrix.unpacked(
            lambda i: elements[place * count + i], scales[place] if self.matrix.scaled else None
        )


# The float32 2²³: an integer in the low bits of its mantissa is added to it. Devices convert integers at a fraction of
# the speed at which they add.
_MAGIC = 0x4B000000


def _code(layout: GroupLayout, word: Any, place: Any) -> Any:
    code = T.bitwise_and(T.shift_right(word, T.Cast("uint32", place * layout.bits)), T.uint32(2**layout.bits - 1))
    if layout.e4m3:
        return e4m3_value(code)
    return T.reinterpret("float32", T.bitwise_or(code, T.uint32(_MAGIC))) - T.float32(2**23 + layout.zero)


def _code_in_place(layout: GroupLayout, word: Any, place: int) -> Any:
    """A code without a shift of its own: in the lower or upper half of the word it stands 2^shift times too high, and
    what it is multiplied and reduced by is exact."""
    if layout.e4m3:
        return _code(layout, word, place)
    half = layout.codes_per_word // 2
    shift = place % half * layout.bits
    word = T.shift_right(word, T.uint32(16)) if place >= half else word
    code = T.bitwise_and(word, T.uint32((2**layout.bits - 1) << shift))
    raised = T.reinterpret("float32", T.bitwise_or(code, T.uint32(_MAGIC)))
    return raised * T.float32(2.0**-shift) - T.float32(2.0 ** (23 - shift) + layout.zero)


def _as_float32(layout: FloatLayout, value: Any) -> Any:
    if layout.dtype == "bfloat16":
        return T.reinterpret("float32", T.shift_left(T.Cast("uint32", value), T.uint32(16)))
    return value if layout.dtype == "float32" else T.Cast("float32", value)


@T.inline
def fill(buffer, values):
    """Statement: what `Matrix.run` gives into a buffer of WORD + 1."""
    buffer[0] = values[0]
    buffer[1] = values[1]
    buffer[2] = values[2]
    buffer[3] = values[3]
    buffer[4] = values[4]
    buffer[5] = values[5]
    buffer[6] = values[6]
    buffer[7] = values[7]
    buffer[8] = values[8]


def silu(x: Any) -> Any:
    """x · sigmoid(x)."""
    return x / (T.float32(1) + T.exp(-x))


def inverse_root(squares: Any, width: int, eps: float) -> Any:
    """What RMS normalisation multiplies a row with, from the sum of its squares."""
    return T.float32(1) / T.sqrt(squares / T.float32(width) + T.float32(eps))


def block_sum(threads: int) -> Callable[..., Any]:
    """Statement `add(shared, t)`: the sum of shared[0 … threads) in shared[0], for all threads to see."""

    @T.inline
    def add(shared, t):
        T.evaluate(T.tvm_storage_sync("shared"))
        for step in T.unroll(threads.bit_length() - 1):
            if t < T.shift_right(T.int32(threads // 2), step):
                shared[t] = shared[t] + shared[t + T.shift_right(T.int32(threads // 2), step)]
            T.evaluate(T.tvm_storage_sync("shared"))

    return add
