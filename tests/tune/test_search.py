"""What the search keeps, from made-up times; and that a kernel computes the same whatever its tile."""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlc_dsv3.runtime.virtual_machine import load_runtime

load_runtime()  # before tvm, as `tune` does

import tvm  # noqa: E402

from mlc_dsv3.compiler import resolve_target  # noqa: E402
from mlc_dsv3.compiler.compile import build_options, tvm_target  # noqa: E402
from mlc_dsv3.errors import UserError  # noqa: E402
from mlc_dsv3.tune import inputs, search  # noqa: E402
from mlc_dsv3.tune.cases import KernelCases, kernel_cases  # noqa: E402
from mlc_dsv3.tune.device import TuneDevice, tune_device  # noqa: E402
from mlc_dsv3.tune.search import KernelSearch  # noqa: E402
from relax_model.config import parse_config  # noqa: E402
from relax_model.kernels import registry  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from tiny_shape import tiny  # noqa: E402

PACKED = "q4f16_1+vnni16"


def processor(cold_bytes: int = 1) -> TuneDevice:
    """This machine's, with caches of another size."""
    return replace(tune_device("cpu"), cold_bytes=cold_bytes)


def cases(quantization: str) -> dict[str, KernelCases]:
    """Operator → its kernel's cases of the tiny shape."""
    options = build_options(resolve_target(), quantization)
    return {found.operator: found for found in kernel_cases(parse_config(json.loads(json.dumps(tiny()))), options)}


@pytest.fixture(scope="module")
def packed() -> dict[str, KernelCases]:
    return cases(PACKED)


def test_everything_that_can_be_tuned_is_found_with_its_sizes(packed: dict[str, KernelCases]) -> None:
    assert set(packed) == {
        *("quantized_linear", "gate_up", "expert_gate_up", "expert_down", "value_project"),
        *("absorbed_attention", "expanded_attention"),
    }
    expert = packed["expert_down"].cases[0]
    assert {regime: (load.rows, load.count) for regime, load in expert.workloads.items()} == {
        "decode": (1, 1),
        "prefill": (256, 1),  # a context window shorter than a block
    }
    assert set(packed["absorbed_attention"].cases[0].workloads) == {"decode"}
    assert set(packed["expanded_attention"].cases[0].workloads) == {"prefill"}


def test_attention_is_timed_at_the_end_of_the_context_window_that_is_asked_for() -> None:
    config, options = parse_config(json.loads(json.dumps(tiny()))), build_options(resolve_target(), PACKED)
    for window, depth in ((None, config.max_position_embeddings - 1), (100, 99)):
        found = next(each for each in kernel_cases(config, options, window) if each.operator == "absorbed_attention")
        assert found.cases[0].workloads["decode"].sizes["depth"] == depth
    with pytest.raises(UserError, match="context_window is 257; the model takes 2 to 256 tokens"):
        kernel_cases(config, options, 257)


class MadeUp:
    """A clock that says how long a kernel takes by its tile and by the shape and regime that it works on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds) -> None:
        self.compiled: list[dict[str, int]] = []

        def compile_(_, tile):
            self.compiled.append(dict(tile))
            return dict(tile)

        monkeypatch.setattr(KernelSearch, "_compile", compile_)
        monkeypatch.setattr(KernelSearch, "_func", lambda _, tile: None)
        monkeypatch.setattr(KernelSearch, "_is_new", lambda found, tile, known: _changes(found, tile))
        monkeypatch.setattr(search, "arguments", lambda func, call, regime, load, device: [[call.key, regime]])
        monkeypatch.setattr(search, "measure", lambda clock, kernel, lists, rounds: seconds(kernel, *lists[0]))
        monkeypatch.setattr(
            search,
            "compare",
            lambda clock, *two, rounds, most: tuple(seconds(kernel, *two[2][0]) for kernel in two[:2]),
        )


def _changes(found: KernelSearch, tile: search.Tile) -> bool:
    return replace(found._tile, **dict(tile)) != found._tile


def searched(found: KernelCases, seconds: float = 100) -> list[Any]:
    tile = build_options(resolve_target("cpu", "x86-64-avx2"), PACKED).tile
    search_ = KernelSearch(found, tile, resolve_target(), processor())
    return search_.run(time.perf_counter() + seconds, lambda: None)


def test_the_fastest_tile_is_kept_for_all_shapes_of_a_kernel(packed, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(tile: dict[str, int], key: str, regime: str) -> float:
        return 1.0 - 0.1 * (tile.get("prefetch") == 0) - 0.1 * (tile.get("wide_rows") == 3)

    MadeUp(monkeypatch, seconds)
    kernels = searched(packed["quantized_linear"])
    assert len(kernels) > 1
    assert all(kernel.tile == {"prefetch": 0, "wide_rows": 3} for kernel in kernels)
    assert kernels[0].gain == pytest.approx(1 / 0.8)
    assert kernels[0].seconds["decode"] == (1.0, pytest.approx(0.8))


def test_less_than_three_per_cent_is_not_kept(packed, monkeypatch: pytest.MonkeyPatch) -> None:
    MadeUp(monkeypatch, lambda tile, key, regime: 0.98 if tile else 1.0)
    (kernel,) = searched(packed["expert_down"])
    assert kernel.tile == {}
    assert kernel.seconds["prefill"] == (1.0, 1.0)


def test_a_gain_in_one_regime_does_not_pay_for_a_loss_in_the_other(packed, monkeypatch: pytest.MonkeyPatch) -> None:
    MadeUp(monkeypatch, lambda tile, key, regime: (0.5 if regime == "prefill" else 1.1) if tile else 1.0)
    (kernel,) = searched(packed["expert_down"])
    assert kernel.tile == {}


def test_a_shape_has_a_tile_of_its_own_only_where_it_is_clearly_better(packed, monkeypatch: pytest.MonkeyPatch) -> None:
    special = packed["quantized_linear"].cases[0].call.key

    def seconds(tile: dict[str, int], key: str, regime: str) -> float:
        if key == special and tile == {"prefetch": 8}:
            return 0.3
        return 0.5 if tile.get("prefetch") == 0 else 1.0

    MadeUp(monkeypatch, seconds)
    kernels = {kernel.kernel: kernel.tile for kernel in searched(packed["quantized_linear"])}
    assert kernels.pop(special) == {"prefetch": 8}
    assert all(tile == {"prefetch": 0} for tile in kernels.values())


def test_luck_that_does_not_come_again_is_not_kept(packed, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[Any, ...]] = set()

    def seconds(tile: dict[str, int], key: str, regime: str) -> float:
        first = (*tile.items(), regime) not in seen
        seen.add((*tile.items(), regime))
        return 0.5 if tile and first else 1.0

    MadeUp(monkeypatch, seconds)
    (kernel,) = searched(packed["expert_down"])
    assert kernel.tile == {}


def test_a_tile_that_makes_the_same_kernel_or_one_for_other_neighbours_is_not_tried(packed) -> None:
    target = resolve_target("cpu", "x86-64-avx2")
    tile = replace(build_options(target, PACKED).tile, dot_rows=2, wide_rows=2, prefetch=16)
    found = KernelSearch.__new__(KernelSearch)
    found.cases, found._tile = packed["value_project"], tile
    assert found._is_new((("prefetch", 8),), [()])
    assert not found._is_new((("prefetch", 8),), [(), (("prefetch", 8),)])
    assert not found._is_new((("prefetch", 16),), [()])
    assert not found._is_new((("wide_rows", 4),), [()])  # no tile has so many rows
    found.cases = packed["absorbed_attention"]
    heads = replace(found.cases.arguments[1], heads=24)
    found.cases = replace(found.cases, arguments=(found.cases.arguments[0], heads))
    assert found._is_new((("keys", 30),), [()])
    assert not found._is_new((("accumulators", 8),), [()])  # it takes heads in groups of another size


def test_when_time_is_up_nothing_more_is_tried(packed, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = MadeUp(monkeypatch, lambda tile, key, regime: 0.5 if tile else 1.0)
    (kernel,) = searched(packed["expert_down"], seconds=-1)
    assert kernel.tile == {}
    assert clock.compiled == [{}]


def test_weights_come_from_memory_in_decode_and_experts_in_turn(packed) -> None:
    options = build_options(resolve_target(), PACKED)
    for operator in ("gate_up", "expert_down"):
        case = packed[operator].cases[0]
        func = registry.build(operator, "cpu", *packed[operator].arguments, tile=options.tile)
        lists = inputs.arguments(func, case.call, "decode", case.workloads["decode"], processor(1 << 17))
        assert len(lists) > 1
    names = [str(parameter.name).lower() for parameter in func.params]
    starts = [np.from_dlpack(one[names.index("starts")]) for one in lists]
    assert [list(np.flatnonzero(np.diff(one))) for one in starts] == [[0, 1], [2, 3]]
    pairs = [np.sort(np.from_dlpack(one[names.index("pairs")]).reshape(-1)) for one in lists]
    assert all(list(one) == [0, 1] for one in pairs)


@pytest.mark.parametrize(
    ("quantization", "operator", "tile"),
    [
        (PACKED, "quantized_linear", {"dot_rows": 3, "wide_rows": 1, "prefetch": 0}),
        (PACKED, "expert_gate_up", {"dot_rows": 2, "wide_rows": 1, "prefetch": 8}),
        ("q4f16_1", "linear", {"rows": 4, "columns": 2, "block": 8}),
        (PACKED, "absorbed_attention", {"keys": 18, "split": 60, "accumulators": 10}),
    ],
)
def test_a_tile_changes_how_fast_a_kernel_is_and_not_what_a_product_is(
    quantization: str, operator: str, tile: dict[str, int]
) -> None:
    target = resolve_target()
    found = cases(quantization)[operator]
    default = build_options(target, quantization).tile
    call, workloads = found.cases[0].call, found.cases[0].workloads
    results = []
    for each in (default, replace(default, **tile)):
        func = registry.build(operator, "cpu", *found.arguments, tile=each)
        module = tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), tvm_target(target))
        outputs = []
        for regime, workload in workloads.items():
            (arguments,) = inputs.arguments(func, call, regime, workload, processor())[:1]
            module["main"](*arguments)
            outputs += [np.from_dlpack(tensor).copy() for tensor in arguments[-len(call.outputs) :]]
        results.append(outputs)
    for first, second in zip(*results, strict=True):
        assert np.isfinite(first).all()
        assert first.any()
        if operator != "absorbed_attention":
            assert np.array_equal(first, second)
        elif first.dtype == np.float32:
            np.testing.assert_allclose(first, second, rtol=1e-4)


def test_gains_are_the_mean_of_the_regimes() -> None:
    assert search._gain({"decode": (2.0, 1.0), "prefill": (1.0, 1.0)}) == pytest.approx(math.sqrt(2))
