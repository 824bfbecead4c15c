"""`mlc_dsv3 tune` on a Vulkan device: what is tried, what it is tried on, and that `compile` builds the choice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from marks import quick_first
from on_device import needs_vulkan

from mlc_dsv3.cli.main import main
from mlc_dsv3.compiler import resolve_target
from mlc_dsv3.compiler.compile import build_options, tvm_target
from mlc_dsv3.runtime.virtual_machine import load_runtime

load_runtime()  # before tvm, as `tune` does

import tvm  # noqa: E402

from mlc_dsv3.tune import inputs  # noqa: E402
from mlc_dsv3.tune.cases import KernelCases, kernel_cases  # noqa: E402
from mlc_dsv3.tune.device import TuneDevice, tune_device  # noqa: E402
from mlc_dsv3.tune.search import KernelSearch  # noqa: E402
from relax_model.config import parse_config  # noqa: E402
from relax_model.kernels import gpu_choices, registry  # noqa: E402
from relax_model.kernels.gpu_tiles import GpuTile  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from tiny_shape import tiny  # noqa: E402

pytestmark = needs_vulkan
COMMAND = Path(sys.executable).parent / "mlc_dsv3"


@pytest.fixture(scope="module")
def device() -> TuneDevice:
    return replace(tune_device("vulkan"), cold_bytes=1 << 16)


@pytest.fixture(scope="module")
def cases() -> dict[str, KernelCases]:
    """Operator → its kernel's cases of the tiny shape."""
    config = parse_config(json.loads(json.dumps(tiny())))
    return {found.operator: found for found in kernel_cases(config, build_options(resolve_target("vulkan"), "q4f16_1"))}


def test_every_gpu_kernel_has_its_choices() -> None:
    assert set(gpu_choices.CHOICES) == {name for name in registry.operators() if registry.offers(name, "gpu")}


@pytest.mark.parametrize(
    "tile", [{"lanes": 48}, {"lanes": 64, "threads": 64}, {"keys": 24}], ids=lambda tile: " ".join(tile)
)
def test_a_tile_that_no_kernel_can_have_is_not_tried(tile: dict[str, int]) -> None:
    default = dict(resolve_target("vulkan", "cpu").tuned)
    assert gpu_choices.is_possible(default)
    assert not gpu_choices.is_possible({**default, **tile})


@pytest.mark.full
def test_experts_come_from_memory_in_turn(cases: dict[str, KernelCases], device: TuneDevice) -> None:
    """What the logits choose differs from list to list, and the weights are there once."""
    case, tile = cases["experts"].cases[0], build_options(resolve_target("vulkan"), "q4f16_1").tile
    func = registry.build("experts", "gpu", *cases["experts"].arguments, tile=tile)
    names = [str(parameter.name).lower() for parameter in func.params]
    lists = inputs.arguments(func, case.call, "decode", case.workloads["decode"], device)
    chosen = [np.flatnonzero(device.memory.read(one[names.index("logits")])[0]).tolist() for one in lists]
    assert len(lists) > 1
    assert len({expert for each in chosen for expert in each}) == sum(map(len, chosen))
    assert len({id(one[names.index("up_data")]) for one in lists}) == 1


TILES = [
    ("linear", {"lanes": 8, "threads": 128}),
    ("experts", {"lanes": 32, "threads": 64}),
    ("absorbed_values", {"heads": 8, "keys": 4, "split": 64, "lanes": 8}),
    ("absorb_append", {"threads": 256}),
]


@pytest.mark.parametrize(("operator", "tile"), quick_first(TILES), ids=[operator for operator, _ in TILES])
def test_a_tile_changes_how_fast_a_kernel_is_and_not_what_it_computes(
    operator: str, tile: dict[str, int], cases: dict[str, KernelCases], device: TuneDevice
) -> None:
    target = resolve_target("vulkan")
    found, default = cases[operator], build_options(target, "q4f16_1").tile
    assert set(tile) <= set(found.choices)
    case = found.cases[0]
    results = []
    for each in (default, replace(default, **tile)):
        assert isinstance(each, GpuTile)
        func = registry.build(operator, "gpu", *found.arguments, tile=each)
        kernel = tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), tvm_target(target))
        (arguments, *_) = inputs.arguments(func, case.call, "decode", case.workloads["decode"], device)
        kernel["main"](*arguments)
        results.append([device.memory.read(tensor) for tensor in arguments[-len(case.call.outputs) :]])
    for first, second in zip(*results, strict=True):
        assert np.isfinite(first).all()
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.full
def test_a_tile_that_wants_too_much_shared_memory_is_passed_over(
    cases: dict[str, KernelCases], device: TuneDevice
) -> None:
    options = build_options(resolve_target("vulkan"), "q4f16_1")
    search = KernelSearch(cases["absorbed_values"], options.tile, resolve_target("vulkan"), device)
    assert search._candidate((("keys", 256),)) is None
    assert search._candidate((("keys", 4),)) is not None


def test_threads_are_the_cpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny(num_hidden_layers=1)))
    assert main(["tune", str(tmp_path / "config.json"), "--device", "vulkan", "--threads", "2"]) == 2
    assert capsys.readouterr().err == "mlc_dsv3: error: --threads is for the device cpu; leave it out\n"


@pytest.mark.full
def test_a_tuned_record_is_what_compile_uses(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny(num_hidden_layers=1, num_attention_heads=1)))
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path / "data")}

    def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
        command = [str(COMMAND), *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, check=True, cwd=tmp_path, timeout=600
        )

    done = run("tune", config, "--device", "vulkan", "--quantization", "q0f32", "--seconds", "1", "--json")
    record = Path(done.stderr.strip().removeprefix("written to "))
    assert tmp_path in record.parents
    assert record.name == f"vulkan-{resolve_target('vulkan').level}.json"
    content = json.loads(record.read_text())
    first = content["kernels"][0]
    content["kernels"] = [first | {"tile": {"threads": 128}}]
    record.write_text(json.dumps(content))
    compiled = run("compile", config, "--device", "vulkan", "--quantization", "q0f32", "-o", tmp_path / "lib.so")
    assert compiled.stderr == ""
    assert json.loads(run("inspect", tmp_path / "lib.so", "--json").stdout)["tuned"] == [first["kernel"]]
