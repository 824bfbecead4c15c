"""Warps of TIR as Vulkan's subgroups: a kernel that passes values between a warp's threads requires subgroups as wide.

Where a subgroup's threads lie in a block is the driver's choice, so that such a kernel counts its threads by subgroups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Call

from mlc_dsv3.vulkan.errors import Unsupported

_LANE = "gl_SubgroupInvocationID"
# TIR's operator → the lane that a thread reads from, by the operator's argument and the width of a section; as in CUDA.
_SOURCES: dict[str, Callable[[str, int], str]] = {
    "tvm_warp_shuffle": lambda by, width: f"({_LANE} & ~{width - 1}u) | (uint({by}) & {width - 1}u)",
    "tvm_warp_shuffle_up": lambda by, width: f"({_LANE} & {width - 1}u) >= uint({by}) ? {_LANE} - uint({by}) : {_LANE}",
    "tvm_warp_shuffle_down": lambda by, width: (
        f"({_LANE} & {width - 1}u) + uint({by}) < {width}u ? {_LANE} + uint({by}) : {_LANE}"
    ),
    "tvm_warp_shuffle_xor": lambda by, width: (
        f"({_LANE} ^ uint({by})) <= ({_LANE} | {width - 1}u) ? {_LANE} ^ uint({by}) : {_LANE}"
    ),
}


@dataclass(frozen=True)
class Warps:
    """The threads of a block (x, y, z), and how many make a warp; 0 where the kernel asks for none."""

    block: tuple[int, int, int]
    width: int

    def thread(self, axis: str) -> str:
        """A thread's place on an axis of its block, unsigned."""
        if not self.width:
            return f"gl_LocalInvocationID.{axis}"
        x, y, _ = self.block
        number = f"(gl_SubgroupID * {self.width}u + {_LANE})"
        return {"x": f"{number} % {x}u", "y": f"{number} / {x}u % {y}u", "z": f"{number} / {x * y}u"}[axis]

    @property
    def local_size(self) -> tuple[int, int, int]:
        """The block as the shader declares it: with warps in one row, as full subgroups want it."""
        x, y, z = self.block
        return (x * y * z, 1, 1) if self.width else self.block


def is_shuffle(name: str) -> bool:
    """Whether an operator reads another thread's value."""
    return name in _SOURCES


def source_lane(name: str, by: str, width: Any) -> str:
    """The lane that a thread's value comes from."""
    if type(width).__name__ != "IntImm" or int(width.value) & (int(width.value) - 1):
        raise Unsupported(f"a shuffle among {width} threads, which is no power of two")
    return _SOURCES[name](by, int(width.value))


def find_warps(body: Any) -> Warps:
    """The block of a kernel, and its warps."""
    block, widths = [1, 1, 1], set[int]()

    def axis(node: tirx.AttrStmt) -> None:
        if node.attr_key != "thread_extent":
            return
        scope, _, name = node.node.thread_tag.partition(".")
        if scope == "threadIdx" and name in ("x", "y", "z"):
            if type(node.value).__name__ != "IntImm":
                raise Unsupported(f"a block of {node.value} threads, a number that is known only at run time")
            block["xyz".index(name)] = int(node.value.value)

    def call(node: Call) -> None:
        if is_shuffle(getattr(node.op, "name", "").partition(".")[2]):
            widths.add(int(node.args[4].value))

    tvm_ffi.structural_walk(body, [(tirx.AttrStmt, axis), (Call, call)])
    if len(widths) > 1:
        raise Unsupported(f"warps of {' and of '.join(map(str, sorted(widths)))} threads at once")
    width = max(widths, default=0)
    threads = block[0] * block[1] * block[2]
    if width and threads % width:
        raise Unsupported(f"a block of {threads} threads that are no whole warps of {width}")
    return Warps((block[0], block[1], block[2]), width)
