"""What the CPU kernels share: unpacking rows of a stored matrix to float32, and tiles of dot products over them.

    block (weight rows) × columns, unpacked once          rows (activations) × columns
    ┌──────────────── panel ────────────────┐             ┌─────────────────────────────────┐
    │ tile.columns rows × lanes …           │      ×      │ tile.rows rows × lanes …        │
    └───────────────────────────────────────┘             └─────────────────────────────────┘
                        → tile.rows × tile.columns accumulators of `lanes` partial sums

Every sum runs over its terms in an order fixed by the width alone, with explicit fused multiply-adds, so that a
row's result has the same bits however many rows run beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.kernels.float8 import e4m3_vector
from relax_model.layout import FloatLayout, GroupLayout, Layout


@dataclass(frozen=True)
class CpuTile:
    """A processor's vectors, and tuned values.

    `lanes`: floats in a vector; `dot`: its integer dot product, on `dot_lanes` lanes (see `cpu_dot`).
    Weights unpacked to floats: `rows` × `columns` is the register tile, `block` the weight rows of a task.
    Packed weights: `dot_rows` is the register tile, of which up to `wide_rows` take a whole block of weights at a time;
    `prefetch` groups are asked for ahead (0: none), into the first or second cache (`prefetch_cache`).
    Attention has `accumulators` vectors of sums in registers and takes `keys` cached tokens at a time, or
    `expanded_keys` in the expanded form; absorbed, a task has `split` of them.
    """

    lanes: int
    dot: str
    dot_lanes: int
    rows: int
    columns: int
    block: int
    dot_rows: int
    wide_rows: int
    prefetch: int
    prefetch_cache: int
    accumulators: int
    keys: int
    split: int
    expanded_keys: int


# A panel should stay in the second-level cache while all rows pass by it.
_PANEL_BYTES = 256 * 1024


def block_rows(tile: CpuTile, columns: int) -> int:
    """Weight rows that one task unpacks: a multiple of `tile.columns`, fewer where rows are long."""
    fitting = _PANEL_BYTES // (4 * columns) // tile.columns * tile.columns
    return max(tile.columns, min(tile.block, fitting))


def stored(layout: Layout, shape: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], str], tuple[tuple[int, ...], str]]:
    """(shape, dtype) of a matrix's two buffers; a float layout has no scales, see `scale_names`."""
    buffers = layout.buffers(shape)
    if isinstance(layout, FloatLayout):
        dtype = "uint16" if layout.dtype == "bfloat16" else layout.dtype
        return (buffers["weight"].shape, dtype), ((1,), "float16")
    return tuple((spec.shape, spec.dtype) for spec in (buffers["q_weight"], buffers["q_scale"]))


def without(func: PrimFunc, *unused: str) -> PrimFunc:
    """Drop the parameters named: one written kernel serves the cases that lack scales, a residual, a bias."""
    params = [param for param in func.params if param.name not in unused]
    assert len(params) == len(func.params) - len(unused), f"no such parameters: {unused}"
    return PrimFunc(params, func.body, func.ret_type, func.attrs)


def scale_names(layout: Layout, name: str = "scale") -> tuple[str, ...]:
    """What `without` is to drop for this layout: the scales where it has none."""
    return (name,) if isinstance(layout, FloatLayout) else ()


class StoredRows:
    """Rows of a float matrix from `first` on, read as a panel's without unpacking: [n, k] in float32.

    Rows past the `last` repeat it, so that every tile is whole.
    """

    def __init__(self, layout: FloatLayout, data: Any, first: Any, last: Any) -> None:
        self._as_float32 = _from_bfloat16 if layout.dtype == "bfloat16" else _from_float
        self._data, self._first, self._last = data, first, last

    def __getitem__(self, at: tuple[Any, Any]) -> Any:
        return self._as_float32(self._data[T.min(self._first + at[0], self._last), at[1]])


def padded(layout: Layout, columns: int) -> int:
    """Columns of a panel row: the group layouts unpack whole groups."""
    return layout.groups(columns) * layout.group_size if isinstance(layout, GroupLayout) else columns


def unpacker(layout: Layout, columns: int) -> Callable[..., Any]:
    """Statement `unpack(panel, i, data, scale, row, start)`: columns start … start + `columns` of a row → panel[i, :].

    `data` and `scale` are two-dimensional, (rows, words) and (rows, groups); `start` is a multiple of the group.
    """
    if isinstance(layout, GroupLayout):
        words, codes = layout.group_size // layout.codes_per_word, layout.codes_per_word
        bits, zero, size = layout.bits, layout.zero, layout.group_size

        @T.inline
        def unpack_groups(panel, i, data, scale, row, start):
            for g in T.serial(layout.groups(columns)):
                for w in T.unroll(words):
                    for v in T.vectorized(codes):
                        panel[i, g * size + w * codes + v] = (
                            T.Cast(
                                "float32",
                                T.Cast(
                                    "int32",
                                    T.bitwise_and(
                                        T.shift_right(
                                            data[row, start // codes + g * words + w], T.Cast("uint32", v * bits)
                                        ),
                                        T.uint32(2**bits - 1),
                                    ),
                                ),
                            )
                            - T.float32(zero)
                        ) * T.Cast("float32", scale[row, start // size + g])

        @T.inline
        def unpack_e4m3(panel, i, data, scale, row, start):
            for g in T.serial(layout.groups(columns)):
                for w in T.serial(words // 4):
                    panel[i, span(g * size + w * 16, 16)] = e4m3_vector(
                        data[row, span(start // codes + g * words + w * 4, 4)]
                    ) * T.Broadcast(scale[row, start // size + g], 16)

        return unpack_e4m3 if layout.e4m3 else unpack_groups

    as_float32 = _from_bfloat16 if layout.dtype == "bfloat16" else _from_float

    @T.inline
    def unpack_floats(panel, i, data, scale, row, start):
        for k in T.serial(columns // 8):
            for v in T.vectorized(8):
                panel[i, k * 8 + v] = as_float32(data[row, start + k * 8 + v])
        for k in T.serial(columns % 8):
            panel[i, columns // 8 * 8 + k] = as_float32(data[row, start + columns // 8 * 8 + k])

    return unpack_floats


def _from_float(value: Any) -> Any:
    return T.Cast("float32", value)


def _from_bfloat16(bits: Any) -> Any:
    return T.reinterpret("float32", T.shift_left(T.Cast("uint32", bits), T.uint32(16)))


def span(start: Any, count: int) -> Any:
    """The index of `count` neighbours from `start` on."""
    return start if count == 1 else T.Ramp(start, 1, count)


def as_float32(value: Any) -> Any:
    """A number or a vector in float32."""
    lanes = value.ty.dtype.lanes
    return T.Cast("float32" if lanes == 1 else f"float32x{lanes}", value)


def lane_sum(buffer: Any, base: Any, lanes: int) -> Any:
    """The sum of `lanes` neighbours of a one-dimensional buffer, by halves."""
    values = [buffer[base + lane] for lane in range(lanes)]
    while len(values) > 1:
        half = len(values) // 2
        values = [values[i] + values[i + half] for i in range(half)]
    return values[0]


def multiplier(tile: CpuTile, rows: int, columns: int, block: int, width: int) -> Callable[..., Any]:
    """Statement `multiply(panel, first, valid, x, y, add)` over one tile of `rows` rows and one panel of `block`.

    For each weight row n < `valid` of the panel and each i < rows: y(i, n) = Σ_k x(i, k) · panel[n, k] + add(i, n).
    `x(i, k)` and `add(i, n)` are expressions; `y` is a (buffer, index(i, n)) pair. `width` is the number of terms.
    """
    lanes = tile.lanes
    vectors, tail = width // lanes, width % lanes
    sums = rows * columns

    @T.inline
    def multiply(panel, valid, x, y, y_at, add):
        for s in T.serial(block // columns):
            acc = T.alloc_buffer((sums * lanes,), "float32", scope="global")
            for i in T.unroll(sums):
                for v in T.vectorized(lanes):
                    acc[i * lanes + v] = T.float32(0)
            for k in T.serial(vectors):
                # Weight rows outside: `rows` vectors of x and one of weights stay in registers beside the sums.
                for j in T.unroll(columns):
                    for i in T.unroll(rows):
                        for v in T.vectorized(lanes):
                            acc[(i * columns + j) * lanes + v] = T.fma(
                                x(i, k * lanes + v),
                                panel[s * columns + j, k * lanes + v],
                                acc[(i * columns + j) * lanes + v],
                            )
            for k in T.serial(tail):
                for i in T.unroll(rows):
                    for j in T.unroll(columns):
                        acc[(i * columns + j) * lanes] = T.fma(
                            x(i, vectors * lanes + k),
                            panel[s * columns + j, vectors * lanes + k],
                            acc[(i * columns + j) * lanes],
                        )
            for i in T.unroll(rows):
                for j in T.unroll(columns):
                    if s * columns + j < valid:
                        y[y_at(i, s * columns + j)] = lane_sum(acc, (i * columns + j) * lanes, lanes) + add(
                            i, s * columns + j
                        )

    return multiply


def product(tile: CpuTile, block: int, width: int) -> Callable[..., Any]:
    """Statement `product(panel, valid, count, x, y, y_at, add)`: `multiply` for rows 0 … `count`, tile by tile.

    Rows left over by whole tiles go one by one, through the same sums in the same order.
    """
    return over_tiles(
        tile.rows,
        multiplier(tile, tile.rows, tile.columns, block, width),
        multiplier(tile, 1, tile.columns, block, width),
    )


def over_tiles(rows: int, many: Callable[..., Any], one: Callable[..., Any]) -> Callable[..., Any]:
    """Run `many` on whole tiles of `rows` rows and `one` on each row that is left, with row numbers from 0."""

    @T.inline
    def run(panel, valid, count, x, y, y_at, add):
        for t in T.serial(count // rows):
            many(
                panel,
                valid,
                lambda i, k: x(t * rows + i, k),
                y,
                lambda i, n: y_at(t * rows + i, n),
                lambda i, n: add(t * rows + i, n),
            )
        for t in T.serial(count % rows):
            one(
                panel,
                valid,
                lambda i, k: x(count // rows * rows + t, k),
                y,
                lambda i, n: y_at(count // rows * rows + t, n),
                lambda i, n: add(count // rows * rows + t, n),
            )

    return run


def nothing(row: Any, column: Any) -> Any:
    """The `add` of a product that is added to nothing."""
    return T.float32(0)
