"""Latent attention in both forms against float64 over an explicit list of keys and values."""

from __future__ import annotations

import numpy as np
import pytest
from golden.latents import Latents, cached_values, rotate
from golden.reference import in_eight_bits
from kernel_harness import TILE, error, meaning, quantized, run, stored
from marks import quick_first

from relax_model.kernels.attention.cpu_absorbed import query_columns
from relax_model.kernels.attention.shape import AttentionShape
from relax_model.layout import PackedLayout, layout_of

SHAPES = {
    "odd heads": AttentionShape(5, 40, 24, 8, 20, True, 0.2, 16, "float32"),
    "value wider than key": AttentionShape(3, 64, 16, 16, 48, False, 0.15, 16, "float32"),
    "one head": AttentionShape(1, 32, 8, 4, 8, True, 0.3, 8, "float32"),
    "float16 cache": AttentionShape(4, 96, 32, 16, 32, True, 0.2, 16, "float16"),
    "8-bit cache": AttentionShape(4, 96, 32, 32, 32, True, 0.2, 16, "int8"),
    "8-bit cache of odd widths": AttentionShape(9, 72, 24, 10, 20, False, 0.2, 16, "int8"),
}
EPS = 1e-6
# The inputs' own rounding in a float16 cache is the oracle's too, as it reads the same cache.
# Scores are sums of up to a hundred float32 products, and an exponential multiplies what they are off by.
TOLERANCE = 1e-5
# Beside packed weights, an 8-bit cache is attended to in 16-bit integers: its codes as they are, in steps of 1e-2 and
# more, by queries and weights in steps of 3e-5.
PAIRS = 2e-4
PACKED = ["q4f16_1+vnni16", "q8f16_1+vnni16"]


class World(Latents):
    """Latents beside a stored `kv_b_proj`, and the kernels that attend to them."""

    def __init__(
        self, shape: AttentionShape, quantization: str, lengths: tuple[int, int], magnitudes: np.ndarray | None = None
    ) -> None:
        super().__init__(shape, lengths, magnitudes)
        self.layout = layout_of(quantization)
        self.arrays, exact = stored(self.layout, self.expansion(), (shape.nope, shape.v))
        self.set_expansion(exact)

    def absorbed(self, q: np.ndarray, positions: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        """The three kernels of the absorbed form."""
        return self.project(self.attend(q, positions, sequences))

    def attend(self, q: np.ndarray, positions: np.ndarray, sequences: np.ndarray) -> list[np.ndarray]:
        """Attention over latents: float32, or beside packed weights codes, scales and offsets."""
        shape, rows = self.shape, len(q)
        table, _ = self.table(positions)
        q_latent = run(
            "query_absorb",
            (self.layout, shape),
            [q, table, *self.arrays],
            ((rows, *query_columns(shape, TILE)), "float32"),
        )[0]
        if isinstance(self.layout, PackedLayout):
            head = self.layout.base.groups(shape.kv_lora_rank) * 32
            out = quantized(self.layout, rows, shape.heads * head)
        else:
            out = [((rows, shape.heads, shape.kv_lora_rank), "float32")]
        inputs = [q_latent, positions, sequences, self.page_table, self.cache]
        return run("absorbed_attention", (self.layout, shape), inputs, *out)

    def project(self, o: list[np.ndarray]) -> np.ndarray:
        """Attention over latents → values."""
        out = ((len(o[0]), self.shape.heads * self.shape.v), "float32")
        return run("value_project", (self.layout, self.shape), [*o, *self.arrays], out)[0]

    def expanded(self, q: np.ndarray, positions: np.ndarray, sequences: np.ndarray, block: int) -> np.ndarray:
        """The kernel of the expanded form."""
        table, _ = self.table(positions)
        inputs = [q, table, *self.arrays, positions, sequences, self.page_table, self.cache]
        out = ((len(q), self.shape.heads * self.shape.v), "float32")
        return run("expanded_attention", (self.layout, self.shape, block), inputs, out)[0]


@pytest.mark.parametrize("quantization", quick_first(PACKED))
@pytest.mark.parametrize("name", SHAPES)
def test_beside_packed_weights_latents_are_attended_to_and_then_rounded(name: str, quantization: str) -> None:
    shape = SHAPES[name]
    world = World(shape, quantization, (70, 33))
    positions, sequences = np.array([0, 69, 7, 32, 31], np.int32), np.array([0, 0, 1, 1, 1], np.int32)
    q = world.queries(len(positions))
    o = world.attend(q, positions, sequences)
    head = world.layout.base.groups(shape.kv_lora_rank) * 32
    found = meaning(o, o[0].shape[1]).reshape(len(q), shape.heads, head)
    assert not np.any(found[:, :, shape.kv_lora_rank :])
    found = found[:, :, : shape.kv_lora_rank]
    expected = world.expected(q, positions, sequences, absorbed=True)
    scales = np.repeat(o[1], 32, axis=1).reshape(len(q), shape.heads, head)[:, :, : shape.kv_lora_rank]
    rounding = PAIRS if shape.cache_dtype == "int8" else TOLERANCE
    assert np.all(np.abs(found - expected) <= scales * 0.51 + rounding)
    values = np.einsum("rhc,hvc->rhv", found, world.kv_b[:, shape.nope :]).reshape(len(q), -1)
    assert error(world.project(o), values) < TOLERANCE


# What of a token (96 latent channels, and a key whose pairs lie 16 apart) is larger than the rest, and by how much.
OUTLIERS = {
    "keys by 4096": (slice(96, None), 4096),
    "keys by 1/4096": (slice(96, None), 1 / 4096),
    "latents by 256": (slice(96), 256),
    "a group of latents by 256": (slice(32, 64), 256),
    "a latent channel by 16": (slice(5, 6), 16),
    "a latent channel by 256": (slice(5, 6), 256),
    "a rotary pair by 16": (slice(97, None, 16), 16),
    "a rotary pair by 256": (slice(97, None, 16), 256),
}


@pytest.mark.parametrize("name", OUTLIERS)
def test_integers_lose_nothing_that_the_same_codes_keep_in_floats_whatever_is_large(name: str) -> None:
    shape = SHAPES["8-bit cache"]
    magnitudes = np.ones(shape.latent_width, np.float32)
    magnitudes[OUTLIERS[name][0]] *= OUTLIERS[name][1]
    world = World(shape, "q4f16_1+vnni16", (400, 33), magnitudes)
    positions, sequences = np.array([399, 0, 300, 32, 350], np.int32), np.array([0, 0, 0, 1, 0], np.int32)
    q = world.queries(len(positions))
    o = world.attend(q, positions, sequences)
    in_integers = meaning(o, o[0].shape[1]).reshape(-1, shape.kv_lora_rank)
    in_floats = world.expected(q, positions, sequences, absorbed=True).reshape(-1, shape.kv_lora_rank)
    world.forget_rounding()
    exact = world.expected(q, positions, sequences, absorbed=True).reshape(-1, shape.kv_lora_rank)
    for start in range(0, shape.kv_lora_rank, 32):
        group = slice(start, start + 32)
        lost = np.abs(in_eight_bits(in_floats[:, group]) - exact[:, group]).mean()
        assert np.abs(in_integers[:, group] - exact[:, group]).mean() < 1.05 * lost


@pytest.mark.parametrize("quantization", quick_first(["q4f16_1", "q0f32"]))
@pytest.mark.parametrize("name", SHAPES)
def test_absorbed_rows_of_two_sequences_see_their_own_past_alone(name: str, quantization: str) -> None:
    world = World(SHAPES[name], quantization, (70, 33))
    positions = np.array([0, 69, 7, 32, 31, 8, 15, 16], np.int32)
    sequences = np.array([0, 0, 1, 1, 1, 0, 0, 1], np.int32)
    q = world.queries(len(positions))
    assert error(world.absorbed(q, positions, sequences), world.expected(q, positions, sequences)) < TOLERANCE


@pytest.mark.parametrize("quantization", quick_first([*PACKED, "q0f32", "q8f16_1"]))
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("rows", quick_first([20, 1, 32]))
def test_an_expanded_block_sees_all_before_it_and_itself_causally(name: str, quantization: str, rows: int) -> None:
    world = World(SHAPES[name], quantization, (20, 100))
    positions = np.arange(64, 64 + rows, dtype=np.int32)
    sequences = np.ones(rows, np.int32)
    q = world.queries(rows)
    found = world.expanded(q, positions, sequences, block=32)
    assert error(found, world.expected(q, positions, sequences, rounded="+" in quantization)) < TOLERANCE


@pytest.mark.parametrize("quantization", quick_first(["q4f16_1+vnni16", "q4f16_1"]))
@pytest.mark.parametrize("name", SHAPES)
def test_a_row_of_absorbed_attention_has_the_same_bits_beside_any_others(name: str, quantization: str) -> None:
    world = World(SHAPES[name], quantization, (70, 33))
    positions = np.array([69, 32, 5, 17, 33, 0, 64], np.int32)
    sequences = np.array([0, 1, 1, 0, 0, 1, 0], np.int32)
    q = world.queries(len(positions))
    together = world.absorbed(q, positions, sequences)
    for start in range(len(positions)):
        alone = world.absorbed(q[start:], positions[start:], sequences[start:])
        assert np.array_equal(alone, together[start:])


@pytest.mark.parametrize(
    ("quantization", "cache"), [("q0f32", "float16"), ("q4f16_1+vnni16", "float16"), ("q4f16_1+vnni16", "int8")]
)
def test_a_long_past_is_the_same_in_parts_side_by_side_and_one_after_the_other(quantization: str, cache: str) -> None:
    shape = AttentionShape(20, 64, 16, 8, 24, False, 0.2, 16, cache)
    world = World(shape, quantization, (700, 33))
    positions = np.array([699, 0, 400, 239, 240, 241, 479, 480, 5, 600, 601, 30, 31, 32, 33, 34, 35, 36], np.int32)
    sequences = np.zeros(len(positions), np.int32)
    q = world.queries(len(positions))
    together = world.absorbed(q, positions, sequences)  # so many rows that each walks through its parts alone
    if quantization == "q0f32":
        assert error(together, world.expected(q, positions, sequences)) < TOLERANCE
    for start in range(0, len(positions), 3):
        rows = slice(start, start + 3)
        assert np.array_equal(world.absorbed(q[rows], positions[rows], sequences[rows]), together[rows])


@pytest.mark.parametrize("name", SHAPES)
def test_appending_normalises_rotates_and_touches_only_its_slots(name: str) -> None:
    shape = SHAPES[name]
    world = World(shape, "q0f32", (70, 33))
    positions, sequences = np.array([69, 3, 32], np.int32), np.array([0, 0, 1], np.int32)
    kv_a = world.random.standard_normal((3, shape.latent_width), np.float32)
    weight = world.random.random(shape.kv_lora_rank, np.float32) + 0.5
    table, angles = world.table(positions)
    before = world.cache.copy()
    inputs = [kv_a, weight, table, positions, sequences, world.page_table, before]
    after = run("latent_append", (shape, EPS), inputs)[-1]

    expected = cached_values(shape, before)
    found, rank = cached_values(shape, after), shape.kv_lora_rank
    for row, (position, sequence) in enumerate(zip(positions, sequences, strict=True)):
        latent = kv_a[row, :rank].astype(np.float64)
        latent = latent / np.sqrt((latent**2).mean() + EPS) * weight
        slot = (world.page_table[sequence, position // shape.page_size], position % shape.page_size)
        expected[slot][:rank] = latent
        expected[slot][rank:] = rotate(kv_a[row, rank:].astype(np.float64), angles[row], shape.interleaved)
    # In 8 bits, half a step of what is largest in the tests' groups.
    tolerance = {"float32": 1e-6, "float16": 2e-3, "int8": 5 / 254}[shape.cache_dtype]
    assert np.abs(found - expected).max() < tolerance
    untouched = np.abs(expected - cached_values(shape, before)).max(axis=-1) == 0
    assert np.array_equal(after[untouched], before[untouched])


def test_what_float16_cannot_hold_is_cached_as_nan_so_that_no_score_of_it_goes_unnoticed() -> None:
    shape = SHAPES["float16 cache"]
    world = World(shape, "q0f32", (70, 33))
    kv_a = world.random.standard_normal((1, shape.latent_width), np.float32)
    kv_a[0, shape.kv_lora_rank :] = 0
    kv_a[0, [shape.kv_lora_rank + 3, shape.kv_lora_rank + 8]] = 65519, -1e6
    weight, angles = np.ones(shape.kv_lora_rank, np.float32), np.zeros((1, shape.rope // 2), np.float32)
    table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    inputs = [kv_a, weight, table, np.zeros(1, np.int32), np.zeros(1, np.int32), world.page_table, world.cache.copy()]
    slot = run("latent_append", (shape, EPS), inputs)[-1][world.page_table[0, 0], 0]
    assert np.flatnonzero(np.isnan(slot)).tolist() == [shape.kv_lora_rank + 4]
    assert np.nanmax(slot) == 65504


def test_the_rotary_table_holds_cosines_then_sines() -> None:
    positions = np.array([0, 1, 999], np.int32)
    frequencies = np.array([1.0, 0.01], np.float32)
    found = run("rope_table", (4, 1.25), [positions, frequencies], ((3, 4), "float32"))[0]
    angles = positions[:, None] * frequencies.astype(np.float64)
    assert np.abs(found - 1.25 * np.concatenate([np.cos(angles), np.sin(angles)], axis=1)).max() < 1e-4
