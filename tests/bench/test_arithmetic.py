"""How fast the processor multiplies: by the dot products of each layout, and in a process of its own."""

from __future__ import annotations

import pytest

from mlc_dsv3.bench.arithmetic import limit_gflops
from mlc_dsv3.bench.host_arithmetic import DotArithmetic
from mlc_dsv3.compiler.targets import resolve_target
from relax_model.layout import layout_of


@pytest.mark.parametrize("quantization", ["q4f16_1+vnni16", "q8f16_1+vnni16"])
def test_products_of_codes_are_faster_than_a_program_without_them_could_be(quantization: str) -> None:
    arithmetic = DotArithmetic(resolve_target("cpu"), layout_of(quantization), 1, steps=256)
    assert 1e9 < arithmetic.best(2) < 1e14


@pytest.mark.full
@pytest.mark.parametrize("quantization", ["q4f16_1+vnni16", "q0f32"])
def test_a_limit_is_measured_in_a_process_of_its_own(quantization: str) -> None:
    assert 1 < limit_gflops(resolve_target("cpu"), quantization, 1) < 1e5
