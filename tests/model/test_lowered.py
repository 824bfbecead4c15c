"""Everything that a compiled step runs is a kernel of the registry: no default schedule slips onto the path."""

from __future__ import annotations

import pytest
from golden.families import CHECKPOINTS
from tvm import ir, relax, tirx

from mlc_dsv3.compiler.compile import build_options
from mlc_dsv3.compiler.pipeline import add_metadata, lower
from mlc_dsv3.compiler.targets import resolve_target
from relax_model.config import parse_config
from relax_model.kernels import registry
from relax_model.model import build_module

# What the Relax virtual machine itself does beside kernels: memory and shapes.
RUNTIME_PREFIXES = ("vm.", "shape_func")


def lowered(name: str):
    """The lowered module of a tiny checkpoint's configuration."""
    config = parse_config(CHECKPOINTS[name].config)
    module = build_module(config, build_options(resolve_target("cpu"), "q4f16_1"))
    return lower(add_metadata(module, "{}"))


def callees(function: relax.Function) -> set[str]:
    """Names of all that a lowered function calls."""
    names: set[str] = set()

    def visit(expression: object) -> None:
        if isinstance(expression, ir.Call):
            target = expression.op
            if isinstance(target, ir.GlobalVar):
                names.add(target.name_hint)
            elif isinstance(target, relax.ExternFunc):
                names.add(str(target.global_symbol))

    relax.analysis.post_order_visit(function, visit)
    return names


@pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v2_lite", "youtu"])
def test_steps_call_kernels_of_the_registry_and_nothing_else(name: str) -> None:
    module = lowered(name)
    kernels = {variable.name_hint: f for variable, f in module.functions.items() if isinstance(f, tirx.PrimFunc)}
    ours = {kernel for kernel, f in kernels.items() if f.attrs and "relax_model.operator" in f.attrs}
    called: set[str] = set()
    for variable, function in module.functions.items():
        if isinstance(function, relax.Function) and variable.name_hint in ("step", "prefill", "draft"):
            called |= callees(function)
    assert not {name for name in called - ours if not name.startswith(RUNTIME_PREFIXES)}
    assert ours <= called
    assert {str(kernels[kernel].attrs["relax_model.operator"]) for kernel in ours} >= {
        "linear",
        "absorbed_attention",
        "expanded_attention",
        "rms_norm",
    }


def test_an_operator_without_a_kernel_for_a_family_is_named() -> None:
    with pytest.raises(KeyError, match="linear has no kernel for 'abacus'"):
        registry.build("linear", "abacus")
