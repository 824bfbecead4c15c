"""A kernel by itself, built for any level of `build/cpu.toml` with that level's tile or another one."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import tvm

from mlc_dsv3.compiler.compile import build_options, tvm_target
from mlc_dsv3.compiler.targets import host_arch, host_features, read_description, resolve_target
from mlc_dsv3.runtime.aligned import aligned_zeros
from relax_model.kernels import registry
from relax_model.kernels.cpu_dot import dot_unit
from relax_model.kernels.cpu_tiles import CpuTile
from relax_model.layout import PackedLayout

LEVELS = tuple(level["name"] for level in read_description("cpu")["level"])
Output = tuple[tuple[int, ...], str]


def level_tile(level: str, **changed: object) -> CpuTile:
    """A level's tile, with some values changed."""
    return dataclasses.replace(build_options(resolve_target("cpu", level), "q0f32").tile, **changed)


@cache
def built(level: str, tile: CpuTile, operator: str, *arguments: object) -> tvm.runtime.Executable:
    """The kernel of `operator` for these builder arguments; its entry is `main`."""
    target = resolve_target("cpu", level)
    func = registry.build(operator, target.family, *arguments, tile=tile)
    return tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), tvm_target(target))


def lacking(level: str) -> list[str]:
    """What this processor lacks of a level: features, or the whole architecture."""
    target = resolve_target("cpu", level)
    if target.host.arch != host_arch():
        return [target.host.arch]
    return sorted(set(target.features) - host_features())


def run_level(
    level: str, tile: CpuTile, operator: str, arguments: tuple, inputs: list[np.ndarray], *out: Output
) -> list[np.ndarray]:
    """Outputs of a kernel that runs on this processor."""
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(array)) for array in inputs]
    outputs = [tvm.runtime.tensor(aligned_zeros(shape, dtype)) for shape, dtype in out]
    built(level, tile, operator, *arguments)["main"](*tensors, *outputs)
    return [tensor.numpy() for tensor in outputs]


def offsets_for(layout: PackedLayout, tile: CpuTile, codes: np.ndarray) -> np.ndarray:
    """The offsets that a tile's dot unit takes beside codes (rows, groups · 32): units differ in what they leave."""
    unit = dot_unit(tile.dot, tile.dot_lanes, layout.base.bits, layout.base.zero)
    return -unit.zero_left * codes.reshape(len(codes), -1, 32).sum(axis=2, dtype=np.int32)
