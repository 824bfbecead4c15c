"""Every GPU kernel against NumPy in float64, on odd and tiny shapes and the family's own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tvm
from golden.latents import Latents, cached_values, rotate, stored_cache
from golden.routing import ROUTERS, choose
from gpu_harness import TILE, run_gpu
from marks import each_once, quick_first
from on_device import DEVICE, device, needs_gpu

from mlc_dsv3.quantization import dequantize, quantize
from mlc_dsv3.runtime.memory import memory_of
from mlc_dsv3.weights.decode import E4M3
from relax_model.config import RouterConfig
from relax_model.kernels.attention import cuda_absorbed, metal_absorbed
from relax_model.kernels.attention.shape import AttentionShape
from relax_model.kernels.gpu_tiles import GpuTile
from relax_model.layout import Layout, layout_of

pytestmark = needs_gpu
QUANTIZATIONS = ["q4f16_1", "q0f32", "q0f16", "q0bf16", "q8f16_1", "e4m3f32_1"]
RANDOM = np.random.default_rng(9)
TOLERANCE = 1e-5
EPS = 1e-6
# Scores are serial sums of up to 576 products, and an exponential multiplies what they are off by.
ATTENTION_TOLERANCE = 3e-5


# Tensor cores round what they multiply to eleven bits.
ROUNDED_TOLERANCE = 6e-3


def tolerance(quantization: str, rows: int) -> float:
    """For a product of so many rows."""
    on_tensor_cores = TILE.tensor_cores and rows > TILE.few and quantization != "q0f32"
    return ROUNDED_TOLERANCE if on_tensor_cores else TOLERANCE


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape, np.float32)


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference as a share of the expected values' size."""
    return float(np.abs(found - expected).max() / np.sqrt((expected**2).mean()))


def stored(layout: Layout, values: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """A matrix's stored arrays, and the float64 values that they stand for."""
    *lead, rows, columns = values.shape
    buffers = quantize(layout, values.reshape(-1, columns))
    exact = dequantize(layout, buffers, columns).astype(np.float64).reshape(values.shape)
    arrays = [array.reshape(*lead, rows, -1) for array in buffers.values()]
    return [a.view(np.uint16) if a.dtype.itemsize == 2 and a.dtype.kind == "V" else a for a in arrays], exact


@pytest.mark.parametrize(
    ("quantization", "shape"), each_once(QUANTIZATIONS, [(130, 70, False), (1, 1, True), (96, 512, True)])
)
def test_linear(quantization: str, shape: tuple[int, int, bool]) -> None:
    out, width, residual = shape
    layout = layout_of(quantization)
    arrays, exact = stored(layout, normal(out, width))
    for rows in (1, 3, 8, 9, 70):
        x, added = normal(rows, width), normal(rows, out)
        inputs = [x, *arrays, *([added] if residual else [])]
        (found,) = run_gpu("linear", (layout, out, width, residual), inputs, ((rows, out), "float32"))
        expected = x.astype(np.float64) @ exact.T + (added if residual else 0)
        assert np.abs(found - expected).max() < 1.2 * tolerance(quantization, rows) * np.sqrt(width), rows


def normalised(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + EPS) * weight


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


ROWS = (1, 3, 8, 9, 70)  # one, a few, and many


@pytest.mark.parametrize(
    ("quantization", "shape"),
    each_once(["q4f16_1", "q0f32", "q0bf16"], [(130, 21, 70), (1, 3, 1), (64, 96, 512)]),
)
def test_two_matrices_share_a_launch_and_the_norm(quantization: str, shape: tuple[int, int, int]) -> None:
    out, other, width = shape
    layout = layout_of(quantization)
    (first, w), (second, v) = stored(layout, normal(out, width)), stored(layout, normal(other, width))
    norm = normal(width)
    for rows in ROWS:
        x, allowed = normal(rows, width) * 3, 2.4 * tolerance(quantization, rows) * np.sqrt(width)
        found, beside = run_gpu(
            "linear_pair",
            (layout, out, other, width, EPS),
            [x, norm, *first, *second],
            ((rows, out), "float32"),
            ((rows, other), "float32"),
        )
        expected = normalised(x, norm)
        assert np.abs(found - expected @ w.T).max() < allowed, rows
        assert np.abs(beside - expected @ v.T).max() < allowed, rows
        (found,) = run_gpu("linear", (layout, out, width, False, EPS), [x, norm, *first], ((rows, out), "float32"))
        assert np.abs(found - expected @ w.T).max() < allowed, rows


@pytest.mark.parametrize(
    ("quantization", "shape"),
    each_once(["q4f16_1", "q0f32", "q8f16_1"], [(21, 70, 13), (1, 1, 0), (96, 512, 64), (33, 64, 0)]),
)
def test_gate_and_up_beside_the_router(quantization: str, shape: tuple[int, int, int]) -> None:
    out, width, experts = shape
    layout = layout_of(quantization)
    arrays, exact = stored(layout, normal(2 * out, width) * 0.3)
    norm, gate = normal(width), normal(experts, width)
    for rows in ROWS:
        x = normal(rows, width) * 3
        found, *logits = run_gpu(
            "gate_up_silu",
            (layout, out, width, EPS, experts),
            [x, norm, *arrays, *([gate] if experts else [])],
            ((rows, out), "float32"),
            *([((rows, experts), "float32")] if experts else []),
        )
        expected = normalised(x, norm)
        both = expected @ exact.T
        assert np.abs(found - silu(both[:, :out]) * both[:, out:]).max() < max(
            1e-4, 2 * tolerance(quantization, rows)
        ) * np.sqrt(width), rows
        if experts:
            assert np.abs(logits[0] - expected @ gate.T).max() < 3e-6 * np.sqrt(width) * 8, rows


@pytest.mark.parametrize("quantization", quick_first(QUANTIZATIONS))
def test_embedding(quantization: str) -> None:
    layout = layout_of(quantization)
    arrays, exact = stored(layout, normal(50, 70))
    tokens = RANDOM.integers(0, 50, 9).astype(np.int32)
    (found,) = run_gpu("embedding", (layout, 50, 70), [tokens, *arrays], ((9, 70), "float32"))
    assert np.array_equal(found, exact[tokens].astype(np.float32))


def test_every_code_of_eight_bit_floats() -> None:
    codes = np.delete(np.arange(256, dtype=np.uint8), [127, 255])  # which are no numbers
    table = np.resize(codes, (2, 256))
    arrays = [table.view(np.uint32), np.array([[1, 0.5], [2, 3]], np.float32)]
    expected = E4M3[table] * np.repeat(arrays[1], 128, axis=1)
    tokens = np.array([1, 0], np.int32)
    (found,) = run_gpu("embedding", (layout_of("e4m3f32_1"), 2, 256), [tokens, *arrays], ((2, 256), "float32"))
    assert np.array_equal(found, expected[tokens])


def test_norms() -> None:
    for rows, width in [(1, 1), (3, 100), (5, 512)]:
        x, other, w, v = normal(rows, width), normal(rows, width), normal(width), normal(width)
        (found,) = run_gpu("rms_norm", (width, 1e-6, layout_of("q0f32"), True), [x, w], (x.shape, "float32"))
        assert error(found, normalised(x, w)) < TOLERANCE
        sources = RANDOM.integers(0, rows, rows).astype(np.int32)
        (found,) = run_gpu("mtp_input", (width, 1e-6), [x, other, sources, w, v], ((rows, 2 * width), "float32"))
        assert error(found, np.concatenate([normalised(x, w), normalised(other, v)[sources]], axis=1)) < TOLERANCE


def test_rope_table() -> None:
    positions = np.array([0, 1, 77, 4095, 30_000], np.int32)
    frequencies = (10000.0 ** -(np.arange(32) / 32)).astype(np.float32)
    (found,) = run_gpu("rope_table", (64, 1.2), [positions, frequencies], ((5, 64), "float32"))
    angles = (positions.astype(np.float32)[:, None] * frequencies).astype(np.float64)
    expected = 1.2 * np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    assert np.abs(found - expected).max() < 1e-5


def test_rows_are_selected() -> None:
    x = normal(5, 2 * 77)
    wanted = np.array([4, 0, 4], np.int32)
    (found,) = run_gpu("select_rows", (layout_of("q4f16_1"), 154), [x, wanted], ((3, 154), "float32"))
    assert np.array_equal(found, x[wanted])


@pytest.mark.parametrize(("name", "quantization", "shared"), each_once(ROUTERS, ["q4f16_1", "q0f32"], [42, 0]))
def test_experts(name: str, quantization: str, shared: int) -> None:
    layout, router, hidden, width = layout_of(quantization), ROUTERS[name], 70, 21
    count, bias, norm = router.n_routed_experts, normal(router.n_routed_experts) * 0.3, normal(hidden)
    up, exact_up = stored(layout, normal(count, 2 * width, hidden) * 0.3)
    down, exact_down = stored(layout, normal(count, hidden, width))
    own, exact_own = stored(layout, normal(hidden, shared)) if shared else ([], np.zeros((hidden, 1)))
    for rows in (1, 5, 40):
        x, logits, h = normal(rows, hidden), normal(rows, count), normal(rows, max(shared, 1))
        given = [x, norm, logits, *([bias] if router.has_correction_bias else []), *up, *down]
        arguments = (layout, router, width, hidden, shared, EPS)
        (found,) = run_gpu("experts", arguments, [*given, *([h, *own] if shared else [])], (x.shape, "float32"))
        expected = x + (h @ exact_own.T if shared else 0)
        for row, normed in enumerate(normalised(x, norm)):
            for expert, weight in zip(*choose(router, logits[row], bias), strict=True):
                both = exact_up[expert] @ normed
                expected[row] += weight * (exact_down[expert] @ (silu(both[:width]) * both[width:]))
        assert error(found, expected) < tolerance(quantization, rows), rows


@pytest.mark.full
def test_experts_of_the_family() -> None:
    """More of them than a block has threads: DeepSeek-V3's router."""
    layout, hidden, width, rows = layout_of("q4f16_1"), 64, 32, 3
    router = RouterConfig(256, 8, "sigmoid", "noaux_tc", 8, 4, True, 2.5)
    x, logits, bias, norm = normal(rows, hidden), normal(rows, 256), normal(256) * 0.1, normal(hidden)
    (up, exact_up), (down, exact_down) = (
        stored(layout, normal(256, 2 * width, hidden)),
        stored(layout, normal(256, hidden, width)),
    )
    expected = x.astype(np.float64)
    for row, normed in enumerate(normalised(x, norm)):
        for expert, weight in zip(*choose(router, logits[row], bias), strict=True):
            both = exact_up[expert] @ normed
            expected[row] += weight * (exact_down[expert] @ (silu(both[:width]) * both[width:]))
    arguments = (layout, router, width, hidden, 0, EPS)
    for repeat in (1, 4):  # few rows and many
        given = [np.tile(array, (repeat, 1)) for array in (x, logits)]
        inputs = [given[0], norm, given[1], bias, *up, *down]
        (found,) = run_gpu("experts", arguments, inputs, (given[0].shape, "float32"))
        assert error(found, np.tile(expected, (repeat, 1))) < tolerance("q4f16_1", repeat * rows)


SHAPES = {
    "8-bit cache, odd groups": AttentionShape(5, 40, 24, 8, 20, True, 0.2, 16, "int8"),
    "odd heads": AttentionShape(5, 40, 24, 8, 20, True, 0.2, 16, "float32"),
    "value wider than key": AttentionShape(3, 64, 16, 16, 48, False, 0.15, 16, "float32"),
    "one head": AttentionShape(1, 32, 8, 4, 8, True, 0.3, 8, "float32"),
    "float16 cache": AttentionShape(4, 96, 32, 16, 32, True, 0.2, 16, "float16"),
    "8-bit cache": AttentionShape(3, 512, 128, 64, 128, True, 0.07, 16, "int8"),
    "more heads than a tile has": AttentionShape(18, 512, 16, 64, 16, True, 0.07, 16, "float16"),
    "the family's widths": AttentionShape(3, 512, 128, 64, 128, True, 0.07, 16, "float16"),
}


def leave_nan_behind() -> None:
    """Fill memory that the next kernel may be given for itself."""
    tvm.runtime.tensor(np.full(2**20, np.nan, np.float32), device())


class World(Latents):
    """Latents beside a stored `kv_b_proj`, and the GPU's kernels that attend to them."""

    def __init__(self, shape: AttentionShape, quantization: str, lengths: tuple[int, int]) -> None:
        super().__init__(shape, lengths)
        self.layout = layout_of(quantization)
        self.arrays, exact = stored(self.layout, self.expansion())
        self.set_expansion(exact)

    def absorbed(
        self,
        q: np.ndarray,
        positions: np.ndarray,
        sequences: np.ndarray,
        kv_a: np.ndarray,
        weight: np.ndarray,
        tile: GpuTile = TILE,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The two kernels of the absorbed form: values, and the cache after them."""
        shape, rows, table = self.shape, len(q), self.table(positions)[0]
        latents = [kv_a, weight, table, positions, sequences, self.page_table, self.cache]
        q_latent, cache = run_gpu(
            "absorb_append",
            (self.layout, shape, EPS),
            [q, *self.arrays, *latents],
            ((rows, shape.heads, shape.latent_width), "float32"),
            changed=-1,
            tile=tile,
        )
        inputs = [q_latent, *self.arrays, positions, sequences, self.page_table, cache]
        out = ((rows, shape.heads * shape.v), "float32")
        return run_gpu("absorbed_values", (self.layout, shape), inputs, out, tile=tile)[0], cache

    def expanded(self, q: np.ndarray, positions: np.ndarray, sequences: np.ndarray, tile: GpuTile = TILE) -> np.ndarray:
        """The kernel of the expanded form: values."""
        inputs = [q, self.table(positions)[0], *self.arrays, positions, sequences, self.page_table, self.cache]
        out = ((len(q), self.shape.heads * self.shape.v), "float32")
        leave_nan_behind()
        return run_gpu("expanded_attention", (self.layout, self.shape, 512), inputs, out, tile=tile)[0]


@pytest.mark.parametrize(("name", "quantization"), each_once(SHAPES, ["q4f16_1", "q0f32"]))
def test_absorbed_attention(name: str, quantization: str) -> None:
    world = World(SHAPES[name], quantization, (150, 33))
    positions = np.array([0, 149, 7, 32, 31, 64, 40, 1, 96, 120], np.int32)
    sequences = np.array([0, 0, 1, 1, 1, 0, 0, 1, 0, 0], np.int32)
    q, kv_a = world.queries(len(positions)), normal(len(positions), world.shape.latent_width)
    weight = RANDOM.random(world.shape.kv_lora_rank, np.float32) + 0.5
    for rows in (10, 6, 1):  # few rows have their past in parts side by side
        some = (q[:rows], positions[:rows], sequences[:rows], kv_a[:rows], weight)
        before = world.cache.copy()
        found, world.cache = world.absorbed(*some)
        check_appended(world, before, *some[1:])
        rounded = TILE.tensor_cores and (cuda_absorbed.serves(world.shape) or rows > TILE.few)
        rounded |= TILE.simdgroup_matrices and metal_absorbed.serves(world.shape)
        assert error(found, world.expected(*some[:3])) < (ROUNDED_TOLERANCE if rounded else ATTENTION_TOLERANCE)
        if rows <= TILE.few:
            for row in range(rows):
                alone = world.absorbed(*(part[row : row + 1] for part in some[:-1]), weight)[0]
                assert np.array_equal(alone[0], found[row]), row


@pytest.mark.parametrize("name", SHAPES)
def test_latents_are_appended(name: str) -> None:
    world = World(SHAPES[name], "q0f32", (150, 33))
    positions, sequences = np.array([0, 149, 7, 32, 31], np.int32), np.array([0, 0, 1, 1, 1], np.int32)
    kv_a, before = normal(5, world.shape.latent_width), world.cache
    weight = RANDOM.random(world.shape.kv_lora_rank, np.float32) + 0.5
    inputs = [kv_a, weight, world.table(positions)[0], positions, sequences, world.page_table, world.cache]
    (world.cache,) = run_gpu("latent_append", (world.shape, EPS), inputs, changed=-1)
    check_appended(world, before, positions, sequences, kv_a, weight)


def test_what_float16_cannot_hold_is_appended_as_nan() -> None:
    world = World(SHAPES["float16 cache"], "q0f32", (20, 33))
    rank, at = world.shape.kv_lora_rank, np.zeros(1, np.int32)
    kv_a = normal(1, world.shape.latent_width)
    kv_a[0, rank], kv_a[0, rank + 1 :] = -1e6, 0
    inputs = [kv_a, np.ones(rank, np.float32), world.table(at)[0], at, at, world.page_table, world.cache]
    (cache,) = run_gpu("latent_append", (world.shape, EPS), inputs, changed=-1)
    assert np.flatnonzero(np.isnan(cache[world.page_table[0, 0], 0])).tolist() == [rank]


def test_codes_beyond_float16_are_attended_to_or_give_nan() -> None:
    """Scores of minus infinity would pass tokens over without a word."""
    shape = SHAPES["8-bit cache"]
    world = World(shape, "q4f16_1", (40, 33))
    exact = np.full(world.exact.shape, 0.01, np.float32)
    exact[..., shape.kv_lora_rank + 1] = -1e6
    world.cache = stored_cache(shape, exact)
    positions, sequences = np.array([39], np.int32), np.zeros(1, np.int32)
    q = world.queries(1)
    weight = np.ones(shape.kv_lora_rank, np.float32)
    found, world.cache = world.absorbed(q, positions, sequences, normal(1, shape.latent_width), weight)
    if TILE.tensor_cores or TILE.simdgroup_matrices:
        assert np.isnan(found).all()
    else:
        assert error(found, world.expected(q, positions, sequences)) < ATTENTION_TOLERANCE


BLOCKS = [(0, 1), (0, 70), (100, 66), (63, 65)]  # first position and rows
EXPANDED = {
    **SHAPES,
    "the widest": AttentionShape(1, 64, 192, 64, 256, True, 0.06, 16, "float32"),
    "the widest, float16 cache": AttentionShape(2, 64, 192, 64, 256, False, 0.06, 16, "float16"),
}
# Keys and values are rounded to the cache's dtype.
EXPANDED_TOLERANCE = {"float32": ATTENTION_TOLERANCE, "float16": 1e-2, "int8": 1e-2}


@pytest.mark.parametrize(
    ("name", "quantization"), quick_first([("odd heads", "q0bf16"), *((name, "q4f16_1") for name in EXPANDED)], 2)
)
def test_expanded_attention(name: str, quantization: str) -> None:
    world = World(EXPANDED[name], quantization, (20, 170))
    allowed = EXPANDED_TOLERANCE[world.shape.cache_dtype] + ROUNDED_TOLERANCE * TILE.tensor_cores
    q = world.queries(170)
    found = {}
    for first, rows in BLOCKS:
        positions, sequences = np.arange(first, first + rows, dtype=np.int32), np.ones(rows, np.int32)
        block = q[first : first + rows]
        found[first, rows] = world.expanded(block, positions, sequences)
        assert error(found[first, rows], world.expected(block, positions, sequences)) < allowed, (first, rows)
    # A row's bits do not depend on where its block begins.
    assert np.array_equal(found[0, 1][0], found[0, 70][0])
    assert np.array_equal(found[0, 70][63:], found[63, 65][:7])


@pytest.mark.parametrize("together", [1, 2])
def test_heads_are_expanded_in_groups_where_memory_is_short(together: int) -> None:
    world, rows = World(SHAPES["odd heads"], "q4f16_1", (70, 20)), 70
    positions, sequences, q = np.arange(rows, dtype=np.int32), np.zeros(rows, np.int32), world.queries(rows)
    of_head = world.page_table.shape[1] * world.shape.page_size * world.shape.expanded_width * 4
    tile = dataclasses.replace(TILE, scratch=together * of_head)
    assert np.array_equal(world.expanded(q, positions, sequences, tile), world.expanded(q, positions, sequences))


def check_appended(
    world: World, before: np.ndarray, positions: np.ndarray, sequences: np.ndarray, kv_a: np.ndarray, weight: np.ndarray
) -> None:
    """The rows' slots hold their normalised latents and rotated keys, and no other slot has changed."""
    shape, angles = world.shape, world.table(positions)[1]
    expected, rank = cached_values(shape, before), shape.kv_lora_rank
    untouched = np.ones(expected.shape[:2], bool)
    for row, (position, sequence) in enumerate(zip(positions, sequences, strict=True)):
        slot = (world.page_table[sequence, position // shape.page_size], position % shape.page_size)
        expected[slot][:rank] = normalised(kv_a[row : row + 1, :rank], weight)[0]
        expected[slot][rank:] = rotate(kv_a[row, rank:].astype(np.float64), angles[row], shape.interleaved)
        untouched[slot] = False
    difference = np.abs(cached_values(shape, world.cache) - expected)
    if shape.cache_dtype == "int8":
        # Half a step of its group at most, and steps no larger than the group's largest value asks for.
        written = expected[~untouched]
        exact = cached_values(shape, stored_cache(shape, written.astype(np.float32)))
        assert difference[~untouched].max() < 1.02 * np.abs(exact - written).max()
        assert np.abs(cached_values(shape, world.cache)[~untouched] - exact).mean() < 2e-4
    else:
        assert difference.max() < {"float32": 4e-6, "float16": 4e-3}[shape.cache_dtype]
    assert np.array_equal(world.cache[untouched], before[untouched])


@pytest.mark.full
def test_other_tiles() -> None:
    """More threads than heads, keys, columns or parts, and fewer."""
    layout = layout_of("q4f16_1")
    arrays, exact = stored(layout, normal(70, 96))
    x = normal(3, 96)
    for threads, lanes, rows in [(32, 8, 2), (128, 32, 8), (256, 16, 1)]:
        tile = dataclasses.replace(TILE, threads=threads, lanes=lanes, rows=rows, split=8)
        (found,) = run_gpu("linear", (layout, 70, 96, False), [x, *arrays], ((3, 70), "float32"), tile=tile)
        assert np.abs(found - x.astype(np.float64) @ exact.T).max() < 1e-4
        world = World(SHAPES["float16 cache"], "q4f16_1", (300, 33))
        some = (world.queries(3), np.array([299, 3, 32], np.int32), np.array([0, 0, 1], np.int32))
        kv_a, weight = normal(3, world.shape.latent_width), normal(world.shape.kv_lora_rank)
        values, world.cache = world.absorbed(*some, kv_a, weight, tile)
        assert error(values, world.expected(*some)) < ATTENTION_TOLERANCE


def test_rows_of_a_tensor_are_read_and_written_alone() -> None:
    memory = memory_of(DEVICE)
    values = RANDOM.integers(-128, 128, (5, 16, 33)).astype(np.int8)
    tensor = memory.pass_in(values, "int8")
    assert np.array_equal(memory.read_rows(tensor, [4, 0]), values[[4, 0]])
    memory.write_rows(tensor, [3, 1], values[[0, 4]])
    assert np.array_equal(memory.read(tensor), values[[0, 4, 2, 0, 4]])
