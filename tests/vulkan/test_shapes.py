"""The kernels of real checkpoints' shapes: they compile, within what every device has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tvm
from marks import full

from mlc_dsv3.compiler.compile import build_options, tvm_target
from mlc_dsv3.compiler.targets import read_description, resolve_target
from mlc_dsv3.vulkan import native
from relax_model.config import parse_config
from relax_model.graph import KernelCall
from relax_model.kernels import registry
from relax_model.model import build_module

pytestmark = pytest.mark.skipif(native.not_built() is not None, reason=str(native.not_built()))
SHAPES = {path.stem: path for path in (Path(__file__).parents[1] / "shapes").glob("*.json") if "_mtp" not in path.stem}
# Where threads share memory; products differ in nothing but their loops.
SHARING = ("experts", "absorb_append", "absorbed_values", "expanded_attention")
LEVELS = [level["name"] for level in read_description("vulkan")["level"]]


CASES = [("deepseek_v3", level) for level in LEVELS] + [(name, LEVELS[0]) for name in SHAPES if name != "deepseek_v3"]


@pytest.mark.parametrize(("name", "level"), [full(case) for case in CASES])
def test_kernels_that_share_memory_compile(name: str, level: str) -> None:
    target = resolve_target("vulkan", level)
    options = build_options(target, "q4f16_1")
    calls: dict[object, KernelCall] = {}
    config = parse_config(json.loads(SHAPES[name].read_text()))
    build_module(config, options, lambda _, call: calls.setdefault((call.operator, call.arguments), call))
    sharing = [call for call in calls.values() if call.operator in SHARING]
    assert {call.operator for call in sharing} == set(SHARING)
    for call in sharing:
        kernel = registry.build(call.operator, call.family, *call.arguments, tile=options.tile)
        tvm.tirx.build(kernel.with_attr("global_symbol", "main"), target=tvm_target(target))
