"""The formats that store each value by itself."""

import ml_dtypes
import numpy as np
import pytest

from mlc_dsv3.quantization import ValueRangeError, dequantize, quantize
from relax_model.layout import layout_of

DTYPES = {"q0f32": np.float32, "q0f16": np.float16, "q0bf16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("name", DTYPES)
def test_each_value_is_the_nearest_of_the_format(name):
    values = (np.random.default_rng(0).standard_normal((7, 33)) * 10).astype(np.float32)
    stored = quantize(layout_of(name), values)["weight"]
    assert stored.dtype == DTYPES[name]
    nearest = values.astype(np.float64).astype(DTYPES[name]).astype(np.float32)
    np.testing.assert_array_equal(dequantize(layout_of(name), {"weight": stored}, 33), nearest)


def test_bfloat16_may_come_back_as_its_bits():
    values = np.array([[1.5, -2.25, 0]], np.float32)
    bits = quantize(layout_of("q0bf16"), values)["weight"].view(np.uint16)
    np.testing.assert_array_equal(dequantize(layout_of("q0bf16"), {"weight": bits}, 3), values)


@pytest.mark.parametrize("value", [65519.0, -65519.0])
def test_what_still_rounds_to_a_finite_float16_is_taken(value):
    stored = quantize(layout_of("q0f16"), np.full((1, 4), value, np.float32))["weight"]
    assert np.all(np.isfinite(stored))


@pytest.mark.parametrize("value", [65520.0, -65520.0, 1e20])
def test_overflow_of_float16_recommends_wider_formats(value):
    values = np.zeros((2, 4), np.float32)
    values[1, 2] = value
    with pytest.raises(ValueRangeError, match="beyond the range of float16; use q0bf16, e4m3f32_1 or q0f32"):
        quantize(layout_of("q0f16"), values)


def test_overflow_of_bfloat16_recommends_float32():
    edge = np.float32(2.0**128 * (1 - 2.0**-9))
    below = np.nextafter(edge, np.float32(0), dtype=np.float32)
    assert np.isfinite(quantize(layout_of("q0bf16"), np.full((1, 1), below))["weight"].astype(np.float32))
    with pytest.raises(ValueRangeError, match="use q0f32"):
        quantize(layout_of("q0bf16"), np.full((1, 1), edge))


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(name, value):
    values = np.zeros((2, 4), np.float32)
    values[0, 3] = value
    with pytest.raises(ValueRangeError, match="NaN or infinity"):
        quantize(layout_of(name), values)
