"""TVM's own operators through the Vulkan backend, with the schedules that TVM gives them, against NumPy."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from marks import quick_first
from on_device import compute, needs_vulkan
from tvm import te, tirx, topi

pytestmark = needs_vulkan
RANDOM = np.random.default_rng(3)
FLOATS = ["float16", "float32"]
INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]


def floats(*shape: int, dtype: str = "float32", low: float = -3, high: float = 3) -> np.ndarray:
    return RANDOM.uniform(low, high, shape).astype(dtype)


def integers(*shape: int, dtype: str) -> np.ndarray:
    info = np.iinfo(dtype)
    return RANDOM.integers(info.min, info.max, shape, dtype, endpoint=True)


def close(found: np.ndarray, expected: np.ndarray, ulps: float = 8) -> None:
    """Equal but for some units in the last place of the largest value near."""
    assert found.dtype == expected.dtype
    eps = float(np.finfo(found.dtype).eps)
    np.testing.assert_allclose(found.astype(np.float64), expected.astype(np.float64), rtol=ulps * eps, atol=ulps * eps)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("operator", ["add", "subtract", "multiply", "divide", "maximum", "minimum"])
def test_arithmetic_with_broadcast(operator: str, dtype: str) -> None:
    a, b = floats(5, 1, 33, dtype=dtype), floats(7, 33, dtype=dtype, low=0.5)
    close(compute(getattr(topi, operator), a, b), getattr(np, operator)(a, b), 2)


@pytest.mark.parametrize("dtype", quick_first(INTEGERS))
@pytest.mark.parametrize(
    "operator", ["add", "subtract", "multiply", "maximum", "minimum", "bitwise_and", "bitwise_xor"]
)
def test_integer_arithmetic_wraps(operator: str, dtype: str) -> None:
    a, b = integers(257, dtype=dtype), integers(257, dtype=dtype)
    assert np.array_equal(compute(getattr(topi, operator), a, b), getattr(np, operator)(a, b))


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint32"])
def test_division_and_shifts(dtype: str) -> None:
    a, b = integers(300, dtype=dtype), integers(300, dtype=dtype)
    b[b == 0] = 3
    b[(b == -1) & (a == np.iinfo(dtype).min)] = 5
    assert np.array_equal(compute(topi.floor_divide, a, b), a // b)
    assert np.array_equal(compute(topi.floor_mod, a, b), a % b)
    towards_zero = compute(lambda x, y: te.compute(x.shape, lambda i: tirx.truncdiv(x[i], y[i])), a, b)
    quotients = [
        abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1) for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]
    assert towards_zero.tolist() == quotients
    by = RANDOM.integers(0, np.iinfo(dtype).bits - 1, 300).astype(dtype)
    assert np.array_equal(compute(topi.left_shift, a, by), a << by)
    assert np.array_equal(compute(topi.right_shift, a, by), a >> by)


@pytest.mark.parametrize("to", quick_first(["float16", "bool", "float32", *INTEGERS]))
@pytest.mark.parametrize("of", ["bool", "float16", "float32", *INTEGERS])
def test_casts(of: str, to: str) -> None:
    if of == "bool":
        x = RANDOM.integers(0, 2, 100).astype(bool)
    elif of.startswith("float"):
        x = floats(100, dtype=of, low=0 if to.startswith("u") else -100, high=100)
    else:
        x = integers(100, dtype=of)
        if to == "float16" and x.itemsize > 1:
            x %= 1000
    found = compute(lambda a: topi.cast(a, to), x)
    expected = x.astype(to)
    close(found, expected, 1) if to.startswith("float") else np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", quick_first(FLOATS))
@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("exp", -10, 10),
        ("log", 0.01, 100),
        ("log2", 0.01, 100),
        ("log10", 0.01, 100),
        ("sqrt", 0, 100),
        ("rsqrt", 0.01, 100),
        ("sin", -9, 9),
        ("cos", -9, 9),
        ("tan", -1.2, 1.2),
        ("tanh", -6, 6),
        ("sinh", -3, 3),
        ("cosh", -3, 3),
        ("asin", -0.9, 0.9),
        ("acos", -0.9, 0.9),
        ("atan", -5, 5),
        ("asinh", -5, 5),
        ("acosh", 1.1, 9),
        ("atanh", -0.9, 0.9),
        ("erf", -3, 3),
        ("sigmoid", -8, 8),
        ("floor", -9, 9),
        ("ceil", -9, 9),
        ("trunc", -9, 9),
        ("round", -9, 9),
        ("abs", -9, 9),
    ],
)
def test_functions(name: str, low: float, high: float, dtype: str) -> None:
    x = floats(1000, dtype=dtype, low=low, high=high)
    known = {
        "rsqrt": lambda v: 1 / np.sqrt(v),
        "erf": np.vectorize(math.erf),
        "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
    }
    names = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "asinh": "arcsinh", "acosh": "arccosh"}
    names |= {"atanh": "arctanh"}
    exact = known.get(name) or getattr(np, names.get(name, name))
    found = compute(getattr(topi, name), x)
    close(found, exact(x.astype(np.float64)).astype(dtype), 60)


def test_large_angles_and_special_values() -> None:
    x = np.array([0.0, -0.0, 1e-30, 1e4, 3e4, -3e4, 20.0, -20.0, 88.0, -88.0], np.float32)
    np.testing.assert_allclose(compute(topi.sin, x), np.sin(x.astype(np.float64)), atol=2e-3)
    np.testing.assert_allclose(compute(topi.tanh, x), np.tanh(x), rtol=1e-6)
    y = np.array([np.inf, -np.inf, np.nan, 1.0, 0.0], np.float32)
    for name in ("isnan", "isinf", "isfinite"):
        assert np.array_equal(compute(getattr(topi, name), y), getattr(np, name)(y)), name


def test_power() -> None:
    a = np.array([2, -2, 0, 3.5, -1.5, 0, 9], np.float32)
    b = np.array([3, 3, 2, -1.5, 2, 0, 0.5], np.float32)
    close(compute(topi.power, a, b), np.power(a, b))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "int64"])
@pytest.mark.parametrize("shape", quick_first([(3, 257, 5), (1,), (7,), (33, 65)], whole=True))
@pytest.mark.parametrize("operator", ["sum", "max", "min"])
def test_reductions_over_odd_sizes(operator: str, shape: tuple[int, ...], dtype: str) -> None:
    x = floats(*shape, dtype=dtype) if dtype.startswith("float") else integers(*shape, dtype="int8").astype(dtype)
    for axis in (None, len(shape) - 1, 0):
        found = compute(lambda a, axis=axis: getattr(topi, operator)(a, axis=axis), x)
        exact = getattr(np, operator)(x.astype(np.float64 if dtype.startswith("float") else np.int64), axis=axis)
        tolerance = {"float32": 1e-5, "float16": 2e-2}.get(dtype, 0)
        np.testing.assert_allclose(found.astype(np.float64), exact, rtol=tolerance, atol=tolerance * 4)


@pytest.mark.parametrize("operator", ["argmax", "argmin"])
def test_arguments_of_extremes(operator: str) -> None:
    x = floats(9, 131)
    assert np.array_equal(compute(lambda a: getattr(topi, operator)(a, axis=1), x), getattr(np, operator)(x, axis=1))


@pytest.mark.parametrize("dtype", FLOATS)
def test_matrix_products_and_softmax(dtype: str) -> None:
    a, b = floats(17, 70, dtype=dtype), floats(70, 23, dtype=dtype)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(
        compute(topi.matmul, a, b),
        exact,
        rtol=2e-2 if dtype == "float16" else 1e-5,
        atol=0.2 if dtype == "float16" else 1e-4,
    )
    x = floats(5, 77, dtype=dtype)
    e = np.exp(x.astype(np.float64))
    np.testing.assert_allclose(
        compute(topi.nn.softmax, x), e / e.sum(1, keepdims=True), rtol=2e-2 if dtype == "float16" else 2e-6
    )


def test_shapes_and_indices() -> None:
    x = floats(6, 10, 4)
    assert np.array_equal(compute(lambda a: topi.transpose(a, (2, 0, 1)), x), x.transpose(2, 0, 1))
    assert np.array_equal(compute(lambda a: topi.reshape(a, (4, 60)), x), x.reshape(4, 60))
    assert np.array_equal(compute(lambda a: topi.flip(a, 1), x), x[:, ::-1])
    assert np.array_equal(compute(lambda a: topi.strided_slice(a, [1, 0, 0], [6, 9, 4], [2, 3, 1]), x), x[1:6:2, 0:9:3])
    assert np.array_equal(compute(lambda a, b: topi.concatenate([a, b], 1), x, x), np.concatenate([x, x], 1))
    where = RANDOM.integers(0, 10, (3, 5)).astype(np.int64)
    assert np.array_equal(compute(lambda a, i: topi.take(a, i, axis=1), x, where), np.take(x, where, axis=1))
    chosen = RANDOM.integers(0, 2, x.shape).astype(bool)
    assert np.array_equal(compute(topi.where, chosen, x, -x), np.where(chosen, x, -x))
    assert np.array_equal(
        compute(lambda a: topi.nn.pad(a, [1, 0, 2], [0, 1, 1]), x), np.pad(x, [(1, 0), (0, 1), (2, 1)])
    )


def test_logic_on_booleans() -> None:
    a, b = RANDOM.integers(0, 2, (2, 99)).astype(bool)
    for name in ("logical_and", "logical_or", "logical_xor"):
        assert np.array_equal(compute(getattr(topi, name), a, b), getattr(np, name)(a, b))
    assert np.array_equal(compute(topi.logical_not, a), ~a)


def test_bfloat16_is_computed_in_float32() -> None:
    x = floats(100).astype(ml_dtypes.bfloat16)
    found = compute(lambda a: topi.add(topi.multiply(a, a), a), x, dtypes=("bfloat16",))
    exact = x.astype(np.float64) ** 2 + x.astype(np.float64)
    np.testing.assert_allclose(found.astype(np.float64), exact, rtol=2e-2, atol=2e-2)
