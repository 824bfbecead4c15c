"""Every GPU kernel against NumPy in float64, on odd and tiny shapes and the family's own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from golden.latents import Latents, cached_values, rotate
from golden.routing import ROUTERS, choose
from gpu_harness import TILE, run_gpu
from on_device import needs_vulkan

from mlc_dsv3.quantization import dequantize, quantize
from relax_model.kernels.attention.shape import AttentionShape
from relax_model.layout import Layout, layout_of

pytestmark = needs_vulkan
QUANTIZATIONS = ["q0f32", "q0f16", "q0bf16", "q8f16_1", "q4f16_1"]
RANDOM = np.random.default_rng(9)
TOLERANCE = 1e-5
# Scores are serial sums of up to 576 products, and an exponential multiplies what they are off by.
ATTENTION_TOLERANCE = 3e-5


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


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize(("out", "width", "residual"), [(1, 1, True), (130, 70, False), (96, 512, True)])
def test_linear(quantization: str, out: int, width: int, residual: bool) -> None:
    layout = layout_of(quantization)
    arrays, exact = stored(layout, normal(out, width))
    for rows in (1, 3, 8, 9, 70):
        x, added = normal(rows, width), normal(rows, out)
        inputs = [x, *arrays, *([added] if residual else [])]
        (found,) = run_gpu("linear", (layout, out, width, residual), inputs, ((rows, out), "float32"))
        expected = x.astype(np.float64) @ exact.T + (added if residual else 0)
        assert np.abs(found - expected).max() < 3e-6 * np.sqrt(width) * 4, rows


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_embedding(quantization: str) -> None:
    layout = layout_of(quantization)
    arrays, exact = stored(layout, normal(50, 70))
    tokens = RANDOM.integers(0, 50, 9).astype(np.int32)
    (found,) = run_gpu("embedding", (layout, 50, 70), [tokens, *arrays], ((9, 70), "float32"))
    assert np.array_equal(found, exact[tokens].astype(np.float32))


def test_norms() -> None:
    def exact(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64)
        return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-6) * weight

    for rows, width in [(1, 1), (3, 100), (5, 512)]:
        x, other, w, v = normal(rows, width), normal(rows, width), normal(width), normal(width)
        (found,) = run_gpu("rms_norm", (width, 1e-6, layout_of("q0f32"), True), [x, w], (x.shape, "float32"))
        assert error(found, exact(x, w)) < TOLERANCE
        (found,) = run_gpu("mtp_input", (width, 1e-6), [x, other, w, v], ((rows, 2 * width), "float32"))
        assert error(found, np.concatenate([exact(x, w), exact(other, v)], axis=1)) < TOLERANCE


def test_rope_table() -> None:
    positions = np.array([0, 1, 77, 4095, 30_000], np.int32)
    frequencies = (10000.0 ** -(np.arange(32) / 32)).astype(np.float32)
    (found,) = run_gpu("rope_table", (64, 1.2), [positions, frequencies], ((5, 64), "float32"))
    angles = (positions.astype(np.float32)[:, None] * frequencies).astype(np.float64)
    expected = 1.2 * np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    assert np.abs(found - expected).max() < 1e-5


def test_between_products() -> None:
    x = normal(5, 2 * 77)
    (found,) = run_gpu("silu_mul", (77,), [x], ((5, 77), "float32"))
    gate, up = x[:, :77].astype(np.float64), x[:, 77:]
    assert error(found, gate / (1 + np.exp(-gate)) * up) < TOLERANCE
    wanted = np.array([4, 0, 4], np.int32)
    (found,) = run_gpu("select_rows", (layout_of("q4f16_1"), 154), [x, wanted], ((3, 154), "float32"))
    assert np.array_equal(found, x[wanted])


@pytest.mark.parametrize("name", ROUTERS)
def test_routing_chooses_weighs_and_sorts(name: str) -> None:
    router, rows, hidden = ROUTERS[name], 23, 27
    experts, top_k = router.n_routed_experts, router.num_experts_per_tok
    x, gate, bias = normal(rows, hidden), normal(experts, hidden) * 0.4, normal(experts) * 0.3
    ids_shape = ((rows, top_k), "int32")
    logits, ids, weights, pairs, starts = run_gpu(
        "route",
        (router, hidden),
        [x, gate, *([bias] if router.has_correction_bias else [])],
        ((rows, experts), "float32"),
        ids_shape,
        ((rows, top_k), "float32"),
        ids_shape,
        ((experts + 1,), "int32"),
    )
    assert np.abs(logits - x.astype(np.float64) @ gate.T).max() < 1e-5
    for row in range(rows):
        expected_ids, expected_weights = choose(router, logits[row], bias)
        assert ids[row].tolist() == expected_ids.tolist()
        assert np.allclose(weights[row], expected_weights, rtol=1e-5)
    assert pairs.ravel().tolist() == np.argsort(ids.ravel(), kind="stable").tolist()
    assert starts.tolist() == np.searchsorted(np.sort(ids.ravel()), np.arange(experts + 1)).tolist()


@pytest.mark.parametrize("quantization", ["q0f32", "q0bf16", "q8f16_1", "q4f16_1"])
@pytest.mark.parametrize("per_pair", [False, True])
def test_experts(quantization: str, per_pair: bool) -> None:
    layout, rows, experts, top_k, out, width = layout_of(quantization), 5, 70, 3, 21, 70
    arrays, exact = stored(layout, normal(experts, out, width))
    ids = np.array([RANDOM.permutation(experts)[:top_k] for _ in range(rows)], np.int32)
    order = np.argsort(ids.ravel(), kind="stable").astype(np.int32).reshape(rows, top_k)
    starts = np.searchsorted(np.sort(ids.ravel()), np.arange(experts + 1)).astype(np.int32)
    x = normal(rows * top_k if per_pair else rows, width)
    arguments = (layout, experts, out, width, top_k, per_pair)
    (found,) = run_gpu("expert_linear", arguments, [x, order, starts, *arrays], ((rows * top_k, out), "float32"))
    for pair in range(rows * top_k):
        row = x[pair if per_pair else pair // top_k].astype(np.float64)
        assert np.abs(found[pair] - exact[ids.ravel()[pair]] @ row).max() < 1e-4
    weights, base = normal(rows, top_k), normal(rows, out)
    (sums,) = run_gpu("combine_experts", (out, top_k), [found, weights, base], ((rows, out), "float32"))
    assert (
        error(sums, base + np.einsum("rs,rso->ro", weights.astype(np.float64), found.reshape(rows, top_k, out))) < 1e-5
    )


SHAPES = {
    "odd heads": AttentionShape(5, 40, 24, 8, 20, True, 0.2, 16, "float32"),
    "value wider than key": AttentionShape(3, 64, 16, 16, 48, False, 0.15, 16, "float32"),
    "one head": AttentionShape(1, 32, 8, 4, 8, True, 0.3, 8, "float32"),
    "float16 cache": AttentionShape(4, 96, 32, 16, 32, True, 0.2, 16, "float16"),
    "the family's widths": AttentionShape(3, 512, 128, 64, 128, True, 0.07, 16, "float16"),
}


class World(Latents):
    """Latents beside a stored `kv_b_proj`, and the GPU's kernels that attend to them."""

    def __init__(self, shape: AttentionShape, quantization: str, lengths: tuple[int, int]) -> None:
        super().__init__(shape, lengths)
        self.layout = layout_of(quantization)
        self.arrays, exact = stored(self.layout, self.expansion())
        self.set_expansion(exact)

    def absorbed(self, q: np.ndarray, positions: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        """The three kernels of the absorbed form."""
        shape, rows, table = self.shape, len(q), self.table(positions)[0]
        latent_queries = ((rows, shape.heads, shape.latent_width), "float32")
        (q_latent,) = run_gpu("query_absorb", (self.layout, shape), [q, table, *self.arrays], latent_queries)
        inputs = [q_latent, positions, sequences, self.page_table, self.cache]
        (o,) = run_gpu(
            "absorbed_attention", (self.layout, shape), inputs, ((rows, shape.heads, shape.kv_lora_rank), "float32")
        )
        out = ((rows, shape.heads * shape.v), "float32")
        return run_gpu("value_project", (self.layout, shape), [o, *self.arrays], out)[0]


@pytest.mark.parametrize("quantization", ["q0f32", "q4f16_1"])
@pytest.mark.parametrize("name", SHAPES)
def test_absorbed_attention(name: str, quantization: str) -> None:
    world = World(SHAPES[name], quantization, (150, 33))
    positions = np.array([0, 149, 7, 32, 31, 64, 40, 1, 96, 120], np.int32)
    sequences = np.array([0, 0, 1, 1, 1, 0, 0, 1, 0, 0], np.int32)
    q = world.queries(len(positions))
    many = world.absorbed(q, positions, sequences)
    assert error(many, world.expected(q, positions, sequences)) < ATTENTION_TOLERANCE
    # Few rows have their past in parts side by side.
    q, positions, sequences = q[:6], positions[:6], sequences[:6]
    found = world.absorbed(q, positions, sequences)
    assert error(found, world.expected(q, positions, sequences)) < ATTENTION_TOLERANCE
    for row in range(len(positions)):
        alone = world.absorbed(q[row : row + 1], positions[row : row + 1], sequences[row : row + 1])
        assert np.array_equal(alone[0], found[row]), row


@pytest.mark.parametrize("name", SHAPES)
def test_appending_normalises_rotates_and_touches_only_its_slots(name: str) -> None:
    shape = SHAPES[name]
    world = Latents(shape, (70, 33))
    positions, sequences = np.array([69, 3, 32], np.int32), np.array([0, 0, 1], np.int32)
    kv_a, weight = normal(3, shape.latent_width), RANDOM.random(shape.kv_lora_rank, np.float32) + 0.5
    table, angles = world.table(positions)
    inputs = [kv_a, weight, table, positions, sequences, world.page_table, world.cache]
    after = run_gpu("latent_append", (shape, 1e-6), inputs)[-1]
    expected, rank = cached_values(shape, world.cache), shape.kv_lora_rank
    for row, (position, sequence) in enumerate(zip(positions, sequences, strict=True)):
        latent = kv_a[row, :rank].astype(np.float64)
        slot = (world.page_table[sequence, position // shape.page_size], position % shape.page_size)
        expected[slot][:rank] = latent / np.sqrt((latent**2).mean() + 1e-6) * weight
        expected[slot][rank:] = rotate(kv_a[row, rank:].astype(np.float64), angles[row], shape.interleaved)
    assert np.abs(cached_values(shape, after) - expected).max() < {"float32": 2e-6, "float16": 4e-3}[shape.cache_dtype]
    untouched = np.abs(expected - cached_values(shape, world.cache)).max(axis=-1) == 0
    assert np.array_equal(after[untouched], world.cache[untouched])


def test_other_tiles() -> None:
    """More threads than heads, keys or columns, and fewer."""
    layout = layout_of("q4f16_1")
    arrays, exact = stored(layout, normal(70, 96))
    x = normal(3, 96)
    for threads, lanes, rows in [(32, 8, 2), (128, 32, 8), (256, 16, 1)]:
        tile = dataclasses.replace(TILE, threads=threads, lanes=lanes, rows=rows)
        (found,) = run_gpu("linear", (layout, 70, 96, False), [x, *arrays], ((3, 70), "float32"), tile=tile)
        assert np.abs(found - x.astype(np.float64) @ exact.T).max() < 1e-4
