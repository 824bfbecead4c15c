"""Products with stored matrices against float64, over shapes that fit no tile, group or vector."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_harness import error, run, stored

from relax_model.layout import QUANTIZATIONS, layout_of

SHAPES = [(7, 33), (130, 70), (50, 96), (1, 32), (17, 1), (64, 256)]
TOLERANCE = 2e-6


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
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


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
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


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_each_pair_meets_its_own_expert(quantization: str, rows: int) -> None:
    experts, out, width, top_k = 9, 22, 45, 3
    random = np.random.default_rng(rows)
    layout = layout_of(quantization)
    arrays, exact = stored(layout, random.standard_normal((experts, out, width), np.float32))
    ids = np.stack([random.permutation(experts)[:top_k] for _ in range(rows)]).astype(np.int32)
    pairs, offsets = run("sort_by_expert", (experts, top_k), [ids], (ids.shape, "int32"), ((experts + 1,), "int32"))

    x = random.standard_normal((rows, width), np.float32)
    arguments = (layout, experts, out, width, top_k, False)
    y = run("expert_linear", arguments, [x, pairs, offsets, *arrays], ((rows * top_k, out), "float32"))[0]
    expected = np.einsum("rk,rsnk->rsn", x.astype(np.float64), exact[ids]).reshape(-1, out)
    assert error(y, expected) < TOLERANCE

    per_pair = random.standard_normal((rows * top_k, width), np.float32)
    arguments = (layout, experts, out, width, top_k, True)
    y = run("expert_linear", arguments, [per_pair, pairs, offsets, *arrays], ((rows * top_k, out), "float32"))[0]
    expected = np.einsum("pk,pnk->pn", per_pair.astype(np.float64), exact[ids.reshape(-1)])
    assert error(y, expected) < TOLERANCE


def test_sorting_by_expert_is_stable_and_complete() -> None:
    ids = np.array([[2, 0], [0, 4], [2, 4], [1, 2]], np.int32)
    pairs, offsets = run("sort_by_expert", (5, 2), [ids], (ids.shape, "int32"), ((6,), "int32"))
    assert offsets.tolist() == [0, 2, 3, 6, 6, 8]
    assert pairs.reshape(-1).tolist() == [1, 2, 6, 0, 4, 7, 3, 5]


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
    found = run("rms_norm", (width, 1e-5), [x, weight], (x.shape, "float32"))[0]
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(axis=1, keepdims=True) + 1e-5) * weight
    assert error(found, expected) < TOLERANCE


def test_the_drafts_input_is_both_norms_side_by_side() -> None:
    random = np.random.default_rng(5)
    embedding, hidden = random.standard_normal((2, 3, 20), np.float32)
    enorm, hnorm = random.random((2, 20), np.float32)
    found = run("mtp_input", (20, 1e-6), [embedding, hidden, enorm, hnorm], ((3, 40), "float32"))[0]
    halves = [
        x / np.sqrt((x.astype(np.float64) ** 2).mean(axis=1, keepdims=True) + 1e-6) * weight
        for x, weight in ((embedding, enorm), (hidden, hnorm))
    ]
    assert error(found, np.concatenate(halves, axis=1)) < TOLERANCE
