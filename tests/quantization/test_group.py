"""Group quantization against a plain float64 reading of mlc-llm's formula, and against TVM's evaluation of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc_dsv3.quantization import ValueRangeError, dequantize, keep_e4m3, quantize
from mlc_dsv3.weights.decode import E4M3
from relax_model.layout import layout_of

FORMATS = {"q4f16_1": (4, 7), "q8f16_1": (8, 127)}  # name → bits, the code of zero


def oracle(values, bits, zero, steps_in_half):
    """One value at a time: codes, scales and dequantized values of a matrix."""

    def half(x):
        return float(np.float16(x))

    rows, columns = values.shape
    codes, scales, meant = np.zeros((rows, columns), int), [], np.zeros((rows, columns))
    for row in range(rows):
        scales.append([])
        for start in range(0, columns, 32):
            group = [half(value) for value in values[row, start : start + 32]]
            largest = max(map(abs, group))
            scale = half(largest / zero)
            # mlc-llm's scale where it has one; in 8 bits one that the largest value does not overrun.
            if scale == 0 < largest or (bits == 8 and largest > scale * (zero + 0.5)):
                scale = float(np.nextafter(np.float16(scale), np.float16(1)))
            scales[-1].append(scale)
            for i, weight in enumerate(group):
                if scale == 0:
                    code = zero
                elif steps_in_half:
                    code = round(half(half(weight / scale) + zero))
                else:
                    code = round(weight / scale + zero)
                codes[row, start + i] = min(max(code, 0), 2 * zero)
                meant[row, start + i] = (codes[row, start + i] - zero) * scale
    return codes, np.array(scales), meant


def unpack(words, bits):
    """Codes of packed words by plain integer arithmetic."""
    return np.array([[int(word) >> bits * i & 2**bits - 1 for word in row for i in range(32 // bits)] for row in words])


def matrices():
    """Random matrices of odd shapes, over magnitudes from float16's subnormals to near its end."""

    def build(rows, columns, seed, exponent):
        return (np.random.default_rng(seed).standard_normal((rows, columns)) * 10.0**exponent).astype(np.float32)

    sizes = st.integers(1, 5), st.integers(1, 131), st.integers(0, 2**32), st.integers(-9, 3)
    return st.builds(build, *sizes)


@settings(max_examples=60, deadline=None)
@given(values=matrices())
def test_eight_bit_floats_are_the_nearest_ones(values):
    layout = layout_of("e4m3f32_1")
    found = dequantize(layout, quantize(layout, values), values.shape[1])
    numbers = np.sort(E4M3[np.isfinite(E4M3)].astype(np.float64))
    for row, of_row in zip(values, found, strict=True):
        for start in range(0, len(row), 128):
            group = row[start : start + 128].astype(np.float64)
            scale = float(np.float32(np.abs(group).max()) / np.float32(448))
            nearest = np.abs(group[:, None] / scale - numbers).min(axis=1) * scale
            error = np.abs(group - of_row[start : start + 128])
            # The scale and the quotient are float32.
            assert np.all(error <= nearest + 1e-6 * np.abs(group) + 1e-40)


def test_eight_bit_floats_of_tiny_values_stay_numbers():
    values = np.array([[0, 1e-45, -1e-40] + [0] * 126 + [0, 0, 0]], np.float32)
    found = dequantize(layout_of("e4m3f32_1"), quantize(layout_of("e4m3f32_1"), values), 132)
    assert np.abs(found - values).max() <= np.finfo(np.float32).tiny * 2.0**-9


def test_codes_of_a_checkpoint_are_kept():
    layout, random = layout_of("e4m3f32_1"), np.random.default_rng(3)
    codes = random.integers(0, 127, (5, 200), np.uint8) | random.integers(0, 2, (5, 200), np.uint8) << 7
    scales = random.random((5, 2), np.float32)
    found = dequantize(layout, keep_e4m3(layout, codes, scales), 200)
    assert np.array_equal(found, E4M3[codes] * np.repeat(scales, 128, axis=1)[:, :200])
    codes[3, 7] = 255
    with pytest.raises(ValueRangeError, match="holds NaN or infinity; the checkpoint is damaged"):
        keep_e4m3(layout, codes, scales)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=60, deadline=None)
@given(values=matrices())
def test_codes_and_scales_are_those_of_the_formula(name, values):
    bits, zero = FORMATS[name]
    stored = quantize(layout_of(name), values)
    codes, scales, meant = oracle(values, bits, zero, steps_in_half=bits == 4)
    found = unpack(stored["q_weight"], bits)
    np.testing.assert_array_equal(found[:, : values.shape[1]], codes)
    np.testing.assert_array_equal(stored["q_scale"], scales)
    np.testing.assert_array_equal(found[:, values.shape[1] :], zero)
    np.testing.assert_array_equal(dequantize(layout_of(name), stored, values.shape[1]), meant.astype(np.float32))


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=40, deadline=None)
@given(values=matrices())
def test_stored_arrays_are_as_the_layout_describes_them(name, values):
    stored = quantize(layout_of(name), values)
    described = layout_of(name).buffers(values.shape)
    assert {key: (array.shape, str(array.dtype)) for key, array in stored.items()} == {
        key: (spec.shape, spec.dtype) for key, spec in described.items()
    }


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_does_not_depend_on_the_rows_beside_it(name):
    values = np.random.default_rng(1).standard_normal((300, 1000)).astype(np.float32)
    whole = quantize(layout_of(name), values)
    for start, stop in ((0, 1), (1, 130), (130, 300)):
        part = quantize(layout_of(name), values[start:stop])
        assert all(np.array_equal(part[key], whole[key][start:stop]) for key in whole)


@pytest.mark.parametrize("name", FORMATS)
def test_the_error_is_about_half_a_step_at_most(name):
    values = np.random.default_rng(2).standard_normal((64, 512)).astype(np.float16).astype(np.float32)
    stored = quantize(layout_of(name), values)
    error = np.abs(dequantize(layout_of(name), stored, 512) - values).reshape(64, -1, 32)
    steps = error / (np.abs(values).reshape(64, -1, 32).max(axis=-1, keepdims=True) / FORMATS[name][1])
    assert steps.max() <= (0.51 if name == "q4f16_1" else 0.57)  # the largest value of a group may be clipped a little


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_and_values_below_float16_become_zeros(name):
    values = np.zeros((2, 70), np.float32)
    values[1] = 1e-9
    stored = quantize(layout_of(name), values)
    assert np.all(dequantize(layout_of(name), stored, 70) == 0)
    assert np.all(stored["q_scale"] == 0)
    assert np.all(unpack(stored["q_weight"], FORMATS[name][0]) == FORMATS[name][1])


@pytest.mark.parametrize("name", FORMATS)
def test_multiples_of_float16s_smallest_number_are_kept_where_their_scale_would_underflow(name):
    step = np.float32(2.0**-24)
    values = np.zeros((1, 96), np.float32)
    values[0, :32], values[0, 40], values[0, 64:67] = step, 2 * step, [-3 * step, step, 0]
    found = dequantize(layout_of(name), quantize(layout_of(name), values), 96)
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(("name", "most"), [("q4f16_1", 0.5), ("q8f16_1", 2**-5)])
def test_groups_with_subnormal_scales_keep_their_largest_values(name, most):
    random = np.random.default_rng(5)
    for magnitude in (1e-6, 1e-5, 1e-4):
        values = (random.standard_normal((64, 512)) * magnitude).astype(np.float32)
        error = np.abs(dequantize(layout_of(name), quantize(layout_of(name), values), 512) - values)
        largest = np.abs(values.reshape(64, -1, 32)).max(axis=-1, keepdims=True)
        assert (error.reshape(64, -1, 32) / largest).max() < most


@pytest.mark.parametrize("name", FORMATS)
def test_values_beyond_float16_are_refused(name):
    for value, words in ((7e4, "7000"), (np.inf, "damaged"), (np.nan, "damaged")):
        values = np.zeros((2, 64), np.float32)
        values[1, 40] = -value
        with pytest.raises(ValueRangeError, match=words):
            quantize(layout_of(name), values)


def test_q4f16_1_has_the_codes_that_tvm_computes_from_mlc_llms_formula():
    tvm = pytest.importorskip("tvm")
    from tvm import te, tirx

    rows, columns, dtype = 64, 512, "float16"
    zero, least = tirx.const(7, dtype), tirx.const(0, dtype)
    weight = te.placeholder((rows, columns), dtype, name="weight")
    r = te.reduce_axis((0, 32), name="r")
    largest = te.compute((rows, columns // 32), lambda i, g: te.max(te.abs(weight[i, g * 32 + r]), axis=r))
    scale = te.compute(largest.shape, lambda i, g: largest[i, g] / zero)

    def code(i, j):
        shifted = tirx.round(weight[i, j] / scale[i, j // 32] + zero)
        return tirx.min(tirx.max(shifted, least), zero * 2).astype("uint32")

    codes = te.compute((rows, columns), code)
    built = tvm.compile(tvm.IRModule({"main": te.create_prim_func([weight, scale, codes])}), target="llvm")
    values = (np.random.default_rng(3).standard_normal((rows, columns)) * 0.02).astype(np.float16)
    shapes = ((values.shape, np.uint32), ((rows, columns // 32), np.float16))
    code_out, scale_out = (tvm.runtime.tensor(np.zeros(*shape)) for shape in shapes)
    built(tvm.runtime.tensor(values), scale_out, code_out)
    stored = quantize(layout_of("q4f16_1"), values.astype(np.float32))
    np.testing.assert_array_equal(unpack(stored["q_weight"], 4), code_out.numpy())
    np.testing.assert_array_equal(stored["q_scale"], scale_out.numpy())
