"""What the GPU kernels share: reading stored matrices, sums over a block, and products of a few or of many rows.

Nothing depends on the width of a subgroup: threads meet in shared memory alone, at most 32 KiB of it.

    few rows: a block of `threads` makes threads / lanes outputs of up to `rows` rows
    ┌ lanes ┐
    │ group of 32 columns, group + lanes, …   one output row of W     → sums in registers, added up in shared memory
    ├───────┤
    │                                         the next output row

    many rows: a block of 256 makes 64 × 64 results, 32 columns of both sides at a time in shared memory

A result's sum runs in an order fixed by the width and the tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from relax_model.layout import FloatLayout, GroupLayout, Layout

GROUP = 32  # columns that a thread takes at a time: those that share a scale
_WORD = 8  # columns that are read at once
SIDE, _EACH = 64, 4  # of the square that a block makes of many rows, and of what a thread makes of it
MANY_THREADS = (SIDE // _EACH) ** 2


@dataclass(frozen=True)
class GpuTile:
    """Tuned values: `threads` of a block; of a product of up to `rows` rows `lanes` threads share an output; above
    `few` rows it is made in squares. Attention takes `keys` cached tokens at a time, for up to `heads` heads, and a
    block `split` of them."""

    threads: int
    lanes: int
    rows: int
    few: int
    heads: int
    keys: int
    split: int


class Matrix:
    """A stored matrix (rows, columns): `data` and `scale` are its arrays, two-dimensional."""

    def __init__(self, layout: Layout, columns: int, data: Any, scale: Any) -> None:
        assert isinstance(layout, (FloatLayout, GroupLayout)), layout
        self._layout, self._columns, self._data, self._scale = layout, columns, data, scale

    def value(self, row: Any, column: Any) -> Any:
        """One value, float32."""
        if isinstance(self._layout, FloatLayout):
            return _as_float32(self._layout, self._data[row, column])
        codes = self._layout.codes_per_word
        code = _code(self._layout, self._data[row, column // codes], column % codes)
        return code * T.Cast("float32", self._scale[row, column // GROUP])

    def run(self, row: Any, start: Any) -> list[Any]:
        """Eight values from column `start` on, a multiple of eight; past the last column they are zero."""
        if isinstance(self._layout, FloatLayout):
            whole = self._columns % _WORD == 0
            return [
                _as_float32(self._layout, self._data[row, start + i])
                if whole
                else T.if_then_else(
                    start + i < self._columns, _as_float32(self._layout, self._data[row, start + i]), T.float32(0)
                )
                for i in range(_WORD)
            ]
        codes = self._layout.codes_per_word
        scale = T.Cast("float32", self._scale[row, start // GROUP])
        return [
            _code(self._layout, self._data[row, (start + i // codes * codes) // codes], i % codes) * scale
            for i in range(_WORD)
        ]


def _code(layout: GroupLayout, word: Any, place: Any) -> Any:
    shift = T.uint32(place * layout.bits) if isinstance(place, int) else T.Cast("uint32", place * layout.bits)
    code = T.bitwise_and(T.shift_right(word, shift), T.uint32(2**layout.bits - 1))
    return T.Cast("float32", T.Cast("int32", code) - layout.zero)


def _as_float32(layout: FloatLayout, value: Any) -> Any:
    if layout.dtype == "bfloat16":
        return T.reinterpret("float32", T.shift_left(T.Cast("uint32", value), T.uint32(16)))
    return value if layout.dtype == "float32" else T.Cast("float32", value)


def guarded(x: Callable[[Any], Any], column: Any, columns: int) -> Any:
    """x(column), or zero past the last of `columns`."""
    return x(column) if columns % GROUP == 0 else T.if_then_else(column < columns, x(column), T.float32(0))


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


def few_rows(tile: GpuTile, columns: int, count: int) -> Callable[..., Any]:
    """Statement `multiply(t, part, matrix, row, x, y, y_at, valid, add)`: `count` rows times a block's outputs.

    `part` is float32 (count · threads,) in shared memory. `row(o)` is the matrix's row of output o of the block and
    x(r, k) reads a row, both within bounds. Where valid(r, o), y[y_at(r, o)] = sum + add(r, o).
    """
    lanes, outputs = tile.lanes, tile.threads // tile.lanes
    groups = -(-columns // GROUP)
    steps = -(-groups // lanes)

    @T.inline
    def multiply(t, part, matrix, row, x, y, y_at, valid, add):
        total = T.alloc_buffer((count,), "float32", scope="local")
        values = T.alloc_buffer((_WORD,), "float32", scope="local")
        for r in T.unroll(count):
            total[r] = T.float32(0)
        for s in T.serial(steps):
            if s * lanes + t % lanes < groups:
                for w in T.unroll(GROUP // _WORD, annotations={"pragma_unroll_explicit": False}):
                    fill(values, matrix.run(row(t // lanes), (s * lanes + t % lanes) * GROUP + w * _WORD))
                    for r in T.unroll(count, annotations={"pragma_unroll_explicit": False}):
                        for i in T.unroll(_WORD, annotations={"pragma_unroll_explicit": False}):
                            total[r] = total[r] + values[i] * guarded(
                                lambda k: x(r, k), (s * lanes + t % lanes) * GROUP + w * _WORD + i, columns
                            )
        for r in T.unroll(count):
            part[r * tile.threads + t] = total[r]
        T.evaluate(T.tvm_storage_sync("shared"))
        for e in T.unroll(-(-count * outputs // tile.threads)):
            if e * tile.threads + t < count * outputs:
                total[0] = T.float32(0)
                for lane in T.serial(lanes):
                    total[0] = total[0] + part[(e * tile.threads + t) * lanes + lane]
                if valid((e * tile.threads + t) // outputs, (e * tile.threads + t) % outputs):
                    y[y_at((e * tile.threads + t) // outputs, (e * tile.threads + t) % outputs)] = total[0] + add(
                        (e * tile.threads + t) // outputs, (e * tile.threads + t) % outputs
                    )

    return multiply


@T.inline
def fill(buffer, values):
    """Statement: eight values into a buffer."""
    buffer[0] = values[0]
    buffer[1] = values[1]
    buffer[2] = values[2]
    buffer[3] = values[3]
    buffer[4] = values[4]
    buffer[5] = values[5]
    buffer[6] = values[6]
    buffer[7] = values[7]


def many_rows(columns: int) -> Callable[..., Any]:
    """Statement `multiply(t, matrix, row, x, y, y_at, valid, add)`, as `few_rows` has it, for a square of 64 rows times
    64 outputs, by MANY_THREADS threads."""
    chunks = -(-columns // GROUP)
    pad = SIDE + 1

    @T.inline
    def multiply(t, matrix, row, x, y, y_at, valid, add):
        left = T.alloc_buffer((GROUP * pad,), "float32", scope="shared")
        right = T.alloc_buffer((GROUP * pad,), "float32", scope="shared")
        total = T.alloc_buffer((_EACH * _EACH,), "float32", scope="local")
        values = T.alloc_buffer((_WORD,), "float32", scope="local")
        for i in T.unroll(_EACH * _EACH):
            total[i] = T.float32(0)
        for c in T.serial(chunks):
            # A thread fetches eight columns of one row of either side.
            fill(values, matrix.run(row(t // 4), c * GROUP + t % 4 * _WORD))
            T.evaluate(T.tvm_storage_sync("shared"))
            for i in T.unroll(_WORD):
                right[(t % 4 * _WORD + i) * pad + t // 4] = values[i]
                left[(t % 4 * _WORD + i) * pad + t // 4] = guarded(
                    lambda k: x(t // 4, k), c * GROUP + t % 4 * _WORD + i, columns
                )
            T.evaluate(T.tvm_storage_sync("shared"))
            for k in T.serial(GROUP):
                for a in T.unroll(_EACH, annotations={"pragma_unroll_explicit": False}):
                    for b in T.unroll(_EACH, annotations={"pragma_unroll_explicit": False}):
                        total[a * _EACH + b] = (
                            total[a * _EACH + b]
                            + left[k * pad + t // 16 * _EACH + a] * right[k * pad + t % 16 * _EACH + b]
                        )
        for a in T.unroll(_EACH):
            for b in T.unroll(_EACH):
                if valid(t // 16 * _EACH + a, t % 16 * _EACH + b):
                    y[y_at(t // 16 * _EACH + a, t % 16 * _EACH + b)] = total[a * _EACH + b] + add(
                        t // 16 * _EACH + a, t % 16 * _EACH + b
                    )

    return multiply
