"""Runs one GPU kernel by itself: built from the registry for the first GPU, on NumPy arrays."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import tvm
from on_device import DEVICE, build, device

from relax_model.kernels import registry
from relax_model.kernels.gpu_tiles import GpuTile

TILE = GpuTile(threads=64, lanes=16, rows=4, few=8, heads=4, keys=8, split=32, scratch=2**20)
if DEVICE == "cuda":
    TILE = dataclasses.replace(TILE, each=2, steps=2, warp=32, tensor_cores=1)
if DEVICE == "metal":
    TILE = dataclasses.replace(TILE, each=2, steps=2, warp=32, simdgroup_matrices=1)


@cache
def compiled(operator: str, tile: GpuTile, *arguments: object):
    """The compiled kernel of `operator` for these builder arguments."""
    func = registry.build(operator, "gpu", *arguments, tile=tile)
    return build(func)["main"]


def run_gpu(
    operator: str,
    arguments: tuple,
    inputs: list[np.ndarray],
    *out: tuple[tuple[int, ...], str],
    tile: GpuTile = TILE,
    changed: int | None = None,
) -> list:
    """Outputs, as arrays, of the kernel on `inputs`, and behind them input number `changed`, as it is afterwards."""
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(array), device()) for array in inputs]
    outputs = [tvm.runtime.empty(shape, dtype, device()) for shape, dtype in out]
    compiled(operator, tile, *arguments)(*tensors, *outputs)
    return [tensor.numpy() for tensor in outputs + ([] if changed is None else [tensors[changed]])]
