"""Tensors within another one's memory, on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import tvm_ffi

from mlc_dsv3.cuda import driver
from mlc_dsv3.runtime.virtual_machine import load_runtime

load_runtime()
pytestmark = pytest.mark.skipif(driver.not_built() is not None, reason=str(driver.not_built()))
BYTES = np.arange(64, dtype=np.uint8)


def part(offset: int, shape: tuple[int, ...], dtype: str = "int32") -> tvm_ffi.Tensor:
    whole = tvm_ffi.from_dlpack(BYTES)
    return driver.call("part", whole, offset, tvm_ffi.Shape(shape), tvm_ffi.dtype(dtype))


@pytest.mark.parametrize(("offset", "shape"), [(0, (16,)), (8, (2, 7)), (60, (1,)), (64, (0,)), (0, ())])
def test_a_part_is_the_wholes_bytes(offset: int, shape: tuple[int, ...]) -> None:
    count = int(np.prod(shape))
    expected = BYTES[offset : offset + 4 * count].view(np.int32).reshape(shape)
    np.testing.assert_array_equal(np.from_dlpack(part(offset, shape)), expected)


@pytest.mark.parametrize(
    ("offset", "shape"),
    [(0, (17,)), (4, (16,)), (61, (1,)), (68, (0,)), (-4, (1,)), (2**63 - 1, (1,)), (0, (2**62,)), (0, (2**40, 2**40))],
)
def test_a_part_that_is_not_within_is_refused(offset: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="are not within a tensor's 64|has no part of shape"):
        part(offset, shape)
