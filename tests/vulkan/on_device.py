"""Functions built for the first GPU and run there: what TVM lowers, through our backend, on NumPy arrays.

The GPU is Vulkan's, or with MLC_DSV3_TEST_GPU=cuda NVIDIA's through CUDA, or with =metal Apple's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import numpy as np
import pytest
import tvm
from tvm import te
from tvm.s_tir import dlight

import mlc_dsv3.vulkan
from mlc_dsv3.compiler.compile import tvm_target
from mlc_dsv3.compiler.targets import resolve_target
from mlc_dsv3.cuda import driver
from mlc_dsv3.cuda.build import machine_code
from mlc_dsv3.metal.source import completed_source
from mlc_dsv3.runtime.memory import driver_of
from mlc_dsv3.runtime.virtual_machine import load_runtime
from mlc_dsv3.vulkan import native

DEVICE = os.environ.get("MLC_DSV3_TEST_GPU", "vulkan")
load_runtime()
mlc_dsv3.vulkan.register()


def _needs(reason: str | None) -> pytest.MarkDecorator:
    return pytest.mark.skipif(bool(reason), reason=str(reason))


needs_vulkan = _needs(native.missing() if DEVICE == "vulkan" else f"the tests are to run on {DEVICE}")
needs_gpu = _needs(driver_of(DEVICE).missing())


@cache
def device() -> tvm.runtime.Device:
    """The device that tests run on."""
    return tvm.device(DEVICE, 0)


@cache
def target(**changed: object) -> tvm.target.Target:
    """The device as TVM describes it, with some attributes changed."""
    described = tvm_target(resolve_target("metal")) if DEVICE == "metal" else tvm.target.Target.from_device(device())
    attrs = {**{str(name): value for name, value in described.attrs.items()}, "kind": DEVICE, **changed}
    return tvm.target.Target(attrs, host="llvm")


def build(function: tvm.tirx.PrimFunc, **changed: object) -> tvm.runtime.Executable:
    """A scheduled function, compiled; `changed` are attributes of the target."""
    with _code_generation():
        return tvm.tirx.build(function.with_attr("global_symbol", "main"), target=target(**changed))


def _code_generation() -> AbstractContextManager[None]:
    if DEVICE == "cuda":
        return machine_code([driver.architecture()])
    return completed_source() if DEVICE == "metal" else nullcontext()


def run(function: tvm.tirx.PrimFunc, inputs: list[np.ndarray], *out: tuple[tuple[int, ...], str], **changed) -> list:
    """Outputs of a scheduled function; without `out`, all its arguments after the call."""
    module = build(function, **changed)
    tensors = [tvm.runtime.tensor(array, device()) for array in inputs]
    outputs = [tvm.runtime.empty(shape, dtype, device()) for shape, dtype in out]
    module["main"](*tensors, *outputs)
    return [tensor.numpy() for tensor in (outputs or tensors)]


def compute(make: Callable[..., te.Tensor], *inputs: np.ndarray, dtypes: tuple[str, ...] = (), **changed) -> np.ndarray:
    """What an operator of TVM's gives for `inputs`, with the schedule that TVM chooses for a GPU."""
    places = [
        te.placeholder(array.shape, dtypes[i] if dtypes else str(array.dtype), f"x{i}")
        for i, array in enumerate(inputs)
    ]
    out = make(*places)
    function = te.create_prim_func([*places, out])
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    rules = (dlight.gpu.Reduction(), dlight.gpu.GeneralReduction(), dlight.gpu.Fallback())
    with target(**changed):
        module = dlight.ApplyDefaultSchedule(*rules)(module)
    shape, dtype = tuple(int(size) for size in out.shape), str(out.dtype)
    return run(module["main"], list(inputs), (shape, dtype), **changed)[0]
