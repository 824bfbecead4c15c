"""What is counted as lost to a format's smallest number, against what the format does."""

import numpy as np
import pytest

from mlc_dsv3.quantization import Underflow, dequantize, quantize, smallest_number, underflow
from relax_model.layout import QUANTIZATIONS, layout_of

HALF = ("q4f16_1", "q8f16_1", "q0f16", "q4f16_1+vnni16", "q8f16_1+vnni16")


def loss(name, values):
    return underflow(layout_of(name), values, quantize(layout_of(name), values))


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_ordinary_values_lose_nothing(name):
    values = (np.random.default_rng(0).standard_normal((16, 100)) * 0.02).astype(np.float32)
    values[3] = 0
    for each in (values, np.zeros_like(values)):
        assert loss(name, each) == Underflow()


@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize("magnitude", [1e-9, 2e-8, 5e-8, 1e-7])
def test_groups_that_become_zeros_are_counted_and_the_loss_is_the_error(name, magnitude):
    values = (np.random.default_rng(1).standard_normal((16, 96)) * magnitude).astype(np.float32)
    layout = layout_of(name)
    found = loss(name, values)
    meant = dequantize(layout, quantize(layout, values), 96)[:16].astype(np.float64)
    groups = (16, 1, 96) if name == "q0f16" else (16, 3, 32)
    assert found.groups == (~meant.reshape(groups).any(axis=-1)).sum()
    error = ((meant - values.astype(np.float64)) ** 2).sum()
    assert found.lost == pytest.approx(error, rel=0.05)


@pytest.mark.parametrize("name", ["q0bf16", "e4m3f32_1"])
def test_wide_formats_lose_only_what_float32_hardly_holds(name):
    assert loss(name, np.full((2, 128), 1e-30, np.float32)).lost == 0
    assert loss(name, np.full((2, 128), smallest_number(layout_of(name)) * 0.4, np.float32)).groups > 0
