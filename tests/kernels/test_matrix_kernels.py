"""Products with stored matrices against float64, over shapes that fit no tile, group or vector."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_harness import activations, error, meaning, quantized, run, stored
from marks import quick_first

from mlc_dsv3.weights.decode import E4M3
from relax_model.config import RouterConfig
from relax_model.layout import QUANTIZATIONS, layout_of

PLAIN = [name for name in QUANTIZATIONS if "+" not in name]
PACKED = [name for name in QUANTIZATIONS if "+" in name]
SHAPES = [(7, 33), (130, 70), (50, 96), (1, 32), (17, 1), (64, 256)]
TOLERANCE = 2e-6


@pytest.mark.parametrize("quantization", PLAIN)
@pytest.mark.parametrize(("out", "width"), SHAPES)
def test_linear_is_the_product_plus_the_residual(quantization: str, out: int, width: int) -> None:
    random = np.random.default_rng(out * width)
    layout = layout_of(quantization)
    arrays, exact = stored(layout, random.standard_normal((out, width), np.float32))
    for rows in (1, 3, 8):
        x = random.standard_normal((rows, width), np.float32)
        residual = random.standard_normal((rows, out), np.float32)
        y = run("linear", (layout, out, width, True), [x, *arrays, residual], ((rows, out), "float32"))[0]
        expected = x.astype(np.float64) @ exact.T + residual
        assert np.abs(y - expected).max() < TOLERANCE * max(1, np.abs(expected).max())


@pytest.mark.parametrize("quantization", PACKED)
@pytest.mark.parametrize(("out", "width"), [*SHAPES, (2048, 1408), (576, 2048)])
def test_a_packed_product_is_that_of_the_codes(quantization: str, out: int, width: int) -> None:
    random = np.random.default_rng(out * width)
    layout = layout_of(quantization)
    arrays, exact = stored(layout, random.standard_normal((out, width), np.float32))
    for rows in (1, 2, 3, 4, 5, 9):
        codes, x = activations(layout, random.standard_normal((rows, width), np.float32))
        residual = random.standard_normal((rows, out), np.float32)
        inputs = [*codes, *arrays, residual]
        y = run("quantized_linear", (layout, True), inputs, ((rows, out), "float32"))[0]
        most = TOLERANCE * np.sqrt(width)  # what a product of that width spreads over
        assert np.abs(y - (x @ exact.T + residual)).max() < most
        y = run("quantized_linear", (layout, False), inputs[:-1], ((rows, out), "float32"))[0]
        assert np.abs(y - x @ exact.T).max() < most


@pytest.mark.parametrize("quantization", PACKED)
@pytest.mark.parametrize("width", [1, 31, 32, 70, 2048])
def test_quantizing_rounds_to_the_nearest_code_of_a_group(quantization: str, width: int) -> None:
    layout = layout_of(quantization)
    x = np.random.default_rng(width).standard_normal((3, width), np.float32) * np.array([[1], [1e-20], [1e20]])
    x = x.astype(np.float32)
    x[:, : width // 2] = 0  # whole groups of zeros
    codes, found = activations(layout, x)
    scales = np.repeat(codes[1], 32, axis=1)[:, :width]
    assert np.all(np.abs(found - x) <= scales * 0.500001)
    for row in range(3):
        groups = np.pad(np.abs(x[row]), (0, -width % 32)).reshape(-1, 32).max(axis=1)
        assert np.allclose(codes[1][row], groups / 127, rtol=1e-6)


@pytest.mark.parametrize("quantization", PACKED)
@pytest.mark.parametrize(("width", "hidden"), [(40, 70), (96, 64), (1, 33), (1408, 96)])
def test_gate_and_up_are_multiplied_and_quantized(quantization: str, width: int, hidden: int) -> None:
    random = np.random.default_rng(width)
    layout = layout_of(quantization)
    arrays, exact = stored(layout, random.standard_normal((2 * width, hidden), np.float32) / 8, (width, width))
    for rows in (1, 2, 7):
        codes, x = activations(layout, random.standard_normal((rows, hidden), np.float32) * 4)
        h = run("gate_up", (layout,), [*codes, *arrays], *quantized(layout, rows, width))
        gate, up = x @ exact[:width].T, x @ exact[width:].T
        scales = np.repeat(h[1], 32, axis=1)[:, :width]
        assert np.all(np.abs(meaning(h, width) - gate / (1 + np.exp(-gate)) * up) <= scales * 0.51)


@pytest.mark.parametrize("quantization", PACKED)
def test_a_row_of_a_packed_product_has_the_same_bits_beside_any_others(quantization: str) -> None:
    random = np.random.default_rng(1)
    layout = layout_of(quantization)
    arrays, _ = stored(layout, random.standard_normal((50, 71), np.float32))
    codes, _ = activations(layout, random.standard_normal((11, 71), np.float32))

    def product(rows: slice) -> np.ndarray:
        some = [part[rows] for part in codes]
        return run("quantized_linear", (layout, False), [*some, *arrays], ((len(some[0]), 50), "float32"))[0]

    together = product(slice(0, 11))
    for start in range(11):
        assert np.array_equal(product(slice(start, 11)), together[start:])


@pytest.mark.parametrize("quantization", PLAIN)
def test_a_row_of_a_product_has_the_same_bits_beside_any_others(quantization: str) -> None:
    random = np.random.default_rng(1)
    layout = layout_of(quantization)
    arrays, _ = stored(layout, random.standard_normal((50, 71), np.float32))
    x = random.standard_normal((11, 71), np.float32)

    def product(rows: np.ndarray) -> np.ndarray:
        return run("linear", (layout, 50, 71), [rows, *arrays], ((len(rows), 50), "float32"))[0]

    together = product(x)
    for rows in range(1, 11):
        assert np.array_equal(product(x[rows - 1 : 11]), together[rows - 1 :])


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_embedding_returns_the_rows_named(quantization: str) -> None:
    layout = layout_of(quantization)
    arrays, exact = stored(layout, np.random.default_rng(2).standard_normal((40, 45), np.float32))
    tokens = np.array([3, 0, 39, 3], np.int32)
    found = run("embedding", (layout, 40, 45), [tokens, *arrays], ((4, 45), "float32"))[0]
    assert np.array_equal(found, exact[tokens].astype(np.float32))


def test_every_code_of_eight_bit_floats() -> None:
    codes = np.delete(np.arange(256, dtype=np.uint8), [127, 255])  # which are no numbers
    table = np.resize(codes, (2, 256))
    arrays = [table.view(np.uint32), np.array([[1, 0.5], [2, 3]], np.float32)]
    expected = E4M3[table] * np.repeat(arrays[1], 128, axis=1)
    tokens = np.array([1, 0], np.int32)
    found = run("embedding", (layout_of("e4m3f32_1"), 2, 256), [tokens, *arrays], ((2, 256), "float32"))[0]
    assert np.array_equal(found, expected[tokens])


def route(random: np.random.Generator, rows: int, experts: int, top_k: int) -> list[np.ndarray]:
    """Ids of random choices, their pairs expert by expert, and where each expert's begin."""
    logits = random.standard_normal((rows, experts), np.float32)
    router = RouterConfig(experts, top_k, "softmax", "greedy", 1, 1, False, 1.0)
    found = run(
        "route",
        (router, experts),
        [logits, np.eye(experts, dtype=np.float32)],
        ((rows, experts), "float32"),
        ((rows, top_k), "int32"),
        ((rows, top_k), "float32"),
        ((rows, top_k), "int32"),
        ((experts + 1,), "int32"),
    )
    return [found[1], *found[3:]]


@pytest.mark.parametrize("quantization", quick_first(PACKED))
@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize(("experts", "width", "hidden", "top_k"), [(9, 40, 70, 3), (5, 96, 64, 2)])
def test_each_pair_meets_its_own_packed_expert(
    quantization: str, rows: int, experts: int, width: int, hidden: int, top_k: int
) -> None:
    random = np.random.default_rng(rows)
    layout = layout_of(quantization)
    ids, pairs, starts = route(random, rows, experts, top_k)
    codes, x = activations(layout, random.standard_normal((rows, hidden), np.float32))
    values = random.standard_normal((experts, 2 * width, hidden), np.float32) / 8
    arrays, exact = stored(layout, values, (width, width))
    inputs, out = [*codes, pairs, starts, *arrays], quantized(layout, rows * top_k, width)
    h = run("expert_gate_up", (layout, experts, width, hidden, top_k), inputs, *out)
    both = np.einsum("rk,rsnk->rsn", x, exact[ids]).reshape(rows * top_k, 2, width)
    expected = both[:, 0] / (1 + np.exp(-both[:, 0])) * both[:, 1]
    scales = np.repeat(h[1], 32, axis=1)[:, :width]
    assert np.all(np.abs(meaning(h, width) - expected) <= scales * 0.51)

    arrays, exact = stored(layout, random.standard_normal((experts, hidden, width), np.float32))
    inputs, out = [*h, pairs, starts, *arrays], ((rows * top_k, hidden), "float32")
    y = run("expert_down", (layout, experts, hidden, width, top_k), inputs, out)[0]
    assert error(y, np.einsum("pk,pnk->pn", meaning(h, width), exact[ids.reshape(-1)])) < TOLERANCE


@pytest.mark.parametrize("quantization", PLAIN)
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_each_pair_meets_its_own_expert(quantization: str, rows: int) -> None:
    experts, out, width, top_k = 9, 22, 45, 3
    random = np.random.default_rng(rows)
    layout = layout_of(quantization)
    arrays, exact = stored(layout, random.standard_normal((experts, out, width), np.float32))
    ids, pairs, starts = route(random, rows, experts, top_k)

    x = random.standard_normal((rows, width), np.float32)
    arguments = (layout, experts, out, width, top_k, False)
    y = run("expert_linear", arguments, [x, pairs, starts, *arrays], ((rows * top_k, out), "float32"))[0]
    expected = np.einsum("rk,rsnk->rsn", x.astype(np.float64), exact[ids]).reshape(-1, out)
    assert error(y, expected) < TOLERANCE

    per_pair = random.standard_normal((rows * top_k, width), np.float32)
    arguments = (layout, experts, out, width, top_k, True)
    y = run("expert_linear", arguments, [per_pair, pairs, starts, *arrays], ((rows * top_k, out), "float32"))[0]
    expected = np.einsum("pk,pnk->pn", per_pair.astype(np.float64), exact[ids.reshape(-1)])
    assert error(y, expected) < TOLERANCE


def test_pairs_come_expert_by_expert_in_their_own_order() -> None:
    ids, pairs, starts = route(np.random.default_rng(4), 30, 5, 2)
    flat = ids.reshape(-1)
    assert starts.tolist() == [0, *np.cumsum(np.bincount(flat, minlength=5))]
    assert pairs.reshape(-1).tolist() == np.argsort(flat, kind="stable").tolist()


def test_experts_are_combined_onto_the_base() -> None:
    random = np.random.default_rng(3)
    outputs, weights = random.standard_normal((10, 13), np.float32), random.random((5, 2), np.float32)
    base = random.standard_normal((5, 13), np.float32)
    found = run("combine_experts", (13, 2), [outputs, weights, base], ((5, 13), "float32"))[0]
    expected = base + np.einsum("rs,rsn->rn", weights.astype(np.float64), outputs.reshape(5, 2, 13))
    assert error(found, expected) < TOLERANCE


def test_silu_times_up() -> None:
    gate_up = np.random.default_rng(4).standard_normal((3, 26), np.float32) * 4
    found = run("silu_mul", (13,), [gate_up], ((3, 13), "float32"))[0]
    gate, up = gate_up[:, :13].astype(np.float64), gate_up[:, 13:]
    assert error(found, gate / (1 + np.exp(-gate)) * up) < TOLERANCE


@pytest.mark.parametrize("width", [1, 8, 29, 96])
def test_rms_norm(width: int) -> None:
    random = np.random.default_rng(width)
    x, weight = random.standard_normal((4, width), np.float32), random.random(width, np.float32) + 0.5
    found = run("rms_norm", (width, 1e-5, layout_of("q0f32"), True), [x, weight], (x.shape, "float32"))[0]
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(axis=1, keepdims=True) + 1e-5) * weight
    assert error(found, expected) < TOLERANCE
    for name in PACKED:
        layout = layout_of(name)
        codes = quantized(layout, 4, width)
        values, *kept = run("rms_norm", (width, 1e-5, layout, True), [x, weight], (x.shape, "float32"), *codes)
        alone = run("rms_norm", (width, 1e-5, layout, False), [x, weight], *codes)
        assert np.array_equal(values, found)
        for part, other, again in zip(kept, alone, activations(layout, found)[0], strict=True):
            assert np.array_equal(part, other)
            assert np.array_equal(part, again)


def test_the_drafts_input_is_both_norms_side_by_side() -> None:
    random = np.random.default_rng(5)
    embedding, hidden = random.standard_normal((2, 3, 20), np.float32)
    enorm, hnorm = random.random((2, 20), np.float32)
    sources = np.array([2, 0, 2], np.int32)
    found = run("mtp_input", (20, 1e-6), [embedding, hidden, sources, enorm, hnorm], ((3, 40), "float32"))[0]
    halves = [
        x / np.sqrt((x.astype(np.float64) ** 2).mean(axis=1, keepdims=True) + 1e-6) * weight
        for x, weight in ((embedding, enorm), (hidden[sources], hnorm))
    ]
    assert error(found, np.concatenate(halves, axis=1)) < TOLERANCE
