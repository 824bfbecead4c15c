"""Operators of Relax that TVM has kernels of its own for, several to an operator, on a Vulkan device against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from marks import quick_first
from on_device import device, needs_vulkan, target
from tvm import relax
from tvm.s_tir import dlight

pytestmark = needs_vulkan
RANDOM = np.random.default_rng(9)
ROWS = RANDOM.standard_normal((3, 77)).astype(np.float32)
# Distinct, so that an order is the order.
DISTINCT = RANDOM.permutation(1500)


def operator(make: Callable[..., relax.Expr], *inputs: np.ndarray) -> Any:
    """What `make` of Relax gives for `inputs`, as one array or a list of them."""
    builder = relax.BlockBuilder()
    places = [relax.Var(f"x{i}", relax.TensorType(array.shape, str(array.dtype))) for i, array in enumerate(inputs)]
    with builder.function("main", places):
        with builder.dataflow():
            out = builder.emit_output(builder.emit(make(*places)))
        builder.emit_func_output(out)
    with target():
        module = relax.transform.LegalizeOps()(relax.backend.DispatchSortScan()(builder.finalize()))
        rules = (dlight.gpu.Reduction(), dlight.gpu.GeneralReduction(), dlight.gpu.Fallback())
        module = dlight.ApplyDefaultSchedule(*rules)(module)
        machine = relax.VirtualMachine(tvm.compile(module, target()), [device(), tvm.cpu()])
    found = machine["main"](*(tvm.runtime.tensor(array, device()) for array in inputs))
    return found.numpy() if hasattr(found, "numpy") else [each.numpy() for each in found]


@pytest.mark.parametrize("dtype", quick_first(["float32", "float16", "int32", "int64"]))
def test_sorting(dtype: str) -> None:
    x = DISTINCT.astype(dtype)
    assert np.array_equal(operator(lambda a: relax.op.sort(a, 0), x), np.sort(x))
    assert np.array_equal(operator(lambda a: relax.op.argsort(a, 0, True, "int32"), x), np.argsort(-DISTINCT))


def test_the_largest_and_their_places() -> None:
    values, places = operator(lambda a: relax.op.topk(a, 5, 1, "both", True, "int32"), ROWS)
    expected = np.argsort(-ROWS, axis=1)[:, :5]
    assert np.array_equal(places, expected)
    assert np.array_equal(values, np.take_along_axis(ROWS, expected, 1))


@pytest.mark.parametrize("dtype", quick_first(["int32", "int64"]))
def test_running_sums_and_products(dtype: str) -> None:
    x = RANDOM.integers(-50, 50, (3, 300, 2)).astype(dtype)
    assert np.array_equal(operator(lambda a: relax.op.cumsum(a, 1), x), x.cumsum(1))
    before = operator(lambda a: relax.op.cumsum(a, 2, exclusive=True), x)
    assert np.array_equal(before, x.cumsum(2) - x)
    y = RANDOM.uniform(0.9, 1.1, (3, 300)).astype(np.float32)
    np.testing.assert_allclose(operator(lambda a: relax.op.cumprod(a, 1), y), y.cumprod(1), rtol=1e-4)


def test_a_running_sum_that_takes_a_warp_for_granted_is_refused() -> None:
    with pytest.raises(Exception, match="gpu_2d_continuous_cumsum.* needs 32 threads that run in step"):
        operator(lambda a: relax.op.cumsum(a, 1), ROWS)


def test_gathering() -> None:
    where = RANDOM.integers(0, 77, (3, 9))
    found = operator(lambda a, i: relax.op.gather_elements(a, i, 1), ROWS, where)
    assert np.array_equal(found, np.take_along_axis(ROWS, where, 1))
    pairs = np.stack([RANDOM.integers(0, 3, 8), RANDOM.integers(0, 77, 8)], axis=1)
    assert np.array_equal(operator(relax.op.gather_nd, ROWS, pairs), ROWS[tuple(pairs.T)])


def test_scattering() -> None:
    updates = RANDOM.standard_normal((3, 9)).astype(np.float32)
    once = np.stack([RANDOM.permutation(77)[:9] for _ in range(3)])
    expected = ROWS.copy()
    np.put_along_axis(expected, once, updates, 1)
    found = operator(lambda a, i, u: relax.op.scatter_elements(a, i, u, 1), ROWS, once, updates)
    assert np.array_equal(found, expected)

    often = RANDOM.integers(0, 5, (3, 9))
    sums = ROWS.astype(np.float64)
    np.add.at(sums, (np.arange(3)[:, None], often), updates)
    found = operator(lambda a, i, u: relax.op.scatter_elements(a, i, u, 1, "add"), ROWS, often, updates)
    np.testing.assert_allclose(found, sums, atol=1e-5)

    rows = RANDOM.standard_normal((2, 77)).astype(np.float32)
    found = operator(lambda a, i, u: relax.op.scatter_nd(a, i, u, "update"), ROWS, np.array([[2], [0]]), rows)
    assert np.array_equal(found, np.stack([rows[1], ROWS[1], rows[0]]))
